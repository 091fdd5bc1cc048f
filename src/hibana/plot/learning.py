"""How training went."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from hibana.plot.outputs import output_potentials
from hibana.plot.spikes import raster
from hibana.plot.style import (
    GREY,
    array,
    colours,
    drawable,
    integer_ticks,
    new_axes,
    new_figure,
    without_frame,
)

__all__ = ["learning_curves", "training"]


def learning_curves(
    curves: Mapping[str, Sequence[float]], axes: Axes | None = None, *, ylabel: str, title: str
) -> Axes:
    """One value per epoch for each name."""
    axes = axes or new_axes(5, 3.4)
    for (name, values), colour in zip(curves.items(), colours(len(curves)), strict=True):
        marker = "." if len(values) <= 20 else None
        axes.plot(range(1, len(values) + 1), values, label=name, color=colour, marker=marker)
    axes.set(title=title, xlabel="Epoch", ylabel=ylabel)
    axes.xaxis.set_major_locator(integer_ticks())
    axes.legend(frameon=False)
    return without_frame(axes)


def training(
    history: Mapping[str, Sequence[float]],
    reference: tuple[str, float],
    image: Tensor,
    spikes: Mapping[str, Tensor],
    potentials: Tensor,
    label: float,
    *,
    names: Sequence[str] = (),
    measure: str = "accuracy",
) -> Figure:
    """The curves of a training, and one sample passing through the trained network.

    Args:
        history: values per epoch, by the names that training logs; of a network that was fitted in closed
            form, which has no losses, the measure stands above the sample instead.
        reference: name and test accuracy of the classifier to compare with.
        image: the sample, ``[height, width]``.
        spikes: of each layer, ``[T, neurons]``; may be empty.
        potentials: of the output neurons, ``[T, classes]``.
        label: the sample's class, or its quantity if there is one output.
        names: of the outputs; their numbers if there are none.
        measure: ``accuracy``, or ``explained`` of a quantity's variance.
    """
    quantity = measure == "explained"
    measured = "Variance explained" if quantity else "Accuracy"
    sample = ["image", "raster", "output"] if spikes else ["image", "output"]
    losses = _of(history, "loss")
    rates = {key.rpartition("/")[2]: values for key, values in history.items() if "/rate/" in key}
    curves = ["loss", "measure", *(["rate" if rates else "."] if spikes else [])]
    figure = new_figure(13, 7.5 if losses else 4.2)
    rows: Any = [curves, sample] if losses else [sample]
    panels = figure.subplot_mosaic(rows, width_ratios=[1, 1.25, 1.25][: len(sample)])
    if losses:
        learned = "Squared error" if quantity else "Cross-entropy"
        learning_curves(losses, panels["loss"], ylabel=learned, title="Loss")
        panels["loss"].set_yscale("log")
        learning_curves(_of(history, measure), panels["measure"], ylabel=measured, title=measured)
        panels["measure"].axhline(
            reference[1], color=GREY, linestyle="dashed", label=f"{reference[0]} (test)"
        )
        panels["measure"].legend(frameon=False)
    else:
        values = [f"{part} {values[-1]:.1%}" for part, values in _of(history, measure).items()]
        figure.suptitle(f"{measured}: {', '.join([*values, f'{reference[0]} (test) {reference[1]:.1%}'])}")
    if "rate" in panels:
        learning_curves(rates, panels["rate"], ylabel="Spikes per neuron and step", title="Firing rate")
        panels["rate"].set_ylim(bottom=0)
    if spikes:
        raster(spikes, panels["raster"])
    shown = panels["image"]
    shown.imshow(array("image", image, ("[height, width]",)))
    classes, font = drawable(list(names) or [str(neuron) for neuron in range(potentials.shape[1])])
    named = f"{label:.3g}" if quantity else classes[int(label)]
    shown.set(xticks=[], yticks=[])
    shown.set_title(f"A test sample: {named}", **font)
    output_potentials(potentials, 0 if quantity else int(label), classes, panels["output"])
    return figure


def _of(history: Mapping[str, Sequence[float]], what: str) -> dict[str, Sequence[float]]:
    """Curves of one quantity by part of the data, training before validation."""
    curves = {key.partition("/")[0]: values for key, values in history.items() if key.endswith(f"/{what}")}
    return dict(sorted(curves.items()))
