"""Colours, figures, fonts, the time axis and argument checks of all drawings."""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from torch import Tensor

BLUE, ORANGE, GREEN, RED, GREY = "#3b7dd8", "#d9731a", "#2e9a5a", "#e0403f", "#888888"
PALETTE = (BLUE, ORANGE, GREEN, "#a362c6", "#1a9a9a", "#c0508f", "#9a7b1c")
"""Each colour has a contrast of at least 3:1 with white and with black."""
JAPANESE = ("JP", "Hiragino", "Yu", "Meiryo", "IPAexGothic", "IPAGothic", "TakaoGothic")
"""Words in the names of fonts with the Japanese forms of Chinese characters."""

Array = NDArray[Any]


def colours(count: int) -> list[str]:
    """The first `count` colours of the palette, which repeats."""
    return [PALETTE[i % len(PALETTE)] for i in range(count)]


def new_figure(width: float, height: float) -> Figure:
    """A figure of `width` by `height` inches with automatic layout."""
    return Figure(figsize=(width, height), layout="constrained")


def new_axes(width: float, height: float) -> Axes:
    """The axes of a new figure."""
    return new_figure(width, height).subplots()


def without_frame(axes: Axes) -> Axes:
    """Hides the top and the right spine of `axes`, and returns `axes`."""
    axes.spines[["top", "right"]].set_visible(False)
    return axes


def size_in_points(axes: Axes) -> tuple[float, float]:
    """Width and height of `axes` before the figure's layout is computed."""
    _, _, width, height = axes.get_window_extent().bounds
    return width / axes.figure.dpi * 72, height / axes.figure.dpi * 72


def spread_out(heights: Sequence[float], gap: float) -> list[float]:
    """Label positions, at least `gap` apart, with the least squared distance from the ascending `heights`.

    This is isotonic regression of ``heights[i] - i * gap``.
    """
    from sklearn.isotonic import isotonic_regression

    offsets = np.arange(len(heights)) * gap
    positions: list[float] = (isotonic_regression(np.array(heights) - offsets) + offsets).tolist()
    return positions


def drawable(
    names: Sequence[str], replacements: Sequence[str] | None = None
) -> tuple[list[str], dict[str, Any]]:
    """`names`, and text properties that select a font with all of their characters.

    If no installed font has all characters, returns the `replacements` instead of names, by default their
    indices, and logs a warning.
    """
    characters = {ord(letter) for name in names for letter in name if not letter.isspace()}
    default = font_manager.FontProperties()
    missing = characters - FT2Font(font_manager.findfont(default)).get_charmap().keys()
    if not missing:
        return list(names), {}
    is_japanese = any(0x3041 <= code <= 0x30FF or 0x4E00 <= code <= 0x9FFF for code in missing)
    preferred = JAPANESE if is_japanese else ()
    fonts = [
        font for font in font_manager.fontManager.ttflist if "Last Resort" not in font.name
    ]  # draws boxes
    for font in sorted(
        fonts, key=lambda f: (not {*f.name.split()} & {*preferred}, "Sans" not in f.name, f.name)
    ):
        if font.style == "normal" and missing <= FT2Font(font.fname).get_charmap().keys():
            return list(names), {"fontfamily": [*default.get_family(), font.name]}
    shown = list(replacements or map(str, range(len(names))))
    logging.getLogger(__name__).warning(
        "figures show replacements of the names %s: no installed font has their characters; install one, "
        "such as Noto Sans CJK",
        ", ".join(f"{name} ({short})" for name, short in zip(names[:10], shown[:10], strict=True)),
    )
    return shown, {}


def integer_ticks(bins: int = 9) -> MaxNLocator:
    """Ticks at about `bins` round integers."""
    return MaxNLocator(bins, integer=True, steps=[1, 2, 5, 10])


def times(axes: Axes, steps: int, dt: float | None) -> Array:
    """Time of each step; also labels the time axis of `axes` and sets its ticks.

    Raises ValueError if `dt` is not positive.
    """
    if dt is None:
        axes.set_xlabel("Timestep")
        axes.xaxis.set_major_locator(integer_ticks())
        return np.arange(steps)
    if not dt > 0:
        raise ValueError(f"dt must be the positive length of a step in milliseconds, got {dt!r}")
    axes.set_xlabel("Time (ms)")
    return np.arange(steps) * dt


def array(name: str, tensor: Tensor, shape: str) -> Array:
    """`tensor`, called `name` in messages, as an array for Matplotlib.

    Raises ValueError if `tensor` is empty, or its number of dimensions is not that of `shape`, such as
    ``"[T, neurons]"`` or ``"[T, ...]"``.
    """
    axes = shape.count(",")  # commas; "..." stands for any number of axes
    if tensor.numel() == 0 or (tensor.ndim < axes if "..." in shape else tensor.ndim != axes + 1):
        raise ValueError(f"{name} must be {shape}, not empty, got shape {tuple(tensor.shape)}")
    plain = tensor.detach().cpu()
    values: Array = (plain.float() if plain.is_floating_point() and plain.itemsize < 4 else plain).numpy()
    return values
