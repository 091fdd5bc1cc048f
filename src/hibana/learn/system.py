"""The linear recursion of a layer's traces over a chunk, steps that are run together, and its adjoint."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hibana.learn.coefficients import Coefficient, at, dot, scan, times

__all__ = ["System", "filtered_by", "first_of"]


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

    @classmethod
    def joined(cls, parts: "list[System]") -> "System":
        """The recursion over the steps of `parts`, one after the other."""
        if len(parts) == 1:
            return parts[0]
        transitions = zip(*(part.transition for part in parts), strict=True)
        return cls(
            [_rows_joined(rows) for rows in transitions],
            _rows_joined([part.to_input for part in parts]),
            _rows_joined([part.emitted for part in parts]),
            parts[0].leak,
            torch.Size([sum(part.steps for part in parts), *parts[0].shape[1:]]),
        )

    @property
    def steps(self) -> int:
        return self.shape[0]

    @property
    def count(self) -> int:
        """How many components there are."""
        return len(self.to_input)

    @property
    def is_alike(self) -> bool:
        """Whether all neurons have the same trace of an input, so that one serves all, exactly."""
        return self.leak is None and self.moves_alike

    @property
    def moves_alike(self) -> bool:
        """Whether one recursion serves all neurons, before a readout."""
        coefficients = [c for row in (*self.transition, self.to_input) for c in row]
        return all(c is None or c.ndim == 0 for c in coefficients)

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
        dimensions = (1,) * (len(self.shape) - 1)
        filtered = filtered_by(self.leak, signal, end_readout, self.shape)
        parts = self._begun([times(c, filtered) for c in self.emitted], end, dimensions)
        turned = [[row[i] for row in self.transition] for i in range(len(parts))]
        scan(parts, turned, [None] * len(parts), back=True)
        factor = dot(self.to_input, parts)
        if factor is not None and factor.shape[1:] == dimensions != self.shape[1:]:
            factor = factor.flatten()
        first = [first_of(part, self.shape) for part in parts]
        before = [dot([at(c, 0) for c in row], first) for row in turned]
        return factor, before, times(self.leak, first_of(filtered, self.shape))

    def _begun(
        self, added: list[Coefficient], end: Sequence[Coefficient], dimensions: tuple[int, ...]
    ) -> list[Tensor | None]:
        """What the adjoint begins with, `added` at each step and `end` at the last: tensors of its own."""
        begun = [one is not None or last is not None for one, last in zip(added, end, strict=True)]
        reached = {i for i, there in enumerate(begun) if there}
        for _ in added:
            reached |= {i for j in reached for i, c in enumerate(self.transition[j]) if c is not None}
        some = next((one for one in (*added, *end) if one is not None), None)
        alike = self.moves_alike and all(one is None or one.shape[1:] == dimensions for one in added)
        shape = torch.Size([self.steps, *dimensions]) if alike else self.shape
        parts: list[Tensor | None] = []
        for i, (one, last) in enumerate(zip(added, end, strict=True)):
            if i not in reached or some is None:
                parts.append(None)
                continue
            part = some.new_zeros(shape) if one is None else one
            if part.shape != shape:
                part = part.expand(shape).clone()
            if last is not None:
                part[-1] += last
            parts.append(part)
        return parts


def filtered_by(
    leak: Tensor | None, signal: Tensor | None, end: Coefficient, shape: torch.Size
) -> Tensor | None:
    """The gradient of what a readout is given at each step of a chunk, backwards through its memory.

    Args:
        leak: of the readout; None if there is none.
        signal: the gradient of what it emits at each step, ``[T, batch, ...]``.
        end: without a signal, the gradient of its memory after the chunk, a number.
        shape: of the chunk.

    Returns:
        Like the chunk, or a number a step, ``[T, 1, ...]``; None if it is zero.
    """
    if signal is not None:
        if leak is None:
            return signal
        filtered = signal.clone()
        scan([filtered], [[leak]], [None], back=True)
        return filtered
    if end is None or leak is None:
        return None
    ages = torch.arange(shape[0] - 1, -1, -1, dtype=end.dtype, device=end.device)
    return (end * leak**ages).view(-1, *[1] * (len(shape) - 1))


def first_of(part: Tensor | None, shape: torch.Size) -> Coefficient:
    """`part` of a chunk at the first step, as one number where it is one for all neurons."""
    if part is None:
        return None
    return part[0] if part.shape == shape else part[0].reshape(())


def _rows_joined(rows: Sequence[list[Coefficient]]) -> list[Coefficient]:
    """Rows of coefficients of steps one after the other; what is one number is the same in all of them."""
    columns = ([c for c in column if c is not None] for column in zip(*rows, strict=True))
    return [None if not column else torch.cat(column) if column[0].ndim else column[0] for column in columns]
