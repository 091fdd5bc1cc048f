"""Spikes in motion: a raster, or a sample on its way through a network, as GIF or MP4."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib.animation import AbstractMovieWriter, FFMpegWriter, PillowWriter
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from hibana.plot.outputs import answered
from hibana.plot.spikes import raster
from hibana.plot.style import array, background, colours, drawable, foreground, new_figure, ramp

__all__ = ["animate", "scene"]

AFTERGLOW = 0.6
"""What is left of a neuron's light after a step without a spike."""

Update = Callable[[int], None]


def animate(
    layers: Mapping[str, Tensor],
    path: str | Path,
    *,
    sample: Tensor | None = None,
    outputs: Tensor | None = None,
    names: Sequence[str] | None = None,
    label: int | None = None,
    sort: Literal["first", "rate"] | None = None,
    dt: float | None = None,
    every: int = 1,
    fps: int = 8,
    dpi: float = 100,
) -> Path:
    """Writes the spikes of one sample as they happen; with `sample`, its way through the network too.

    Alone, the raster fills up from left to right. With `sample` there is above it the input, then each
    layer as a block of its neurons, which light up at a spike and fade, then the outputs as bars.

    Args:
        layers: spikes ``[T, ...]`` by layer.
        path: ends in ``.gif`` (written by Pillow), or ``.mp4`` (by ffmpeg, which must be installed).
        sample: what the network was shown, ``[height, width]``, or over time ``[T, height, width]``; channels
            ``[T, channels, height, width]`` are summed.
        outputs: of the output neurons, ``[T, classes]``: potentials or spikes so far.
        names: of the classes.
        label: the right class.
        sort: as in :func:`raster`.
        dt: length of a step in milliseconds.
        every: steps from one frame to the next.
        fps: frames per second.
        dpi: pixels per inch; the raster is 6 inches wide, the network 9.

    Returns:
        `path`, with all T steps shown and the last frame held for a second.

    Raises:
        ValueError: if `path` ends otherwise, or shapes do not fit.
        RuntimeError: if ffmpeg is needed and not found.
    """
    path = Path(path)
    writer = _writer(path, fps)
    if every < 1:
        raise ValueError(f"every must be at least 1, got {every}")
    figure, show, steps = scene(layers, sample, outputs, names=names, label=label, sort=sort, dt=dt)
    with writer.saving(figure, str(path), dpi):
        for step in [*range(0, steps - 1, every), steps - 1]:
            show(step)
            writer.grab_frame()
        for _ in range(fps):
            writer.grab_frame()
    return path


def scene(
    layers: Mapping[str, Tensor],
    sample: Tensor | None = None,
    outputs: Tensor | None = None,
    *,
    names: Sequence[str] | None = None,
    label: int | None = None,
    sort: Literal["first", "rate"] | None = None,
    dt: float | None = None,
) -> tuple[Figure, Update, int]:
    """The figure that moves, what shows a step in it, and how many steps there are."""
    spikes = {name: array(f"spikes {name}", s, ("[T, ...]",)) for name, s in layers.items()}
    lengths = {len(layer) for layer in spikes.values()}
    if len(lengths) != 1:
        raise ValueError(f"layers must have spikes over the same steps, got T of {sorted(lengths) or 'none'}")
    (steps,) = lengths
    if sample is None and outputs is None:
        figure, updates = new_figure(6, 4), list[Update]()
        below = figure.subplots()
    else:
        figure = new_figure(9, 5.4)
        updates, below = _network(figure, spikes, sample, outputs, names, label)
    updates.append(_filling(raster(layers, below, sort=sort, dt=dt), dt))
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # it has laid out: what moves must not move the panels

    def show(step: int) -> None:
        for update in updates:
            update(step)

    return figure, show, steps


def _writer(path: Path, fps: int) -> AbstractMovieWriter:
    if path.suffix == ".gif":
        return PillowWriter(fps=fps)
    if path.suffix != ".mp4":
        raise ValueError(f"path must end in .gif or .mp4, got {path.name!r}")
    if not FFMpegWriter.isAvailable():
        raise RuntimeError(f"{path.name} needs ffmpeg, which was not found; install it, or write a .gif")
    return FFMpegWriter(fps=fps)


