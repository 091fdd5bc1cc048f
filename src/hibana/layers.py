"""Cells over time, as layers that sit in ``nn.Sequential`` like an activation; and :func:`run`.

A layer takes a sequence ``[T, ...]`` and returns the emitted sequence. Every call starts at rest:
there is no hidden state and nothing to reset. To go on from a state, ask for it with :func:`run`.
"""

import inspect
from collections.abc import Callable
from typing import Any, ParamSpec, cast, final

import torch
from torch import Tensor, nn

from hibana import cells, events
from hibana.events.support import announce
from hibana.loop import State, emitted, unroll

__all__ = [
    "ALIF",
    "EIF",
    "IF",
    "LI",
    "LIF",
    "PLIF",
    "QIF",
    "CubaLIF",
    "EachStep",
    "Izhikevich",
    "OverTime",
    "Recurrent",
    "RefractoryLIF",
    "run",
]


Arguments = ParamSpec("Arguments")


class OverTime(nn.Module):
    """`cell` over a whole sequence: ``[T, ...] -> [T, ...]``.

    >>> import torch, hibana as hb
    >>> layer = hb.OverTime(hb.IFCell(threshold=0.5))
    >>> layer(torch.full([3, 2], 0.3)).shape
    torch.Size([3, 2])
    """

    def __init__(self, cell: cells.Cell) -> None:
        super().__init__()
        if not isinstance(cell, cells.Cell):
            raise TypeError(f"cell must be a hibana.Cell, one step of a neuron, got {type(cell).__name__}")
        self.cell = cell

    def forward(self, inputs: Tensor, state: State | None = None, *, return_state: bool = False) -> Any:
        """What the cell emits over `inputs`, ``[T, ...]``; with `return_state` also its last state."""
        if return_state:
            return unroll(self.cell, inputs, state)
        # a module takes longer to find its own module than most of what follows
        cell = cast(cells.Cell, self._modules["cell"])
        return emitted(cell, inputs, state, ends=False)[0]


