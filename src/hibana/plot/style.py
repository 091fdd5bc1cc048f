"""What all drawings share: colours, figures, the axis of time. Nothing here knows what is drawn."""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_rgb, to_rgba
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from torch import Tensor

__all__ = [
    "BLUE",
    "GREEN",
    "GREY",
    "ORANGE",
    "PALETTE",
    "RED",
    "spread_out",
    "array",
    "background",
    "colours",
    "drawable",
    "foreground",
    "legend_outside",
    "new_axes",
    "new_figure",
    "quiet",
    "ramp",
    "rate_label",
    "size_in_points",
    "times",
    "whole_numbers",
]

BLUE, ORANGE, GREEN, RED, GREY = "#3b7dd8", "#d9731a", "#2e9a5a", "#e0403f", "#888888"
PALETTE = (BLUE, ORANGE, GREEN, "#a362c6", "#1a9a9a", "#c0508f", "#9a7b1c")
"""Each has a contrast of at least 3:1 with white and with black."""

Array = NDArray[Any]


def colours(count: int) -> list[str]:
    """`count` colours of the palette, from its start again where it ends."""
    return [PALETTE[i % len(PALETTE)] for i in range(count)]


def new_figure(width: float, height: float) -> Figure:
    """A figure of `width` by `height` inches that lays itself out."""
    return Figure(figsize=(width, height), layout="constrained")


def new_axes(width: float, height: float) -> Axes:
    """The axes of a new figure."""
    return new_figure(width, height).subplots()


def quiet(axes: Axes) -> Axes:
    """`axes` without the lines that say nothing."""
    axes.spines[["top", "right"]].set_visible(False)
    return axes


def size_in_points(axes: Axes) -> tuple[float, float]:
    """Width and height, as far as they are known before the figure is laid out."""
    _, _, width, height = axes.get_window_extent().bounds
    return width / axes.figure.dpi * 72, height / axes.figure.dpi * 72


def background(axes: Axes) -> tuple[float, float, float]:
    """The colour that shows behind the data, also where axes are transparent."""
    behind, own = to_rgba(axes.figure.get_facecolor()), to_rgba(axes.get_facecolor())
    red, green, blue = (own[3] * o + (1 - own[3]) * b for o, b in zip(own[:3], behind[:3], strict=True))
    return red, green, blue


def foreground(axes: Axes) -> Any:
    """The colour of text."""
    return axes.title.get_color()


def ramp(axes: Axes, colour: Any) -> LinearSegmentedColormap:
    """From the background to `colour`."""
    return LinearSegmentedColormap.from_list("ramp", [background(axes), to_rgb(colour)])


def spread_out(heights: Sequence[float], gap: float) -> list[float]:
    """The nearest to `heights`, which ascend, by least squares, that are at least `gap` apart.

    That is isotonic regression of ``heights[i] - i * gap``: neighbours that descend are pooled.
    """
    pools: list[tuple[float, int]] = []  # mean, count
    for place, height in enumerate(heights):
        mean, count = height - place * gap, 1
        while pools and pools[-1][0] > mean:
            below, more = pools.pop()
            mean, count = (mean * count + below * more) / (count + more), count + more
        pools.append((mean, count))
    means = [mean for mean, count in pools for _ in range(count)]
    return [mean + place * gap for place, mean in enumerate(means)]


def drawable(names: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """`names`, and the properties of a text in a font that has all of their characters.

    If no installed font has them, their numbers instead of the names, and a warning in the log.
    """
    characters = {ord(letter) for name in names for letter in name if not letter.isspace()}
    usual = font_manager.FontProperties()
    missing = characters - FT2Font(font_manager.findfont(usual)).get_charmap().keys()
    if not missing:
        return list(names), {}
    for font in sorted(
        font_manager.fontManager.ttflist, key=lambda font: ("Sans" not in font.name, font.name)
    ):
        if font.style == "normal" and missing <= FT2Font(font.fname).get_charmap().keys():
            return list(names), {"fontfamily": [*usual.get_family(), font.name]}
    logging.getLogger(__name__).warning(
        "figures show the numbers of the classes %s: no installed font has their characters; install one, "
        "such as Noto Sans CJK",
        ", ".join(f"{number} {name}" for number, name in enumerate(names[:10])),
    )
    return [str(number) for number in range(len(names))], {}


def whole_numbers(bins: int = 9) -> MaxNLocator:
    """Ticks at round whole numbers."""
    return MaxNLocator(bins, integer=True, steps=[1, 2, 5, 10])


def legend_outside(axes: Axes, **what: Any) -> None:
    """A legend right of the axes, where it covers nothing."""
    axes.legend(
        frameon=False, loc="upper left", bbox_to_anchor=(1, 1), borderaxespad=0.2, handlelength=1.5, **what
    )


def times(axes: Axes, steps: int, dt: float | None) -> Array:
    """When each of `steps` is, and the axis of time labelled and ticked for it.

    Raises:
        ValueError: if `dt` is not positive.
    """
    if dt is None:
        axes.set_xlabel("Timestep")
        axes.xaxis.set_major_locator(whole_numbers())
        return np.arange(steps)
    if not dt > 0:
        raise ValueError(f"dt must be the positive length of a step in milliseconds, got {dt!r}")
    axes.set_xlabel("Time (ms)")
    return np.arange(steps) * dt


def rate_label(dt: float | None) -> tuple[str, float]:
    """What a firing rate is called, and what spikes per neuron and step are multiplied with for it."""
    return ("Spikes per neuron and step", 1.0) if dt is None else ("Firing rate (Hz)", 1000.0 / dt)


def array(name: str, tensor: Tensor, shapes: Sequence[str]) -> Array:
    """`tensor` for Matplotlib, of one of `shapes`, such as ``"[T, neurons]"``.

    Raises:
        ValueError: if it has another number of dimensions, or is empty.
    """
    allowed = {shape.count(",") + 1 for shape in shapes if "..." not in shape}
    least = min((shape.count(",") for shape in shapes if "..." in shape), default=99)
    if (tensor.ndim not in allowed and tensor.ndim < least) or tensor.numel() == 0:
        raise ValueError(f"{name} must be {' or '.join(shapes)}, not empty, got shape {tuple(tensor.shape)}")
    plain = tensor.detach().cpu()
    found: Array = (plain.float() if plain.is_floating_point() and plain.itemsize < 4 else plain).numpy()
    return found
