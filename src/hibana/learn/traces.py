"""Traces: what is kept of earlier steps, for each synapse or for each input.

A chunk is some steps run together. Within it, what a synapse carries into the gradient is one product of
its input and a signal that is filtered backwards, as in backpropagation through time of the layer alone;
what lies before the chunk is in the trace, which is touched once a chunk. A chunk of one step is the
textbook's rule.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, final

import torch
from torch import Tensor

from hibana.learn import trace_kernel
from hibana.learn.coefficients import Coefficient
from hibana.learn.compiled import AnySystem
from hibana.learn.synapses import Synapses
from hibana.runtime import available

__all__ = ["InputTraces", "Signals", "SynapseTraces", "Traces"]

BLOCK = 1 << 18
"""Numbers of a trace that are gone through together: what a cache holds."""


@dataclass
class Signals:
    """What a layer's learning signal over a chunk comes to."""

    of_input: Tensor
    """What each step's input is multiplied by, for the gradient of the weights; like the chunk."""
    before: list[Coefficient]
    """What the traces of before the chunk are multiplied by, of each component."""


class Traces(ABC):
    """The traces of one set of synapses."""

    @abstractmethod
    def advance(self, synapses: Synapses, inputs: Tensor, system: AnySystem) -> None:
        """Takes the chunk's `inputs`, ``[T, batch, ...]``, into the traces."""

    @abstractmethod
    def gradient(self, synapses: Synapses, before: list[Coefficient], shape: torch.Size) -> Tensor | None:
        """The gradient ``[outputs, inputs]`` of what lies before the chunk; None if nothing does."""

    @property
    @abstractmethod
    def numbers(self) -> int:
        """How many numbers are kept."""

    @abstractmethod
    def state(self) -> list[Tensor | None]:
        """The traces as tensors."""

    @abstractmethod
    def load(self, state: Sequence[Tensor | None]) -> None:
        """Replaces the traces by those of :meth:`state`."""


class Due(NamedTuple):
    """A step that is yet to be taken into traces of a number a synapse."""

    rows: Tensor
    """What came through the synapses, ``[rows, inputs]``."""
    to_input: list[Coefficient]
    """Of each part, what it is multiplied by, for each row and neuron."""
    transition: list[list[Coefficient]]
    """Of each part, what of each one before the step goes into it."""


