"""The interface with which layers build the loops of one step of one sample, for any target."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Literal

import torch
from torch import Tensor

from hibana.compiler.graph.leaf import Leaf
from hibana.compiler.graph.passes import Stores
from hibana.network.neurons import NeuronLayer
from hibana.network.node import Node, channels_last, in_order
from hibana.runtime.kernels import LONG, Bytes, Code, Pointer, Value

__all__ = ["CHUNK", "Activations", "Lowering", "StateArray"]
__all__ += ["spread", "times", "vector_parts"]

CHUNK = 64
"""Numbers that stay in registers while others are added: four registers of AVX-512, eight of AVX2."""


@dataclass(eq=False)
class Activations:
    """Where generated code stores the output of a node at the current step: as numbers, or as packed bits."""

    node: Node
    order: Tensor
    """PyTorch's index of the number at each place in memory, ``[node.size]``."""
    numbers: Pointer | None = None
    bits: Bytes | None = None
    binary: bool = False
    """Whether all numbers are 0 or 1."""
    nonzero: tuple[Pointer, Value] | None = None
    """The places of the nonzero numbers in rising order, and their count; None until they are listed."""


@dataclass(frozen=True, eq=False)
class StateArray:
    """An array that a layer keeps from step to step."""

    layer: str
    kind: Literal["numbers", "bits", "ring", "counter"]
    """A ring holds the numbers of several steps; its counter is the index of the current step in it."""
    shape: tuple[int, ...]
    """Of one sample, as in PyTorch; a ring has its steps first."""
    order: Tensor
    """PyTorch's index of the number at each place in memory, for one step."""
    binary: bool = False
    """Whether all numbers are 0 or 1."""
    name: str = ""
    """The name of the state of a cell, such as ``v``; empty for other arrays."""
    offset: int = 0
    """The first byte in the state of a sample of a native program."""


