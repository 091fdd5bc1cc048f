"""How much layers fire: over time, and neuron by neuron."""

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter
from torch import Tensor

from hibana.plot.style import array, colours, legend_outside, new_axes, quiet, rate_label, times

__all__ = ["firing_rates", "layer_activity"]


def layer_activity(
    layers: Mapping[str, Tensor], axes: Axes | None = None, *, dt: float | None = None
) -> Axes:
    """The firing rate of each layer at each step; of several samples, the mean and the middle 80%.

    Args:
        layers: spikes by layer, ``[T, neurons]`` of one sample or ``[T, batch, ...]``.
        axes: to draw on.
        dt: length of a step in milliseconds; rates are then in Hz.
    """
    axes = axes or new_axes(6.5, 3.6)
    label, unit = rate_label(dt)
    for (name, tensor), colour in zip(layers.items(), colours(len(layers)), strict=True):
        spikes = array(f"spikes {name}", tensor, ("[T, neurons]", "[T, batch, ...]"))
        now = times(axes, len(spikes), dt)
        samples = 1 if spikes.ndim == 2 else spikes.shape[1]
        of_sample = spikes.reshape(len(spikes), samples, -1).mean(2, dtype=np.float64) * unit
        axes.plot(now, of_sample.mean(1), color=colour, label=name, marker="." if len(now) <= 50 else None)
        if samples > 1:
            low, high = np.percentile(of_sample, (10, 90), axis=1)
            axes.fill_between(now, low, high, color=colour, alpha=0.25, linewidth=0)
    axes.set(title="Activity of the layers", ylabel=label)
    axes.set_ylim(bottom=0)
    axes.margins(x=0.02)
    legend_outside(axes)
    return quiet(axes)


def firing_rates(
    layers: Mapping[str, Tensor], axes: Axes | None = None, *, bins: int = 30, dt: float | None = None
) -> Axes:
    """How the neurons' firing rates are distributed, layer by layer; dashed, each layer's mean.

    A neuron's rate is the mean over steps and samples.

    Args:
        layers: spikes by layer, ``[T, neurons]`` of one sample or ``[T, batch, ...]``.
        axes: to draw on.
        bins: of equal width, from zero to the highest rate.
        dt: length of a step in milliseconds; rates are then in Hz.
    """
    axes = axes or new_axes(6, 3.6)
    label, unit = rate_label(dt)
    rates = {}
    for name, tensor in layers.items():
        spikes = array(f"spikes {name}", tensor, ("[T, neurons]", "[T, batch, ...]"))
        over = (0,) if spikes.ndim == 2 else (0, 1)
        rates[name] = spikes.mean(over, dtype=np.float64).reshape(-1) * unit
    highest = max((rate.max() for rate in rates.values()), default=0.0) or unit
    edges = np.linspace(0, highest, bins + 1)
    for (name, rate), colour in zip(rates.items(), colours(len(rates)), strict=True):
        shares = np.histogram(rate, edges)[0] / len(rate)
        silent = (rate == 0).mean()
        mean = f"{rate.mean():.1%}" if dt is None else f"{rate.mean():.3g} Hz"
        axes.stairs(shares, edges, color=colour, fill=True, alpha=0.25)
        axes.stairs(shares, edges, color=colour, label=f"{name}: mean {mean}, silent {silent:.0%}")
        axes.axvline(rate.mean(), color=colour, linestyle="dashed", linewidth=1)
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.set(title="Firing rates", xlabel=label, ylabel="Share of the neurons")
    axes.set_xlim(left=0)
    axes.legend(frameon=False)
    return quiet(axes)
