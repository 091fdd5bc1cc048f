"""Builds a network ``[T, batch, *shape] -> [T, batch, classes]`` from a description.

A description is a row of layers, joined by ``-`` or ``,``:

=========== ====================================================================================
``512``     a linear layer and 512 neurons
``128r``    a linear layer and 128 neurons with recurrent weights
``64w5``    a causal convolution over 5 steps of time, and 64 neurons
``64w5d2b`` the same over every second step, with batch normalization (``64w5b`` without the first)
``32c3``    a convolution, 32 channels, 3x3, padded to keep the size, and its neurons
``32c3s2``  the same with stride 2
``32c3b``   the same with batch normalization between convolution and neurons (``32c3s2b`` too)
``p2``      max-pooling, 2x2; of spikes it makes spikes
``a2``      average pooling, 2x2
``skip``    a linear path from the input to the readout, parallel to all other layers
``rocket9`` as the only word: :func:`hibana.models.rocket` whose windows span 9 steps. In ``rocket9r3``
            the neurons are refractory for 3 steps after a spike
=========== ====================================================================================

A linear layer and a non-spiking integrator, which reads out the classes, are added at the end.
"""

import importlib
import math
import re
from collections import OrderedDict
from collections.abc import Callable, Collection
from reprlib import repr as short_repr
from typing import Any

import torch
from torch import Tensor, nn

from hibana import spikes as events
from hibana.cells import Cell
from hibana.nn import layers
from hibana.nn.each_step import EachStep
from hibana.nn.models.rocket import rocket, size
from hibana.nn.sparse_linear import SparseLinear
from hibana.nn.window import Window
from hibana.spikes.sparse import connect
from hibana.train.synapses import LayerSize, Synapses

Shape = tuple[int, ...]

_WORDS = {
    "linear": re.compile(r"(?P<size>\d{1,8})(?P<recurrent>r)?"),
    "window": re.compile(r"(?P<size>\d{1,8})w(?P<taps>\d{1,4})(?:d(?P<dilation>\d{1,4}))?(?P<norm>b)?"),
    "convolution": re.compile(r"(?P<size>\d{1,8})c(?P<kernel>\d{1,8})(?:s(?P<stride>\d{1,8}))?(?P<norm>b)?"),
    "pooling": re.compile(r"(?P<pool>[pa])(?P<size>\d{1,8})"),
    "skip": re.compile(r"skip"),
}
"""Patterns of the words of a description, by kind of layer."""
_ROCKET = re.compile(r"rocket(?P<span>[1-9]\d{0,5})(?:r(?P<period>[1-9]\d{0,2}))?")
_FUNCTION = re.compile(r"[\w.]+:\w+")


def check(description: str) -> None:
    """Checks a description without building anything.

    >>> check("32c3-p2-64c3s2b-128r")

    Raises:
        ValueError: naming the first word that is not a layer.
    """
    if not is_function(description) and not _ROCKET.fullmatch(description):
        _parse(description)


def rocket_parameters(description: str) -> tuple[int, int] | None:
    """Returns the span of a Rocket's windows and its neurons' refractory period, both in steps.

    Returns ``None`` for other descriptions.

    >>> rocket_parameters("rocket150r3"), rocket_parameters("256,256")
    ((150, 3), None)
    """
    match = _ROCKET.fullmatch(description)
    return None if match is None else (int(match["span"]), int(match["period"] or 0))


def is_function(name: str) -> bool:
    """Whether `name` has the form ``module:function``."""
    return _FUNCTION.fullmatch(name) is not None


def import_object(reference: str, option: str) -> Any:
    """Imports and returns the object `reference`, ``module:name``.

    Raises ValueError if there is no such module or name; the message starts with the name of the `option`.
    """
    module, _, name = reference.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{option} {reference!r} can't be found: {error}") from error


def check_trust(description: object, trust: Collection[str], where: str) -> None:
    """Rejects a function or class that a file names, unless the user trusts it.

    Args:
        description: the layers or data in the file.
        trust: functions ``module:function`` that may be executed.
        where: the file, for the message.

    Raises:
        ValueError: if `description` names a function that is not in `trust`.
    """
    if isinstance(description, str) and is_function(description) and description not in trust:
        raise ValueError(
            f"{where} names a function to run, {description!r}; if you know that function, allow it: "
            f"--trust {description}, or trust=[{description!r}]"
        )


