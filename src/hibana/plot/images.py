"""Drawings as images: weights and events."""

import math
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.colors import to_rgb
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from hibana.plot.style import (
    BLUE,
    GREY,
    ORANGE,
    array,
    background,
    diverging,
    legend_outside,
    new_axes,
)

__all__ = ["event_frames", "receptive_fields"]


def receptive_fields(
    weights: Tensor,
    shape: tuple[int, int] | None = None,
    axes: Axes | None = None,
    *,
    columns: int | None = None,
    limit: float | None = None,
    label: str = "Weight",
) -> Axes:
    """The weights into each neuron as an image: blue excites, orange inhibits, the background is zero.

    Of a convolution each row is one output channel, each column one input channel.

    Args:
        weights: ``[neurons, inputs]`` of a linear layer, ``[neurons, height, width]``, or
            ``[out, in, height, width]`` of a convolution. Each image is drawn: select the neurons to look at.
        shape: height and width of the inputs of a linear layer; a square if ``None``.
        axes: to draw on.
        columns: images in a row; about as many as rows if ``None``.
        limit: the weight of full colour; the 99.5th percentile of their absolute values if ``None``.
        label: of the scale.

    Raises:
        ValueError: if inputs do not fill `shape`.
    """
    names = ("[neurons, inputs]", "[neurons, height, width]", "[out, in, height, width]")
    values = array("weights", weights, names)
    if values.ndim == 2:
        side = math.isqrt(values.shape[1])
        height, width = (side, side) if shape is None else shape
        if height * width != values.shape[1]:
            raise ValueError(f"shape must hold the {values.shape[1]} inputs, got {(height, width)}")
        values = values.reshape(-1, height, width)
    elif values.ndim == 4:
        columns = values.shape[1] if columns is None else columns
        values = values.reshape(-1, *values.shape[2:])
    count = len(values)
    columns = math.ceil(math.sqrt(count)) if columns is None else columns
    rows = -(-count // columns)
    axes = axes or new_axes(
        max(0.7 * columns + 1.2, 2.8), 0.7 * rows * values.shape[1] / values.shape[2] + 0.4
    )
    limit = float(np.percentile(np.abs(values), 99.5)) if limit is None else limit
    picture = _mosaic(axes, values, columns)
    extend = "both" if np.abs(values).max() > limit else "neither"
    image = axes.imshow(picture, cmap=diverging(axes), vmin=-limit, vmax=limit, interpolation="nearest")
    bar = axes.figure.colorbar(image, ax=axes, label=label, aspect=25, extend=extend, extendfrac=0.03)
    bar.outline.set_visible(False)
    bar.locator = MaxNLocator(5, symmetric=True)
    axes.set(title="Receptive fields", xticks=[], yticks=[])
    if weights.ndim == 4:
        axes.set(xlabel="Input channel", ylabel="Output channel")
    return _frameless(axes)


def event_frames(
    frames: Tensor, axes: Axes | None = None, *, count: int = 6, dt: float | None = None
) -> Axes:
    """Input events as a row of frames, each the sum over its part of the time: on blue, off orange.

    Args:
        frames: events or their counts, ``[T, 2, height, width]`` with the channels on and off, or
            ``[T, height, width]`` of one kind.
        axes: to draw on.
        count: frames, of T / count steps each; at most one per step.
        dt: length of a step in milliseconds.

    Raises:
        ValueError: if there are other than two channels, or `count` is not positive.
    """
    events = array("frames", frames, ("[T, height, width]", "[T, 2, height, width]"))
    if events.ndim == 4 and events.shape[1] != 2:
        raise ValueError(f"frames must have two channels, on and off, got {events.shape[1]}")
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    events = events[:, None] if events.ndim == 3 else events
    steps, channels, height, width = events.shape
    count = min(count, steps)
    edges = np.linspace(0, steps, count + 1).round().astype(int)
    sums = np.add.reduceat(events.astype(np.float64), edges[:-1])
    axes = axes or new_axes(1.7 * count + 0.6, 1.7 * height / width + 0.9)
    opacity = np.clip(sums / (np.percentile(sums[sums > 0], 99) if sums.any() else 1), 0, 1)
    behind = np.asarray(background(axes))
    picture = np.ones((count, height, width, 3)) * behind
    for channel, colour in zip(range(channels), (BLUE, ORANGE), strict=False):
        picture += opacity[:, channel, :, :, None] * (np.asarray(to_rgb(colour)) - behind)
    axes.imshow(_mosaic(axes, picture.clip(0, 1), count), interpolation="nearest")
    stride = width + _gap(height, width)
    spans = [_span(first, last, dt) for first, last in pairwise(edges)]
    axes.set_xticks([stride * n + (width - 1) / 2 for n in range(count)], spans)
    axes.tick_params(length=0)
    axes.set(xlabel="Timesteps" if dt is None else "Time (ms)", yticks=[])
    axes.set_title("Input events")
    if channels == 2:
        patches = [Patch(color=colour, label=name) for colour, name in ((BLUE, "on"), (ORANGE, "off"))]
        legend_outside(axes, handles=patches)
    return _frameless(axes)


def _span(first: int, last: int, dt: float | None) -> str:
    if dt is not None:
        return f"{first * dt:g}–{last * dt:g}"
    return f"{first}" if last == first + 1 else f"{first}–{last - 1}"


def _gap(height: int, width: int) -> int:
    return max(1, round(0.06 * max(height, width)))


def _mosaic(axes: Axes, images: Any, columns: int) -> Any:
    """`images`, ``[N, height, width, ...]``, row by row in one, and a thin frame around each on `axes`."""
    count, height, width = images.shape[:3]
    gap = _gap(height, width)
    rows = -(-count // columns)
    size = (rows * (height + gap) - gap, columns * (width + gap) - gap, *images.shape[3:])
    picture = np.zeros(size) + (0 if images.ndim == 3 else np.asarray(background(axes)))
    corners = [(n // columns * (height + gap), n % columns * (width + gap)) for n in range(count)]
    for image, (top, left) in zip(images, corners, strict=True):
        picture[top : top + height, left : left + width] = image
    frames = [Rectangle((left - 0.5, top - 0.5), width, height) for top, left in corners]
    axes.add_collection(
        PatchCollection(frames, facecolor="none", edgecolor=GREY, linewidth=0.5, clip_on=False)
    )
    return picture


def _frameless(axes: Axes) -> Axes:
    axes.spines[:].set_visible(False)
    axes.grid(visible=False)
    return axes
