"""Factors of neurons at steps, most of which are zero or one number for all: the arithmetic of them."""

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = [
    "Coefficient",
    "at",
    "dot",
    "like_chunk",
    "one_later",
    "plus",
    "scaled",
    "scan",
    "spread",
    "stacked",
    "times",
]

Coefficient = Tensor | None
"""A factor for each neuron at each step, or one for all (a tensor without dimensions); None is zero."""


def plus(a: Coefficient, b: Coefficient) -> Coefficient:
    """The sum of two."""
    return b if a is None else a if b is None else a + b


def times(a: Coefficient, b: Coefficient) -> Coefficient:
    """The product of two."""
    return None if a is None or b is None else a * b


def scaled(factor: float, c: Coefficient) -> Coefficient:
    """`c` times a number."""
    return None if c is None else c * factor


def dot(a: Sequence[Coefficient], b: Sequence[Coefficient]) -> Coefficient:
    """The sum of products of two rows."""
    found: Coefficient = None
    for one, other in zip(a, b, strict=True):
        found = plus(found, times(one, other))
    return found


def at(c: Coefficient, t: int) -> Coefficient:
    """`c` at step `t` of a chunk."""
    return c if c is None or c.ndim == 0 else c[t]


def spread(c: Coefficient, shape: torch.Size) -> Coefficient:
    """`c` like a chunk of `shape`, ``[T, batch, ...]``, if it is not one number for all."""
    return c if c is None or c.ndim == 0 else c.expand(shape)


def one_later(c: Coefficient, before: Coefficient, shape: torch.Size) -> Coefficient:
    """At each step of a chunk `c` of the step before; of its first, `before`."""
    if c is None or c.ndim == 0:
        return c
    c = c.expand(shape)
    first = torch.zeros_like(c[:1]) if before is None else before.expand(shape[1:])[None]
    return torch.cat([first, c[:-1]])


def stacked(steps: list[Coefficient], shape: torch.Size) -> Coefficient:
    """Those of the steps of a chunk as one, ``[T]`` or like `shape`; None if all are zero."""
    there = [one for one in steps if one is not None]
    if not there:
        return None
    zero = there[0].new_zeros(())
    full = [zero if one is None else one for one in steps]
    if any(one.ndim for one in there):
        full = [one.expand(shape[1:]) for one in full]
    return torch.stack(full)


def like_chunk(c: Coefficient, example: Tensor) -> Tensor:
    """What :func:`stacked` gave, like the chunk that `example` is of."""
    if c is None:
        return torch.zeros_like(example)
    return (c.view(-1, *[1] * (example.ndim - 1)) if c.ndim == 1 else c).expand(example.shape)


def scan(
    parts: Sequence[Tensor | None],
    transition: Sequence[Sequence[Coefficient]],
    start: Sequence[Coefficient],
    *,
    back: bool = False,
) -> None:
    """A linear recursion over the steps of a chunk, in place: ``x_t += transition_t x_(t-1)``.

    Args:
        parts: x of each component, ``[T, ...]``, what is added at each step; None is zero at all of them.
        transition: what of each component (first index) comes from each one the step before.
        start: the components before the first step; None is zero.
        back: from the last step to the first, ``x_t += transition_(t+1) x_(t+1)``; `start` is zero.
    """
    steps = [None if part is None else part.unbind() for part in parts]
    count = next((len(part) for part in parts if part is not None), 0)
    before, order = list(start), range(count)
    for t in reversed(order) if back else order:
        now: list[Coefficient] = [None if one is None else one[t] for one in steps]
        for x, row in zip(now, transition, strict=True):
            if x is None:
                continue
            for factor, other in zip(row, before, strict=True):
                if factor is not None and other is not None:
                    x.addcmul_(factor if factor.ndim == 0 else factor[t + 1 if back else t], other)
        before = now
