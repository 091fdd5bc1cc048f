"""Colours, fonts and spaces, in light and dark: figures are painted here, widgets in ``page.html``."""

from collections.abc import Sequence
from typing import Any

from bokeh.models import (
    ColumnDataSource,
    CustomJSTickFormatter,
    Legend,
    LegendItem,
    LinearColorMapper,
    Plot,
)
from bokeh.plotting import figure

__all__ = ["BLUE", "GREEN", "GREY", "LAYERS", "ORANGE", "RED", "WIDGET", "Figure", "Look", "legend"]

Figure = Any
"""A figure of Bokeh, which is Any to mypy (see pyproject.toml)."""

BLUE, ORANGE, GREEN, RED, GREY = "#3b7dd8", "#d9731a", "#2e9a5a", "#e0403f", "#888888"
LAYERS = (BLUE, ORANGE, GREEN, "#a362c6", "#1a9a9a", "#c0508f", "#9a7b1c")
"""As :mod:`hibana.plot` has them; not imported from there, which would load Matplotlib."""

FONT = "system-ui, -apple-system, 'Segoe UI', 'Noto Sans', 'DejaVu Sans', sans-serif"
TEXT, LINES = ("#1d2430", "#e6e9ef"), ("#e3e6eb", "#2d3440")
"""In light, in dark."""
FAINT = ("#5d6675", "#a4adbb")
GREYS = tuple(
    [f"#{level:02x}{level:02x}{level:02x}" for level in levels]
    for levels in (range(255, -1, -1), range(24, 256))
)
"""From the ground of a page to what stands on it: black on white, or white on nearly black."""

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
  --placeholder-color: var(--faint); --surface-background-color: var(--edge);
  --highlight-color: #3b7dd8; --input-focus-border-color: #3b7dd8;
  --input-focus-halo-color: rgba(59, 125, 216, .35); --base-font: inherit; --font-size: 13px;
  --inverted-color: var(--field); --hover-color: var(--edge);
  --active-bg: #3b7dd8; --active-fg: #fff; --inactive-bg: var(--field); --inactive-fg: var(--faint);
}
:host { font-family: inherit; color: var(--text); }
input[type="text"], select, textarea { color: var(--text); background-color: var(--field); }
input[type="text"] { text-align: right; font-variant-numeric: tabular-nums; }
:host(.heading) { font-weight: 700; }
:host(.faint) { color: var(--faint); }
:host(.left) input[type="text"] { text-align: left; }
:host(.wrong) input { border-color: #e0403f; box-shadow: 0 0 0 1px #e0403f; }
select.bk-input:not([multiple]) {
  background-image: linear-gradient(45deg, transparent 50%, var(--faint) 50%),
    linear-gradient(-45deg, transparent 50%, var(--faint) 50%);
  background-position: right 14px center, right 9px center; background-size: 5px 5px;
}
textarea { font-family: ui-monospace, 'DejaVu Sans Mono', monospace; font-size: 12px; white-space: pre; }
.noUi-target { height: 6px; border: none; background: var(--edge); box-shadow: none; border-radius: 3px; }
.noUi-connects { border-radius: 3px; }
.noUi-horizontal .noUi-handle {
  width: 16px; height: 16px; top: -5px; right: -8px; border-radius: 8px; border: 2px solid #3b7dd8;
  background: var(--field); box-shadow: none; cursor: grab;
}
.noUi-handle::before, .noUi-handle::after { display: none; }
.noUi-handle:focus-visible { outline: 3px solid rgba(59, 125, 216, .35); }
.bk-btn { color: var(--text); background: var(--field); border-color: var(--edge); }
.bk-btn:hover { background: var(--edge); }
.bk-btn.bk-btn-primary, .bk-btn.bk-active { color: #fff; background: #3b7dd8; border-color: #3b7dd8; }
"""
"""Of every widget: the page's colours, which it declares as variables."""


class Look:
    """The figures of a page, and how they are painted."""

    def __init__(self) -> None:
        self._figures: list[Figure] = []
        self._mappers: list[LinearColorMapper] = []
        self.dark = False

    def figure(self, title: str, x: str = "", y: str = "", **settings: Any) -> Figure:
        """An empty figure, in the page's fonts, that fills its place."""
        made = figure(
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
            output_backend="canvas",
            **settings,
        )
        made.toolbar.logo = None
        made.toolbar.autohide = True
        made.title.text_font = FONT
        made.title.text_font_size = "13px"
        made.title.text_font_style = "bold"
        for axis in made.axis:
            axis.axis_label_text_font = axis.major_label_text_font = FONT
            axis.axis_label_text_font_style = "normal"
            axis.axis_label_text_font_size = axis.major_label_text_font_size = "12px"
            axis.minor_tick_line_color = None
            axis.axis_label_standoff = 4
            axis.formatter = CustomJSTickFormatter(code=TICK)
        self._figures.append(made)
        self._paint(made)
        return made

    def greys(self) -> LinearColorMapper:
        """What maps the values of a picture to greys."""
        made = LinearColorMapper(GREYS[self.dark])
        self._mappers.append(made)
        return made

    def forget(self, figures: Sequence[Figure]) -> None:
        """These figures are no longer shown."""
        self._figures = [each for each in self._figures if each not in figures]

    def paint(self, dark: bool) -> None:
        """All figures in light or dark."""
        self.dark = dark
        for each in self._figures:
            self._paint(each)
        for mapper in self._mappers:
            mapper.palette = GREYS[dark]

    def _paint(self, each: Figure) -> None:
        text, faint, lines = (pair[self.dark] for pair in (TEXT, FAINT, LINES))
        each.title.text_color = text
        for axis in each.axis:
            axis.axis_label_text_color = axis.major_label_text_color = faint
            axis.axis_line_color = axis.major_tick_line_color = lines
        for grid in each.grid:
            grid.grid_line_color = lines
        for shown in each.legend:
            shown.label_text_color = text


def legend(to: Plot, items: Sequence[tuple[str, list[Any]]]) -> Legend:
    """A row of names above a figure; ``@column`` names each line by that column of its source."""
    entries = [
        LegendItem(label={"field": label[1:]} if label[0] == "@" else label, renderers=renderers)
        for label, renderers in items
    ]
    made = Legend(
        items=entries,
        orientation="horizontal",
        border_line_color=None,
        background_fill_color=None,
        label_text_font=FONT,
        label_text_font_size="12px",
        padding=0,
        margin=2,
        spacing=14,
        glyph_width=18,
        label_standoff=4,
        label_height=14,
        glyph_height=14,
    )
    to.add_layout(made, "above")
    return made


def empty(*columns: str) -> ColumnDataSource:
    """A source without data."""
    return ColumnDataSource({column: [] for column in columns})