class Lowering(ABC):
    """Builds the code of a step: memory for arrays, and the loops that depend on the target."""

    target: str
    """The name of the target, for messages."""
    packs_spikes = False
    """Whether the spikes of neurons are stored as bits."""
    vector_width = 1
    """Numbers of a vector in loops over elements; 1 if the target has no vectors."""
    code: Code
    dtype: torch.dtype
    number: type[Pointer]
    """The pointer type of numbers."""
    activations: dict[Node, Activations]

    @abstractmethod
    def constant(self, values: Tensor, name: str = "w") -> Pointer:
        """The address of an array in the program that holds the constant `values`."""

    @abstractmethod
    def indices(self, values: Tensor, name: str = "i") -> Pointer:
        """The address of an array in the program that holds the constant indices `values`."""

    @abstractmethod
    def temporary(self, count: int, *, binary: bool = False) -> Pointer:
        """An array of `count` numbers that lives for one step; `binary` promises that all will be 0 or 1."""

    @abstractmethod
    def state(self, array: StateArray, initial: Tensor) -> Pointer:
        """Adds `array` to the state of the network, with the values `initial` at rest."""

    def bits(self, count: int) -> Bytes:
        """An array of `count` bits, in words of 64 bits, that lives for a step."""
        raise NotImplementedError(f"{type(self).__name__} has no arrays of bits")

    def numbers(self, activations: Activations) -> Pointer:
        """The address of a node's numbers; if they are stored as bits, adds code that expands these."""
        assert activations.numbers is not None
        return activations.numbers

    @abstractmethod
    def each_nonzero(self, activations: Activations) -> AbstractContextManager[tuple[Value, Value | None]]:
        """A loop over the nonzero numbers: yields the place, and the number, or None if all are 0 or 1."""

    def vectors(self, count: int) -> Iterator[tuple[Any, int]]:
        """Yields the offset and width of each vector: in a loop, then for the remainder without a loop."""
        remainder = count % self.vector_width
        if count > remainder:
            with self.code.loop(0, count - remainder, self.vector_width, name="o") as offset:
                yield offset, self.vector_width
        for first, width in vector_parts(remainder):
            yield count - remainder + first, width

    @contextmanager
    def registers(self, count: int) -> Iterator[list[tuple[Any, int]]]:
        """Yields the offsets and widths of vectors that cover `count` elements, all in registers.

        A target without vectors runs the body in a loop over single elements instead.
        """
        if self.vector_width > 1:
            yield vector_parts(count)
        else:
            with self.code.loop(0, count, name="o") as offset:
                yield [(offset, 1)]

    @abstractmethod
    def product(
        self,
        node: Node,
        inputs: Activations,
        weights: Tensor,
        bias: Tensor | None,
        out: Pointer,
        name: str = "w",
    ) -> None:
        """``out = sum_i x_i weights[i] + bias`` over nonzero inputs x, in rising order, the bias last.

        `out` has a number for each output of `node`. C calls the array of weights `name`.
        """

    @abstractmethod
    def compute(self, layer: NeuronLayer, stores: Stores, rows: dict[Leaf, Pointer]) -> None:
        """A loop over the neurons of `layer` that computes the values `stores` of its step.

        `rows` are the arrays of the values, and those of the input, the states and the products that
        they depend on. An array may be both read and written.
        """

    def lowest(self) -> Value:
        """Negative infinity, or the smallest integer if the program computes with integers."""
        element = self.number.element
        return self.code.constant(-math.inf if element.real else -(2**31), element)

    def accumulate(self, target: Pointer, row: Pointer, count: int, x: Value | None) -> None:
        """``target += x row``, of `count` numbers; ``target += row`` if `x` is None."""
        with self.registers(count) as parts:
            for offset, width in parts:
                place = target + offset
                place.store(place.load(width) + times((row + offset).load(width), x))

    def add_bias(self, out: Pointer, bias: Tensor, size: int) -> None:
        """Adds a number for each channel to an image of `size` numbers, channels last."""
        numbers, channels = self.constant(bias, "b"), len(bias)
        if size == channels:
            self.accumulate(out, numbers, size, None)
            return
        with self.code.loop(0, size, channels, name="p") as p:
            self.accumulate(out + p, numbers, channels, None)

    def reordered(self, activations: Activations, order: Tensor) -> Activations:
        """Copies the numbers to another order in memory.

        `order` is PyTorch's index of the number at each place.
        """
        if torch.equal(activations.order, order):
            return activations
        place_of = torch.empty_like(order)
        place_of[activations.order] = in_order(len(order))
        size, binary = activations.node.size, activations.binary
        numbers, places = self.numbers(activations), self.indices(place_of[order], "order")
        target = self.temporary(size, binary=binary)
        with self.code.loop(0, size, name="o") as o:
            target[o] = numbers[places[o].to(LONG)]
        return Activations(activations.node, order, target, binary=binary)

    def image(self, activations: Activations, shape: tuple[int, ...]) -> tuple[Activations, bool]:
        """The activations in PyTorch's order or channels last, and whether channels are last in memory.

        `shape` is the shape of one image, ``[channels, height, width]`` or similar.
        """
        if torch.equal(activations.order, channels_last(shape)):
            return activations, True
        return self.reordered(activations, in_order(activations.node.size)), False


def vector_parts(count: int, widest: int = CHUNK) -> list[tuple[int, int]]:
    """The offset and the width of vectors that cover `count` elements, the widest first.

    Widths are powers of two up to `widest`.
    """
    bits = reversed(range(widest.bit_length() - 1))
    widths = [widest] * (count // widest) + [1 << b for b in bits if count % widest & 1 << b]
    return list(zip(accumulate([0, *widths]), widths, strict=False))


def spread(value: Value, width: int) -> Value:
    """`value` in each of `width` lanes."""
    return value if width == 1 else value.spread(width)


def times(row: Value, x: Value | None) -> Value:
    """`row` times `x`, or `row` if `x` is None."""
    return row if x is None else spread(x, row.type.width) * row
