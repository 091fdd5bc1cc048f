"""Single neurons: their potential over time, one step of many, and what the step's derivative is called."""

from collections.abc import Sequence
from typing import Any

import torch
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
    colours,
    new_axes,
    new_figure,
    size_in_points,
    times,
    without_frame,
)

__all__ = ["current_step", "membrane", "surrogate"]

LABEL = 12
"""Points between two tick labels, at least."""


def membrane(
    potentials: Tensor,
    spikes: Tensor,
    threshold: float | Tensor,
    axes: Axes | None = None,
    *,
    names: Sequence[str] | None = None,
    dt: float | None = None,
) -> Axes:
    """Potentials over time, spikes marked, thresholds dotted: of one neuron, ``[T]``, or several, ``[T, N]``.

    Several neurons stand above one another, the first on top, on one scale; ticks show zero and the
    threshold of each.

    Args:
        potentials: before the reset, as :func:`hibana.record` gives them.
        spikes: of the same shape.
        threshold: one for all, or one for each neuron, ``[N]``.
        axes: to draw on.
        names: of several neurons.
        dt: length of a step in milliseconds.

    Raises:
        ValueError: if shapes do not fit.
    """
    values, fired = (
        array(name, tensor, ("[T]", "[T, neurons]"))
        for name, tensor in (("potentials", potentials), ("spikes", spikes))
    )
    if values.shape != fired.shape:
        raise ValueError(f"spikes must have the shape of potentials, {values.shape}, got {fired.shape}")
    if values.ndim == 1:
        return _one_membrane(values, fired > 0, float(threshold), axes, dt)
    steps, neurons = values.shape
    names = [f"neuron {neuron}" for neuron in range(neurons)] if names is None else names
    if len(names) != neurons:
        raise ValueError(f"names must name the {neurons} neurons, got {len(names)}")
    thresholds = (
        torch.as_tensor(threshold, dtype=torch.float32, device="cpu").detach().cpu().expand(neurons).numpy()
    )
    axes = axes or new_axes(9, 1.2 + 0.9 * neurons)
    now = times(axes, steps, dt)
    low = min(0.0, float(values.min()))
    lane = 1.25 * (max(float(values.max()), float(thresholds.max())) - low)
    ticks: list[tuple[float, str]] = []
    points = size_in_points(axes)[1] / (lane * (neurons + 0.08))  # per unit of the potential
    for neuron, colour in enumerate(colours(neurons)):
        zero = lane * (neurons - 1 - neuron) - low
        height = thresholds[neuron]
        axes.axhline(zero + height, color=RED, linestyle="dotted", linewidth=1)
        axes.plot(now, zero + values[:, neuron], color=colour, linewidth=1.2, label=names[neuron])
        (at,) = fired[:, neuron].nonzero()
        _mark(axes, now[at], zero + values[at, neuron], color=axes.title.get_color(), markersize=4)
        ticks.append((zero, "0"))
        if height * points > LABEL:
            ticks.append((zero + height, f"{height:g}"))
        else:  # the labels would overlap
            ticks.append((zero + low, f"{low:.3g}"))
        axes.annotate(
            names[neuron],
            (1, zero),
            (6, 2),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            color=colour,
        )
    axes.set_yticks([y for y, _ in ticks], [label for _, label in ticks])
    axes.set(title="Potentials and spikes", ylabel="Membrane potential")
    axes.margins(x=0.01)
    axes.set_ylim(-0.08 * lane, lane * neurons)
    return without_frame(axes)


def _mark(axes: Axes, times: Any, heights: Any, **how: Any) -> None:
    """Triangles that stand on the points."""
    rise = ScaledTranslation(0, (how.get("markersize", 6) / 2 + 1) / 72, axes.figure.dpi_scale_trans)
    axes.plot(times, heights, "v", transform=axes.transData + rise, **how)


def _one_membrane(values: Any, fired: Any, threshold: float, axes: Axes | None, dt: float | None) -> Axes:
    axes = axes or new_axes(9, 4)
    now = times(axes, len(values), dt)
    axes.plot(now, values, color=BLUE, label="membrane potential")
    axes.hlines(threshold, now[0], now[-1], color=RED, linestyles="dotted", label="threshold")
    _mark(axes, now[fired], values[fired], color=ORANGE, label="spike")
    axes.set(title="Potential and spikes", ylabel="Membrane potential")
    axes.margins(x=0.01)
    peak = max(threshold, float(values.max()))
    axes.set_ylim(top=peak + 0.25 * (peak - float(values.min())))
    narrow = size_in_points(axes)[0] < 360  # the axis says what the line is
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
