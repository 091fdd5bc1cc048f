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
    of a block; else each neuron has its own, and one half of it is not used.
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
        self.times: dict[int, Value] = {}
        for _, number, later in map(_of, names):
            if number not in self.schedules:
                low, high = seed.to(INT), (seed >> 32).to(INT) + number
                words = key_schedule(low, high, operator.add, operator.xor)
                self.schedules[number] = [(x.spread(width), y.spread(width)) for x, y in words]
            if later not in self.times:
                self.times[later] = (time + later).to(INT).spread(width)

    def block(self, at: Value) -> "Block":
        """The draws of the block at the index `at` of the row."""
        return Block(self, (self.first + at).to(INT))


class Block:
    """The draws of the block that begins at the neuron `begin`, each made once."""

    def __init__(self, draws: Draws, begin: Value) -> None:
        self.draws, self.begin = draws, begin
        self.made: dict[_Draw, Value] = {}

    def drawn(self, name: str, number: Type) -> Value:
        """The random numbers called `name`, of the type `number`."""
        draw = _of(name)
        if draw not in self.made:
            self.made[draw] = self._made(draw, number)
        return self.made[draw]

    def _made(self, draw: _Draw, number: Type) -> Value:
        width = self.draws.width
        count = self.draws.code.counted(INT.of(width))
        if draw.kind == "uniform" and number == DOUBLE:
            x, y = self._words(draw, self.begin.spread(width) + count)
            return x.to(LONG).real(DOUBLE) * 2.0**-32 + (y >> 11).real(DOUBLE) * 2.0**-53
        if self.draws.aligned:
            half = width // 2
            assert half == SHARED, width
            pair = self._pair(draw, (self.begin >> 1).spread(half) + count.part(0, half))
            return pair[0].shuffled(pair[1], range(width)).to(number)
        element = self.begin.spread(width) + count
        pair = self._pair(draw, ((element >> 1) & -SHARED) | (element & (SHARED - 1)))
        second = (element & SHARED) > 0
        return second.select(pair[1], pair[0]).to(number)

    def _pair(self, draw: _Draw, counter: Value) -> tuple[Value, Value]:
        """The numbers of both neurons of each counter, as float32."""
        words = self._words(draw, counter)
        if draw.kind == "normal":
            return generator.normal(_Numbers, *words)
        return generator.uniform(_Numbers, words[0]), generator.uniform(_Numbers, words[1])

    def _words(self, draw: _Draw, counter: Value) -> tuple[Value, Value]:
        width = counter.type.width
        schedule = [(x.part(0, width), y.part(0, width)) for x, y in self.draws.schedules[draw.number]]
        time = self.draws.times[draw.later].part(0, width)
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
        return number.integer()

    @staticmethod
    def number(word: Value) -> Value:
        return word.number()

    @staticmethod
    def root(number: Value) -> Value:
        return number.call("sqrt")

    @staticmethod
    def where(condition: Value, one: Value, other: Value) -> Value:
        return condition.select(one, other)
