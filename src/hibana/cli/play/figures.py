"""Colours and empty figures of both views."""

from typing import Any

from bokeh.models import Column, ColumnDataSource, Div
from bokeh.plotting import figure

from hibana.cli.play.fields import WIDTH

__all__ = ["BLUE", "COLOURS", "GREY", "ORANGE", "RED", "Figure", "column", "empty", "message", "new_figure"]

Figure = Any
"""A figure of Bokeh, which is Any to mypy (see pyproject.toml)."""
BLUE, ORANGE, RED, GREY = "#3b7dd8", "#d9731a", "#e0403f", "#888888"
COLOURS = (BLUE, ORANGE, "#2e9a5a", "#a362c6", "#1a9a9a", "#c0508f", "#9a7b1c")
"""Of lines and layers, as in :mod:`hibana.plot`, which would load Matplotlib."""


NARROWEST = 340
"""Width of a figure in pixels below which its column wraps below the others."""


def column(*figures: Any, **settings: Any) -> Column:
    """A column of figures that shares the width of the page with others."""
    return Column(*figures, sizing_mode="stretch_width", min_width=NARROWEST, **settings)


def new_figure(title: str, x: str = "", y: str = "", height: int = 200, **settings: Any) -> Figure:
    """An empty figure that is as wide as its place."""
    new = figure(
        title=title,
        x_axis_label=x or None,
        y_axis_label=y or None,
        height=height,
        sizing_mode="stretch_width",
        min_width=NARROWEST,
        tools="pan,box_zoom,wheel_zoom,save,reset",
        min_border_left=60,
        **settings,
    )
    new.toolbar.autohide = True
    return new


def empty(*columns: str) -> ColumnDataSource:
    """A source without data."""
    return ColumnDataSource({column: [] for column in columns})


def message(name: str, colour: str = GREY) -> Div:
    """A text between the widgets, shown as it is and not as HTML."""
    return Div(text="", name=name, width=WIDTH, render_as_text=True, styles={"color": colour})
