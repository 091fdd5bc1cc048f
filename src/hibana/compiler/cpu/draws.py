"""The random numbers of a block of neurons, as LLVM instructions; :mod:`hibana.compiler.draws` defines them.

What is the same for all blocks is written before the loop over them.
"""

import operator
from collections.abc import Iterable
from typing import NamedTuple

from hibana.compiler import generator
from hibana.compiler.generator import SHARED, key_schedule, threefry
from hibana.runtime.kernels import DOUBLE, FLOAT, INT, LONG, Code, Type, Value


class _Draw(NamedTuple):
    """A random number: its distribution, the number of the draw, and how many steps later it is drawn."""

    kind: str
    number: int
    later: int


def _of(name: str) -> _Draw:
    """The draw that is called `name`, such as ``uniform0.3``."""
    called, _, later = name.partition(".")
    kind = called.rstrip("0123456789")
    return _Draw(kind, int(called.removeprefix(kind)), int(later))


class Draws:
    """The draws `names` of blocks of `width` neurons, of which the first in the row is `first`.

    If the rows are `aligned`, so that blocks begin at multiples of their width, a counter serves two neurons
    of a block, and two steps are drawn at once, since each round waits for the one before it. Else each
    neuron has a counter of its own, and one half of what it gives is not used.
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
        self.code, self.width, self.aligned, self.first = code, width, aligned, first
        self.schedules: dict[int, list[tuple[Value, Value]]] = {}
        self.groups: dict[_Draw, tuple[_Draw, ...]] = {}
        """Of each draw, those that are drawn at once."""
        self.times: dict[tuple[_Draw, ...], Value] = {}
        draws = sorted(map(_of, names))
        for draw in draws:
            if draw.number not in self.schedules:
                low, high = seed.to(INT), (seed >> 32).to(INT) + draw.number
                words = key_schedule(low, high, operator.add, operator.xor)
                self.schedules[draw.number] = [(x.spread(width), y.spread(width)) for x, y in words]
            if draw not in self.groups:
                alike = [other for other in draws if other[:2] == draw[:2] and other not in self.groups]
                group = tuple(alike[: 2 if aligned else 1])
                steps = [(time + each.later).to(INT).spread(width // 2) for each in group]
                self.times[group] = steps[0].shuffled(steps[-1], range(width))
                self.groups |= dict.fromkeys(group, group)

    def block(self, at: Value) -> "Block":
        """The draws of the block at the index `at` of the row."""
        return Block(self, (self.first + at).to(INT))


class Block:
    """The draws of the block that begins at the neuron `begin`, each made once."""

    def __init__(self, draws: Draws, begin: Value) -> None:
        self.draws, self.begin = draws, begin
        self.made: dict[_Draw, Value] = {}

    def drawn(self, name: str, number: Type) -> Value:
        """This block's random numbers for the draw called `name`, as vectors of the type `number`."""
        draw = _of(name)
        if draw not in self.made:
            group = self.draws.groups[draw]
            own = draw.kind == "uniform" and number == DOUBLE
            for each in group if own else ():
                self.made[each] = self._of_both_words(each, group)
            if not own:
                made = self._aligned(group) if self.draws.aligned else [self._unaligned(group)]
                self.made |= {each: one.to(number) for each, one in zip(group, made, strict=True)}
        return self.made[draw]

    def _aligned(self, group: tuple[_Draw, ...]) -> list[Value]:
        """The numbers of one step or two, in float32, of which two neurons share a counter."""
        half = self.draws.width // 2
        assert half == SHARED, half
        counter = (self.begin >> 1).spread(half) + self._counted().part(0, half)
        if len(group) == 2:
            counter = counter.shuffled(counter, [*range(half)] * 2)
        one, other = self._pair(group, counter)
        first = range(half)
        return [
            one.shuffled(
                other, [*(i * half + j for j in first), *((len(group) + i) * half + j for j in first)]
            )
            for i in range(len(group))
        ]

    def _unaligned(self, group: tuple[_Draw, ...]) -> Value:
        element = self.begin.spread(self.draws.width) + self._counted()
        one, other = self._pair(group, ((element >> 1) & -SHARED) | (element & (SHARED - 1)))
        return ((element & SHARED) > 0).select(other, one)

    def _of_both_words(self, draw: _Draw, group: tuple[_Draw, ...]) -> Value:
        """Uniform numbers in float64."""
        half, width = self.draws.width // 2, self.draws.width
        begin = group.index(draw) * half
        time = self.draws.times[group].part(begin, half)
        counter = self.begin.spread(width) + self._counted()
        x, y = self._words(group, counter, time.shuffled(time, range(width)))
        return x.to(LONG).real(DOUBLE) * 2.0**-32 + (y >> 11).real(DOUBLE) * 2.0**-53

    def _counted(self) -> Value:
        return self.draws.code.lane_indices(INT.of(self.draws.width))

    def _pair(self, group: tuple[_Draw, ...], counter: Value) -> tuple[Value, Value]:
        """The numbers of both neurons of each counter, as float32."""
        time = self.draws.times[group].part(0, counter.type.width)
        x, y = self._words(group, counter, time)
        if group[0].kind == "normal":
            return generator.normal(_Numbers, x, y)
        return generator.uniform(_Numbers, x), generator.uniform(_Numbers, y)

    def _words(self, group: tuple[_Draw, ...], counter: Value, time: Value) -> tuple[Value, Value]:
        schedule = self.draws.schedules[group[0].number]
        if (width := counter.type.width) < self.draws.width:
            schedule = [(x.part(0, width), y.part(0, width)) for x, y in schedule]
        return threefry(schedule, (counter, time), operator.add, _rotated, operator.xor)


def _rotated(word: Value, by: int) -> Value:
    return word.call("fshl", word, word.constant(word.type, by))


class _Numbers:
    """Words as vectors of integers of 32 bits."""

    @staticmethod
    def real(word: Value) -> Value:
        return word.real(FLOAT)

    @staticmethod
    def bits(number: Value) -> Value:
        return number.float_bits()

    @staticmethod
    def number(word: Value) -> Value:
        return word.float_from_bits()

    @staticmethod
    def root(number: Value) -> Value:
        return number.call("sqrt")

    @staticmethod
    def where(condition: Value, one: Value, other: Value) -> Value:
        return condition.select(one, other)
