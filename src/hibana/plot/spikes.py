"""The raster: one mark per spike."""

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from hibana.plot import style

__all__ = ["raster"]

MOST_VECTORS = 5_000
"""With more marks, they are pixels in a PDF or SVG too."""
HISTOGRAM = 0.22
"""Share of the axes' height that the rates take."""


def raster(
    layers: Mapping[str, Tensor] | Tensor,
    axes: Axes | None = None,
    *,
    sort: Literal["first", "rate"] | None = None,
    rates: bool = False,
    dt: float | None = None,
) -> Axes:
    """Draws a mark for each spike of one sample, layers stacked, the first at the bottom.

    Above some 50,000 spikes the marks cover each other: ``axes.imshow(spikes.T, aspect="auto")`` shows more.

    Args:
        layers: spikes ``[T, ...]`` of each layer by name, or of one population.
        axes: axes to draw on.
        sort: order of the neurons within a layer: ``"first"`` by first spike, silent neurons last; ``"rate"``
            by rate, the most active neuron last; ``None``: the layer's order.
        rates: show the rate of each layer over time in a panel above, ``axes.child_axes[0]``, in at most 100
            bins.
        dt: length of a step in milliseconds.

    Raises:
        ValueError: if there are no layers, their T differ, or `sort` has another value.
    """
    if sort not in (None, "first", "rate"):
        raise ValueError(f"sort must be 'first', 'rate' or None, got {sort!r}")
    by_name = {"": layers} if isinstance(layers, Tensor) else layers
    spikes = {name: style.array(f"spikes {name}".strip(), s, ("[T, ...]",)) for name, s in by_name.items()}
    lengths = {len(s) for s in spikes.values()}
    if len(lengths) != 1:
        raise ValueError(f"layers must have spikes over the same steps, got T of {sorted(lengths) or 'none'}")
    axes = axes or style.new_axes(6, 5 if rates else 4)
    (steps,) = lengths
    times = style.times(axes, steps, dt)
    flat = [np.ascontiguousarray(s.reshape(steps, -1) != 0) for s in spikes.values()]  # [T, neurons]
    positions = [_positions(s, sort) for s in flat]
    rows = sum(s.shape[1] for s in flat)
    is_rasterized = sum(len(step) for step, _ in positions) > MOST_VECTORS
    height = style.size_in_points(axes)[1] * (1 - HISTOGRAM * rates)
    marks = _marks(style.size_in_points(axes)[0] / steps, height / rows, steps)
    first_row = 0
    for s, (step, row), colour in zip(flat, positions, style.colours(len(flat)), strict=True):
        axes.plot(times[step], first_row + row, color=colour, rasterized=is_rasterized, **marks)
        first_row += s.shape[1]
        axes.axhline(first_row - 0.5, color=style.GREY, linewidth=0.5)
    width = dt or 1
    axes.set(xlim=(-0.5 * width, (steps - 0.5) * width), ylim=(-0.5, rows - 0.5), aspect="auto")
    _label_rows(axes, list(spikes), flat, sort, height)
    if rates:
        _draw_rates(axes, dict(zip(spikes, flat, strict=True)), dt)
    return style.without_frame(axes)


def _positions(spikes: Any, sort: str | None) -> tuple[Any, Any]:
    """The step of each spike, ascending, and the row of its neuron in the order of `sort`."""
    step, neuron = spikes.nonzero()
    neurons = spikes.shape[1]
    if sort is None:
        return step, neuron
    if sort == "rate":
        key = np.bincount(neuron, minlength=neurons)
    else:
        key = np.full(neurons, np.iinfo(np.int64).max)
        key[neuron[::-1]] = step[::-1]  # steps ascend, so the first spike is written last
    row = np.empty(neurons, dtype=np.int64)
    row[np.argsort(key, kind="stable")] = np.arange(neurons)
    return step, row[neuron]


def _marks(width: float, height: float, steps: int) -> dict[str, Any]:
    """Arguments of ``Axes.plot`` for marks of `width` and `height` points; dots for at most 50 `steps`."""
    if steps <= 50:
        return {"marker": ".", "linestyle": "", "markersize": float(np.clip(min(2 * height, width), 2, 9))}
    size, edge = float(np.clip(0.9 * height, 1.5, 12)), float(np.clip(0.6 * width, 0.6, 1.5))
    return {"marker": "|", "linestyle": "", "markersize": size, "markeredgewidth": edge}


def _label_rows(axes: Axes, names: list[str], spikes: list[Any], sort: str | None, height: float) -> None:
    """Labels the neurons of one population, or the layers; labels of thin layers are moved apart.

    Args:
        axes: axes of the raster.
        names: names of the layers; one empty name for one population.
        spikes: spikes of the layers, ``[T, neurons]`` each.
        sort: order of the neurons; see :func:`raster`.
        height: height of the raster in points.
    """
    order = {None: "", "first": ", by first spike", "rate": ", by rate"}[sort]
    if names == [""]:
        neurons = spikes[0].shape[1]
        ticks = style.integer_ticks(5).tick_values(0, max(neurons - 1, 1))
        axes.set_yticks([tick for tick in ticks if 0 <= tick < neurons])
        axes.set(title="Spikes", ylabel=f"Neuron{order}")
        return
    tops = np.cumsum([s.shape[1] for s in spikes])
    middles = [top - s.shape[1] / 2 - 0.5 for top, s in zip(tops, spikes, strict=True)]
    line = 1.3 * float(axes.yaxis.label.get_fontsize()) * tops[-1] / height
    has_two_lines = 2 * line * len(names) <= tops[-1]
    separator = "\n" if has_two_lines else " "
    labels = [f"{name}{separator}{s.mean():.1%}" for name, s in zip(names, spikes, strict=True)]
    axes.set_yticks(style.spread_out(middles, line * (1 + has_two_lines)), labels)
    axes.tick_params(axis="y", length=0)
    axes.set(title="Spikes, layer by layer", ylabel=f"Neurons{order}" if sort else "")


def _draw_rates(axes: Axes, spikes: Mapping[str, Any], dt: float | None) -> None:
    """Draws the rate of each layer over time in a panel at the top of `axes`."""
    low, high = axes.get_ylim()
    axes.set_ylim(low, low + (high - low) / (1 - HISTOGRAM))
    axes.spines["left"].set_bounds(low, high)
    axes.yaxis.label.set_y((1 - HISTOGRAM) / 2)
    panel = axes.inset_axes((0, 1 - HISTOGRAM + 0.03, 1, HISTOGRAM - 0.03), sharex=axes)
    steps_per_unit = 1.0 if dt is None else 1000.0 / dt
    for (name, s), colour in zip(spikes.items(), style.colours(len(spikes)), strict=True):
        edges = np.linspace(0, len(s), min(100, len(s)) + 1).round().astype(int)
        counts = np.add.reduceat(s.sum(1), edges[:-1])
        heights = counts / np.diff(edges) / s.shape[1] * steps_per_unit
        panel.stairs(
            heights, (edges - 0.5) * (dt or 1), color=colour, fill=len(spikes) == 1, label=name or None
        )
    panel.set_ylim(bottom=0)
    panel.tick_params(axis="x", labelbottom=False, length=0)
    panel.yaxis.set_major_locator(MaxNLocator(3, steps=[1, 2, 5, 10]))
    label = "Rate\n(per step)" if dt is None else "Rate\n(Hz)"
    has_room = HISTOGRAM * style.size_in_points(axes)[1] > 50
    panel.set_ylabel(label if has_room else "Rate", fontsize="small")
    style.without_frame(panel)
