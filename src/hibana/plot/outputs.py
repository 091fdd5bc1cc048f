"""What the output neurons say of one sample."""

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from torch import Tensor

from hibana.plot.style import (
    BLUE,
    GREY,
    RED,
    array,
    drawable,
    new_axes,
    quiet,
    spread_out,
    times,
    whole_numbers,
)

__all__ = ["answered", "output_potentials", "spike_counts"]


def spike_counts(
    spikes: Tensor, names: Sequence[str] | None = None, axes: Axes | None = None, *, label: int | None = None
) -> Axes:
    """How often each output neuron spiked: blue the right class, red a wrong one that spiked most.

    Args:
        spikes: over time, ``[T, classes]``, or counted, ``[classes]``.
        names: of the classes; their numbers if ``None``.
        axes: to draw on.
        label: the right class, if it is known.
    """
    counts = array("spikes", spikes, ("[classes]", "[T, classes]"))
    counts = counts if counts.ndim == 1 else counts.sum(0)
    names, font = _names(names, len(counts))
    best, colour = answered(counts, label)
    axes = axes or new_axes(6, 3.6)
    bars = axes.bar(range(len(counts)), counts, color=colour)
    if len(counts) <= 20:
        axes.bar_label(bars, fmt="{:g}", padding=2, fontsize="small")
        axes.set_xticks(range(len(counts)), names, **font)
    axes.set(xlabel="Class", ylabel="Spikes")
    axes.set_title(_title("Output spikes", names, label, best), **font)
    axes.yaxis.set_major_locator(whole_numbers())
    axes.set_ylim(0, 1.1 * max(float(counts.max()), 1))
    return quiet(axes)


def output_potentials(
    potentials: Tensor,
    label: int,
    names: Sequence[str],
    axes: Axes | None = None,
    *,
    dt: float | None = None,
) -> Axes:
    """The output neurons' potentials over time, ``[T, classes]``: the right class drawn thick."""
    values = array("potentials", potentials, ("[T, classes]",))
    names, font = _names(names, values.shape[1])
    axes = axes or new_axes(6, 4)
    now = times(axes, len(values), dt)
    best = int(values.mean(0).argmax())
    for neuron in range(len(names)):
        right, chosen = neuron == label, neuron == best
        axes.plot(
            now,
            values[:, neuron],
            color=BLUE if right else RED if chosen else GREY,
            linewidth=2.5 if right or chosen else 1,
            alpha=1 if right or chosen else 0.6,
            zorder=3 if right or chosen else 2,
        )
    span = float(values.max() - values.min())
    _name_at_the_end(axes, now[-1], values[-1], span, names, {label, best}, font)
    axes.set_ylabel("Membrane potential")
    axes.set_title(_title("Output neurons", names, label, best), **font)
    return quiet(axes)


def answered(values: Any, label: int | None) -> tuple[int, list[str]]:
    """The class of the largest of `values`, and a colour for each: blue if right, red if that is wrong."""
    best = int(values.argmax())
    right = best if label is None else label
    return best, [BLUE if n == right else RED if n == best else GREY for n in range(len(values))]


def _names(names: Sequence[str] | None, classes: int) -> tuple[list[str], dict[str, Any]]:
    """Names that can be drawn, and the properties of their text."""
    if names is None:
        return [str(number) for number in range(classes)], {}
    if len(names) != classes:
        raise ValueError(f"names must name the {classes} classes, got {len(names)}")
    return drawable(names)


def _title(what: str, names: Sequence[str], label: int | None, best: int) -> str:
    shown = "" if label is None else f"shown {names[label]}, "
    return f"{what}: {shown}answered {names[best]}"


def _name_at_the_end(
    axes: Axes,
    end: float,
    last: Any,
    span: float,
    names: Sequence[str],
    bold: set[int],
    font: dict[str, Any],
) -> None:
    """Each line's name right of its end, moved apart where ends lie close; of many, only the `bold`."""
    named = [neuron for neuron in last.argsort().tolist() if len(last) <= 12 or neuron in bold]
    for neuron, height in zip(named, spread_out([float(last[n]) for n in named], 0.045 * span), strict=True):
        axes.annotate(
            names[neuron],
            (end, height),
            xytext=(6, 0),
            textcoords="offset points",
            annotation_clip=False,
            va="center",
            weight="bold" if neuron in bold else "normal",
            **font,
        )
