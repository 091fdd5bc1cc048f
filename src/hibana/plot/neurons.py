"""Single neurons: their potential over time, one step of many, and what the step's derivative is called."""

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import ScaledTranslation
from torch import Tensor

from hibana.cells.surrogate import Surrogate
from hibana.plot.style import (
    BLUE,
    ORANGE,
    RED,
    array,
    new_axes,
    new_figure,
    size_in_points,
    times,
    without_frame,
)

__all__ = ["current_step", "membrane", "surrogate"]


def membrane(
    potentials: Tensor,
    spikes: Tensor,
    threshold: float | Tensor,
    axes: Axes | None = None,
    *,
    dt: float | None = None,
) -> Axes:
    """The potential of one neuron over time, with its spikes and its threshold.

    Several neurons go to several axes, such as ``figure.subplots(neurons, sharex=True)``.

    Args:
        potentials: before the reset, as :func:`hibana.record` gives them, ``[T]``.
        spikes: of the same shape.
        threshold: of the neuron.
        axes: to draw on.
        dt: length of a step in milliseconds.

    Raises:
        ValueError: if the shapes do not fit.
    """
    values, fired = array("potentials", potentials, ("[T]",)), array("spikes", spikes, ("[T]",)) > 0
    if values.shape != fired.shape:
        raise ValueError(f"spikes must have the shape of potentials, {values.shape}, got {fired.shape}")
    threshold = float(threshold)
    axes = axes or new_axes(9, 4)
    now = times(axes, len(values), dt)
    axes.plot(now, values, color=BLUE, label="membrane potential")
    axes.hlines(threshold, now[0], now[-1], color=RED, linestyles="dotted", label="threshold")
    above = axes.transData + ScaledTranslation(0, 4 / 72, axes.figure.dpi_scale_trans)  # stands on the point
    axes.plot(now[fired], values[fired], "v", transform=above, color=ORANGE, label="spike")
    axes.set(title="Potential and spikes", ylabel="Membrane potential")
    axes.margins(x=0.01)
    peak = max(threshold, float(values.max()))
    axes.set_ylim(top=peak + 0.25 * (peak - float(values.min())))
    narrow = size_in_points(axes)[0] < 360  # the axis label says what the line is
    handles = [axes.collections[-1], axes.lines[-1]] if narrow else None
    axes.legend(handles=handles, frameon=False, loc="upper center", ncols=3)
    return without_frame(axes)


def current_step(
    potentials: Tensor, spikes: Tensor, gradient: Tensor, threshold: float, axes: Sequence[Axes] | None = None
) -> Sequence[Axes]:
    """One step of many neurons: spikes and derivatives against potentials, each ``[neurons]``; two axes."""
    at = array("potentials", potentials, ("[neurons]",))
    values = array("spikes", spikes, ("[neurons]",)), array("gradient", gradient, ("[neurons]",))
    axes = _two_panels(at, values, ".-", axes)
    labels = ("Spikes", "Spike $s$"), ("Derivative", r"$\partial s / \partial v$")
    for each, (title, ylabel) in zip(axes, labels, strict=True):
        each.axvline(threshold, color=RED, linestyle="dotted", label="threshold", zorder=1)
        each.set(title=title, xlabel="Membrane potential", ylabel=ylabel)
        each.legend(frameon=False, loc="upper left")
    return axes


def surrogate(function: Surrogate, x: Tensor, axes: Sequence[Axes] | None = None) -> Sequence[Axes]:
    """The Heaviside step at `x`, ``[points]``, and its derivative according to `function`; two axes."""
    at = array("x", x, ("[points]",))
    axes = _two_panels(at, (function(x).detach().cpu(), function.derivative(x).detach().cpu()), "-", axes)
    axes[0].set(title="Heaviside step", xlabel="$x$", ylabel="$H(x)$")
    axes[1].set(title=f"Its derivative, as {type(function).__name__} has it", xlabel="$x$", ylabel="$dH/dx$")
    for each in axes:
        each.xaxis.set_major_locator(MaxNLocator(5))
    return axes


def _two_panels(at: Any, values: Sequence[Any], marker: str, axes: Sequence[Axes] | None) -> Sequence[Axes]:
    """Two axes with one of the two `values` each, plotted against `at`."""
    axes = list(new_figure(9, 3.4).subplots(1, 2)) if axes is None else axes
    for each, heights, colour in zip(axes, values, (BLUE, ORANGE), strict=True):
        each.plot(at, heights, marker, color=colour, linewidth=0.8 if "." in marker else None)
        without_frame(each)
    return axes
