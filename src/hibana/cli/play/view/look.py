"""Colours, fonts and figures: transparent, with text in a grey that is readable on light and dark."""

from collections.abc import Sequence
from typing import Any

from bokeh.models import ColumnDataSource, CustomJSTickFormatter, Div, Legend, LegendItem
from bokeh.plotting import figure

__all__ = ["BLUE", "GREEN", "GREY", "LAYERS", "ORANGE", "RED", "WIDGET", "WIDTH", "Figure", "empty", "legend"]
__all__ += ["message", "new_figure", "text"]

Figure = Any
"""A figure of Bokeh, which is Any to mypy (see pyproject.toml)."""

BLUE, ORANGE, GREEN, RED, GREY = "#3b7dd8", "#d9731a", "#2e9a5a", "#e0403f", "#888888"
LAYERS = (BLUE, ORANGE, GREEN, "#a362c6", "#1a9a9a", "#c0508f", "#9a7b1c")
"""As in :mod:`hibana.plot`, which would load Matplotlib."""
LINES = "#88888855"
WIDTH = 272
"""Of the controls, in pixels."""
FONT = "system-ui, -apple-system, 'Segoe UI', 'Noto Sans', 'DejaVu Sans', sans-serif"
TICK = r"""
const size = Math.abs(tick)
const shown = size >= 1e5 || (size > 0 && size < 1e-4)
  ? tick.toExponential().replace(/(\.\d)\d*/, "$1").replace("e+", "e")
  : String(Number(tick.toFixed(6)))
return shown.replaceAll("-", "−")
"""
WIDGET = """
:host {
  --background-color: var(--field); --color: var(--text); --border-color: var(--edge);
  --placeholder-color: var(--faint); --surface-background-color: var(--edge); --base-font: inherit;
  --font-size: 13px; --inverted-color: var(--field); --hover-color: var(--edge);
  font-family: inherit; color: var(--text);
}
input[type="text"], select, textarea { color: var(--text); background-color: var(--field); }
:host(.heading) { font-weight: 700; }
:host(.faint) { color: var(--faint); }
:host(.trouble) { color: #e0403f; font-weight: 600; white-space: pre-wrap; overflow-wrap: anywhere; }
:host(.wrong) input { border-color: #e0403f; }
textarea { font-family: ui-monospace, 'DejaVu Sans Mono', monospace; font-size: 12px; white-space: pre; }
.noUi-target { background: var(--edge); border-color: var(--edge); box-shadow: none; }
.bk-btn { color: var(--text); background: var(--field); border-color: var(--edge); }
.bk-btn.bk-btn-primary, .bk-btn.bk-active { color: #fff; background: #3b7dd8; border-color: #3b7dd8; }
"""
"""Style of every widget: the page's colours, which ``page.html`` defines as variables."""


def new_figure(title: str, x: str = "", y: str = "", **settings: Any) -> Figure:
    """An empty figure that fills its place."""
    new = figure(
        title=title,
        x_axis_label=x or None,
        y_axis_label=y or None,
        sizing_mode="stretch_both",
        min_width=0,
        min_height=0,
        toolbar_location="above",
        tools="pan,box_zoom,wheel_zoom,save,reset",
        background_fill_color=None,
        border_fill_color=None,
        outline_line_color=None,
        min_border_left=64,
        min_border_right=12,
        **settings,
    )
    new.toolbar.logo, new.toolbar.autohide = None, True
    new.title.update(text_font=FONT, text_font_size="13px", text_color=GREY)
    for axis in new.axis:
        axis.update(
            axis_label_text_font=FONT,
            major_label_text_font=FONT,
            axis_label_text_font_style="normal",
            axis_label_text_font_size="12px",
            major_label_text_font_size="12px",
            axis_label_text_color=GREY,
            major_label_text_color=GREY,
            axis_line_color=LINES,
            major_tick_line_color=LINES,
            minor_tick_line_color=None,
            axis_label_standoff=4,
            formatter=CustomJSTickFormatter(code=TICK),
        )
    new.grid.grid_line_color = LINES
    return new


def legend(to: Figure, items: Sequence[tuple[str, list[Any]]]) -> None:
    """A row of names above a figure; ``@column`` names each line by that column of its source."""
    entries = [
        LegendItem(label={"field": label[1:]} if label[0] == "@" else label, renderers=renderers)
        for label, renderers in items
    ]
    row = Legend(
        items=entries,
        orientation="horizontal",
        border_line_color=None,
        background_fill_color=None,
        label_text_font=FONT,
        label_text_font_size="12px",
        label_text_color=GREY,
        padding=0,
        margin=2,
    )
    to.add_layout(row, "above")


def empty(*columns: str) -> ColumnDataSource:
    """A source without data."""
    return ColumnDataSource({column: [] for column in columns})


def text(content: str, *classes: str, width: int = WIDTH, **settings: Any) -> Div:
    """A text between the controls, such as a ``heading``."""
    return Div(
        text=content,
        render_as_text=True,
        width=width,
        css_classes=list(classes),
        stylesheets=[WIDGET],
        **{"margin": (6, 0, 6, 0), **settings},
    )


def message(box: Div, content: str) -> None:
    """Show `content` in `box`, or hide it if there is none."""
    box.update(text=content, visible=bool(content))
