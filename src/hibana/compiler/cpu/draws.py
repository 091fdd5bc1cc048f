"""The random numbers of a block of neurons in LLVM IR; :mod:`hibana.compiler.draws` defines them.

Instructions with the same result for all blocks are written before the loop over the blocks.
"""

import operator
from collections.abc import Iterable

from hibana.compiler import generator
from hibana.compiler.generator import SHARED, Numbers, key_schedule, threefry
from hibana.compiler.graph.leaf import Leaf
from hibana.runtime.kernels import DOUBLE, FLOAT, INT, LONG, Code, Type, Value


class Draws:
    """The draws of the blocks of one row.

    If the blocks are `aligned`, each counter gives the numbers of two neurons of a block. Otherwise each
    neuron has its own counter, and half of the counter's numbers are unused.

    Args:
        code: the code of the function.
        draws: the draws.
        width: neurons of a block.
        aligned: whether the number of the first neuron is a multiple of `width`.
        seed: the seed of the call.
        time: the number of the step.
        first: the number of the row's first neuron.
    """

    def __init__(
        self,
        code: Code,
        draws: Iterable[Leaf],
        width: int,
        *,
        aligned: bool,
        seed: Value,
        time: Value,
        first: Value,
    ) -> None:
        """Writes the instructions that all blocks of the row share."""
        self.code, self.width, self.aligned, self.first = code, width, aligned, first
        self.schedules: dict[int, list[tuple[Value, Value]]] = {}
        """The round keys of the generator, by the index of the draw."""
        self.times: dict[Leaf, Value] = {}
        """For each draw a vector of its step."""
        for draw in sorted(draws):
            if draw.index not in self.schedules:
                low, high = seed.to(INT), (seed >> 32).to(INT) + draw.index
                words = key_schedule(VECTORS, low, high)
                self.schedules[draw.index] = [(x.spread(width), y.spread(width)) for x, y in words]
            self.times[draw] = (time + draw.offset).to(INT).spread(width)

    def numbers(self, draw: Leaf, type_: Type, index: Value) -> Value:
        """The vector of random numbers of `draw` for the block that begins at `index` in the row.

        `type_` is the type of its elements.
        """
        begin = (self.first + index).to(INT)
        width = self.width
        lanes = self.code.lane_indices(INT.of(width))
        element = begin.spread(width) + lanes
        in_float64 = type_ == DOUBLE
        if self.aligned and not (in_float64 and draw.kind == "uniform"):
            assert width == 2 * SHARED, width
            counter = (begin >> 1).spread(SHARED) + lanes.part(0, SHARED)
            first_numbers, second_numbers = self._pair(draw, counter)
            return first_numbers.shuffled(second_numbers, range(width)).to(type_)
        schedule, time = self.schedules[draw.index], self.times[draw]
        numbers: Value = generator.numbers(VECTORS, draw.kind, schedule, element, time, in_float64)
        return numbers.to(type_)

    def _pair(self, draw: Leaf, counter: Value) -> tuple[Value, Value]:
        """Two vectors of float32 numbers: for the first and for the second neuron of each counter."""
        schedule, time = self.schedules[draw.index], self.times[draw]
        keys = [(x.part(0, SHARED), y.part(0, SHARED)) for x, y in schedule]
        x, y = threefry(VECTORS, keys, (counter, time.part(0, SHARED)))
        if draw.kind == "normal":
            return generator.normal(VECTORS, x, y)
        return generator.uniform(VECTORS, x), generator.uniform(VECTORS, y)


VECTORS = Numbers(
    add=operator.add,
    rotate_left=lambda word, by: word.call("fshl", word, word.lift(by)),
    real=lambda word: word.real(FLOAT),
    double=lambda word: word.to(LONG).real(DOUBLE),
    bits=Value.float_bits,
    number=Value.float_from_bits,
    root=lambda number: number.call("sqrt"),
    where=Value.select,
)
"""The operations on a kernel's vectors of 32-bit integers, and of float32 numbers."""
