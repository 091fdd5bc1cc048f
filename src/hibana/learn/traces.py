"""Traces: what is carried from chunk to chunk of each synapse, or of each input.

Within a chunk (steps that are run together) the gradient of a weight is the product of its input and a signal
that is filtered backwards. What lies before the chunk is in the trace, which is passed over once a chunk.
"""

from collections.abc import Sequence
from typing import NamedTuple, final

import torch
from torch import Tensor

from hibana.learn import trace_kernel
from hibana.learn.derivatives import Recursion
from hibana.runtime import available

__all__ = ["End", "InputTraces", "SynapseTraces"]

BLOCK = 1 << 18
"""Numbers of a trace that are computed together: what a cache holds."""


@final
class InputTraces:
    """One trace of each input, which serves all neurons."""

    def __init__(self, parts: Tensor | None = None) -> None:
        self.parts = parts
        """``[components, rows, inputs]``; None before the first chunk."""

    def advance(self, rows: Tensor, recursion: Recursion) -> None:
        """Takes the inputs ``[T, rows, inputs]`` of a chunk into the traces."""
        transition, factor = recursion
        factors = list[Tensor]()
        for _ in rows:
            factors.insert(0, factor)
            factor = transition @ factor
        parts = torch.stack(factors, 1) @ rows.flatten(1)
        if self.parts is not None:
            parts += torch.linalg.matrix_power(transition, len(rows)) @ self.parts.flatten(1)
        self.parts = parts.view(-1, *rows.shape[1:])

    def gradient(self, before: Sequence[Tensor]) -> Tensor:
        """The gradient ``[outputs, inputs]``, from ``[rows, outputs]`` of each component before a chunk."""
        assert self.parts is not None
        return torch.cat(list(before)).T @ self.parts.flatten(0, 1)

    def tensor(self) -> Tensor | None:
        """All numbers of the traces."""
        return self.parts


class End(NamedTuple):
    """What a part of a trace is made of, after a chunk."""

    of_inputs: Tensor
    """The factor of each input, ``[T, rows, outputs]``."""
    of_parts: Sequence[Tensor | None]
    """The factor of each part before the chunk, ``[rows, outputs]`` or a number; None is zero."""


class _Due(NamedTuple):
    """A step to be taken into the traces."""

    inputs: Tensor
    coefficients: list[Tensor | None]


@final
class SynapseTraces:
    """Traces with a number for each part (component, memory of a readout), row, output and input.

    A single step, where the kernel serves, is taken into them when the next gradient is asked for: each
    number is then read and written once for both.
    """

    def __init__(self, parts: Tensor | None = None) -> None:
        self.parts = parts
        """``[parts, rows, outputs, inputs]``; None before the first chunk."""
        self.due: _Due | None = None

    def advance(self, rows: Tensor, ends: Sequence[End]) -> None:
        """Takes the inputs ``[T, rows, inputs]`` of a chunk into the traces; `ends` has one for each part."""
        self._finish()
        if self.parts is None:
            outputs = ends[0].of_inputs.shape[2]
            self.parts = rows.new_zeros(len(ends), rows.shape[1], outputs, rows.shape[2])
        if len(rows) == 1 and self._has_kernel():
            columns = [[end.of_parts[j] for end in ends] for j in range(len(ends))]
            coefficients = [c for column in columns for c in column]
            self.due = _Due(rows[0].contiguous(), [*coefficients, *(end.of_inputs[0] for end in ends)])
            return
        step = max(1, BLOCK // self.parts[0, 0].numel())
        for first in range(0, rows.shape[1], step):
            _move(self.parts[:, first : first + step], rows, ends, slice(first, first + step))

    def gradient(self, before: Sequence[Tensor]) -> Tensor:
        """The gradient ``[outputs, inputs]``, from that ``[rows, outputs]`` of each part before a chunk."""
        assert self.parts is not None
        if self._has_kernel():
            return self._pass(before)
        return torch.einsum("prn,prnm->nm", torch.stack(list(before)), self.parts)

    def tensor(self) -> Tensor | None:
        """All numbers of the traces."""
        self._finish()
        return self.parts

    def _finish(self) -> None:
        """Takes a due step in."""
        if self.due is not None:
            self._pass(())

    def _has_kernel(self) -> bool:
        assert self.parts is not None
        return self.parts.dtype == torch.float32 and self.parts.is_cpu and not available.unavailable_reason()

    def _pass(self, before: Sequence[Tensor]) -> Tensor:
        """Passes over the traces: takes a due step in, and sums the gradient if there is one."""
        assert self.parts is not None
        count, rows, outputs, inputs = self.parts.shape
        given = [*(self.due.coefficients if self.due else ()), *before]
        coefficients = self.parts.new_zeros(len(given), rows, outputs)
        for row, value in zip(coefficients, given, strict=True):
            if value is not None:
                row.copy_(value)
        gradient = self.parts.new_zeros(outputs if before else 0, inputs)
        trace_kernel.move(
            outputs,
            traces=self.parts,
            coefficients=coefficients,
            inputs=None if self.due is None else self.due.inputs,
            gradient=gradient,
            rows=rows,
            neurons=outputs,
            count=inputs,
            terms=trace_kernel.Terms(count, self.due is not None, bool(before)),
        )
        self.due = None
        return gradient


def _move(parts: Tensor, rows: Tensor, ends: Sequence[End], here: slice) -> None:
    """Takes a chunk into the traces of some rows, in place."""
    before = [parts[i] for i in range(len(parts))]
    for i in reversed(range(len(parts))):  # the memory of a readout first, which no other part needs
        part = before[i]
        if any(end.of_parts[i] is not None for end in ends[:i]):
            before[i] = part.clone()
        factors = [c if c is None or not c.ndim else c[here, :, None] for c in ends[i].of_parts]
        own = factors[i]
        if own is None:
            part.zero_()
        else:
            part.mul_(own)
        for j, factor in enumerate(factors):
            if j != i and factor is not None:
                part.addcmul_(factor, before[j])
        part.baddbmm_(ends[i].of_inputs[:, here].permute(1, 2, 0), rows[:, here].transpose(0, 1))
