"""How training went."""

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from hibana.plot.outputs import output_potentials
from hibana.plot.spikes import raster
from hibana.plot.style import (
    GREY,
    array,
    colours,
    foreground,
    new_axes,
    new_figure,
    quiet,
    ramp,
    whole_numbers,
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
    axes.xaxis.set_major_locator(whole_numbers())
    axes.legend(frameon=False)
    return quiet(axes)


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
    """A training at one look: its curves, and one sample on its way through the trained network.

    Args:
        history: values per epoch, by the names that training logs; a panel of what was not logged stays
            empty.
        reference: name and test accuracy of the classifier to compare with.
        image: the sample, ``[height, width]``.
        spikes: of each layer, ``[T, neurons]``; of a network without such layers their panels stay empty.
        potentials: of the output neurons, ``[T, classes]``.
        label: the sample's class, or its quantity where there is one output.
        names: of the outputs; their numbers if there are none.
        measure: what the second panel shows: ``accuracy``, or ``explained`` of a quantity's variance.
    """
    figure = new_figure(13, 7.5)
    panels = figure.subplot_mosaic(
        [["loss", "accuracy", "rate"], ["image", "raster", "output"]], width_ratios=[1, 1.25, 1.25]
    )
    quantity = measure == "explained"
    learned = "Squared error" if quantity else "Cross-entropy"
    if losses := _of(history, "loss"):
        learning_curves(losses, panels["loss"], ylabel=learned, title="Loss")
        panels["loss"].set_yscale("log")
    else:  # of a network that was fitted in closed form
        panels["loss"].set_axis_off()
    shown_as = "Variance explained" if quantity else "Accuracy"
    learning_curves(_of(history, measure), panels["accuracy"], ylabel=shown_as, title=shown_as)
    called, accuracy = reference
    panels["accuracy"].axhline(accuracy, color=GREY, linestyle="dashed", label=f"{called} (test)")
    panels["accuracy"].legend(frameon=False)
    rates = {key.rpartition("/")[2]: values for key, values in history.items() if "/rate/" in key}
    if rates and spikes:
        learning_curves(rates, panels["rate"], ylabel="Spikes per neuron and step", title="Firing rate")
        panels["rate"].set_ylim(bottom=0)
    else:
        panels["rate"].set_axis_off()
    if spikes:
        raster(spikes, panels["raster"])
    else:
        panels["raster"].set_axis_off()
    shown = panels["image"]
    shown.imshow(array("image", image, ("[height, width]",)), cmap=ramp(shown, foreground(shown)))
    classes = list(names) or [str(neuron) for neuron in range(potentials.shape[1])]
    named = f"{label:.3g}" if quantity else classes[int(label)]
    shown.set(title=f"A test sample: {named}", xticks=[], yticks=[])
    output_potentials(potentials, 0 if quantity else int(label), classes, panels["output"])
    return figure


def _of(history: Mapping[str, Sequence[float]], what: str) -> dict[str, Sequence[float]]:
    """The curves of one quantity by part, in the order of their names: training before validation."""
    found = {key.partition("/")[0]: values for key, values in history.items() if key.endswith(f"/{what}")}
    return dict(sorted(found.items()))
