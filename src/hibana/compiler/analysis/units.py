"""Units of fixed-point numbers: ratios between the units of values, and units of quantized weights."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from hibana.compiler.graph.step import Value

__all__ = ["Units", "row_units"]


class Units:
    """The units of values, and ratios between units that are not determined yet: a weighted union-find."""

    def __init__(self) -> None:
        self.parents: dict[Value, tuple[Value, Tensor | float]] = {}
        self.units: dict[Value, Tensor] = {}

    def join(self, one: Value, other: Value, ratio: Tensor | float = 1.0) -> None:
        """Sets the unit of `one` to `ratio` times the unit of `other`, unless both are determined already."""
        (first, a), (second, b) = self._root(one), self._root(other)
        if first is second or (first in self.units and second in self.units):
            return
        if first in self.units:
            self.parents[second] = first, a / (b * ratio)
        else:
            self.parents[first] = second, b * ratio / a

    def of(self, value: Value) -> Tensor | None:
        """The unit of `value`, or None if it is not determined yet."""
        root, ratio = self._root(value)
        return self.units[root] * ratio if root in self.units else None

    def set(self, value: Value, unit: Tensor) -> None:
        """Determines the unit of `value`, unless it is determined already."""
        root, ratio = self._root(value)
        self.units.setdefault(root, unit / ratio)

    def related(self, value: Value, candidates: Iterable[Value]) -> list[Value]:
        """The `candidates` whose units have a ratio to the unit of `value`."""
        root = self._root(value)[0]
        return [other for other in candidates if self._root(other)[0] is root]

    def ratio(self, one: Value, other: Value) -> Tensor | float:
        """The unit of `one` divided by the unit of `other`, which must be related."""
        return self._root(one)[1] / self._root(other)[1]

    def _root(self, value: Value) -> tuple[Value, Tensor | float]:
        """The representative of `value`, and the unit of `value` divided by the representative's unit."""
        ratio: Tensor | float = 1.0
        while value in self.parents:
            value, factor = self.parents[value]
            ratio = ratio * factor
        return value, ratio


def row_units(weights: Tensor, limit: int) -> Tensor:
    """The unit of each row of `weights`, ``[rows, inputs]``, for integers from ``-limit`` to `limit`.

    Rows whose weights are multiples of the smallest, such as -1 and 2, are represented exactly.
    """
    sizes = weights.abs()
    largest = sizes.amax(1)
    smallest = torch.where(sizes > 0, sizes, math.inf).amin(1)
    multiples = sizes / smallest[:, None]
    largest_multiple = multiples.amax(1)
    exact = (multiples == multiples.round()).all(1) & (largest_multiple <= limit) & (largest_multiple > 0)
    units = torch.where(exact, smallest / (limit / largest_multiple.clamp(min=1)).floor(), largest / limit)
    return torch.where(largest > 0, units, 1.0)
