"""Colours and empty figures of both views."""

from typing import Any

from bokeh.models import Column, ColumnDataSource, Div
from bokeh.plotting import figure

from hibana.cli.play.fields import WIDTH

Figure = Any
"""A figure of Bokeh, which mypy treats as Any (see pyproject.toml)."""
BLUE, ORANGE, RED, GREY = "#3b7dd8", "#d9731a", "#e0403f", "#888888"
COLOURS = (BLUE, ORANGE, "#2e9a5a", "#a362c6", "#1a9a9a", "#c0508f", "#9a7b1c")
"""Colours of lines and layers, as in :mod:`hibana.plot`, which would import Matplotlib."""
MIN_WIDTH = 340
"""Width of a figure in pixels below which its column wraps below the others."""


def column(*figures: Any, **settings: Any) -> Column:
    """Returns a column of figures that shares the width of the page with other columns."""
    return Column(*figures, sizing_mode="stretch_width", min_width=MIN_WIDTH, **settings)


def new_figure(title: str, x: str = "", y: str = "", height: int = 200, **settings: Any) -> Figure:
    """Returns an empty figure as wide as its column.

    Args:
        title: title of the figure.
        x: label of the horizontal axis.
        y: label of the vertical axis.
        height: height in pixels.
        settings: other options of ``bokeh.plotting.figure``.
    """
    new = figure(
        title=title,
        x_axis_label=x or None,
        y_axis_label=y or None,
        height=height,
        sizing_mode="stretch_width",
        min_width=MIN_WIDTH,
        tools="pan,box_zoom,wheel_zoom,save,reset",
        min_border_left=60,
        **settings,
    )
    new.toolbar.autohide = True
    return new


def empty(*columns: str) -> ColumnDataSource:
    """Returns a data source with empty columns."""
    return ColumnDataSource({column: [] for column in columns})


def message(name: str, colour: str = GREY) -> Div:
    """Returns an empty text widget, which shows its text literally and not as HTML."""
    return Div(text="", name=name, width=WIDTH, render_as_text=True, styles={"color": colour})
