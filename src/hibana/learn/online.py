"""``hb.learn.online``: training a network while it runs, step by step."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, final

import torch
from torch import Tensor, nn

from hibana.learn.network import NeuronLayer, layers_of
from hibana.learn.online_layer import OnlineLayer
from hibana.learn.rules import Rule, rule_of
from hibana.nn.window import check_sizes

__all__ = ["Online", "online"]

Loss = Callable[[int, Tensor], Tensor | None]
"""Maps a step's index and the network's output at the step to the loss, or to None for no loss."""

CHUNK = 64
"""Default number of a sequence's steps that run together; memory is proportional to it."""


@final
class Online:
    """A network that a rule trains while it runs; :func:`online` returns it."""

    def __init__(self, net: nn.Module, rule: Rule) -> None:
        self.net, self.rule = net, rule
        self.layers = [
            OnlineLayer(layer, rule) if isinstance(layer, NeuronLayer) else layer
            for layer in layers_of(net, rule.keeps_readout)
        ]

    def step(self, x: Tensor) -> Tensor:
        """Runs one step, ``[batch, ...]``, from the state after the previous step; returns the output.

        The backward of the step's loss adds the rule's gradient of this loss over all steps so far to
        ``.grad``, and gives `x` its gradient within the step. Earlier steps are stored as states and traces
        alone, so call the backward of each step before the next step.

        Raises:
            TypeError: if `x` is no floating-point tensor.
            ValueError: if the batch differs from that of the current state, or a layer can't be learned.
        """
        _check_input("x", x, 1)
        return self._run(x[None])[0]

    def steps(self, x: Tensor) -> Tensor:
        """Runs several steps, ``[T, batch, ...]``, like :meth:`step` but faster; returns their outputs.

        Call the backward of their losses before the next steps.

        Raises:
            TypeError: for the reasons of :meth:`step`.
            ValueError: for the reasons of :meth:`step`.
        """
        _check_input("x", x, 2)
        return self._run(x)

    def __call__(self, x: Tensor) -> Tensor:
        """Runs a sequence, ``[T, batch, ...]``, from the resting state; returns the output at each step.

        The backward of any loss of the outputs computes the rule's gradient, from the loss's gradient at each
        step. Unlike :meth:`sequence`, it needs the memory of T steps. Previous states and traces are
        discarded.

        Raises:
            TypeError: if `x` is no floating-point tensor.
            ValueError: if a layer can't be learned.
        """
        _check_input("x", x, 2)
        self.reset()
        return self._run(x)

    def sequence(
        self, x: Tensor | Iterable[Tensor], loss: Loss, *, chunk: int = CHUNK, by_chunk: bool = False
    ) -> Tensor:
        """Runs a sequence from the resting state, and adds the gradients of ``sum_t loss(t, y_t)``.

        The gradients equal those of :meth:`step` with a backward at each step and constant weights. The
        sequence needs the memory of `chunk` steps. Previous states and traces are discarded.

        Args:
            x: the inputs, ``[T, batch, ...]``, which get no gradient; or an iterable of steps,
                ``[batch, ...]``, for a sequence that does not fit into memory.
            loss: a function of a step's index and the network's output at the step, ``[batch, ...]``, that
                returns the loss as a tensor of one number, or None.
            chunk: number of steps that run together; more is faster.
            by_chunk: call `loss` once per chunk, which is faster, with the index of the chunk's first step
                and its outputs, ``[steps, batch, ...]``; it returns the sum of the steps' losses.

        Returns:
            The sum of the losses, without a graph.

        Raises:
            TypeError: if `x` is no floating-point tensor, or the loss of a step no tensor.
            ValueError: if `chunk` is not at least 1, or no step has a loss.
        """
        check_sizes(chunk=chunk)
        self.reset()
        total: Tensor | None = None
        first = 0
        for inputs in _chunks(x, chunk):
            chunk_loss = self._learn(inputs, loss, first, by_chunk)
            if chunk_loss is not None:
                total = chunk_loss if total is None else total + chunk_loss
            first += len(inputs)
            del inputs  # frees its memory before the next chunk is allocated
        self.reset()
        if total is None:
            raise ValueError("loss must give a tensor at one step at least, got None at all of them")
        return total

    def _learn(self, inputs: Tensor, loss: Loss, first: int, by_chunk: bool) -> Tensor | None:
        """Runs a chunk that begins at step `first` forward and backward; returns the sum of its losses."""
        outputs = self._run(inputs)
        steps = [outputs] if by_chunk else outputs.unbind()
        losses = [_check_loss(loss(first + t, y), first + t) for t, y in enumerate(steps)]
        tensors = [value for value in losses if value is not None]
        if not tensors:
            return None
        total = torch.stack(tensors).sum()
        total.backward()  # type: ignore[no-untyped-call] # torch's backward
        return total.detach()

    def reset(self) -> None:
        """Sets all neurons to the resting state and removes all traces; call it before a new sequence."""
        for layer in self._online_layers:
            layer.reset()

    def state_dict(self) -> dict[str, Any]:
        """The states and traces after the last step, by layer, as tensors in lists and dictionaries.

        Call the backward of the last step first. Weights are in ``net.state_dict()`` instead. Pickling and
        copying an :class:`Online` include the states, the traces and the network.
        """
        layers = {layer.layer.name: layer.state_dict() for layer in self._online_layers}
        return {"rule": self.rule.name, "layers": layers}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores the states and traces of :meth:`state_dict`.

        Raises:
            ValueError: if `state` belongs to another rule, or to other layers.
        """
        names = [layer.layer.name for layer in self._online_layers]
        if not isinstance(state, Mapping) or state.get("rule") != self.rule.name:
            got = state.get("rule") if isinstance(state, Mapping) else type(state).__name__
            raise ValueError(f"state must be that of a learner by rule {self.rule.name!r}, got {got!r}")
        if list(state["layers"]) != names:
            raise ValueError(f"state must be that of layers {names}, got {list(state['layers'])}")
        for layer in self._online_layers:
            layer.load_state_dict(state["layers"][layer.layer.name])

    def __getstate__(self) -> dict[str, Any]:
        """The network, the rule, and the states and traces, for pickling and copying."""
        return {"net": self.net, "rule": self.rule, "state": self.state_dict()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restores the result of :meth:`__getstate__`."""
        self.__init__(state["net"], state["rule"])
        self.load_state_dict(state["state"])

    @property
    def _online_layers(self) -> list[OnlineLayer]:
        """The layers of neurons, without the layers that have no memory."""
        return [layer for layer in self.layers if isinstance(layer, OnlineLayer)]

    @property
    def trace_numbers(self) -> dict[str, int]:
        """The number of elements in the current traces of each layer of neurons, by the layer's name."""
        layers = self._online_layers
        return {layer.layer.name: layer.trace_numbers for layer in layers if layer.trace_numbers}

    def _run(self, x: Tensor) -> Tensor:
        """The network's outputs for the inputs `x`, ``[T, batch, ...]``."""
        for layer in self.layers:
            x = layer.run(x) if isinstance(layer, OnlineLayer) else layer.module(x)
        return x