@final
class SynapseTraces(Traces):
    """Exact traces: of each component a number a synapse, or an input where all neurons have the same.

    A single step, where a kernel serves, is taken into them when the next gradient is asked for: each number
    is then read and written once for both.
    """

    def __init__(self) -> None:
        self.parts: Sequence[Tensor | None] = []
        """Of each component, and of the readout's memory: ``[rows, neurons or 1, inputs]``."""
        self.whole: Tensor | None = None
        """All parts, where a kernel goes through them."""
        self.due: Due | None = None

    def advance(self, synapses: Synapses, inputs: Tensor, system: AnySystem) -> None:
        if self.due is not None:
            self._pass(self.due, [None] * len(self.parts))
        count = system.count
        kept = count + (system.leak is not None)
        if not self.parts:
            self.parts = [None] * kept
        rows = synapses.rows(inputs)
        one = torch.ones((), dtype=rows.dtype, device=rows.device)
        of_rows, of_parts = [], []
        for j in range(kept):
            end = [one if i == j else None for i in range(count)]
            factor, before, of_readout = system.backward(None, end, one if j == count else None)
            of_rows.append(factor)
            of_parts.append([*before, of_readout][:kept])
        if len(rows) == 1 and self._serves(synapses, rows, of_rows):
            to_input = [None if c is None else synapses.neurons(c)[0] for c in of_rows]
            transition = [
                [c if c is None or c.ndim == 0 else synapses.neurons(c[None])[0] for c in row]
                for row in of_parts
            ]
            self.due = Due(rows[0], to_input, transition)
            return
        self.whole = None
        factors = [None if c is None else _of_rows(synapses, c, rows) for c in of_rows]
        coefficients = [
            [
                None if c is None or part is None else _of_neurons(synapses, c)
                for c, part in zip(row, self.parts, strict=True)
            ]
            for row in of_parts
        ]
        self._move(rows, factors, coefficients)

    def _serves(self, synapses: Synapses, rows: Tensor, factors: list[Coefficient]) -> bool:
        """Whether the kernel goes through the traces; if so they are put together for it."""
        if rows.dtype != torch.float32 or rows.device.type != "cpu" or available.refusal():
            return False
        shape = (rows.shape[1], len(synapses.parameters[0]), rows.shape[2])
        if any(c is not None and c.ndim == 1 for c in factors):  # one for all neurons
            return False
        if any(part is not None and part.shape != shape for part in self.parts):
            return False
        if self.whole is None:
            self.whole = rows.new_zeros(len(self.parts), *shape)
            for part, was in zip(self.whole, self.parts, strict=True):
                if was is not None:
                    part.copy_(was)
            self.parts = self.whole.unbind()
        return True

    def _pass(self, due: Due | None, before: Sequence[Coefficient]) -> Tensor:
        """One pass of the kernel: takes a `due` step in, and sums the parts by factors for the gradient."""
        assert self.whole is not None
        count, *shape, inputs = self.whole.shape
        moved = (
            []
            if due is None
            else [(i, j, c) for i, row in enumerate(due.transition) for j, c in enumerate(row)]
        )
        transition = [(i, j, c) for i, j, c in moved if c is not None]
        given = [] if due is None else [(i, c) for i, c in enumerate(due.to_input) if c is not None]
        there = [(i, c) for i, c in enumerate(before) if c is not None]
        terms = trace_kernel.Terms(
            count,
            due is not None,
            tuple([(i, j) for i, j, _ in transition]),
            tuple([i for i, _ in given]),
            tuple([i for i, _ in there]),
        )
        found = self.whole.new_zeros(shape[1] if there else 0, inputs)
        coefficients = self.whole.new_empty(terms.coefficients, *shape)
        for into, c in zip(coefficients, (pair[-1] for pair in (*transition, *given, *there)), strict=True):
            into.copy_(c)
        trace_kernel.move(
            shape[1],
            parts=self.whole,
            coefficients=coefficients,
            inputs=None if due is None else due.rows,
            found=found,
            rows=shape[0],
            neurons=shape[1],
            count=inputs,
            terms=terms,
        )
        self.due = None
        return found

    def _move(
        self, rows: Tensor, factors: list[Tensor | None], coefficients: list[list[Tensor | None]]
    ) -> None:
        """The parts after a chunk; in place where no other part still needs what was there."""
        was, kept = list(self.parts), len(self.parts)
        parts = self.parts = list(was)
        for j in reversed(range(kept)):  # what the readout remembers first, which nothing else is made of
            needed = any(coefficients[i][j] is not None for i in range(j))
            parts[j] = _moved(rows, factors[j], coefficients[j], was, j, keep=needed)

    def gradient(self, synapses: Synapses, before: list[Coefficient], shape: torch.Size) -> Tensor | None:
        found: Tensor | None = None
        spread = [
            None if c is None else synapses.neurons(c.expand(shape[1:])[None])[0]
            for c in before[: len(self.parts)]
        ]
        if self.whole is not None:
            return self._pass(self.due, spread)
        for of_neurons, part in zip(spread, self.parts, strict=True):
            if of_neurons is None or part is None:
                continue
            one = _summed(of_neurons, part)
            found = one if found is None else found + one
        return found

    @property
    def numbers(self) -> int:
        return sum(part.numel() for part in self.parts if part is not None)

    def state(self) -> list[Tensor | None]:
        if self.due is not None:
            self._pass(self.due, [None] * len(self.parts))
        return list(self.parts)

    def load(self, state: Sequence[Tensor | None]) -> None:
        self.parts, self.whole, self.due = list(state), None, None


