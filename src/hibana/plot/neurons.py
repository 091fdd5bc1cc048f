"""Single neurons: potential over time, one step of many neurons, and a surrogate derivative."""

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import ScaledTranslation
from torch import Tensor

from hibana.cells.surrogate import Surrogate
from hibana.plot import style
from hibana.plot.style import BLUE, ORANGE, RED, array


def membrane(
    potentials: Tensor,
    spikes: Tensor,
    threshold: float | Tensor,
    axes: Axes | None = None,
    *,
    dt: float | None = None,
) -> Axes:
    """Draws the potential of one neuron over time, with its spikes and its threshold.

    For several neurons, call it with several axes, such as ``figure.subplots(neurons, sharex=True)``.

    Args:
        potentials: potentials before the reset, as :func:`hibana.record` returns them, ``[T]``.
        spikes: 0 and 1, ``[T]``.
        threshold: threshold of the neuron.
        axes: axes to draw on.
        dt: length of a step in milliseconds.

    Raises:
        ValueError: if the shapes do not fit.
    """
    values, fired = array("potentials", potentials, "[T]"), array("spikes", spikes, "[T]") > 0
    if values.shape != fired.shape:
        raise ValueError(f"spikes must have the shape of potentials, {values.shape}, got {fired.shape}")
    threshold = float(threshold)
    axes = axes or style.new_axes(9, 4)
    time = style.times(axes, len(values), dt)
    axes.plot(time, values, color=BLUE, label="membrane potential")
    axes.hlines(threshold, time[0], time[-1], color=RED, linestyles="dotted", label="threshold")
    above = axes.transData + ScaledTranslation(0, 4 / 72, axes.figure.dpi_scale_trans)
    axes.plot(time[fired], values[fired], "v", transform=above, color=ORANGE, label="spike")
    axes.set(title="Potential and spikes", ylabel="Membrane potential")
    axes.margins(x=0.01)
    peak = max(threshold, float(values.max()))
    axes.set_ylim(top=peak + 0.25 * (peak - float(values.min())))
    is_narrow = style.size_in_points(axes)[0] < 360  # no room for the line, which the axis label names
    handles = [axes.collections[-1], axes.lines[-1]] if is_narrow else None
    axes.legend(handles=handles, frameon=False, loc="upper center", ncols=3)
    return style.without_frame(axes)


def current_step(
    potentials: Tensor, spikes: Tensor, gradient: Tensor, threshold: float, axes: Sequence[Axes] | None = None
) -> Sequence[Axes]:
    """Draws spikes and derivatives of one step against potentials, each ``[neurons]``, on two axes."""
    x = array("potentials", potentials, "[neurons]")
    heights = array("spikes", spikes, "[neurons]"), array("gradient", gradient, "[neurons]")
    axes = _two_panels(x, heights, ".-", axes)
    labels = ("Spikes", "Spike $s$"), ("Derivative", r"$\partial s / \partial v$")
    for panel, (title, ylabel) in zip(axes, labels, strict=True):
        panel.axvline(threshold, color=RED, linestyle="dotted", label="threshold", zorder=1)
        panel.set(title=title, xlabel="Membrane potential", ylabel=ylabel)
        panel.legend(frameon=False, loc="upper left")
    return axes


def surrogate(function: Surrogate, x: Tensor, axes: Sequence[Axes] | None = None) -> Sequence[Axes]:
    """Draws the Heaviside step at `x`, ``[points]``, and its derivative in `function`, on two axes."""
    points = array("x", x, "[points]")
    axes = _two_panels(points, (function(x).detach().cpu(), function.derivative(x).detach().cpu()), "-", axes)
    axes[0].set(title="Heaviside step", xlabel="$x$", ylabel="$H(x)$")
    axes[1].set(title=f"Its derivative, as {type(function).__name__} has it", xlabel="$x$", ylabel="$dH/dx$")
    for panel in axes:
        panel.xaxis.set_major_locator(MaxNLocator(5))
    return axes


def _two_panels(x: Any, heights: Sequence[Any], marker: str, axes: Sequence[Axes] | None) -> Sequence[Axes]:
    """Two axes, new ones if `axes` is ``None``, with one of the two `heights` each plotted against `x`."""
    axes = list(style.new_figure(9, 3.4).subplots(1, 2)) if axes is None else axes
    for panel, y, colour in zip(axes, heights, (BLUE, ORANGE), strict=True):
        panel.plot(x, y, marker, color=colour, linewidth=0.8 if "." in marker else None)
        style.without_frame(panel)
    return axes
