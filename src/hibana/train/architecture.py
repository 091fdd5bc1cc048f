"""From a description to a network ``[T, batch, *shape] -> [T, batch, classes]``.

A description is a row of layers, joined by ``-`` or ``,``:

=========== ====================================================================================
``512``     a linear layer and 512 neurons
``128r``    a linear layer and 128 neurons with recurrent weights
``64w5``    a causal convolution over 5 steps of time, and 64 neurons
``64w5d2b`` the same over every second step, with batch normalisation (``64w5b`` without the first)
``32c3``    a convolution, 32 channels, 3x3, padded to keep the size, and its neurons
``32c3s2``  the same with stride 2
``32c3b``   the same with batch normalisation between convolution and neurons (``32c3s2b`` too)
``p2``      max-pooling, 2x2; of spikes it makes spikes
``a2``      average pooling, 2x2
``skip``    a linear path from the input to the readout, beside all the other layers
``rocket9`` alone: :func:`hibana.models.rocket`, whose windows span 9 steps; of ``rocket9r3`` neurons
            rest for 3 steps after a spike
=========== ====================================================================================

A linear layer and a non-spiking integrator that reads out the classes come last by themselves. Nothing here
trains, and no data set is known.
"""

import importlib
import re
from collections import OrderedDict
from collections.abc import Callable, Collection
from typing import NamedTuple

import torch
from torch import Tensor, nn

from hibana import spikes as events
from hibana.cells import Cell
from hibana.nn import layers
from hibana.nn.each_step import EachStep
from hibana.nn.models.rocket import rocket, size
from hibana.nn.window import Window

__all__ = ["build", "check", "check_trust", "period", "span"]

Shape = tuple[int, ...]

_TOKEN = re.compile(
    r"(?P<channels>\d{1,8})c(?P<kernel>\d{1,8})(?:s(?P<stride>\d{1,8}))?(?P<norm>b)?"
    r"|(?P<pool>[pa])(?P<window>\d{1,8})"
    r"|(?P<seen>\d{1,8})w(?P<taps>\d{1,4})(?:d(?P<dilation>\d{1,4}))?(?P<seen_norm>b)?"
    r"|(?P<size>\d{1,8})(?P<recurrent>r)?"
    r"|(?P<skip>skip)"
)
_ROCKET = re.compile(r"rocket(?P<span>[1-9]\d{0,5})(?:r(?P<period>[1-9]\d{0,2}))?")
_FUNCTION = re.compile(r"[\w.]+:\w+")
LONGEST = 2_000
"""Characters of a description at most."""


class _Part(NamedTuple):
    """One word of a description, and what it says."""

    word: str
    says: dict[str, str | None]


def check(description: str) -> None:
    """Reads a description without building anything.

    >>> check("32c3-p2-64c3s2b-128r")

    Raises:
        ValueError: if a word of it means nothing; the message names it.
    """
    if len(description) > LONGEST:
        raise ValueError(f"layers must be at most {LONGEST:,} characters, got {len(description):,}")
    if not _FUNCTION.fullmatch(description) and not _ROCKET.fullmatch(description):
        _parts(description)


def span(description: str | None) -> int | None:
    """The steps that the windows of a Rocket span, if that is what `description` describes.

    >>> span("rocket150r3"), span("256,256")
    (150, None)
    """
    found = None if description is None else _ROCKET.fullmatch(description)
    return None if found is None else int(found["span"])


def period(description: str) -> int:
    """The steps that neurons of a Rocket rest after a spike; 0 of other descriptions.

    >>> period("rocket150r3"), period("rocket150")
    (3, 0)
    """
    found = _ROCKET.fullmatch(description)
    return int(found["period"] or 0) if found else 0


def is_function(name: str) -> bool:
    """Whether `name` is the ``module:function`` of a user."""
    return _FUNCTION.fullmatch(name) is not None