def _network(
    figure: Figure,
    spikes: Mapping[str, Any],
    sample: Tensor | None,
    outputs: Tensor | None,
    names: Sequence[str] | None,
    label: int | None,
) -> tuple[list[Update], Axes]:
    """The panels above, each with what changes it, and the axes below for the raster."""
    steps = len(next(iter(spikes.values())))
    count = (sample is not None) + len(spikes) + (outputs is not None)
    grid = figure.add_gridspec(2, count, height_ratios=[1, 1.3])
    panels = iter([figure.add_subplot(grid[0, column]) for column in range(count)])
    updates = []
    if sample is not None:
        updates.append(_showing(next(panels), sample, steps, label, names))
    for (name, layer), colour in zip(spikes.items(), colours(len(spikes)), strict=True):
        updates.append(_lighting_up(next(panels), name, layer.reshape(len(layer), -1), colour))
    if outputs is not None:
        updates.append(_answering(next(panels), outputs, steps, names, label))
    return updates, figure.add_subplot(grid[1, :])


def _filling(axes: Axes, dt: float | None) -> Update:
    """Covers what is still to come of a raster, and marks now."""
    (start, end), (low, high) = axes.get_xlim(), axes.get_ylim()
    cover = Rectangle((start, low), end - start, high - low, color=background(axes), zorder=4)
    axes.add_patch(cover)
    line = axes.axvline(start, color=foreground(axes), linewidth=0.8, zorder=5)

    def update(step: int) -> None:
        now = (step + 0.5) * (dt or 1)
        cover.set_bounds(now, low, end - now, high - low)
        line.set_xdata([now, now])

    return update


def _showing(
    axes: Axes, sample: Tensor, steps: int, label: int | None, names: Sequence[str] | None
) -> Update:
    shapes = ("[height, width]", "[T, height, width]", "[T, channels, height, width]")
    values = array("sample", sample, shapes)
    values = values[None] if values.ndim == 2 else values.sum(1) if values.ndim == 4 else values
    if len(values) not in (1, steps):
        raise ValueError(f"sample must have the {steps} steps of the layers, got {len(values)}")
    image = axes.imshow(values[0], cmap=ramp(axes, foreground(axes)), vmin=0, vmax=values.max() or 1)
    shown, font = ([], {}) if names is None else drawable(names)
    axes.set(xticks=[], yticks=[], anchor="N")
    axes.set_title("Input" if label is None else f"Input: {label if names is None else shown[label]}", **font)

    def update(step: int) -> None:
        image.set_data(values[step if len(values) > 1 else 0])

    return update


def _lighting_up(axes: Axes, name: str, spikes: Any, colour: str) -> Update:
    """A layer as a block of squares."""
    neurons = spikes.shape[1]
    columns = math.ceil(math.sqrt(neurons))
    block = np.full((-(-neurons // columns), columns), np.nan)
    image = axes.imshow(block, cmap=ramp(axes, colour), vmin=0, vmax=1, interpolation="nearest")
    axes.set(title=name, xticks=[], yticks=[], anchor="N")
    glow = np.empty(spikes.shape, dtype=np.float32)
    left = np.zeros(neurons, dtype=np.float32)
    for step, fired in enumerate(spikes != 0):
        left = glow[step] = np.where(fired, 1, AFTERGLOW * left)

    def update(step: int) -> None:
        block.flat[:neurons] = 0.08 + 0.92 * glow[step]
        image.set_data(block)

    return update


def _answering(
    axes: Axes, outputs: Tensor, steps: int, names: Sequence[str] | None, label: int | None
) -> Update:
    """Each class's mean output so far, as a bar."""
    values = array("outputs", outputs, ("[T, classes]",))
    if len(values) != steps:
        raise ValueError(f"outputs must have the {steps} steps of the layers, got {len(values)}")
    classes = values.shape[1]
    means = np.cumsum(values, 0) / np.arange(1, steps + 1)[:, None]
    bars = axes.barh(range(classes), means[0])
    low, high = min(0.0, float(means.min())), max(0.0, float(means.max()))
    room = 0.05 * (high - low) or 1
    axes.set(xlim=(low - room * (low < 0), high + room), title="Output, mean so far", xticks=[])
    shown, font = drawable([str(n) for n in range(classes)] if names is None else names)
    axes.set_yticks(range(classes), shown, **font)
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "bottom"]].set_visible(False)

    def update(step: int) -> None:
        _, colour = answered(means[step], label)
        for bar, width, filled in zip(bars, means[step], colour, strict=True):
            bar.set_width(width)
            bar.set_facecolor(filled)

    return update