def _of_neurons(synapses: Synapses, c: Tensor) -> Tensor:
    """What a trace is multiplied by: a number, or ``[rows, neurons, 1]``."""
    return c if c.ndim == 0 else synapses.neurons(c[None])[0].unsqueeze(-1)


def _of_rows(synapses: Synapses, factor: Tensor, rows: Tensor) -> Tensor:
    """What the inputs of a chunk are multiplied by: ``[rows, neurons or 1, T]``."""
    if factor.ndim == 1:
        return factor[None, None].expand(rows.shape[1], 1, len(rows))
    return synapses.neurons(factor).permute(1, 2, 0)


def _moved(
    rows: Tensor,
    factor: Tensor | None,
    coefficients: list[Tensor | None],
    was: list[Tensor | None],
    own: int,
    *,
    keep: bool,
) -> Tensor | None:
    """Part `own` after a chunk of `rows`, ``[T, rows, inputs]``: a block of rows at a time, in the cache."""
    terms = [
        (c, part) for c, part in zip(coefficients, was, strict=True) if c is not None and part is not None
    ]
    if factor is None and not terms:
        return None
    neurons = max([1 if factor is None else factor.shape[1], *(_neurons_of(c, part) for c, part in terms)])
    found, mine = was[own], coefficients[own]
    if found is None or keep or found.shape[1] != neurons:
        found = rows.new_zeros(rows.shape[1], neurons, rows.shape[2])
        if mine is not None and was[own] is not None:
            found.copy_(was[own])  # type: ignore[arg-type] # it is there
    others = [(c, part) for i, (c, part) in enumerate(zip(coefficients, was, strict=True)) if i != own]
    step = max(1, BLOCK // (neurons * rows.shape[2]))
    for first in range(0, len(found), step):
        here = slice(first, first + step)
        block = found[here]
        if mine is None:
            block.zero_()
        else:
            block.mul_(mine if mine.ndim == 0 else mine[here])
        for c, part in others:
            if c is not None and part is not None:
                block.addcmul_(c if c.ndim == 0 else c[here], part[here])
        if factor is not None:
            inputs, of_inputs = rows[:, here].transpose(0, 1), factor[here].expand(-1, neurons, -1)
            if len(rows) == 1:
                block.addcmul_(of_inputs, inputs)
            else:
                block.baddbmm_(of_inputs, inputs)
    return found


def _neurons_of(c: Tensor, part: Tensor) -> int:
    return part.shape[1] if c.ndim == 0 else max(c.shape[1], part.shape[1])


def _summed(of_neurons: Tensor, part: Tensor) -> Tensor:
    """``sum_r of_neurons[r, n] part[r, n, m]``."""
    if part.shape[1] == 1:
        return of_neurons.T @ part[:, 0]
    if part[0].numel() < BLOCK // 16:
        return torch.einsum("rn,rnm->nm", of_neurons, part)
    found = torch.zeros_like(part[0])
    for one, of_one in zip(part, of_neurons.unsqueeze(-1), strict=True):
        found.addcmul_(of_one, one)
    return found


@final
class InputTraces(Traces):
    """One trace for each input, which decays by one factor."""

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.part: Tensor | None = None

    def advance(self, synapses: Synapses, inputs: Tensor, system: AnySystem) -> None:
        rows = synapses.rows(inputs)
        ages = torch.arange(len(rows) - 1, -1, -1, dtype=rows.dtype, device=rows.device)
        added = torch.einsum("t,trm->rm", self.decay**ages, rows)
        self.part = added if self.part is None else self.part * self.decay ** len(rows) + added

    def gradient(self, synapses: Synapses, before: list[Coefficient], shape: torch.Size) -> Tensor | None:
        (coefficient,) = before
        if self.part is None or coefficient is None:
            return None
        return synapses.neurons(coefficient.expand(shape[1:])[None])[0].T @ self.part

    @property
    def numbers(self) -> int:
        return 0 if self.part is None else self.part.numel()

    def state(self) -> list[Tensor | None]:
        return [self.part]

    def load(self, state: Sequence[Tensor | None]) -> None:
        (self.part,) = state
