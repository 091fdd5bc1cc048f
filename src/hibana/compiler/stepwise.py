"""The backward of a run in PyTorch, one step at a time, of the gradients that are there."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from hibana.compiler.backend import BackwardArguments
from hibana.compiler.eager import in_torch
from hibana.compiler.graph.step import Step, Value
from hibana.compiler.packed import unpacked

__all__ = ["Left", "Run", "sum_of"]


class Left(NamedTuple):
    """What is left of a step's backward where some gradients are absent."""

    step: Step
    sums: tuple[Value | None, ...]
    """Those of the step, which has zeros for what is absent."""


@dataclass(frozen=True)
class Run:
    """What a run left for its backward, and what arrives there."""

    step: Step
    given: BackwardArguments
    dtype: torch.dtype

    def arrived(self, t: int, grads: list[Tensor | None]) -> list[Tensor | None]:
        """All gradients after step `t`: those fed back to it, and that of what it emitted."""
        if self.given.grad_outputs is None:
            return grads
        return [*grads[:-1], sum_of(grads[-1], self.given.grad_outputs[t].to(self.dtype))]

    def arriving(self, steps: int, fed_back: Tensor | None) -> Tensor | None:
        """The gradients of what is emitted at the first `steps`, and what is fed back to the last of them."""
        given = None if self.given.grad_outputs is None else self.given.grad_outputs[:steps]
        if fed_back is None:
            return given
        shape = (steps, *self.given.shape[1:])
        arriving = (
            fed_back.new_zeros(shape) if given is None else given.to(self.dtype, copy=True).contiguous()
        )
        arriving[-1] += fed_back
        return arriving

    def back(
        self, t: int, left: Left, grads: list[Tensor | None]
    ) -> tuple[Tensor | None, list[Tensor | None], list[Tensor | None]]:
        """Step `t` back, in PyTorch: the gradients of its input and of the states before it, and its sums."""
        known = self._at(t)
        if t:
            before = [self.step.nexts[i] for i in self.given.plan.before]
            states = in_torch(before, self._at(t - 1), self._leaf, self.dtype)
        else:
            zero = torch.zeros((), dtype=self.dtype, device=_like(grads).device)
            firsts = [self.given.first[i] for i in self.given.plan.before]
            states = [zero if value is None else value for value in firsts]
        previous = dict(zip(self.given.plan.before, states, strict=True))

        def leaf(value: Value) -> Tensor:
            if value.op not in ("previous", "gradient"):
                return self._leaf(value)
            found = (previous if value.op == "previous" else grads)[int(value.data)]
            assert isinstance(found, Tensor)
            return found

        wanted = [left.step.grad_input, *left.step.grad_states, *left.sums]
        there = [value for value in wanted if value is not None]
        made = dict(zip(there, in_torch(there, known, leaf, self.dtype), strict=True))
        found = [None if v is None else made[v].expand(self.given.shape[1:]).contiguous() for v in wanted]
        count = 1 + len(grads)
        return found[0], found[1:count], found[count:]

    def joined(self, begin: Tensor | None, last: list[Tensor | None]) -> Tensor | None:
        """The gradient of the input, of that at its first steps and at its `last`; zero in between."""
        found = [one for one in (begin, *last) if one is not None]
        if not found:
            return None
        dtype = self.dtype if self.given.grad_outputs is None else self.given.grad_outputs.dtype
        if begin is not None and len(begin) == self.given.shape[0]:
            return begin.to(dtype)
        grad = torch.zeros(self.given.shape, dtype=dtype, device=found[0].device)
        if begin is not None:
            grad[: len(begin)] = begin
        for i, one in enumerate(last):
            if one is not None:
                grad[self.given.shape[0] - 1 - i] = one
        return grad

    def _at(self, t: int) -> dict[Value, Tensor]:
        """What is at hand of step `t`."""
        known = dict(zip(self.given.plan.stored, (value[t] for value in self.given.residuals), strict=True))
        one = self.given.shape[1:]
        for value, found in known.items():
            known[value] = unpacked(found, one.numel()).view(one).bool() if value.boolean else found
        for value in self.given.plan.residuals:
            if value.op == "input":
                assert self.given.inputs is not None
                known[value] = self.given.inputs[t].to(self.dtype)
        return known

    def _leaf(self, value: Value) -> Tensor:
        """A leaf that is the same at every step."""
        device = _like([*self.given.residuals, self.given.grad_outputs, *self.given.parameters]).device
        if value.op == "parameter":
            found = self.given.parameters[int(value.data)]
            return found.reshape(()) if found.numel() == 1 else found
        number = self.step.constants[int(value.data)] if value.op == "constant" else value.data
        return torch.tensor(float(number), dtype=self.dtype, device=device)


def _like(tensors: Sequence[Tensor | None]) -> Tensor:
    return next(
        (tensor for tensor in tensors if tensor is not None),
        torch.empty(0, dtype=torch.float32, device="cpu"),
    )


def sum_of(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """The sum of what there is."""
    return b if a is None else a if b is None else a + b
