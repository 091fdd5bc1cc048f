"""The random numbers of a block of neurons in LLVM IR; :mod:`hibana.compiler.draws` defines them.

Instructions with the same result for all blocks are written before the loop over the blocks.
"""

import operator
from collections.abc import Iterable
from typing import NamedTuple

from hibana.compiler import generator
from hibana.compiler.generator import SHARED, Numbers, key_schedule, threefry
from hibana.runtime.kernels import DOUBLE, FLOAT, INT, LONG, Code, Type, Value


class _Draw(NamedTuple):
    """A draw of random numbers, one per neuron."""

    kind: str
    """``"uniform"`` or ``"normal"``."""
    number: int
    """Its number among the draws of a step."""
    later: int
    """How many steps of time it is made after the first step of the pass."""


def _parse(name: str) -> _Draw:
    """The draw with a name such as ``uniform0.3``: kind, number, and steps after the first, 0 if omitted."""
    kind_and_number, _, later = name.partition(".")
    kind = kind_and_number.rstrip("0123456789")
    return _Draw(kind, int(kind_and_number.removeprefix(kind)), int(later or 0))


class Draws:
    """The draws of the blocks of one row.

    If the blocks are `aligned`, each counter gives the numbers of two neurons of a block, and two steps are
    drawn together, because each round of the generator waits for the previous round. Otherwise each neuron
    has its own counter, and half of the counter's numbers are unused.

    Args:
        code: the code of the function.
        names: the names of the draws.
        width: neurons of a block.
        aligned: whether the number of the first neuron is a multiple of `width`.
        seed: the seed of the call.
        time: the number of the step.
        first: the number of the row's first neuron.
    """

    def __init__(
        self,
        code: Code,
        names: Iterable[str],
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
        """The round keys of the generator, by the number of the draw."""
        self.groups: dict[_Draw, tuple[_Draw, ...]] = {}
        """For each draw, the draws that are computed together with it."""
        self.times: dict[tuple[_Draw, ...], Value] = {}
        """For each group, a vector of steps: the step of each draw, once for each of the draw's counters."""
        draws = sorted(map(_parse, names))
        for draw in draws:
            if draw.number not in self.schedules:
                low, high = seed.to(INT), (seed >> 32).to(INT) + draw.number
                words = key_schedule(VECTORS, low, high)
                self.schedules[draw.number] = [(x.spread(width), y.spread(width)) for x, y in words]
            if draw not in self.groups:
                candidates = [
                    candidate
                    for candidate in draws
                    if candidate[:2] == draw[:2] and candidate not in self.groups
                ]
                group = tuple(candidates[: 2 if aligned else 1])
                steps = [(time + member.later).to(INT).spread(width // 2) for member in group]
                self.times[group] = steps[0].shuffled(steps[-1], range(width))
                self.groups |= dict.fromkeys(group, group)

    def block(self, index: Value) -> "Block":
        """The draws of the block that begins at `index` in the row."""
        return Block(self, (self.first + index).to(INT))


class Block:
    """The random numbers of the block of neurons that begins at the neuron `begin`, each computed once."""

    def __init__(self, draws: Draws, begin: Value) -> None:
        """Starts without results; `begin` is the number of the block's first neuron."""
        self.draws, self.begin = draws, begin
        self.results: dict[_Draw, Value] = {}

    def numbers(self, name: str, type_: Type) -> Value:
        """The vector of the block's random numbers of the draw `name`, of the element type `type_`."""
        draw = _parse(name)
        if draw not in self.results:
            group = self.draws.groups[draw]
            if draw.kind == "uniform" and type_ == DOUBLE:
                self.results |= {each: self._double_uniform(each, group) for each in group}
            else:
                vectors = self._aligned(group) if self.draws.aligned else [self._unaligned(group)]
                self.results |= {each: one.to(type_) for each, one in zip(group, vectors, strict=True)}
        return self.results[draw]

    def _aligned(self, group: tuple[_Draw, ...]) -> list[Value]:
        """The float32 numbers of one or two draws that are computed together; two neurons share a counter."""
        half = self.draws.width // 2
        assert half == SHARED, half
        counter = (self.begin >> 1).spread(half) + self._lane_indices().part(0, half)
        if len(group) == 2:
            counter = counter.shuffled(counter, [*range(half)] * 2)
        first_numbers, second_numbers = self._pair(group, counter)
        lanes = range(half)
        return [
            first_numbers.shuffled(
                second_numbers,
                [*(i * half + j for j in lanes), *((len(group) + i) * half + j for j in lanes)],
            )
            for i in range(len(group))
        ]

    def _unaligned(self, group: tuple[_Draw, ...]) -> Value:
        """The float32 numbers of the only draw of `group`; each neuron has its own counter."""
        element = self.begin.spread(self.draws.width) + self._lane_indices()
        first_numbers, second_numbers = self._pair(
            group, ((element >> 1) & -SHARED) | (element & (SHARED - 1))
        )
        return ((element & SHARED) > 0).select(second_numbers, first_numbers)

    def _double_uniform(self, draw: _Draw, group: tuple[_Draw, ...]) -> Value:
        """The uniform float64 numbers of one draw; each takes both random words of a counter."""
        half, width = self.draws.width // 2, self.draws.width
        begin = group.index(draw) * half
        time = self.draws.times[group].part(begin, half)
        counter = self.begin.spread(width) + self._lane_indices()
        x, y = self._words(group, counter, time.shuffled(time, range(width)))
        return x.to(LONG).real(DOUBLE) * 2.0**-32 + (y >> 11).real(DOUBLE) * 2.0**-53

    def _lane_indices(self) -> Value:
        """The vector 0, 1, 2, ... of 32-bit integers, one for each neuron of the block."""
        return self.draws.code.lane_indices(INT.of(self.draws.width))

    def _pair(self, group: tuple[_Draw, ...], counter: Value) -> tuple[Value, Value]:
        """Two vectors of float32 numbers: for the first and for the second neuron of each counter."""
        time = self.draws.times[group].part(0, counter.type.width)
        x, y = self._words(group, counter, time)
        if group[0].kind == "normal":
            return generator.normal(VECTORS, x, y)
        return generator.uniform(VECTORS, x), generator.uniform(VECTORS, y)

    def _words(self, group: tuple[_Draw, ...], counter: Value, time: Value) -> tuple[Value, Value]:
        """Two vectors of 32 random bits for each counter, for the step of each draw in `group`."""
        schedule = self.draws.schedules[group[0].number]
        if (width := counter.type.width) < self.draws.width:
            schedule = [(x.part(0, width), y.part(0, width)) for x, y in schedule]
        return threefry(VECTORS, schedule, (counter, time))


VECTORS = Numbers(
    add=operator.add,
    xor=operator.xor,
    rotate_left=lambda word, by: word.call("fshl", word, word.constant(word.type, by)),
    real=lambda word: word.real(FLOAT),
    bits=Value.float_bits,
    number=Value.float_from_bits,
    root=lambda number: number.call("sqrt"),
    where=Value.select,
)
"""The operations on a kernel's vectors of 32-bit integers, and of float32 numbers."""
