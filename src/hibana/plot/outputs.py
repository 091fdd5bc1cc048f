"""Output neurons for one sample."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from torch import Tensor

from hibana.plot.style import BLUE, GREY, RED, array, drawable, new_axes, spread_out, times, without_frame

__all__ = ["output_potentials"]

MOST_NAMED = 12
"""With more classes, only the correct class and the answer are named."""


def output_potentials(
    potentials: Tensor,
    label: int,
    names: Sequence[str],
    axes: Axes | None = None,
    *,
    dt: float | None = None,
) -> Axes:
    """Potentials of the output neurons over time: the correct class thick and blue, a wrong answer red.

    Args:
        potentials: ``[T, classes]``. The answer is the class with the highest mean.
        label: number of the correct class.
        names: names of the classes.
        axes: axes to draw on.
        dt: length of a step in milliseconds.

    Raises:
        ValueError: if `potentials` has another shape, or `names` another length.
    """
    values = array("potentials", potentials, ("[T, classes]",))
    if len(names) != values.shape[1]:
        raise ValueError(f"names must name the {values.shape[1]} classes, got {len(names)}")
    names, font = drawable(names)
    axes = axes or new_axes(6, 4)
    now = times(axes, len(values), dt)
    answer = int(values.mean(0).argmax())
    for neuron in range(len(names)):
        colour = BLUE if neuron == label else RED if neuron == answer else GREY
        bold = neuron in (label, answer)
        width, alpha, zorder = (2.5, 1, 3) if bold else (1, 0.6, 2)
        axes.plot(now, values[:, neuron], color=colour, linewidth=width, alpha=alpha, zorder=zorder)
    last = values[-1]
    order = [n for n in last.argsort().tolist() if len(names) <= MOST_NAMED or n in (label, answer)]
    gap = 0.045 * float(values.max() - values.min())
    for neuron, height in zip(order, spread_out([float(last[n]) for n in order], gap), strict=True):
        axes.annotate(
            names[neuron],
            (now[-1], height),
            xytext=(6, 0),
            textcoords="offset points",
            annotation_clip=False,
            va="center",
            weight="bold" if neuron in (label, answer) and not font else "normal",  # others may lack bold
            **font,
        )
    axes.set_ylabel("Membrane potential")
    axes.set_title(f"Output neurons: shown {names[label]}, answered {names[answer]}", **font)
    return without_frame(axes)
