"""``hb.learn.online``: a network that is learned while it runs, step by step."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, final

import torch
from torch import Tensor, nn

from hibana.learn.memory import Memory
from hibana.learn.network import Neurons, layers_of
from hibana.learn.rules import Rule, named

__all__ = ["Online", "online"]

Loss = Callable[[int, Tensor], Tensor | None]
"""The loss of a step, from its number and what the network gave, or of a chunk; None where there is none."""

CHUNK = 64
"""Steps of a sequence that are run together by default: its memory is that of so many steps."""


@final
class Online:
    """A network and a rule by which it is learned while it runs; made by :func:`online`."""

    def __init__(self, net: nn.Module, rule: Rule) -> None:
        self.net, self.rule = net, rule
        self.layers = [
            Memory(layer, rule) if isinstance(layer, Neurons) else layer
            for layer in layers_of(net, rule.keeps_readout)
        ]

    def step(self, x: Tensor) -> Tensor:
        """One step, ``[batch, ...]``, from the state that the step before left; what the network gives.

        A backward of its loss adds to ``.grad`` what this step has to say about all steps so far, and gives
        `x` its gradient within the step. Nothing of earlier steps is kept but states and traces, so each
        step's backward comes before the next step.

        Raises:
            TypeError: if `x` is no floating-point tensor.
            ValueError: if it has another batch than the states carried, or a layer can't be learned.
        """
        _check_input("x", x, 1)
        return self._run(x[None])[0]

    def steps(self, x: Tensor) -> Tensor:
        """Some steps at once, ``[T, batch, ...]``, as :meth:`step`; what the network gives at each of them.

        They take less time than one by one. A backward of their losses comes before the next steps.

        Raises:
            TypeError: as :meth:`step`.
            ValueError: likewise.
        """
        _check_input("x", x, 2)
        return self._run(x)

    def __call__(self, x: Tensor) -> Tensor:
        """All of a sequence at once, ``[T, batch, ...]``, from rest; what the network gives at each step.

        The backward of any loss of it takes the rule's gradient, with the learning signals that the loss has
        at each step. Unlike :meth:`sequence` it keeps what T steps need. What was carried before is given up.

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
        """All of a sequence, ``[T, batch, ...]``, from rest: adds the gradients of ``sum_t loss(t, y_t)``.

        The gradients are those of :meth:`step` and a backward at each step, with the weights unchanged.
        Memory is that of `chunk` steps; a larger one is faster. What was carried before is given up.

        Args:
            x: the inputs, which get no gradient; or the steps, ``[batch, ...]``, of a sequence that is not
                all at hand.
            loss: from the number of a step and the network's output there, ``[batch, ...]``, to its loss, a
                tensor of one number, or None.
            chunk: steps that are run together.
            by_chunk: ask the loss once for each chunk, which is faster: from the number of its first step and
                the outputs, ``[steps, batch, ...]``, to the sum of the steps' losses.

        Returns:
            The sum of the losses, without a graph.

        Raises:
            TypeError: if `x` is no floating-point tensor, or the loss of a step no tensor.
            ValueError: if `chunk` is not at least 1, or no step has a loss.
        """
        if isinstance(chunk, bool) or not isinstance(chunk, int) or chunk < 1:
            raise ValueError(f"chunk must be a whole number of at least 1, got {chunk!r}")
        self.reset()
        total: Tensor | None = None
        first = 0
        for part in _chunks(x, chunk):
            here = self._learn(part, loss, first, by_chunk)
            if here is not None:
                total = here if total is None else total + here
            first += len(part)
            del part  # before the next is made
        self.reset()
        if total is None:
            raise ValueError("loss must give a tensor at one step at least, got None at all of them")
        return total

    def _learn(self, part: Tensor, loss: Loss, first: int, by_chunk: bool) -> Tensor | None:
        """A chunk and its backward; the sum of its losses. All that they needed is free when it returns."""
        outputs = self._run(part)
        steps = [outputs] if by_chunk else outputs.unbind()
        losses = [_checked_loss(loss(first + t, y), first + t) for t, y in enumerate(steps)]
        there = [one for one in losses if one is not None]
        if not there:
            return None
        here = torch.stack(there).sum()
        here.backward()  # type: ignore[no-untyped-call] # torch leaves it so
        return here.detach()

    def reset(self) -> None:
        """At rest, without traces: before a sequence that has nothing to do with the last."""
        for layer in self._memories:
            layer.reset()

    def state_dict(self) -> dict[str, Any]:
        """The states and traces that :meth:`step` goes on from, by layer: tensors in lists and dictionaries.

        Weights are not among them: they are in ``net.state_dict()``. The last step is taken into the traces,
        so its backward must have run. Pickling and copying a learner keep the same, and the network.
        """
        layers = {one.layer.name: one.state_dict() for one in self._memories}
        return {"rule": self.rule.name, "layers": layers}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from what :meth:`state_dict` returned.

        Raises:
            ValueError: if it is that of another rule, or of other layers.
        """
        names = [one.layer.name for one in self._memories]
        if not isinstance(state, Mapping) or state.get("rule") != self.rule.name:
            got = state.get("rule") if isinstance(state, Mapping) else type(state).__name__
            raise ValueError(f"state must be that of a learner by rule {self.rule.name!r}, got {got!r}")
        if list(state["layers"]) != names:
            raise ValueError(f"state must be that of layers {names}, got {list(state['layers'])}")
        for one in self._memories:
            one.load_state_dict(state["layers"][one.layer.name])

    def __getstate__(self) -> dict[str, Any]:
        return {"net": self.net, "rule": self.rule, "state": self.state_dict()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["net"], state["rule"])
        self.load_state_dict(state["state"])

    @property
    def _memories(self) -> list[Memory]:
        return [layer for layer in self.layers if isinstance(layer, Memory)]

    @property
    def trace_numbers(self) -> dict[str, int]:
        """How many numbers the traces of each layer of neurons are now, by its name."""
        return {one.layer.name: one.trace_numbers for one in self._memories if one.trace_numbers}

    def _run(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer.run(x) if isinstance(layer, Memory) else layer.module(x)
        return x


def online(net: nn.Module, rule: Rule | str = "d-rtrl") -> Online:
    """`net`, learned online by `rule`: gradients at each step, in memory that does not grow with time.

    Args:
        net: an ``nn.Sequential`` over ``[T, batch, ...]`` of layers of neurons (:class:`hibana.OverTime`,
            ``hibana.LIF`` and its like, :class:`hibana.Recurrent`), of ``nn.Linear``, ``nn.Conv1d`` or
            ``nn.Conv2d`` (within :class:`hibana.EachStep`) right before them, and of modules without
            parameters and memory; behind the last layer of neurons any module without memory.
        rule: ``"d-rtrl"``, ``"e-prop"``, ``"ottt"``, ``"pp-prop"``, or an object such as
            ``hibana.learn.PPProp(decay=0.8)``.

    Raises:
        TypeError: if `net` is no module or `rule` no rule, or naming the layer that no rule knows.
        ValueError: if there is no such rule, or naming the layer that can't be learned online as it is.

    >>> import torch, hibana as hb
    >>> net = torch.nn.Sequential(torch.nn.Linear(3, 8), hb.LIF(), torch.nn.Linear(8, 2), hb.LI(tau=5.0))
    >>> learner = hb.learn.online(net, rule="d-rtrl")
    >>> for x in torch.rand(20, 4, 3):
    ...     y = learner.step(x)
    ...     (y - 1).square().mean().backward()
    >>> net[0].weight.grad.shape
    torch.Size([8, 3])
    """
    return Online(net, named(rule))


def _chunks(x: object, chunk: int) -> Iterator[Tensor]:
    """A sequence in parts of `chunk` steps."""
    if isinstance(x, Tensor):
        _check_input("x", x, 2)
        for first in range(0, len(x), chunk):
            yield x[first : first + chunk].detach()
        return
    if not isinstance(x, Iterable):
        raise TypeError(f"x must be a floating-point tensor or steps one by one, got {type(x).__name__}")
    steps = iter(x)
    while part := list(itertools.islice(steps, chunk)):
        for step in part:
            _check_input("each step of x", step, 1)
        joined = torch.stack(part).detach()
        part.clear()  # not kept beside what was made of them
        yield joined


def _check_input(name: str, x: object, dimensions: int) -> None:
    if not isinstance(x, Tensor) or not x.is_floating_point():
        got = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"{name} must be a floating-point tensor, got {got}")
    if x.ndim <= dimensions or not x.numel():
        shape = "[batch, ...]" if dimensions == 1 else "[T, batch, ...]"
        raise ValueError(f"{name} must be {shape}, none of them 0, got shape {tuple(x.shape)}")


def _checked_loss(value: object, t: int) -> Tensor | None:
    if value is None:
        return None
    if not isinstance(value, Tensor) or value.numel() != 1:
        got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"loss must give a tensor of one number, or None, got {got} at step {t}")
    return value.reshape(())
