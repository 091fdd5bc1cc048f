"""What the loops of layers are written with, whichever language they are printed in."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from hibana.network.graph import Node
from hibana.network.sliding_window import channels_last
from hibana.runtime.kernels import LONG, Bytes, Code, Pointer, Value

__all__ = ["Activations", "Kind", "Lowering", "in_order", "spread", "times"]

Kind = Literal["numbers", "bits", "ring", "counter"]
"""What an array of the state holds."""


@dataclass(eq=False)
class Activations:
    """The output of a node at the current step: numbers, or spikes as bits, and a list of nonzero places."""

    node: Node
    order: Tensor
    """The index in PyTorch's order of the number at each place."""
    numbers: Pointer | None = None
    bits: Bytes | None = None
    binary: bool = False
    """Whether all numbers are 0 or 1."""
    active: tuple[Pointer, Value] | None = None
    """The places of the nonzero numbers, in rising order, and their count, if they are listed."""


class Lowering(ABC):
    """Builds the code of a step: memory for arrays, and the loops that depend on the target.

    A target without vectors has loops over single numbers instead.
    """

    target: str
    """The name of the target, for messages."""
    code: Code
    dtype: torch.dtype
    number: type[Pointer]
    """The pointer type of numbers."""
    activations: dict[Node, Activations]

    @abstractmethod
    def constant(self, values: Tensor, name: str = "w") -> Pointer:
        """An array of constants."""

    @abstractmethod
    def factor(self, number: float) -> Value:
        """A number that all elements are multiplied with."""

    @abstractmethod
    def indices(self, values: Tensor, name: str = "i") -> Pointer:
        """An array of constant indices."""

    @abstractmethod
    def temporary(self, count: int, *, binary: bool = False) -> Pointer:
        """An array that lives for a step; `binary` if all numbers will be 0 or 1."""

    def bits(self, count: int) -> Bytes:
        """An array of `count` bits, in whole words of 64, that lives for a step."""
        raise NotImplementedError(f"{type(self).__name__} holds no bits")

    @abstractmethod
    def lasting(
        self,
        kind: Kind,
        rest: Tensor,
        of: Node,
        places: Tensor,
        shape: tuple[int, ...],
        *,
        binary: bool = False,
    ) -> Pointer:
        """An array of the state, initialised with `rest`."""

    @abstractmethod
    def numbers(self, held: Activations) -> Pointer:
        """The numbers of a node; 0 and 1 if it holds bits."""

    @abstractmethod
    def lowest(self) -> Value:
        """A number that is less than all others."""

    @abstractmethod
    def each_active(self, held: Activations) -> AbstractContextManager[tuple[Value, Value | None]]:
        """A loop over the places of nonzero numbers; yields also the number, unless all are 0 or 1."""

    @abstractmethod
    def vectors(self, count: int) -> Iterator[tuple[Value | int, int]]:
        """A loop over vectors that cover `count` elements: yields the offset and the width of each."""

    @abstractmethod
    def registers(self, count: int) -> AbstractContextManager[list[tuple[Value | int, int]]]:
        """Vectors that cover `count` elements, all in registers: the offset and the width of each."""

    @abstractmethod
    def product(
        self, node: Node, read: Activations, weights: Tensor, bias: Tensor | None, out: Pointer
    ) -> None:
        """``out = sum_i x_i weights[i] + bias`` over nonzero x, in rising order, the bias last."""

    @abstractmethod
    def neurons(self, node: Node, read: Activations) -> Activations:
        """One step of the neurons of `node` on the input `read`."""

    def accumulate(self, target: Pointer, row: Pointer, count: int, x: Value | None) -> None:
        """``target += x row``, of `count` numbers."""
        with self.registers(count) as parts:
            for at, width in parts:
                place = target + at
                place.store(place.load(width) + times((row + at).load(width), x))

    def add_bias(self, out: Pointer, bias: Tensor, size: int) -> None:
        """Adds a number for each channel to an image of `size` numbers, channels last."""
        added, channels = self.constant(bias, "b"), len(bias)
        if size == channels:
            self.accumulate(out, added, size, None)
            return
        with self.code.loop(0, size, channels, name="p") as p:
            self.accumulate(out + p, added, channels, None)

    def ordered(self, held: Activations, places: Tensor) -> Activations:
        """The same value, with its numbers in the order `places`."""
        if torch.equal(held.order, places):
            return held
        found = torch.empty_like(places)
        found[held.order] = in_order(len(places))
        source, order = self.numbers(held), self.indices(found[places], "order")
        target = self.temporary(held.node.size, binary=held.binary)
        with self.code.loop(0, held.node.size, name="o") as o:
            target[o] = source[order[o].to(LONG)]
        return Activations(held.node, places, target, binary=held.binary)

    def image(self, held: Activations, shape: tuple[int, ...]) -> tuple[Activations, bool]:
        """The same value as an image of `shape`, and whether channels are last in memory."""
        if torch.equal(held.order, channels_last(shape)):
            return held, True
        return self.ordered(held, in_order(held.node.size)), False


def in_order(count: int) -> Tensor:
    """PyTorch's order of `count` numbers."""
    return torch.arange(count, dtype=torch.int64, device="cpu")


def spread(value: Value, width: int) -> Value:
    """`value` in each of `width` lanes."""
    return value if width == 1 else value.spread(width)


def times(row: Value, x: Value | None) -> Value:
    """`row` times `x`, or `row` if `x` is None."""
    return row if x is None else spread(x, row.type.width) * row
