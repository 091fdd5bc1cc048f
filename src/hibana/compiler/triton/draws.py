"""The random numbers of a block of neurons, in Triton; :mod:`hibana.compiler.draws` defines them."""

import operator
from collections.abc import Mapping

from hibana.compiler import generator
from hibana.compiler.generator import SHARED, key_schedule, threefry
from hibana.compiler.graph.step import Value
from hibana.compiler.triton.language import Language


class _Said:
    """A block of numbers, called `name`; an operation on it is a line of the kernel that is written."""

    def __init__(self, lines: list[str], said: str) -> None:
        self.lines, self.name = lines, f"r{len(lines)}"
        lines.append(f"{self.name} = {said}")

    def new(self, said: str) -> "_Said":
        return _Said(self.lines, said)

    def _with(self, sign: str, other: "_Said | float") -> "_Said":
        return self.new(f"{self.name} {sign} {other}")

    def __add__(self, other: "_Said | float") -> "_Said":
        return self._with("+", other)

    def __sub__(self, other: "_Said | float") -> "_Said":
        return self._with("-", other)

    def __mul__(self, other: "_Said | float") -> "_Said":
        return self._with("*", other)

    def __and__(self, other: "_Said | int") -> "_Said":
        return self._with("&", other)

    def __or__(self, other: "_Said | int") -> "_Said":
        return self._with("|", other)

    def __xor__(self, other: "_Said | int") -> "_Said":
        return self._with("^", other)

    def __rshift__(self, by: int) -> "_Said":
        return self._with(">>", by)

    def __gt__(self, other: int) -> "_Said":
        return self._with(">", other)

    def __truediv__(self, other: "_Said") -> "_Said":
        return self.new(f"tl.div_rn({self.name}, {other})")

    def __radd__(self, other: float) -> "_Said":
        return self.new(f"{other} + {self.name}")

    def __rsub__(self, other: float) -> "_Said":
        return self.new(f"{other} - {self.name}")

    def __str__(self) -> str:
        return self.name


class _Numbers:
    """Words as blocks of uint32."""

    @staticmethod
    def real(word: _Said) -> _Said:
        return word.new(f"{word}.to(tl.int32).to(tl.float32)")

    @staticmethod
    def bits(number: _Said) -> _Said:
        return number.new(f"{number}.to(tl.uint32, bitcast=True)")

    @staticmethod
    def number(word: _Said) -> _Said:
        return word.new(f"{word}.to(tl.float32, bitcast=True)")

    @staticmethod
    def root(number: _Said) -> _Said:
        return number.new(f"tl.sqrt_rn({number})")

    @staticmethod
    def where(condition: _Said, one: _Said, other: _Said) -> _Said:
        return condition.new(f"tl.where({condition}, {one}, {other})")


def draws(read: Mapping[str, Value], language: Language) -> list[str]:
    """Statements that assign each draw of `read` to a variable of its name.

    They read ``seed_low`` and ``seed_high``, the seed's words, ``now`` and ``earlier``, the step and the one
    before it, ``lo`` and ``j``, and ``features`` if a block is of samples.
    """
    lines: list[str] = []
    first = "lo * features" if language.by_samples else "lo"
    element = _Said(lines, f"({first} + j).to(tl.uint32)")
    for name in (name for name, leaf in read.items() if leaf.is_draw):
        drawn = name.removesuffix("_earlier")
        kind = drawn.rstrip("0123456789")
        low, high = (
            element.new(f"tl.full({language.shape}, {word}, tl.int32).to(tl.uint32, bitcast=True)")
            for word in ("seed_low", "seed_high")
        )
        schedule = key_schedule(low, high + int(drawn.removeprefix(kind)), operator.add, operator.xor)
        when = element.new(f"{'now' if drawn == name else 'earlier'}.to(tl.uint32, bitcast=True)")
        lines.append(f"{name} = {_made(kind, schedule, element, when, language)}")
    return lines


def _made(
    kind: str, schedule: list[tuple[_Said, _Said]], element: _Said, when: _Said, language: Language
) -> str:
    """The numbers of one draw."""

    def words(counter: _Said) -> tuple[_Said, _Said]:
        return threefry(schedule, (counter, when), operator.add, _rotated, operator.xor)

    if kind == "uniform" and language.real == "float64":
        x, y = words(element)
        return f"{language.cast(x.name)} * {2.0**-32} + {language.cast((y >> 11).name)} * {2.0**-53}"
    x, y = words(((element >> 1) & (0xFFFFFFFF - SHARED + 1)) | (element & (SHARED - 1)))
    second = (element & SHARED) > 0
    if kind == "normal":
        return language.cast(_Numbers.where(second, *reversed(generator.normal(_Numbers, x, y))).name)
    return language.cast(generator.uniform(_Numbers, _Numbers.where(second, y, x)).name)


def _rotated(word: _Said, by: int) -> _Said:
    return word.new(f"({word} << {by}) | ({word} >> {32 - by})")