def check_trust(description: object, trust: Collection[str], where: str) -> None:
    """Refuses a function or class that a file names, and that nobody said to run.

    Args:
        description: of layers or data, as it stands in the file.
        trust: the functions that may be run, ``module:function``.
        where: what the file is, for the sentence.

    Raises:
        ValueError: if `description` names a function that is not in `trust`, or `trust` names none.
    """
    for name in trust:
        if not _FUNCTION.fullmatch(name):
            raise ValueError(f"trust must name functions, MODULE:FUNCTION, got {name!r}")
    if isinstance(description, str) and _FUNCTION.fullmatch(description) and description not in trust:
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
    most_weights: int | None = None,
) -> nn.Module:
    """The network that `description` describes.

    Args:
        description: a row of layers, or ``module:function``: a function that builds the network from
            ``(shape, classes, cell)``.
        shape: of one step of one input.
        classes: outputs.
        cell: makes the cell of a layer; called once for each.
        readout_tau: time constant of the integrator that reads out, in steps; infinite sums its input.
        most_weights: what the layers of a description may have together; nothing larger is made.

    Raises:
        ValueError: if the description means nothing, a layer does not fit on the one before, or they have
            more than `most_weights`.
        TypeError: if the function returns anything but a module.

    The readout of a description with ``skip`` sums two currents: that of the layers and that of one linear
    map of the input. Both start at zero, so that training begins at no answer and the map, which is
    convex to learn, comes first.

    >>> import torch, hibana as hb
    >>> net = build("8c3-p2-32", (28, 28), 10, hb.IFCell)
    >>> net(torch.rand(4, 2, 28, 28)).shape
    torch.Size([4, 2, 10])
    """
    if _FUNCTION.fullmatch(description):
        return _from_function(description, shape, classes, cell)
    if (steps := span(description)) is not None:
        return _rocket(steps, period(description), shape, classes, most_weights)
    words = _parts(description)
    parts = [part for part in words if part.says["skip"] is None]
    given = shape
    stack: OrderedDict[str, nn.Module] = OrderedDict()
    if any(part.says["channels"] or part.says["pool"] for part in parts):
        if len(shape) == 2:
            stack["channel"] = nn.Unflatten(2, (1, shape[0]))
            shape = (1, *shape)
        if len(shape) != 3:
            raise ValueError(f"layers {description!r} needs images, [channels, height, width], got {shape}")
    spend = _allowance(most_weights)
    for number, part in enumerate(parts, start=1):
        shape = _add(stack, number, part, shape, cell, spend)
    features = _flat(stack, "flatten", shape)
    spend(features * classes)
    stack["linear"] = events.Linear(features, classes)
    if len(parts) == len(words):
        stack["readout"] = layers.LI(readout_tau)
        return nn.Sequential(stack)
    direct: OrderedDict[str, nn.Module] = OrderedDict()
    inputs = _flat(direct, "flatten", given)
    spend(inputs * classes)
    direct["linear"] = events.Linear(inputs, classes, bias=False)
    for parameter in (*stack["linear"].parameters(), *direct["linear"].parameters()):
        nn.init.zeros_(parameter)
    return _Skipping(OrderedDict(**stack, skip=nn.Sequential(direct), readout=layers.LI(readout_tau)))


def _rocket(steps: int, resting: int, shape: Shape, classes: int, most_weights: int | None) -> nn.Module:
    """The spiking Rocket over so many `steps`, its seed drawn by torch."""
    if len(shape) != 1:
        raise ValueError(f"layers 'rocket{steps}' needs series of numbers, [channels], got {shape}")
    _allowance(most_weights)(size(shape[0], classes, steps))
    seed = int(torch.randint(1 << 31, (), dtype=torch.int64, device="cpu"))
    return rocket(shape, classes, steps=steps, period=resting, seed=seed).requires_grad_()


class _Skipping(nn.Sequential):
    """Layers, and beside all of them a linear path: the last two modules are that path and the readout."""

    def forward(self, inputs: Tensor) -> Tensor:
        *path, skip, readout = self
        currents = inputs
        for layer in path:
            currents = layer(currents)
        read: Tensor = readout(currents + skip(inputs))
        return read


def _allowance(most: int | None) -> Callable[[int], None]:
    """To be called with the weights of each layer before it is made; refuses those beyond `most`."""
    spent = 0

    def spend(weights: int) -> None:
        nonlocal spent
        spent += weights
        if most is not None and spent > most:
            raise ValueError(f"layers must have at most {most:,} weights together, got {spent:,} and more")

    return spend


