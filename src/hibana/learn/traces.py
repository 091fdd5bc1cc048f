"""Traces of inputs or of synapses, which carry the gradient of earlier steps from chunk to chunk.

Within a chunk (steps that run together), the gradient of a weight is the product of its input and a signal
that is filtered backwards. Traces hold the part of the gradient from the steps before the chunk, and are
updated once per chunk. A row is a sample, or an output pixel of a sample of a convolution.
"""

from collections.abc import Sequence
from typing import NamedTuple, final

import torch
from torch import Tensor

from hibana.learn.derivatives import Recursion
from hibana.learn.synapses import StoredSynapses
from hibana.runtime import available
from hibana.runtime.kernels import Code, Floats, Value, kernel

__all__ = ["End", "InputTraces", "SynapseTraces"]

BLOCK = 1 << 18
"""Numbers of a trace that PyTorch updates together, so that they stay in a cache."""
VECTOR = 16
"""Numbers in a vector."""


@final
class InputTraces:
    """One trace for each input, which all neurons share."""

    def __init__(self, traces: Tensor | None = None) -> None:
        self.traces = traces
        """``[independent states, rows, inputs]``; None before the first chunk."""

    def advance(self, rows: Tensor, recursion: Recursion) -> None:
        """Updates the traces by a chunk with the inputs `rows`, ``[T, rows, inputs]``."""
        transition, factor = recursion
        factors = list[Tensor]()
        for _ in rows:
            factors.insert(0, factor)
            factor = transition @ factor
        traces = torch.stack(factors, 1) @ rows.flatten(1)
        if self.traces is not None:
            traces += torch.linalg.matrix_power(transition, len(rows)) @ self.traces.flatten(1)
        self.traces = traces.view(-1, *rows.shape[1:])

    def gradient(self, state_grads: Sequence[Tensor], stored: StoredSynapses | None) -> Tensor:
        """The weights' gradient through the steps before a chunk.

        Args:
            state_grads: the gradients ``[rows, outputs]`` of the neurons' independent states before the
                chunk.
            stored: the synapses of a sparse layer; else None.

        Returns:
            ``[outputs, inputs]``, or ``[synapses]`` for a sparse layer.
        """
        assert self.traces is not None
        grads, traces = torch.cat(list(state_grads)), self.traces.flatten(0, 1)
        return grads.T @ traces if stored is None else stored.sums(grads, traces)

    def tensor(self) -> Tensor | None:
        """The traces after the last chunk; None before the first chunk."""
        return self.traces


class End(NamedTuple):
    """The factors that give one part of the synapses' traces after a chunk (steps that run together)."""

    input_factors: Tensor
    """Factor of the input at each step, ``[T, rows, outputs]``."""
    part_factors: Sequence[Tensor | None]
    """Factor of each part before the chunk, ``[rows, outputs]`` or a scalar; None is zero."""


class _PendingStep(NamedTuple):
    """The factors of a single step; the next pass over the traces applies them."""

    inputs: Tensor
    coefficients: list[Tensor | None]


