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
from hibana.runtime import available
from hibana.runtime.kernels import Code, Floats, Value, kernel
from hibana.runtime.synapses import SynapseIndex
from hibana.spikes.sparse.product import sums_per_synapse

__all__ = ["End", "InputTraces", "SynapseTraces"]

VECTOR = 16
"""Numbers in a vector."""


@final
class InputTraces:
    """One trace for each input, which all neurons share."""

    def __init__(self, traces: Tensor | None = None) -> None:
        self.traces = traces
        """``[independent states, rows, inputs]``; None before the first chunk."""

    def advance(self, rows: Tensor, recursion: Recursion) -> None:
        """Updates the traces by T steps ``trace = transition @ trace + factor * input``.

        `recursion` is (transition, factor), and `rows` are the inputs ``[T, rows, inputs]``.
        """
        transition, factor = recursion
        factors = list[Tensor]()
        for _ in rows:
            factors.insert(0, factor)
            factor = transition @ factor
        traces = torch.stack(factors, 1) @ rows.flatten(1)
        if self.traces is not None:
            traces += torch.linalg.matrix_power(transition, len(rows)) @ self.traces.flatten(1)
        self.traces = traces.view(-1, *rows.shape[1:])

    def gradient(self, state_grads: Sequence[Tensor], stored: SynapseIndex | None) -> Tensor:
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
        if stored is None:
            return grads.T @ traces
        return sums_per_synapse(stored, traces, grads)

    def tensor(self) -> Tensor | None:
        """The traces after the last chunk; None before the first chunk."""
        return self.traces


class End(NamedTuple):
    """The factors that give one part of the synapses' traces after a chunk (steps that run together)."""

    input_factors: Tensor
    """Factor of the input at each step, ``[T, rows, outputs]``."""
    part_factors: Sequence[Tensor | None]
    """Factor of each part before the chunk, ``[rows, outputs]``; None is zero."""


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
        self.pending: tuple[Tensor, list[Tensor | None]] | None = None
        """The inputs and factors of a single step, which the next pass over the traces applies."""

    def advance(self, rows: Tensor, ends: Sequence[End], stored: SynapseIndex | None) -> None:
        """Updates the traces by a chunk of T steps.

        Args:
            rows: the inputs, ``[T, rows, inputs]``.
            ends: for each part of a trace (independent state, memory of a readout) the factors of the inputs
                and of the previous traces.
            stored: the synapses of a sparse layer; else None.
        """
        self._update()
        if self.traces is None:
            synapses = (
                (ends[0].input_factors.shape[2], rows.shape[2]) if stored is None else stored.offsets.shape
            )
            self.traces = rows.new_zeros(len(ends), rows.shape[1], *synapses)
        if stored is None and len(rows) == 1 and self._has_kernel():
            factors = [end.part_factors[j] for j in range(len(ends)) for end in ends]
            self.pending = rows[0].contiguous(), [*factors, *(end.input_factors[0] for end in ends)]
        else:
            _advance(self.traces, rows, ends, stored)

    def gradient(self, part_grads: Sequence[Tensor], stored: SynapseIndex | None) -> Tensor:
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
            return torch.stack([(grad[:, stored.offsets] * part).sum(0) for grad, part in parts]).sum(0)
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
        step_inputs, step_factors = self.pending or (None, [])
        factors = [*step_factors, *part_grads]
        coefficients = self.traces.new_zeros(len(factors), rows, outputs)
        for row, factor in zip(coefficients, factors, strict=True):
            if factor is not None:
                row.copy_(factor)
        gradient = self.traces.new_zeros(outputs if part_grads else 0, inputs)
        move(
            outputs,
            traces=self.traces,
            coefficients=coefficients,
            inputs=step_inputs,
            gradient=gradient,
            rows=rows,
            neurons=outputs,
            count=inputs,
            parts=parts,
            moves=self.pending is not None,
            reads=bool(part_grads),
        )
        self.pending = None
        return gradient


def _advance(traces: Tensor, rows: Tensor, ends: Sequence[End], stored: SynapseIndex | None) -> None:
    """Updates the traces by a chunk of T steps, in place; the arguments are those of SynapseTraces.advance.

    `traces` is ``[parts, rows, outputs, inputs]``, or ``[parts, rows, synapses]`` with `stored` synapses.
    """

    def by_synapse(factor: Tensor) -> Tensor:
        """A factor ``[rows, outputs]`` for each synapse: that of its target."""
        return factor[..., None] if stored is None else factor[:, stored.offsets]

    previous, sources = list(traces), None if stored is None else stored.sources
    for i in reversed(range(len(previous))):  # the memory of a readout first, because no other part reads it
        part, end = previous[i], ends[i]
        if any(other.part_factors[i] is not None for other in ends[:i]):
            previous[i] = part.clone()
        decay = end.part_factors[i]
        if decay is None:
            part.zero_()
        else:
            part.mul_(by_synapse(decay))
        for j, factor in enumerate(end.part_factors):
            if j != i and factor is not None:
                part.addcmul_(by_synapse(factor), previous[j])
        if stored is None:
            part.baddbmm_(end.input_factors.permute(1, 2, 0), rows.transpose(0, 1))
            continue
        for inputs, factors in zip(rows, end.input_factors, strict=True):
            part.addcmul_(inputs[:, sources], factors[:, stored.offsets])


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
    parts: int,
    moves: bool,
    reads: bool,
) -> None:
    """Updates the traces of neurons `begin` to `end` by a step, in place, and sums the gradient over rows.

        e_i = sum_j A_ij e_j + k_i x,   gradient += sum_i b_i e_i

    Args:
        code: the function under construction.
        begin: the first neuron.
        end: the neuron after the last.
        traces: e, ``[parts, rows, neurons, count]``.
        coefficients: A and k if the pass updates, b if it sums, ``[coefficients, rows, neurons]``.
        inputs: x, ``[rows, count]``.
        gradient: ``[neurons, count]``.
        rows: samples, or windows of a convolution.
        neurons: outputs.
        count: inputs.
        parts: numbers in the trace of a synapse.
        moves: whether to update the traces by a step.
        reads: whether to sum the gradient.
    """
    size, coefficient_count = rows * neurons, parts * ((parts + 1) * moves + reads)
    with code.loop(begin, end) as j, code.loop(0, rows) as row:
        at = row * neurons + j
        factors = [coefficients[size * k + at].spread(VECTOR) for k in range(coefficient_count)]
        pointers = [traces + (size * i + at) * count for i in range(parts)]
        for v, mask in code.vectors(count, VECTOR):
            values = [(part + v).load(VECTOR, mask) for part in pointers]
            remaining = iter(factors)
            if moves:
                x = (inputs + row * count + v).load(VECTOR, mask)
                previous, values = values, [next(remaining) * values[0] for _ in pointers]
                for old in previous[1:]:
                    values = [value + next(remaining) * old for value in values]
                values = [value + next(remaining) * x for value in values]
                for part, value in zip(pointers, values, strict=True):
                    (part + v).store(value, mask)
            if reads:
                total = (gradient + j * count + v).load(VECTOR, mask)
                for value in values:
                    total = total + next(remaining) * value
                (gradient + j * count + v).store(total, mask)