def _parts(description: str) -> list[_Part]:
    parts = []
    for word in re.split("[-,]", description):
        match = _TOKEN.fullmatch(word)
        if match is None or any(value == 0 for value in map(int, re.findall(r"\d+", word))):
            raise ValueError(
                f"layers must be a row such as 512,512 or 32c3-p2-64c3-p2-512, or "
                f"module:function; {word!r} of {description!r} means nothing"
            )
        parts.append(_Part(word, match.groupdict()))
    return parts


def _add(
    stack: OrderedDict[str, nn.Module],
    number: int,
    part: _Part,
    shape: Shape,
    cell: Callable[[], Cell],
    spend: Callable[[int], None],
) -> Shape:
    """Adds the modules of one part, and says what shape comes out of it."""
    says = part.says
    if (size := says["size"]) is not None:
        features = _flat(stack, f"flatten{number}", shape)
        recurrent = says["recurrent"] is not None
        spend(int(size) * (features + int(size) * recurrent))
        stack[f"linear{number}"] = events.Linear(features, int(size))
        neuron = cell()
        stack[f"{_kind(neuron)}{number}"] = (
            layers.Recurrent(neuron, int(size)) if recurrent else layers.OverTime(neuron)
        )
        return (int(size),)
    if (seen := says["seen"]) is not None:
        return _add_window(
            stack, number, says, int(seen), _flat(stack, f"flatten{number}", shape), cell, spend
        )
    if len(shape) != 3:
        raise ValueError(f"{part.word!r} needs [channels, height, width], but stands after a linear layer")
    channels, height, width = shape
    if (window := says["window"]) is not None:
        if int(window) > min(height, width):
            raise ValueError(f"{part.word!r} must fit on {height}x{width}")
        pool = events.MaxPool2d if says["pool"] == "p" else events.AvgPool2d
        stack[f"pool{number}"] = EachStep(pool(int(window)))
        return channels, height // int(window), width // int(window)
    made, kernel, stride = int(says["channels"] or 0), int(says["kernel"] or 0), int(says["stride"] or 1)
    if kernel > min(height, width) + 2 * (kernel // 2):
        raise ValueError(f"{part.word!r} must fit on {height}x{width}")
    spend(made * channels * kernel * kernel)
    convolution: nn.Module = events.Conv2d(
        channels, made, kernel, stride, kernel // 2, bias=says["norm"] is None
    )
    if says["norm"] is not None:
        convolution = nn.Sequential(convolution, nn.BatchNorm2d(made))
    stack[f"conv{number}"] = EachStep(convolution)
    neuron = cell()
    stack[f"{_kind(neuron)}{number}"] = layers.OverTime(neuron)
    out = [(side + 2 * (kernel // 2) - kernel) // stride + 1 for side in (height, width)]
    return made, out[0], out[1]


def _add_window(
    stack: OrderedDict[str, nn.Module],
    number: int,
    says: dict[str, str | None],
    size: int,
    features: int,
    cell: Callable[[], Cell],
    spend: Callable[[int], None],
) -> Shape:
    """Adds a convolution over time and its neurons."""
    taps, dilation, norm = int(says["taps"] or 0), int(says["dilation"] or 1), says["seen_norm"] is not None
    spend(size * features * taps)
    stack[f"window{number}"] = Window(features, size, taps, dilation, bias=not norm)
    if norm:
        stack[f"norm{number}"] = EachStep(nn.BatchNorm1d(size))
    neuron = cell()
    stack[f"{_kind(neuron)}{number}"] = layers.OverTime(neuron)
    return (size,)


def _kind(cell: Cell) -> str:
    """What layers of `cell` are called in a network: ``if`` for ``IFCell``."""
    return type(cell).__name__.removesuffix("Cell").lower()


def _flat(stack: OrderedDict[str, nn.Module], name: str, shape: Shape) -> int:
    """Features of `shape`, flattened after time and batch if it has more than one axis."""
    features = 1
    for side in shape:
        features *= side
    if len(shape) != 1:
        stack[name] = events.Flatten(2)
    return features


def _from_function(description: str, shape: Shape, classes: int, cell: Callable[[], Cell]) -> nn.Module:
    module, _, name = description.partition(":")
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"layers {description!r} can't be found: {error}") from error
    net = function(shape, classes, cell)
    if not isinstance(net, nn.Module):
        raise TypeError(f"layers {description!r} must return a torch.nn.Module, got {type(net).__name__}")
    return net
