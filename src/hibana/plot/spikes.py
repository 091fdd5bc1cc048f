"""Spikes of populations: a mark per spike, rates over time, and statistics of the activity."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from hibana.nn.spike_trains import SpikeTrains
from hibana.plot import style

Spikes = Tensor | SpikeTrains
"""Spikes of a population: a tensor ``[T, ...]`` of 0 and 1, or events."""
MOST_VECTORS = 5_000
"""With more marks, they are pixels in a PDF or SVG too."""
MEASURES = {
    "rate": "Rate (Hz)",
    "irregularity": "CV of inter-spike intervals",
    "correlation": "Correlation of spike counts",
    "synchrony": "Variance / mean of spike counts",
}
"""Label of each panel of :func:`activity`."""
HISTOGRAM = 0.22
"""Share of the axes' height that the rates take."""


def raster(
    layers: Mapping[str, Spikes] | Spikes,
    axes: Axes | None = None,
    *,
    sort: Literal["first", "rate"] | None = None,
    rates: bool = False,
    dt: float | None = None,
) -> Axes:
    """Draws a mark for each spike of one sample, layers stacked, the first at the bottom.

    Above some 50,000 spikes the marks cover each other: draw fewer steps, by ``trains.between(start, stop)``,
    or ``axes.imshow(spikes.T, aspect="auto")`` of dense spikes.

    Args:
        layers: the spikes of each layer by name, or of one population: ``[T, ...]`` or
            :class:`hibana.SpikeTrains`.
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
    spikes = _spike_trains(layers)
    axes = axes or style.new_axes(6, 5 if rates else 4)
    steps = next(iter(spikes.values())).shape[0]
    times = style.times(axes, steps, dt)
    positions = [_positions(s, sort) for s in spikes.values()]
    rows = sum(s.shape[1] for s in spikes.values())
    is_rasterized = sum(len(s) for s in spikes.values()) > MOST_VECTORS
    height = style.size_in_points(axes)[1] * (1 - HISTOGRAM * rates)
    marks = _marks(style.size_in_points(axes)[0] / steps, height / rows, steps)
    first_row = 0
    for s, (step, row), colour in zip(spikes.values(), positions, style.colours(len(spikes)), strict=True):
        axes.plot(times[step], first_row + row, color=colour, rasterized=is_rasterized, **marks)
        first_row += s.shape[1]
        axes.axhline(first_row - 0.5, color=style.GREY, linewidth=0.5)
    width = dt or 1
    axes.set(xlim=(-0.5 * width, (steps - 0.5) * width), ylim=(-0.5, rows - 0.5), aspect="auto")
    _label_rows(axes, spikes, sort, height, dt)
    if rates:
        _add_rates_above(axes, spikes, dt)
    return style.without_frame(axes)


def _spike_trains(layers: Mapping[str, Spikes] | Spikes) -> dict[str, SpikeTrains]:
    """The spikes of each layer as events, by name; one population has the empty name.

    Raises:
        ValueError: if there are no layers, a tensor is empty, or the layers have different numbers of steps.
    """
    by_name = layers if isinstance(layers, Mapping) else {"": layers}
    trains = {}
    for name, spikes in by_name.items():
        if isinstance(spikes, Tensor):
            style.array(f"spikes {name}".strip(), spikes, "[T, ...]")
            spikes = SpikeTrains.from_dense(spikes)
        trains[name] = spikes
    lengths = {s.shape[0] for s in trains.values()}
    if len(lengths) != 1:
        raise ValueError(f"layers must have spikes over the same steps, got T of {sorted(lengths) or 'none'}")
    return trains


def _positions(spikes: SpikeTrains, sort: str | None) -> tuple[Any, Any]:
    """The step of each spike, ascending, and the row of its neuron in the order of `sort`."""
    step, neuron = spikes.steps.cpu().numpy(), spikes.neurons.cpu().numpy()
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


def _label_rows(
    axes: Axes, spikes: Mapping[str, SpikeTrains], sort: str | None, height: float, dt: float | None
) -> None:
    """Labels the neurons of one population, or the layers; labels of thin layers are moved apart.

    Args:
        axes: axes of the raster.
        spikes: spikes of the layers by name; one empty name for one population.
        sort: order of the neurons; see :func:`raster`.
        height: height of the raster in points.
        dt: length of a step in milliseconds.
    """
    order = {None: "", "first": ", by first spike", "rate": ", by rate"}[sort]
    if [*spikes] == [""]:
        neurons = spikes[""].shape[1]
        ticks = style.integer_ticks(5).tick_values(0, max(neurons - 1, 1))
        axes.set_yticks([tick for tick in ticks if 0 <= tick < neurons])
        axes.set(title="Spikes", ylabel=f"Neuron{order}")
        return
    tops = np.cumsum([s.shape[1] for s in spikes.values()])
    middles = [top - s.shape[1] / 2 - 0.5 for top, s in zip(tops, spikes.values(), strict=True)]
    line = 1.3 * float(axes.yaxis.label.get_fontsize()) * tops[-1] / height
    has_two_lines = 2 * line * len(spikes) <= tops[-1]
    separator = "\n" if has_two_lines else " "
    means = {name: float(s.rates(dt).mean()) for name, s in spikes.items()}
    rates = {name: f"{mean:.1%}" if dt is None else f"{mean:.1f} Hz" for name, mean in means.items()}
    labels = [f"{name}{separator}{rate}" for name, rate in rates.items()]
    axes.set_yticks(style.spread_out(middles, line * (1 + has_two_lines)), labels)
    axes.tick_params(axis="y", length=0)
    axes.set(title="Spikes, layer by layer", ylabel=f"Neurons{order}" if sort else "")


def population_rates(
    layers: Mapping[str, Spikes] | Spikes,
    axes: Axes | None = None,
    *,
    bins: int = 100,
    dt: float | None = None,
) -> Axes:
    """Draws the mean rate of each layer's neurons over time, in spikes per step, or in Hz with `dt`.

    Args:
        layers: spikes, as in :func:`raster`.
        axes: axes to draw on.
        bins: number of bins of time; at most one per step.
        dt: length of a step in milliseconds.

    Raises:
        ValueError: if there are no layers, or their T differ.
    """
    spikes = _spike_trains(layers)
    axes = axes or style.new_axes(6, 3)
    steps = next(iter(spikes.values())).shape[0]
    style.times(axes, steps, dt)
    steps_per_unit = 1.0 if dt is None else 1000.0 / dt
    edges = np.linspace(0, steps, min(bins, steps) + 1).round().astype(int)
    filled = {"fill": True} if len(spikes) == 1 else {"baseline": None}
    for (name, s), colour in zip(spikes.items(), style.colours(len(spikes)), strict=True):
        counts, _ = np.histogram(s.steps.cpu().numpy(), edges - 0.5)
        heights = counts / np.diff(edges) / s.shape[1] * steps_per_unit
        axes.stairs(heights, (edges - 0.5) * (dt or 1), color=colour, label=name or None, **filled)
    axes.set_ylim(bottom=0)
    axes.set(title="Firing rate", ylabel="Spikes per neuron and step" if dt is None else "Rate (Hz)")
    if [*spikes] != [""]:
        axes.legend(frameon=False, ncols=min(len(spikes), 4))
    return style.without_frame(axes)


def _add_rates_above(axes: Axes, spikes: Mapping[str, SpikeTrains], dt: float | None) -> None:
    """Draws the rate of each layer over time in a panel at the top of `axes`."""
    low, high = axes.get_ylim()
    axes.set_ylim(low, low + (high - low) / (1 - HISTOGRAM))
    axes.spines["left"].set_bounds(low, high)
    axes.yaxis.label.set_y((1 - HISTOGRAM) / 2)
    panel = axes.inset_axes((0, 1 - HISTOGRAM + 0.03, 1, HISTOGRAM - 0.03), sharex=axes)
    population_rates(spikes, panel, dt=dt)
    if legend := panel.get_legend():
        legend.remove()  # the raster's rows have the names
    panel.set(title="", xlabel="")
    panel.tick_params(axis="x", labelbottom=False, length=0)
    panel.yaxis.set_major_locator(MaxNLocator(3, steps=[1, 2, 5, 10]))
    label = "Rate\n(per step)" if dt is None else "Rate\n(Hz)"
    has_room = HISTOGRAM * style.size_in_points(axes)[1] > 50
    panel.set_ylabel(label if has_room else "Rate", fontsize="small")


def activity(
    populations: Mapping[str, Spikes],
    *,
    dt: float | None = None,
    bin_width: float = 3.0,
    published: Mapping[str, Sequence[float]] | None = None,
) -> Figure:
    """Draws rate, irregularity, correlation and synchrony of each population, the first at the bottom.

    Methods of :class:`hibana.SpikeTrains` compute them. A box shows the quartiles over the neurons, or over
    the pairs of neurons for the correlation; a line the 5th to the 95th percentile; a dot the mean.

    Args:
        populations: the spikes of each population by name, as in :func:`raster`.
        dt: length of a step in milliseconds.
        bin_width: width of the bins of correlation and synchrony, in milliseconds, or in steps without `dt`.
        published: values to compare with, one per population, drawn as diamonds: ``"rate"``,
            ``"irregularity"``, ``"correlation"`` and ``"synchrony"``.

    Raises:
        ValueError: if there are no populations, their T differ, `bin_width` is not within the steps, or a key
            of `published` is not the name of a panel.
    """
    if unknown := {*(published or {})} - {*MEASURES}:
        raise ValueError(f"published must have keys of {[*MEASURES]}, got {sorted(unknown)}")
    spikes = _spike_trains(populations)
    figure = style.new_figure(9, 2 + 0.5 * len(spikes))
    panels = dict(zip(MEASURES, figure.subplots(2, 2, sharey=True).flat, strict=True))
    for row, (trains, colour) in enumerate(zip(spikes.values(), style.colours(len(spikes)), strict=True)):
        _draw_box(panels["rate"], row, trains.rates(dt), colour)
        _draw_box(panels["irregularity"], row, trains.irregularity(), colour)
        _draw_box(panels["correlation"], row, trains.correlations(bin_width, dt), colour)
        panels["synchrony"].barh(row, trains.synchrony(bin_width, dt), color=colour, height=0.6)
    diamonds = {"marker": "D", "linestyle": "", "markerfacecolor": "none", "color": style.GREY}
    for name, values in (published or {}).items():
        marks = panels[name].plot(values, range(len(spikes)), **diamonds)
    if published:
        figure.legend(marks, ["published"], loc="outside upper right", frameon=False)
    for name, panel in panels.items():
        panel.set_xlabel(MEASURES[name].replace("Hz", "per step" if dt is None else "Hz"))
        panel.set_yticks(range(len(spikes)), list(spikes))
        style.without_frame(panel)
    return figure


def _draw_box(axes: Axes, row: int, values: Tensor, colour: str) -> None:
    """Draws quartiles, 5th and 95th percentile and mean of the finite `values` in a horizontal `row`."""
    finite = values[values.isfinite()].cpu().numpy()
    if not finite.size:
        return
    low, lower, median, upper, high = np.quantile(finite, (0.05, 0.25, 0.5, 0.75, 0.95))
    axes.hlines(row, low, high, color=colour)
    axes.barh(row, upper - lower, left=lower, height=0.6, color=colour, alpha=0.5)
    axes.vlines(median, row - 0.3, row + 0.3, color=colour)
    axes.plot(finite.mean(), row, ".", markersize=9, color=colour)
