"""Traces: what is kept of earlier steps, for each synapse or for each input, and the recursions over a chunk.

A chunk is some steps run together. Within it, what a synapse carries into the gradient is one product of
its input and a signal that is filtered backwards, as in backpropagation through time of the layer alone;
what lies before the chunk is in the trace, which is touched once a chunk. A chunk of one step is the
textbook's rule.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from hibana.learn.coefficients import Coefficient, at, dot, plus, stacked, times
from hibana.learn.synapses import Synapses

__all__ = ["InputTraces", "Signals", "SynapseTraces", "System", "Traces"]


@dataclass(frozen=True)
class System:
    """The linear recursion of a layer's trace over a chunk: ``e_t = A_t e_(t-1) + k_t x_t``.

    The learning signal meets ``c_t e_t``; or, where a leaky readout remembers it, ``z_t``, with
    ``z_t = leak z_(t-1) + c_t e_t``. Coefficients are those of the chunk, ``[T, batch, ...]``, or numbers.
    """

    transition: list[list[Coefficient]]
    """A: what of each component (first index) comes from each one the step before."""
    to_input: list[Coefficient]
    """k of each component."""
    emitted: list[Coefficient]
    """c of each component."""
    leak: Tensor | None
    shape: torch.Size
    """Of the chunk."""

    @property
    def steps(self) -> int:
        return self.shape[0]

    @property
    def is_alike(self) -> bool:
        """Whether all neurons have the same trace of an input, so that one serves all, exactly."""
        coefficients = [c for row in (*self.transition, self.to_input) for c in row]
        return self.leak is None and all(c is None or c.ndim == 0 for c in coefficients)

    @property
    def instant(self) -> Coefficient:
        """What the input of a step does to what is emitted in it."""
        return dot(self.emitted, self.to_input)

    def backward(
        self, signal: Tensor | None, end: Sequence[Coefficient], end_readout: Coefficient
    ) -> tuple[Coefficient, list[Coefficient], Coefficient]:
        """The recursion's adjoint, from the gradients of the trace after the chunk and of `signal` within.

        Returns:
            The factor of each step's input, ``[T, batch, ...]`` or one a step, ``[T]``; and the gradients of
            the components, and of ``z``, before the chunk.
        """
        d, of_readout = list(end), end_readout
        found: list[Coefficient] = []
        for t in reversed(range(self.steps)):
            if t < self.steps - 1:
                d, of_readout = self._before(d, t + 1), times(self.leak, of_readout)
            met = of_readout if signal is None else plus(signal[t], of_readout)
            if signal is not None and self.leak is not None:
                of_readout = met
            d = [plus(one, times(at(c, t), met)) for one, c in zip(d, self.emitted, strict=True)]
            found.append(dot([at(k, t) for k in self.to_input], d))
        return stacked(found[::-1], self.shape), self._before(d, 0), times(self.leak, of_readout)

    def _before(self, d: Sequence[Coefficient], t: int) -> list[Coefficient]:
        columns = range(len(d))
        return [dot([at(self.transition[j][i], t) for j in columns], d) for i in columns]


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
    def advance(self, synapses: Synapses, inputs: Tensor, system: System) -> None:
        """Takes the chunk's `inputs`, ``[T, batch, ...]``, into the traces."""

    @abstractmethod
    def gradient(self, synapses: Synapses, before: list[Coefficient], shape: torch.Size) -> Tensor | None:
        """The gradient ``[outputs, inputs]`` of what lies before the chunk; None if nothing does."""

    @property
    @abstractmethod
    def numbers(self) -> int:
        """How many numbers are kept."""


@final
class SynapseTraces(Traces):
    """Exact traces: of each component a number a synapse, or an input where all neurons have the same."""

    def __init__(self) -> None:
        self.parts: list[Tensor | None] = []
        """Of each component, and of the readout's memory: ``[rows, neurons or 1, inputs]``."""

    def advance(self, synapses: Synapses, inputs: Tensor, system: System) -> None:
        count = len(system.to_input)
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
        self.parts = [
            self._next(synapses, rows, factor, parts, system.shape)
            for factor, parts in zip(of_rows, of_parts, strict=True)
        ]

    def _next(
        self,
        synapses: Synapses,
        rows: Tensor,
        factor: Coefficient,
        of_parts: list[Coefficient],
        shape: torch.Size,
    ) -> Tensor | None:
        found: Tensor | None = None
        for coefficient, part in zip(of_parts, self.parts, strict=True):
            if coefficient is None or part is None:
                continue
            if coefficient.ndim:
                coefficient = synapses.neurons(coefficient[None])[0].unsqueeze(-1)
            found = part * coefficient if found is None else found + part * coefficient
        if factor is None:
            return found
        if factor.ndim == 1:
            factor = factor[:, None, None].expand(len(rows), rows.shape[1], 1)
        else:
            factor = synapses.neurons(factor)
        added = torch.bmm(factor.permute(1, 2, 0), rows.transpose(0, 1))
        return added if found is None else found + added

    def gradient(self, synapses: Synapses, before: list[Coefficient], shape: torch.Size) -> Tensor | None:
        found: Tensor | None = None
        for coefficient, part in zip(before, self.parts, strict=False):
            if coefficient is None or part is None:
                continue
            of_neurons = synapses.neurons(coefficient.expand(shape[1:])[None])[0]
            if part.shape[1] == 1:
                one = of_neurons.T @ part[:, 0]
            else:
                one = torch.einsum("rn,rnm->nm", of_neurons, part)
            found = one if found is None else found + one
        return found

    @property
    def numbers(self) -> int:
        return sum(part.numel() for part in self.parts if part is not None)


@final
class InputTraces(Traces):
    """One trace for each input, which decays by one factor."""

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.part: Tensor | None = None

    def advance(self, synapses: Synapses, inputs: Tensor, system: System) -> None:
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