def build(
    description: str,
    shape: Shape,
    classes: int,
    cell: Callable[[], Cell],
    *,
    readout_tau: float = float("inf"),
    connectivity: float = 1.0,
    most_weights: int | None = None,
) -> nn.Module:
    """Builds the network that `description` describes.

    The readout of a description with ``skip`` sums two currents: the output of the layers, and a linear map
    of the input. Both start at zero: training begins with equal scores and first learns the linear map, which
    is a convex problem.

    Args:
        description: a row of layers, or ``module:function``: a function that builds the network from
            ``(shape, classes, cell)``.
        shape: shape of one step of one input.
        classes: number of outputs.
        cell: function that returns a new cell; called once per layer.
        readout_tau: time constant of the readout in steps; if infinite, the readout sums its input.
        connectivity: the fraction of the synapses of all fully connected layers together that exist, in (0,
            1], distributed as in :class:`hibana.train.synapses.Synapses`. Layers that lose synapses are
            :class:`hibana.SparseLinear`. Functions and ``rocket`` ignore it.
        most_weights: maximum number of weights, checked before any is allocated.

    Raises:
        ValueError: if a word is not a layer, a layer does not fit on the previous one, or the layers have
            more than `most_weights`.
        TypeError: if the function does not return a module.

    >>> import torch, hibana as hb
    >>> net = build("8c3-p2-32", (28, 28), 10, hb.IFCell)
    >>> net(torch.rand(4, 2, 28, 28)).shape
    torch.Size([4, 2, 10])
    """
    if is_function(description):
        net = import_object(description, "layers")(shape, classes, cell)
        if not isinstance(net, nn.Module):
            raise TypeError(f"layers {description!r} must return a torch.nn.Module, got {type(net).__name__}")
        return net
    if (parameters := rocket_parameters(description)) is not None:
        steps, period = parameters
        if len(shape) != 1:
            raise ValueError(f"layers 'rocket{steps}' needs series of numbers, [channels], got {shape}")
        _check_weights(size(shape[0], classes, steps), most_weights)
        seed = int(torch.randint(1 << 31, (), dtype=torch.int64, device="cpu"))
        return rocket(shape, classes, steps=steps, period=period, seed=seed).requires_grad_()
    arguments = description, shape, classes, cell, readout_tau
    synapses = Synapses()
    if most_weights is None and connectivity == 1:
        return _build_layers(*arguments, synapses)
    with torch.device("meta"):
        net = _build_layers(*arguments, synapses)
    dense = list(synapses.layers)
    if connectivity < 1:
        synapses = Synapses.of(dense, connectivity)
    absent = sum(layer.inputs * layer.outputs - synapses.count(layer) for layer in dense)
    _check_weights(sum(weight.numel() for weight in net.parameters()) - absent, most_weights)
    return _build_layers(*arguments, synapses)


def _check_weights(count: int, max_count: int | None) -> None:
    """Raises ValueError if `count` weights are more than `max_count`, unless that is None."""
    if max_count is not None and count > max_count:
        raise ValueError(f"layers must have at most {max_count:,} weights together, got {count:,}")


def _build_layers(
    description: str,
    shape: Shape,
    classes: int,
    cell: Callable[[], Cell],
    readout_tau: float,
    synapses: Synapses,
) -> nn.Module:
    """Builds the network of a row of layers, whose fully connected layers have `synapses`."""
    words = _parse(description)
    stack = _Stack(shape, cell, synapses)
    if any(kind in ("convolution", "pooling") for _, kind, _ in words):
        stack.add_channel_axis(description)
    hidden = [word for word in words if word[1] != "skip"]  # (word, kind, options)
    for number, (word, kind, options) in enumerate(hidden, start=1):
        if kind in ("convolution", "pooling") and len(stack.shape) != 3:
            raise ValueError(f"{word!r} needs [channels, height, width], but follows a linear layer")
        getattr(stack, f"add_{kind}")(number, word, options)
    stack.modules["linear"] = stack.linear(stack.flatten("flatten"), classes, to_hidden=False)
    readout = layers.LI(readout_tau)
    if len(hidden) == len(words):
        return nn.Sequential(OrderedDict(**stack.modules, readout=readout))
    skip = _Stack(shape, cell, synapses)
    skip.modules["linear"] = skip.linear(skip.flatten("flatten"), classes, to_hidden=False, bias=False)
    for linear in (stack.modules["linear"], skip.modules["linear"]):
        for parameter in linear.parameters():
            nn.init.zeros_(parameter)
    return _SkipSequential(OrderedDict(**stack.modules, skip=nn.Sequential(skip.modules), readout=readout))


class _SkipSequential(nn.Sequential):
    """Layers, then a linear path from the input to the readout, and the readout, as the last two modules."""

    def forward(self, inputs: Tensor) -> Tensor:
        """Returns the readout's outputs for the sum of the two currents, hidden layers and linear path."""
        *hidden, skip, readout = self
        currents = inputs
        for layer in hidden:
            currents = layer(currents)
        outputs: Tensor = readout(currents + skip(inputs))
        return outputs


def _parse(description: str) -> list[tuple[str, str, dict[str, str]]]:
    """Returns word, kind and options of each layer, without the options that the word omits."""
    layers_ = []
    for word in re.split("[-,]", description):
        matches = {kind: match for kind, pattern in _WORDS.items() if (match := pattern.fullmatch(word))}
        if not matches or any(int(number) == 0 for number in re.findall(r"\d+", word)):
            raise ValueError(
                f"layers must be a row such as 512,512 or 32c3-p2-64c3-p2-512, or "
                f"module:function; {short_repr(word)} of {short_repr(description)} is not a layer"
            )
        ((kind, match),) = matches.items()
        layers_.append((word, kind, {name: value for name, value in match.groupdict().items() if value}))
    return layers_


