"""What people look at: drawings with Matplotlib.

Each function takes the axes to draw on, or makes a figure with axes of its own, and returns the axes; what
has several panels returns the figure. Nothing here computes what it shows, touches a file or keeps global
state (no pyplot): ``axes.figure.savefig(path)`` writes a picture.

Importing this room needs Matplotlib (``pip install hibana[train]``).
"""

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from hibana.surrogate import Surrogate

__all__ = [
    "current_step",
    "learning_curves",
    "membrane",
    "output_potentials",
    "raster",
    "surrogate",
    "training",
]

BLUE, RED, ORANGE, GREY = "#2f6db5", "#d62728", "#e8871e", "#8a8a8a"


def surrogate(function: Surrogate, x: Tensor, axes: Sequence[Axes] | None = None) -> Sequence[Axes]:
    """The Heaviside step over `x`, and beside it what `function` calls its derivative; two axes."""
    if axes is None:
        axes = list(_figure(9, 3.4).subplots(1, 2))
    step, derivative = axes
    step.plot(x, function(x), color=BLUE)
    step.set(title="Heaviside step", xlabel="$x$", ylabel="$H(x)$")
    derivative.plot(x, function.derivative(x), color=ORANGE)
    derivative.set(
        title=f"Its derivative, as {type(function).__name__} has it", xlabel="$x$", ylabel="$dH/dx$"
    )
    for each in axes:
        each.xaxis.set_major_locator(MaxNLocator(5))
        _quiet(each)
    return axes


def current_step(
    potentials: Tensor, spikes: Tensor, gradient: Tensor, threshold: float, axes: Sequence[Axes] | None = None
) -> Sequence[Axes]:
    """One step of many neurons: their spikes and derivatives against their potentials; two axes."""
    if axes is None:
        axes = list(_figure(9, 3.4).subplots(1, 2))
    for each, values, colour, title, label in zip(
        axes,
        (spikes, gradient),
        (BLUE, ORANGE),
        ("Spikes", "Derivative"),
        ("Spike $s$", r"$\partial s / \partial v$"),
        strict=True,
    ):
        each.axvline(threshold, color=RED, linestyle="dotted", label="threshold")
        each.plot(potentials, values, ".-", color=colour, linewidth=0.8)
        each.set(title=title, xlabel="Membrane potential", ylabel=label)
        each.legend(frameon=False, loc="upper left")
        _quiet(each)
    return axes


def membrane(potentials: Tensor, spikes: Tensor, threshold: float, axes: Axes | None = None) -> Axes:
    """One neuron's potential over time, ``[T]``, its spikes marked, the threshold dotted."""
    axes = axes or _figure(9, 4).subplots()
    axes.plot(potentials, color=BLUE, label="membrane potential")
    axes.hlines(threshold, 0, len(potentials) - 1, color=RED, linestyles="dotted", label="threshold")
    times = spikes.nonzero().flatten()
    axes.plot(times, potentials[times], "v", color=ORANGE, label="spike")
    axes.set(title="Simulation of IF model", xlabel="Timestep", ylabel="Membrane potential")
    axes.set_ylim(top=1.25 * max(threshold, float(potentials.max())))
    axes.legend(frameon=False, loc="upper center", ncols=3)
    return _quiet(axes)


def learning_curves(
    curves: Mapping[str, Sequence[float]], axes: Axes | None = None, *, ylabel: str, title: str
) -> Axes:
    """One value per epoch for each name."""
    axes = axes or _figure(5, 3.4).subplots()
    for (name, values), colour in zip(curves.items(), _colours(len(curves)), strict=True):
        axes.plot(range(1, len(values) + 1), values, label=name, color=colour)
    axes.set(title=title, xlabel="Epoch", ylabel=ylabel)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False)
    return _quiet(axes)


def raster(layers: Mapping[str, Tensor], axes: Axes | None = None) -> Axes:
    """The spikes of one sample through the layers, each ``[T, neurons]``: a dot per spike, layers stacked."""
    axes = axes or _figure(6, 4).subplots()
    below = 0
    ticks, steps = [], 1
    for (name, spikes), colour in zip(layers.items(), _colours(len(layers)), strict=True):
        steps, neurons = spikes.shape
        time, neuron = spikes.nonzero(as_tuple=True)
        axes.plot(time, below + neuron, "|" if steps > 50 else ".", color=colour, markersize=4)
        ticks.append((below + neurons / 2, f"{name}\n{spikes.mean():.1%}"))
        below += neurons
        axes.axhline(below, color=GREY, linewidth=0.5)
    axes.set(title="Spikes of one sample, layer by layer", xlabel="Timestep", ylim=(0, below))
    axes.set_xlim(-0.5, steps - 0.5)
    axes.set_yticks([y for y, _ in ticks], [label for _, label in ticks])
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return _quiet(axes)


