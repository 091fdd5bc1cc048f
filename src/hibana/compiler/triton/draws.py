"""Triton statements that draw the random numbers of a block of neurons (:mod:`hibana.compiler.draws`)."""

import operator
from collections.abc import Callable, Mapping

from hibana.compiler import generator
from hibana.compiler.generator import Numbers, key_schedule
from hibana.compiler.graph.leaf import Leaf
from hibana.compiler.graph.step import Value
from hibana.compiler.triton.language import Language


def _binary(template: str) -> Callable[..., "_Variable"]:
    """The method of an operator: ``{0}`` in `template` is the variable, ``{1}`` the other operand."""
    return lambda variable, other: variable.assign(template.format(variable, other))


class _Variable:
    """A variable of a kernel. An operation on it appends a statement that assigns the result to a new one."""

    def __init__(self, lines: list[str], expression: str) -> None:
        """Appends to `lines` an assignment of `expression` to a variable with an unused name."""
        self.lines, self.name = lines, f"r{len(lines)}"
        lines.append(f"{self.name} = {expression}")

    def assign(self, expression: str) -> "_Variable":
        """A new variable that holds `expression`."""
        return _Variable(self.lines, expression)

    def __str__(self) -> str:
        return self.name

    __add__, __radd__ = _binary("{0} + {1}"), _binary("{1} + {0}")
    __sub__, __rsub__ = _binary("{0} - {1}"), _binary("{1} - {0}")
    __mul__, __truediv__ = _binary("{0} * {1}"), _binary("tl.div_rn({0}, {1})")
    __and__, __or__, __xor__ = _binary("{0} & {1}"), _binary("{0} | {1}"), _binary("{0} ^ {1}")
    __lshift__, __rshift__ = _binary("{0} << {1}"), _binary("{0} >> {1}")
    __gt__ = _binary("{0} > {1}")


_WORDS = Numbers(
    add=operator.add,
    rotate_left=lambda word, by: word.assign(f"({word} << {by}) | ({word} >> {32 - by})"),
    real=lambda word: word.assign(f"{word}.to(tl.int32).to(tl.float32)"),
    double=lambda word: word.assign(f"{word}.to(tl.float64)"),
    bits=lambda number: number.assign(f"{number}.to(tl.uint32, bitcast=True)"),
    number=lambda word: word.assign(f"{word}.to(tl.float32, bitcast=True)"),
    root=lambda number: number.assign(f"tl.sqrt_rn({number})"),
    where=lambda condition, one, other: condition.assign(f"tl.where({condition}, {one}, {other})"),
)
"""The operations on blocks of uint32 words, which are below 2^31 for `real`, and of float32 numbers."""


def draws(leaves: Mapping[Leaf, Value], language: Language) -> list[str]:
    """Statements that assign the random numbers of each draw in `leaves` to the variable of the draw.

    The statements read the words of the seed, ``seed_low`` and ``seed_high``, the steps ``now`` and
    ``earlier``, the offsets ``lo`` and ``j`` of the block, and ``features`` if a block holds samples.
    """
    lines: list[str] = []
    block_start = "lo * features" if language.by_samples else "lo"
    element = _Variable(lines, f"({block_start} + j).to(tl.uint32)")
    for draw in (leaf for leaf, value in leaves.items() if value.is_draw):
        low, high = (
            element.assign(f"tl.full({language.shape}, {word}, tl.int32).to(tl.uint32, bitcast=True)")
            for word in ("seed_low", "seed_high")
        )
        key = key_schedule(_WORDS, low, high + draw.index)
        step = element.assign(f"{'earlier' if draw.offset else 'now'}.to(tl.uint32, bitcast=True)")
        in_float64 = language.real == "float64"
        numbers = generator.numbers(_WORDS, draw.kind, key, element, step, in_float64)
        lines.append(f"{draw} = {language.cast(numbers.name)}")
    return lines