@final
class SynapseTraces:
    """Traces with one number for each part (independent state, memory of a readout), row, output and input.

    If the kernel supports the tensors, an update by a single step waits for the next gradient: one pass over
    the traces then does both.
    """

    def __init__(self, traces: Tensor | None = None) -> None:
        self.traces = traces
        """``[parts, rows, outputs, inputs]``, for a sparse layer ``[parts, rows, synapses]``; None before the
        first steps are computed."""
        self.pending: _PendingStep | None = None

    def advance(self, rows: Tensor, ends: Sequence[End], stored: StoredSynapses | None) -> None:
        """Updates the traces by a chunk of T steps.

        Args:
            rows: the inputs, ``[T, rows, inputs]``.
            ends: for each part of a trace (independent state, memory of a readout) the factors of the inputs
                and of the previous traces.
            stored: the synapses of a sparse layer; else None.
        """
        if stored is not None:
            self.traces = _next_stored(self.traces, rows, ends, stored)
            return
        self._update()
        if self.traces is None:
            outputs = ends[0].input_factors.shape[2]
            self.traces = rows.new_zeros(len(ends), rows.shape[1], outputs, rows.shape[2])
        if len(rows) == 1 and self._has_kernel():
            factors = [end.part_factors[j] for j in range(len(ends)) for end in ends]
            factors += [end.input_factors[0] for end in ends]
            self.pending = _PendingStep(rows[0].contiguous(), factors)
            return
        step = max(1, BLOCK // self.traces[0, 0].numel())
        for first in range(0, rows.shape[1], step):
            _advance_rows(self.traces[:, first : first + step], rows, ends, slice(first, first + step))

    def gradient(self, part_grads: Sequence[Tensor], stored: StoredSynapses | None) -> Tensor:
        """The weights' gradient through the steps before a chunk.

        Args:
            part_grads: the gradients ``[rows, outputs]`` of the parts before the chunk.
            stored: the synapses of a sparse layer; else None.

        Returns:
            ``[outputs, inputs]``, or ``[synapses]`` for a sparse layer.
        """
        assert self.traces is not None
        if stored is not None:
            parts = zip(part_grads, self.traces, strict=True)
            return torch.stack([(grad[:, stored.targets] * part).sum(0) for grad, part in parts]).sum(0)
        if self._has_kernel():
            return self._run_kernel(part_grads)
        return torch.einsum("prn,prnm->nm", torch.stack(list(part_grads)), self.traces)

    def tensor(self) -> Tensor | None:
        """The traces after the last chunk; None before the first chunk."""
        self._update()
        return self.traces

    def _update(self) -> None:
        """Applies the pending step, if any, to the traces."""
        if self.pending is not None:
            self._run_kernel(())

    def _has_kernel(self) -> bool:
        """Whether the native kernel supports the traces: float32 on the CPU, if code can be compiled."""
        traces = self.traces
        assert traces is not None
        return traces.dtype == torch.float32 and traces.is_cpu and not available.unavailable_reason()

    def _run_kernel(self, part_grads: Sequence[Tensor]) -> Tensor:
        """Updates the traces by the pending step, then sums the weights' gradient, in one pass.

        `part_grads` are the gradients ``[rows, outputs]`` of the parts of a trace. Returns the gradient
        ``[outputs, inputs]``, or ``[0, inputs]`` if `part_grads` is empty.
        """
        assert self.traces is not None
        parts, rows, outputs, inputs = self.traces.shape
        factors = [*(self.pending.coefficients if self.pending else ()), *part_grads]
        coefficients = self.traces.new_zeros(len(factors), rows, outputs)
        for row, factor in zip(coefficients, factors, strict=True):
            if factor is not None:
                row.copy_(factor)
        gradient = self.traces.new_zeros(outputs if part_grads else 0, inputs)
        move(
            outputs,
            traces=self.traces,
            coefficients=coefficients,
            inputs=None if self.pending is None else self.pending.inputs,
            gradient=gradient,
            rows=rows,
            neurons=outputs,
            count=inputs,
            terms=Terms(parts, self.pending is not None, bool(part_grads)),
        )
        self.pending = None
        return gradient


def _advance_rows(traces: Tensor, rows: Tensor, ends: Sequence[End], selected: slice) -> None:
    """Updates some rows of the traces by a chunk of T steps, in place.

    Args:
        traces: the traces of the selected rows, ``[parts, selected, outputs, inputs]``.
        rows: the inputs of all rows, ``[T, rows, inputs]``.
        ends: for each part of a trace the factors of the inputs and of the previous traces.
        selected: the selected rows.
    """
    previous = list(traces)
    for i in reversed(range(len(previous))):  # the memory of a readout first, because no other part reads it
        part, end = previous[i], ends[i]
        if any(other.part_factors[i] is not None for other in ends[:i]):
            previous[i] = part.clone()
        factors = [f if f is None or not f.ndim else f[selected, :, None] for f in end.part_factors]
        decay = factors[i]
        if decay is None:
            part.zero_()
        else:
            part.mul_(decay)
        for j, factor in enumerate(factors):
            if j != i and factor is not None:
                part.addcmul_(factor, previous[j])
        input_factors = end.input_factors[:, selected].permute(1, 2, 0)
        part.baddbmm_(input_factors, rows[:, selected].transpose(0, 1))


def _next_stored(traces: Tensor | None, rows: Tensor, ends: Sequence[End], stored: StoredSynapses) -> Tensor:
    """The traces ``[parts, rows, synapses]`` of a sparse layer after a chunk with the inputs `rows`."""
    shape = len(ends), rows.shape[1], len(stored.sources)
    traces = rows.new_zeros(shape) if traces is None else traces
    result = rows.new_zeros(shape)
    for total, end in zip(result, ends, strict=True):
        for factor, part in zip(end.part_factors, traces, strict=True):
            if factor is not None:
                total.addcmul_(part, factor[:, stored.targets] if factor.ndim else factor)
        for inputs, factors in zip(rows, end.input_factors, strict=True):
            total.addcmul_(inputs[:, stored.sources], factors[:, stored.targets])
    return result


class Terms(NamedTuple):
    """The work of one pass over the traces; each combination is compiled as a kernel."""

    parts: int
    """Numbers in the trace of a synapse."""
    moves: bool
    """Whether to update the traces by a step."""
    reads: bool
    """Whether to sum the gradient."""

    @property
    def coefficients(self) -> int:
        """Number of coefficients for each row and neuron."""
        return self.parts * ((self.parts + 1) * self.moves + self.reads)


@kernel
def move(
    code: Code,
    begin: Value,
    end: Value,
    *,
    traces: Floats,
    coefficients: Floats,
    inputs: Floats,
    gradient: Floats,
    rows: Value,
    neurons: Value,
    count: Value,
    terms: Terms,
) -> None:
    """Updates the traces of neurons `begin` to `end` by a step, in place, and sums the gradient over rows.

        e_i = sum_j A_ij e_j + k_i x,   gradient += sum_i b_i e_i

    Args:
        code: the function under construction.
        begin: the first neuron.
        end: the neuron after the last.
        traces: e, ``[parts, rows, neurons, count]``.
        coefficients: A and k if the pass updates, b if it sums, ``[terms.coefficients, rows, neurons]``.
        inputs: x, ``[rows, count]``.
        gradient: ``[neurons, count]``.
        rows: samples, or windows of a convolution.
        neurons: outputs.
        count: inputs.
        terms: the work of this pass.
    """
    size = rows * neurons
    with code.loop(begin, end) as j, code.loop(0, rows) as row:
        at = row * neurons + j
        factors = [coefficients[size * k + at].spread(VECTOR) for k in range(terms.coefficients)]
        parts = [traces + (size * i + at) * count for i in range(terms.parts)]
        for v, mask in code.vectors(count, VECTOR):
            values = [(part + v).load(VECTOR, mask) for part in parts]
            remaining = iter(factors)
            if terms.moves:
                x = (inputs + row * count + v).load(VECTOR, mask)
                previous, values = values, [next(remaining) * values[0] for _ in parts]
                for old in previous[1:]:
                    values = [value + next(remaining) * old for value in values]
                values = [value + next(remaining) * x for value in values]
                for part, value in zip(parts, values, strict=True):
                    (part + v).store(value, mask)
            if terms.reads:
                total = (gradient + j * count + v).load(VECTOR, mask)
                for value in values:
                    total = total + next(remaining) * value
                (gradient + j * count + v).store(total, mask)