def online(net: nn.Module, rule: Rule | str = "d-rtrl") -> Online:
    """Wraps `net` to compute gradients at each step by `rule`, in memory that does not grow with time.

    Args:
        net: an ``nn.Sequential`` over ``[T, batch, ...]`` of layers of neurons (:class:`hibana.OverTime`,
            layers such as ``hibana.LIF``, :class:`hibana.Recurrent`), of ``nn.Linear``,
            :class:`hibana.SparseLinear` without delays, ``nn.Conv1d`` or ``nn.Conv2d`` (within
            :class:`hibana.EachStep`) right before them, and of modules without parameters and memory; behind
            the last layer of neurons any module without memory. A sparse layer has traces for its stored
            synapses alone; if its synapses move, call :meth:`Online.reset`.
        rule: ``"d-rtrl"``, ``"e-prop"``, ``"ottt"``, ``"pp-prop"``, or an object such as
            ``hibana.learn.PPProp(decay=0.8)``.

    Raises:
        TypeError: if `net` is no module or `rule` no rule, or naming the layer that rules do not support.
        ValueError: if no rule has this name, or naming the layer that can't be learned online as it is.

    >>> import torch, hibana as hb
    >>> net = torch.nn.Sequential(torch.nn.Linear(3, 8), hb.LIF(), torch.nn.Linear(8, 2), hb.LI(tau=5.0))
    >>> learner = hb.learn.online(net, rule="d-rtrl")
    >>> for x in torch.rand(20, 4, 3):
    ...     y = learner.step(x)
    ...     (y - 1).square().mean().backward()
    >>> net[0].weight.grad.shape
    torch.Size([8, 3])
    """
    return Online(net, rule_of(rule))


def _chunks(x: object, chunk: int) -> Iterator[Tensor]:
    """Splits a tensor ``[T, batch, ...]``, or an iterable of steps, into tensors of `chunk` steps."""
    if isinstance(x, Tensor):
        _check_input("x", x, 2)
        yield from torch.split(x.detach(), chunk)
        return
    if not isinstance(x, Iterable):
        raise TypeError(f"x must be a floating-point tensor or steps one by one, got {type(x).__name__}")
    steps = iter(x)
    while tensors := list(itertools.islice(steps, chunk)):
        for step in tensors:
            _check_input("each step of x", step, 1)
        stacked = torch.stack(tensors).detach()
        tensors.clear()  # frees their memory: `stacked` is a copy
        yield stacked


def _check_input(name: str, x: object, dimensions: int) -> None:
    """Raises if `x` is no floating-point tensor with elements and more than `dimensions` dimensions."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        kind = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"{name} must be a floating-point tensor, got {kind}")
    if x.ndim <= dimensions or not x.numel():
        shape = "[batch, ...]" if dimensions == 1 else "[T, batch, ...]"
        raise ValueError(f"{name} must be {shape}, none of them 0, got shape {tuple(x.shape)}")


def _check_loss(value: object, t: int) -> Tensor | None:
    """A loss as a scalar, or None.

    Raises TypeError, naming step `t`, if `value` is not a tensor of one number.
    """
    if value is None:
        return None
    if not isinstance(value, Tensor) or value.numel() != 1:
        got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"loss must give a tensor of one number, or None, got {got} at step {t}")
    return value.reshape(())