class _Stack:
    """The modules of a network under construction, and the output shape of the last."""

    def __init__(self, shape: Shape, cell: Callable[[], Cell], synapses: Synapses) -> None:
        self.modules: OrderedDict[str, nn.Module] = OrderedDict()
        self.shape, self.cell, self.synapses = shape, cell, synapses
        self.is_hidden = False
        """Whether the last layer's neurons are hidden neurons behind a fully connected layer."""

    def add_channel_axis(self, description: str) -> None:
        """Adds a channel axis if the shape is (height, width); raises ValueError unless it is an image's."""
        if len(self.shape) == 2:
            self.modules["channel"] = nn.Unflatten(2, (1, self.shape[0]))
            self.shape = (1, *self.shape)
        if len(self.shape) != 3:
            raise ValueError(
                f"layers {description!r} needs images, [channels, height, width], got {self.shape}"
            )

    def flatten(self, name: str) -> int:
        """Adds a module that flattens all axes after time and batch; returns the number of features."""
        if len(self.shape) != 1:
            self.modules[name] = events.Flatten(2)
        return math.prod(self.shape)

    def add_neurons(self, number: int, recurrent: int | None = None) -> None:
        """Adds a layer of spiking neurons.

        Args:
            number: the number at the end of the layer's name, such as 2 in ``lif2``.
            recurrent: the number of neurons if they have recurrent weights, else None.
        """
        cell = self.cell()
        name = type(cell).__name__.removesuffix("Cell").lower()
        if recurrent is None:
            self.modules[f"{name}{number}"] = layers.OverTime(cell)
        else:
            synapses = self.linear(recurrent, recurrent, bias=False)
            self.modules[f"{name}{number}"] = layers.Recurrent(cell, recurrent, synapses)

    def linear(
        self, inputs: int, outputs: int, *, to_hidden: bool = True, bias: bool = True
    ) -> events.Linear | SparseLinear:
        """A linear layer, sparse if it loses synapses; `to_hidden` if the outputs are hidden neurons."""
        layer = LayerSize(inputs, outputs, self.is_hidden, to_hidden)
        self.synapses.layers.append(layer)
        if self.synapses.count(layer) == inputs * outputs:
            return events.Linear(inputs, outputs, bias=bias)
        sources, targets, per_target = self.synapses.between(layer)
        rule = connect.fixed_in_degree(per_target, source=range(sources), target=range(targets))
        return SparseLinear(inputs, outputs, rule, bias)

    def add_linear(self, number: int, word: str, options: dict[str, str]) -> None:
        """Adds a linear layer, after flattening, and its neurons."""
        width = int(options["size"])
        self.modules[f"linear{number}"] = self.linear(self.flatten(f"flatten{number}"), width)
        self.is_hidden = True
        self.add_neurons(number, width if "recurrent" in options else None)
        self.shape = (width,)

    def add_window(self, number: int, word: str, options: dict[str, str]) -> None:
        """Adds a layer over a window of `taps` time steps, normalized with ``norm``, and its neurons."""
        width, normalized = int(options["size"]), "norm" in options
        features = self.flatten(f"flatten{number}")
        taps, dilation = int(options["taps"]), int(options.get("dilation", 1))
        self.modules[f"window{number}"] = Window(features, width, taps, dilation, bias=not normalized)
        if normalized:
            self.modules[f"norm{number}"] = EachStep(nn.BatchNorm1d(width))
        self.add_neurons(number)
        self.shape, self.is_hidden = (width,), False

    def add_convolution(self, number: int, word: str, options: dict[str, str]) -> None:
        """Adds a convolution, normalized with ``norm``, and its neurons; `word` is for error messages."""
        channels, *sides = self.shape
        size, kernel, stride = int(options["size"]), int(options["kernel"]), int(options.get("stride", 1))
        padding = kernel // 2
        if kernel > min(sides) + 2 * padding:
            raise ValueError(f"{word!r} must fit on {sides[0]}x{sides[1]}")
        bias = "norm" not in options
        convolution: nn.Module = events.Conv2d(channels, size, kernel, stride, padding, bias=bias)
        if not bias:
            convolution = nn.Sequential(convolution, nn.BatchNorm2d(size))
        self.modules[f"conv{number}"] = EachStep(convolution)
        self.add_neurons(number)
        self.shape = (size, *((side + 2 * padding - kernel) // stride + 1 for side in sides))

    def add_pooling(self, number: int, word: str, options: dict[str, str]) -> None:
        """Adds pooling, ``p`` for maxima, else averages; `word` is for error messages."""
        channels, height, width = self.shape
        window = int(options["size"])
        if window > min(height, width):
            raise ValueError(f"{word!r} must fit on {height}x{width}")
        pool = events.MaxPool2d if options["pool"] == "p" else events.AvgPool2d
        self.modules[f"pool{number}"] = EachStep(pool(window))
        self.shape = (channels, height // window, width // window)
