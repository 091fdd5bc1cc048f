"""The raster: a mark for each spike."""

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from hibana.plot.style import (
    GREY,
    array,
    colours,
    integer_ticks,
    new_axes,
    size_in_points,
    spread_out,
    times,
    without_frame,
)

__all__ = ["raster"]

VECTORS = 5_000
"""Number of marks above which they are pixels in a PDF or SVG too."""
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
    """Who spiked when: a mark for each spike of one sample, layers stacked, the first at the bottom.

    Above some 50,000 spikes the marks cover each other: ``axes.imshow(spikes.T, aspect="auto")`` shows more.

    Args:
        layers: spikes ``[T, ...]`` of each layer by name, or of one population.
        axes: to draw on.
        sort: neurons within a layer ``"first"`` by their first spike, the silent last, or by ``"rate"``, the
            busiest last; in their own order if ``None``.
        rates: show the rate of each layer over time in a panel above, ``axes.child_axes[0]``, in at most 100
            bins.
        dt: length of a step in milliseconds.

    Raises:
        ValueError: if there are no layers, their T differ, or `sort` is none of these.
    """
    if sort not in (None, "first", "rate"):
        raise ValueError(f"sort must be 'first', 'rate' or None, got {sort!r}")
    named = {"": layers} if isinstance(layers, Tensor) else layers
    spikes = {name: array(f"spikes {name}".strip(), s, ("[T, ...]",)) for name, s in named.items()}
    lengths = {len(s) for s in spikes.values()}
    if len(lengths) != 1:
        raise ValueError(f"layers must have spikes over the same steps, got T of {sorted(lengths) or 'none'}")
    axes = axes or new_axes(6, 5 if rates else 4)
    (steps,) = lengths
    now = times(axes, steps, dt)
    flat = [np.ascontiguousarray(s.reshape(steps, -1) != 0) for s in spikes.values()]
    where = [_sorted(s, sort) for s in flat]
    total, below = sum(s.shape[1] for s in flat), 0
    many = sum(len(time) for time, _ in where)
    for s, (time, neuron), colour in zip(flat, where, colours(len(flat)), strict=True):
        neurons = s.shape[1]
        marks = _marks(axes, steps, total, rates)
        axes.plot(now[time], below + neuron, color=colour, rasterized=many > VECTORS, **marks)
        below += neurons
        axes.axhline(below - 0.5, color=GREY, linewidth=0.5)
    step = dt or 1
    axes.set(xlim=(-0.5 * step, (steps - 0.5) * step), ylim=(-0.5, below - 0.5), aspect="auto")
    _name_rows(axes, list(spikes), flat, sort, size_in_points(axes)[1] * (1 - HISTOGRAM * rates))
    if rates:
        _rates_above(axes, dict(zip(spikes, flat, strict=True)), dt)
    return without_frame(axes)


def _sorted(spikes: Any, sort: str | None) -> tuple[Any, Any]:
    """Step of each spike, ascending, and row of its neuron in the order of `sort`."""
    time, neuron = spikes.nonzero()
    neurons = spikes.shape[1]
    if sort is None:
        return time, neuron
    if sort == "rate":
        key = np.bincount(neuron, minlength=neurons)
    else:
        key = np.full(neurons, np.iinfo(np.int64).max)
        key[neuron[::-1]] = time[::-1]  # time ascends, so the first spike is written last
    place = np.empty(neurons, dtype=np.int64)
    place[np.argsort(key, kind="stable")] = np.arange(neurons)
    return time, place[neuron]


def _marks(axes: Axes, steps: int, rows: int, rates: bool) -> dict[str, Any]:
    """Marks that fill the room of a step and a neuron."""
    width, height = size_in_points(axes)
    row, column = height * (1 - HISTOGRAM * rates) / rows, width / steps
    if steps <= 50:
        return {"marker": ".", "linestyle": "", "markersize": float(np.clip(min(2 * row, column), 2, 9))}
    return {
        "marker": "|",
        "linestyle": "",
        "markersize": float(np.clip(0.9 * row, 1.5, 12)),
        "markeredgewidth": float(np.clip(0.6 * column, 0.6, 1.5)),
    }


def _name_rows(axes: Axes, names: list[str], spikes: list[Any], sort: str | None, height: float) -> None:
    """Labels the rows: neurons of one population, or names of layers, moved apart if layers are thin."""
    order = {None: "", "first": ", by first spike", "rate": ", by rate"}[sort]
    if names == [""]:
        neurons = spikes[0].shape[1]
        ticks = integer_ticks(5).tick_values(0, max(neurons - 1, 1))
        axes.set_yticks([tick for tick in ticks if 0 <= tick < neurons])
        axes.set(title="Spikes", ylabel=f"Neuron{order}")
        return
    tops = np.cumsum([s.shape[1] for s in spikes])
    middles = [top - s.shape[1] / 2 - 0.5 for top, s in zip(tops, spikes, strict=True)]
    line = 1.3 * float(axes.yaxis.label.get_fontsize()) * tops[-1] / height
    lines = 2 if 2 * line * len(names) <= tops[-1] else 1
    between = " " if lines == 1 else "\n"
    labels = [f"{name}{between}{s.mean():.1%}" for name, s in zip(names, spikes, strict=True)]
    axes.set_yticks(spread_out(middles, lines * line), labels)
    axes.tick_params(axis="y", length=0)
    axes.set(title="Spikes, layer by layer", ylabel=f"Neurons{order}" if sort else "")


def _rates_above(axes: Axes, spikes: Mapping[str, Any], dt: float | None) -> None:
    """Draws the layers' rates at the top of `axes`."""
    low, high = axes.get_ylim()
    axes.set_ylim(low, low + (high - low) / (1 - HISTOGRAM))
    axes.spines["left"].set_bounds(low, high)
    axes.yaxis.label.set_y((1 - HISTOGRAM) / 2)
    above = axes.inset_axes((0, 1 - HISTOGRAM + 0.03, 1, HISTOGRAM - 0.03), sharex=axes)
    per_second = 1.0 if dt is None else 1000.0 / dt
    for (name, s), colour in zip(spikes.items(), colours(len(spikes)), strict=True):
        bins = min(100, len(s))
        edges = np.linspace(0, len(s), bins + 1).round().astype(int)
        counts = np.add.reduceat(s.sum(1), edges[:-1])
        heights = counts / np.diff(edges) / s.shape[1] * per_second
        at = (edges - 0.5) * (dt or 1)
        above.stairs(heights, at, color=colour, fill=len(spikes) == 1, label=name or None)
    above.set_ylim(bottom=0)
    above.tick_params(axis="x", labelbottom=False, length=0)
    above.yaxis.set_major_locator(MaxNLocator(3, steps=[1, 2, 5, 10]))
    unit_named = "Rate\n(per step)" if dt is None else "Rate\n(Hz)"
    room = HISTOGRAM * size_in_points(axes)[1]
    above.set_ylabel(unit_named if room > 50 else "Rate", fontsize="small")
    without_frame(above)