class EachStep(nn.Module):
    """`module`, which knows no time, at each step of a sequence: ``[T, batch, ...] -> [T, batch, ...]``.

    Time and batch are joined for the call, so that a convolution, a pooling or a batch normalisation of
    ``torch.nn`` sees the rank it expects. An input that does not change over time (expanded: zero stride)
    costs one call instead of T, in evaluation and, for linear layers, convolutions, pooling and batch
    normalisation, in training. (T copies of a batch have its mean and variance; the running variance counts
    the batch, not its copies, as its samples.)

    Raises:
        ValueError: if the input has fewer than three dimensions.

    >>> import torch, hibana as hb
    >>> layer = hb.EachStep(torch.nn.Conv2d(1, 4, 3))
    >>> layer(torch.rand(5, 2, 1, 8, 8)).shape
    torch.Size([5, 2, 4, 6, 6])
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, inputs: Tensor) -> Tensor:
        """What `module` makes of each step of `inputs`, ``[T, batch, ...]``."""
        if inputs.ndim < 3:
            raise ValueError(f"inputs must be [T, batch, ...], got shape {tuple(inputs.shape)}")
        steps, batch = inputs.shape[:2]
        if steps > 1 and inputs.stride(0) == 0 and (not self.training or _may_run_once(self.module, batch)):
            once: Tensor = self.module(inputs[0])
            return once.expand(steps, *once.shape)
        outputs: Tensor = self.module(inputs.flatten(0, 1))
        return announce(outputs.reshape(steps, batch, *outputs.shape[1:]))


def _may_run_once(module: nn.Module, batch: int) -> bool:
    """Whether `module`, in training, makes the same of a batch as of a batch and copies of it."""
    return all(type(inner) in _PURE or (type(inner) in _NORMS and batch > 1) for inner in module.modules())


_PURE = {nn.AvgPool2d, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Flatten, nn.Linear, nn.MaxPool2d, nn.Sequential}
_PURE |= {events.Conv2d, events.Flatten, events.Linear, events.MaxPool2d}
_NORMS = {nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d}
"""Raise for a single sample in training, where they may not for its copies."""


@final
class Recurrent(nn.Module):
    """`cell` over time with a weight matrix from what it emits back to its input: ``[T, B, F] -> [T, B, F]``.

        state_t = cell(input_t + W s_(t-1), state_(t-1)),   s the emitted state

    Time is a Python loop here: each step needs the matrix product of the step before. Through
    :func:`run` a sequence can be taken in chunks; detach the state between them for backpropagation
    through time truncated to a chunk.

    Args:
        cell: one step of a neuron.
        features: F, the number of neurons.
        recurrent: the module from ``[B, F]`` spikes to ``[B, F]`` input; ``nn.Linear(F, F, bias=False)`` with
            its own initialisation, if none is given.

    Raises:
        TypeError: if `cell` is not a cell.
        ValueError: if the input is not ``[T, B, F]``.

    Source: Bellec et al. (2018), *Long short-term memory and learning-to-learn in networks of spiking
    neurons*; Werbos (1990), *Backpropagation through time*, for the truncation.

    >>> import torch, hibana as hb
    >>> layer = hb.Recurrent(hb.IFCell(), 3)
    >>> x = torch.rand(8, 1, 3)
    >>> outputs, state = hb.run(layer, x[:4])
    >>> state = {name: tuple(part.detach() for part in parts) for name, parts in state.items()}
    >>> outputs, state = hb.run(layer, x[4:], state)
    """

    def __init__(self, cell: cells.Cell, features: int, recurrent: nn.Module | None = None) -> None:
        super().__init__()
        if not isinstance(cell, cells.Cell):
            raise TypeError(f"cell must be a hibana.Cell, one step of a neuron, got {type(cell).__name__}")
        self.cell = cell
        self.features = features
        self.recurrent = nn.Linear(features, features, bias=False) if recurrent is None else recurrent

    def forward(self, inputs: Tensor, state: State | None = None, *, return_state: bool = False) -> Any:
        """What the cell emits over `inputs`, ``[T, B, F]``; with `return_state` also its last state."""
        if inputs.ndim != 3 or inputs.shape[0] == 0 or inputs.shape[2] != self.features:
            raise ValueError(
                f"inputs must be [T, B, {self.features}] with T at least 1, got shape {tuple(inputs.shape)}; "
                f"weights to the {self.features} neurons, such as an nn.Linear, are a layer of their own"
            )
        if state is None:
            state = self.cell.initial_state(inputs[0])
        emitted = []
        for input_ in inputs:
            fed_back = self.recurrent(state[-1].to(inputs.dtype))
            outputs, state = unroll(self.cell, (input_ + fed_back)[None], state)
            emitted.append(outputs)
        outputs = torch.cat(emitted)
        return (outputs, state) if return_state else outputs


def _layer(name: str, cell: Callable[Arguments, cells.Cell]) -> Callable[Arguments, OverTime]:
    """The layer of `cell`: ``OverTime(cell(...))`` under a name of its own."""

    def __init__(  # noqa: N807 - it becomes the method of the class below
        self: OverTime, *args: Arguments.args, **kwargs: Arguments.kwargs
    ) -> None:
        OverTime.__init__(self, cell(*args, **kwargs))

    summary = (cell.__doc__ or "").partition("\n")[0]
    body = {
        "__init__": __init__,
        "__module__": __name__,
        "__signature__": inspect.signature(cell),
        "__doc__": f"{summary}\n\n    ``OverTime({cell.__name__}(...))``: takes its arguments.\n    ",
    }
    return cast(Callable[Arguments, OverTime], type(name, (OverTime,), body))


IF = _layer("IF", cells.IFCell)
LIF = _layer("LIF", cells.LIFCell)
PLIF = _layer("PLIF", cells.PLIFCell)
CubaLIF = _layer("CubaLIF", cells.CubaLIFCell)
ALIF = _layer("ALIF", cells.ALIFCell)
RefractoryLIF = _layer("RefractoryLIF", cells.RefractoryLIFCell)
EIF = _layer("EIF", cells.EIFCell)
QIF = _layer("QIF", cells.QIFCell)
Izhikevich = _layer("Izhikevich", cells.IzhikevichCell)
LI = _layer("LI", cells.LICell)


def run(
    net: nn.Module, inputs: Tensor, state: dict[str, State] | None = None
) -> tuple[Any, dict[str, State]]:
    """Runs a network that holds hibana layers, from a state, and returns the state it ended in.

    Args:
        net: any module; it is called as ``net(inputs)``.
        inputs: what `net` takes, time first.
        state: what an earlier call returned; every layer at rest if ``None``.

    Returns:
        The network's output, and a dictionary from each hibana layer's name in `net` to its state, a
        tuple of plain tensors. A layer that is called more than once in a pass has one entry a call:
        ``name``, ``name#1``, ….

    Raises:
        ValueError: if `state` does not have exactly one entry for each layer that was called.

    >>> import torch, hibana as hb
    >>> net = torch.nn.Sequential(torch.nn.Linear(3, 2), hb.IF())
    >>> x = torch.rand(6, 1, 3)
    >>> whole, _ = hb.run(net, x)
    >>> first, state = hb.run(net, x[:2])
    >>> rest, state = hb.run(net, x[2:], state)
    >>> torch.equal(whole, torch.cat([first, rest]))
    True
    """
    ended: dict[str, State] = {}
    calls: dict[str, int] = {}
    hooks = []

    def before(name: str) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
            calls[name] = calls.get(name, -1) + 1
            key = _call_name(name, calls[name])
            if state is not None and key not in state:
                raise ValueError(f"state has no entry for layer {key!r}; it has {', '.join(state) or 'none'}")
            begun = None if state is None else state[key]
            return args, {**kwargs, "state": begun, "return_state": True}

        return hook

    def after(name: str) -> Any:
        def hook(module: nn.Module, args: Any, result: Any) -> Any:
            outputs, ended[_call_name(name, calls[name])] = result
            return outputs

        return hook

    for name, module in net.named_modules():
        if isinstance(module, OverTime | Recurrent):
            hooks.append(module.register_forward_pre_hook(before(name), with_kwargs=True))
            hooks.append(module.register_forward_hook(after(name)))
    try:
        outputs = net(inputs)
    finally:
        for hook in hooks:
            hook.remove()
    if state is not None and (unknown := state.keys() - ended.keys()):
        raise ValueError(f"state has entries for layers that were not called: {', '.join(sorted(unknown))}")
    return outputs, ended


def _call_name(name: str, call: int) -> str:
    return name if call == 0 else f"{name}#{call}"
