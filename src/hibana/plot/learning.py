"""Training curves, norms of gradients, and one sample passing through a trained network."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, Literal

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

from hibana.nn.layers import OverTime, Recurrent
from hibana.plot import style
from hibana.plot.spikes import raster
from hibana.plot.style import BLUE, GREY, RED

MOST_NAMED = 12
"""With more classes, only the names of the correct and of the predicted class are shown. A sample with more
features is drawn by those with the largest absolute values."""


def learning_curves(
    curves: Mapping[str, Sequence[float]], axes: Axes | None = None, *, ylabel: str, title: str
) -> Axes:
    """Draws one curve for each name in `curves`, with one value per epoch."""
    axes = axes or style.new_axes(5, 3.4)
    for (name, values), colour in zip(curves.items(), style.colours(len(curves)), strict=True):
        marker = "." if len(values) <= 20 else None
        axes.plot(range(1, len(values) + 1), values, label=name, color=colour, marker=marker)
    axes.set(title=title, xlabel="Epoch", ylabel=ylabel)
    axes.xaxis.set_major_locator(style.integer_ticks())
    axes.legend(frameon=False)
    return style.without_frame(axes)


def training(
    history: Mapping[str, Sequence[float]],
    reference: tuple[str, float],
    image: Tensor | Mapping[str, float],
    spikes: Mapping[str, Tensor],
    potentials: Tensor,
    label: float,
    *,
    names: Sequence[str] = (),
    measure: str = "accuracy",
    answer: float | None = None,
) -> Figure:
    """Draws the curves of a training, and one sample passing through the trained network.

    Args:
        history: values per epoch, by the names that training logs. Without losses, as for a network that was
            fitted in closed form, a title with the last values replaces the curves.
        reference: name and test result (of `measure`) of another model.
        image: the sample, ``[height, width]``, or the features of a row of a table by name. The features with
            the largest absolute values are drawn.
        spikes: spikes of each layer, ``[T, neurons]``; may be empty.
        potentials: potentials of the output neurons, ``[T, classes]``.
        label: the sample's class. For a quantity its value; `label`, `answer`, `potentials` and the losses
            must then have the same unit, such as that of the data.
        names: names of the classes, their indices if empty; or the name of the quantity.
        measure: ``accuracy``, or ``explained`` for the explained variance of a quantity.
        answer: the network's answer, a class or a quantity; by default that of the mean potentials.
    """
    is_quantity = measure == "explained"
    if is_quantity:
        classes, font = style.drawable(names or ["quantity"], ["quantity"])
    else:
        classes, font = style.drawable(names or [str(neuron) for neuron in range(potentials.shape[1])])
    measure_name = "Variance explained" if is_quantity else "Accuracy"
    sample = ["image", "raster", "output"] if spikes else ["image", "output"]
    losses, measures = _curves(history, "loss"), _curves(history, measure)
    rates = {key.rpartition("/")[2]: values for key, values in history.items() if "/rate/" in key}
    curves = ["loss", "measure", *(["rate" if rates else "."] if spikes else [])]
    figure = style.new_figure(13, 7.5 if losses else 4.2)
    figure.set_layout_engine("constrained", w_pad=0.12, h_pad=0.08)  # inches between labels of two panels
    rows: Any = [curves, sample] if losses else [sample]
    panels = figure.subplot_mosaic(rows, width_ratios=[1, 1.25, 1.25][: len(sample)])
    if losses:
        loss_name = f"Squared error ({classes[0]}²)" if is_quantity else "Cross-entropy"
        axes = learning_curves(losses, panels["loss"], ylabel=loss_name, title="Loss")
        axes.set_yscale("log")
        axes.set_ylabel(loss_name, **font)
        axes = learning_curves(measures, panels["measure"], ylabel=measure_name, title=measure_name)
        axes.axhline(reference[1], color=GREY, linestyle="dashed", label=f"{reference[0]} (test)")
        axes.legend(frameon=False)
    else:
        values = [f"{part} {values[-1]:.1%}" for part, values in measures.items()]
        figure.suptitle(
            f"{measure_name}: {', '.join([*values, f'{reference[0]} (test) {reference[1]:.1%}'])}"
        )
    if "rate" in panels:
        learning_curves(rates, panels["rate"], ylabel="Spikes per neuron and step", title="Firing rate")
        panels["rate"].set_ylim(bottom=0)
    if spikes:
        raster(spikes, panels["raster"])
    axes = panels["image"]
    if isinstance(image, Mapping):
        _features(image, axes)
    else:
        axes.imshow(style.array("image", image, "[height, width]"))
        axes.set(xticks=[], yticks=[])
    shown = f"{classes[0]} {label:.4g}" if is_quantity else classes[int(label)]
    axes.set_title(f"A test sample: {shown}", **font)
    axes = panels["output"]
    if is_quantity:
        _quantity(potentials, label, answer, axes)
        axes.set_ylabel(f"Output ({classes[0]})", **font)
    else:
        output_potentials(
            potentials, int(label), classes, axes, answer=None if answer is None else int(answer)
        )
    return figure


def _features(features: Mapping[str, float], axes: Axes) -> None:
    """Draws a bar for each of the features with the largest absolute values, the first at the top."""
    largest = sorted(features, key=lambda name: -abs(features[name]))[:MOST_NAMED]
    names = [name for name in features if name in largest]
    labels, font = style.drawable(names)
    axes.barh(range(len(names)), [features[name] for name in names], color=BLUE, height=0.6)
    axes.set_yticks(range(len(names)), labels, **font)
    axes.axvline(0, color=GREY, linewidth=0.5)
    part = f" ({len(names)} of {len(features)} features)" if len(names) < len(features) else ""
    axes.set_xlabel(f"Scaled value{part}")
    axes.invert_yaxis()
    style.without_frame(axes)


def _quantity(potentials: Tensor, label: float, answer: float | None, axes: Axes) -> None:
    """Draws the output ``[T, 1]`` of a regression over time, with the correct and the predicted quantity."""
    values = style.array("potentials", potentials, "[T, 1]")[:, 0]
    answer = float(values.mean()) if answer is None else answer
    axes.plot(style.times(axes, len(values), None), values, color=BLUE, linewidth=2.5)
    axes.axhline(label, color=GREY, linestyle="dashed", label=f"correct: {label:.4g}")
    axes.axhline(answer, color=RED, linestyle="dotted", label=f"predicted: {answer:.4g}")
    axes.set_title("Output over time")
    axes.legend(frameon=False)
    style.without_frame(axes)


def _curves(history: Mapping[str, Sequence[float]], quantity: str) -> dict[str, Sequence[float]]:
    """The curves of `quantity` by part of the data, training before validation."""
    suffix = f"/{quantity}"
    curves = {key.partition("/")[0]: values for key, values in history.items() if key.endswith(suffix)}
    return dict(sorted(curves.items()))


def output_potentials(
    potentials: Tensor,
    label: int,
    names: Sequence[str],
    axes: Axes | None = None,
    *,
    dt: float | None = None,
    answer: int | None = None,
) -> Axes:
    """Draws the potentials of the output neurons: the correct class thick and blue, a wrong prediction red.

    Args:
        potentials: ``[T, classes]``.
        label: index of the correct class.
        names: names of the classes.
        axes: axes to draw on.
        dt: length of a step in milliseconds.
        answer: index of the predicted class; by default that of the highest mean potential.

    Raises:
        ValueError: if `potentials` has another shape, or `names` another length.
    """
    values = style.array("potentials", potentials, "[T, classes]")
    if len(names) != values.shape[1]:
        raise ValueError(f"names must name the {values.shape[1]} classes, got {len(names)}")
    names, font = style.drawable(names)
    axes = axes or style.new_axes(6, 4)
    time = style.times(axes, len(values), dt)
    prediction = int(values.mean(0).argmax()) if answer is None else answer
    colours = [BLUE if n == label else RED if n == prediction else GREY for n in range(len(names))]
    for neuron, colour in enumerate(colours):
        width, alpha, zorder = (2.5, 1, 3) if neuron in (label, prediction) else (1, 0.6, 2)
        axes.plot(time, values[:, neuron], color=colour, linewidth=width, alpha=alpha, zorder=zorder)
    last = values[-1]
    order = [n for n in last.argsort().tolist() if len(names) <= MOST_NAMED or n in (label, prediction)]
    bold = () if font else (label, prediction)  # other fonts may lack a bold weight
    gap = 0.045 * float(values.max() - values.min())
    leader = {"arrowstyle": "-", "relpos": (0, 0.5), "shrinkA": 1, "shrinkB": 0, "linewidth": 0.6}
    for neuron, height in zip(order, style.spread_out([float(last[n]) for n in order], gap), strict=True):
        axes.annotate(
            names[neuron],
            (time[-1], last[neuron]),
            xytext=(16, height),
            textcoords=("offset points", "data"),
            arrowprops={**leader, "color": colours[neuron]},
            annotation_clip=False,
            va="center",
            weight="bold" if neuron in bold else "normal",
            **font,
        )
    axes.set_ylabel("Membrane potential")
    axes.set_title(f"Output neurons: shown {names[label]}, answered {names[prediction]}", **font)
    return style.without_frame(axes)


def gradient_norms(
    net: nn.Module,
    objective: Callable[[Any, Tensor], Tensor],
    inputs: Tensor,
    labels: Tensor,
    *,
    of: Literal["outputs", "inputs"] = "outputs",
) -> dict[str, Tensor]:
    """The norm of the loss's gradient at each hibana layer of `net` and each step, over batch and neurons.

        n_t = |dL/ds_t|_2   at the layer's outputs s (``of="outputs"``), from the layers above
        n_t = |dL/dI_t|_2   at the layer's inputs I (``of="inputs"``), including its own state and recurrence

    The gradients of parameters are neither used nor changed. All gradients are computed, also those that a
    layer of :mod:`hibana.spikes` would skip in training.

    Args:
        net: any module with hibana layers; it is called once, in its current mode.
        objective: ``(outputs, labels) -> loss``, a scalar.
        inputs: inputs of `net`, time first.
        labels: labels for `objective`.
        of: position of the gradient.

    Returns:
        ``[T]`` for each layer, by its name in `net`, in the order of the calls; the second call of a layer
        is ``name#1``, and so on.

    Raises:
        ValueError: if `net` calls no hibana layer, or `of` has another value.

    >>> import hibana as hb
    >>> net = nn.Sequential(nn.Linear(3, 8), hb.IF(), nn.Linear(8, 2), hb.LI())
    >>> objective = lambda outputs, labels: nn.functional.cross_entropy(outputs.mean(0), labels)
    >>> norms = gradient_norms(net, objective, torch.rand(5, 4, 3), torch.tensor([0, 1, 1, 0]))
    >>> {name: norm.shape for name, norm in norms.items()}
    {'1': torch.Size([5]), '3': torch.Size([5])}
    """
    if of not in ("outputs", "inputs"):
        raise ValueError(f"of must be 'outputs' or 'inputs', got {of!r}")
    tensors: dict[str, Tensor] = {}

    def store(name: str, module: nn.Module, args: Any, kwargs: Any, outputs: Any) -> None:
        """Stores the output or input of a call of the layer `name`; later calls are ``NAME#1`` and so on."""
        if of == "inputs":
            tensor = args[0] if args else kwargs["inputs"]
        else:
            tensor = outputs[0] if isinstance(outputs, tuple) else outputs
        calls = sum(key.partition("#")[0] == name for key in tensors)
        tensors[name if calls == 0 else f"{name}#{calls}"] = tensor

    with ExitStack() as hooks, torch.enable_grad():
        for name, module in net.named_modules():
            if isinstance(module, OverTime | Recurrent):
                hooks.enter_context(module.register_forward_hook(partial(store, name), with_kwargs=True))
        loss = objective(net(inputs.detach().requires_grad_(inputs.is_floating_point())), labels)
    if not tensors:
        raise ValueError("net must call at least one layer of hibana (OverTime, IF, ..., Recurrent)")
    for tensor in tensors.values():
        tensor.retain_grad()  # keeps layers from skipping this gradient or summing it over time
    grads = torch.autograd.grad(loss, list(tensors.values()), allow_unused=True)
    return {
        name: tensor.new_zeros(len(tensor)) if grad is None else grad.flatten(1).norm(dim=1)
        for (name, tensor), grad in zip(tensors.items(), grads, strict=True)
    }