def output_potentials(potentials: Tensor, label: int, names: Sequence[str], axes: Axes | None = None) -> Axes:
    """The output neurons' potentials over time, ``[T, classes]``: the right class drawn thick."""
    axes = axes or _figure(6, 4).subplots()
    best = int(potentials.mean(0).argmax())
    for neuron in range(len(names)):
        right, chosen = neuron == label, neuron == best
        axes.plot(
            potentials[:, neuron],
            color=BLUE if right else RED if chosen else GREY,
            linewidth=2.5 if right or chosen else 1,
            alpha=1 if right or chosen else 0.6,
        )
    _name_at_the_end(axes, potentials, names, bold={label, best})
    axes.set(
        title=f"Output neurons: shown {names[label]}, answered {names[best]}",
        xlabel="Timestep",
        ylabel="Membrane potential",
    )
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return _quiet(axes)


def training(
    history: Mapping[str, Sequence[float]],
    reference: tuple[str, float],
    image: Tensor,
    spikes: Mapping[str, Tensor],
    potentials: Tensor,
    label: int,
) -> Figure:
    """A training at one look: its curves, and one sample on its way through the trained network.

    Args:
        history: values per epoch, by the names that training logs.
        reference: name and test accuracy of the classifier to compare with.
        image: the sample, ``[height, width]``.
        spikes: of each layer, ``[T, neurons]``.
        potentials: of the output neurons, ``[T, classes]``.
        label: the sample's class.
    """
    figure = _figure(13, 7.5)
    panels = figure.subplot_mosaic(
        [["loss", "accuracy", "rate"], ["image", "raster", "output"]], width_ratios=[1, 1.25, 1.25]
    )
    learning_curves(_of(history, "loss"), panels["loss"], ylabel="Cross-entropy", title="Loss")
    panels["loss"].set_yscale("log")
    learning_curves(_of(history, "accuracy"), panels["accuracy"], ylabel="Accuracy", title="Accuracy")
    name, accuracy = reference
    panels["accuracy"].axhline(accuracy, color=GREY, linestyle="dashed", label=f"{name} (test)")
    panels["accuracy"].legend(frameon=False)
    rates = {key.rpartition("/")[2]: values for key, values in history.items() if "/rate/" in key}
    learning_curves(rates, panels["rate"], ylabel="Spikes per neuron and step", title="Firing rate")
    panels["rate"].set_ylim(bottom=0)
    panels["image"].imshow(image.numpy(), cmap="gray_r")
    panels["image"].set(title=f"A test sample: {label}", xticks=[], yticks=[])
    raster(spikes, panels["raster"])
    classes = [str(neuron) for neuron in range(potentials.shape[1])]
    output_potentials(potentials, label, classes, panels["output"])
    return figure


def _of(history: Mapping[str, Sequence[float]], what: str) -> dict[str, Sequence[float]]:
    """The curves of one quantity by part, in the order of their names: training before validation."""
    found = {key.partition("/")[0]: values for key, values in history.items() if key.endswith(f"/{what}")}
    return dict(sorted(found.items()))


def _name_at_the_end(axes: Axes, lines: Tensor, names: Sequence[str], bold: set[int]) -> None:
    """Each line's name right of its end, moved apart where ends lie close."""
    last = lines[-1]
    apart = 0.045 * float(lines.max() - lines.min())
    height = -float("inf")
    for neuron in last.argsort().tolist():
        height = max(height + apart, float(last[neuron]))
        axes.annotate(
            names[neuron],
            (len(lines) - 1, height),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            weight="bold" if neuron in bold else "normal",
        )


def _colours(count: int) -> list[str]:
    palette = [BLUE, ORANGE, "#3a9a5b", "#8e5aa8", "#b5562f", "#1f9e9e"]
    return [palette[i % len(palette)] for i in range(count)]


def _figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), layout="constrained", dpi=120)


def _quiet(axes: Axes) -> Axes:
    axes.spines[["top", "right"]].set_visible(False)
    return axes
