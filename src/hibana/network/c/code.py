"""Prints the loops that a :class:`hibana.runtime.code.Code` builds as C99.

A value is an expression, which is printed in each expression that uses it.
:meth:`hibana.runtime.values.Value.named` makes it a constant of C instead. A value that reads memory needs a
name if a statement comes before its last use.
"""

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, count

from torch import Tensor

from hibana.compiler.c.source import literal
from hibana.runtime.types import BIT, DOUBLE, FLOAT, INT, SHORT, Type
from hibana.runtime.writer import Writer

__all__ = ["CWriter", "array", "block", "comment_text", "each"]

_LEVELS = (
    {"mul": "*", "div": "/", "udiv": "/", "urem": "%"},
    {"add": "+", "sub": "-"},
    {"lt": "<", "le": "<=", "gt": ">", "ge": ">="},
    {"eq": "==", "ne": "!="},
)
"""C's operator of each instruction, in groups of equal precedence, the highest precedence first."""
_OPERATORS = {name: (text, level) for level, row in enumerate(_LEVELS, 1) for name, text in row.items()}
ATOM, SUM, COMPARISON, AND, OR, CHOICE = 0, 2, 4, 5, 6, 7
"""Levels of precedence of expressions; lower levels bind more tightly."""


@dataclass(frozen=True)
class _Value:
    """An expression of C."""

    text: str
    kind: str
    """C's type; for a pointer, the type of its elements."""
    level: int = ATOM
    read: int | None = None
    """Number of statements before the value was read from memory; None if it reads no memory."""
    parts: tuple[str, str] = ("", "")
    """The two summands of a sum, or an array and an index."""


class CWriter(Writer):
    """The statements of a function of C."""

    def __init__(self) -> None:
        super().__init__()
        self._values: dict[str, _Value] = {}
        self._statements = 0
        self._used_names: set[str] = set()
        """Names of the constants and variables of this and the outer blocks."""
        self._text_lines: list[str] = []

    def write(self, lines: Iterable[str]) -> None:
        """Appends lines of C."""
        self._statements += 1
        self._text_lines += ["    " * (self.depth - 1) + line for line in lines]

    def take_lines(self) -> list[str]:
        """The lines that were written since the last call."""
        lines, self._text_lines, self._used_names = self._text_lines, [], set()
        return lines

    def array(self, name: str, kind: str) -> str:
        """The pointer to the array with the expression `name`, whose elements have C's type `kind`."""
        return self._new(_Value(name, kind))

    def number(self, name: str, kind: str) -> str:
        """The pointer to a number: the variable `name` (an expression of C) of C's type `kind`."""
        return self._new(_Value(f"&{name}", kind, parts=(name, "")))

    def kind(self, pointer: str) -> str:
        """C's type of the elements of an array."""
        return self._values[pointer].kind.removeprefix("const ")

    def expression(self, text: str) -> str:
        """The C expression of a value or an array."""
        return self._text(text)

    def constant(self, type_: Type, number: float) -> str:
        """The literal of `number` in C."""
        if type_.real:
            return literal(number, _kind_of(type_))
        return "INT32_MIN" if number == -(2**31) else str(int(number))

    def name(self, type_: Type | None, text: str, name: str) -> str:
        """Defines a constant with the value `text`, and returns it; a pointer if `type_` is ``None``."""
        expression, name = self._text(text), self._fresh(name)
        kind = self._values[text].kind if type_ is None else _kind_of(type_)
        self.write([f"{f'{kind} *const' if type_ is None else f'const {kind}'} {name} = {expression};"])
        return self._new(_Value(name, kind))

    def binary(self, name: str, type_: Type, left: str, right: str) -> str:
        """The expression of LLVM's instruction `name` (``fadd``, ``icmp slt``, ...) on two values."""
        if type_ == BIT:
            level, loosest = {"and": (AND, AND), "or": (OR, COMPARISON)}[name]
            operator = "&&" if name == "and" else "||"
            return self._join("int", operator, level, (left, loosest), (right, COMPARISON))
        if not type_.real and (simple := _simplified(name, left, right)):
            return simple
        if name[1:4] == "cmp":
            operator, level = _OPERATORS[name[-2:]]
            return self._join("int", operator, level, (left, SUM), (right, SUM))
        operator, level = _OPERATORS[name.removeprefix("f") if type_.real else name]
        return self._join(_kind_of(type_), operator, level, (left, level), (right, level - 1))

    def select(self, kind: Type, condition: str, type_: Type, yes: str, no: str) -> str:
        """The expression ``condition ? yes : no``."""
        first, second, third = (self._text(text, OR) for text in (condition, yes, no))
        read = self._read(condition, yes, no)
        return self._new(_Value(f"{first} ? {second} : {third}", _kind_of(type_), CHOICE, read))

    def convert(self, instruction: str, from_: Type, to: Type, text: str) -> str:
        """The value cast to the type `to`; unchanged for integers that C converts itself.

        C computes sums of 16-bit numbers in ``int``, which has 16 bits on an AVR: they need the cast.
        """
        if not to.real and SHORT not in (from_, to):
            return text
        kind = _kind_of(to)
        return self._new(_Value(f"({kind}){self._text(text, ATOM)}", kind, ATOM, self._read(text)))

    def offset(self, element: Type, pointer: str, count: str) -> str:
        """The pointer to the element `count` places after `pointer`."""
        if count == "0":
            return pointer
        array, index = self._values[pointer].parts
        sum_ = f"{index} + {self._text(count, SUM)}" if index else self._text(count, SUM)
        base = array or pointer
        kind, read = self._values[pointer].kind, self._read(pointer, count)
        return self._new(_Value(f"{self._text(base)} + {sum_}", kind, SUM, read, (base, sum_)))

    def load(self, type_: Type, pointer: str, options: str) -> str:
        """The number at `pointer`, as a value of `type_`; integers in an array become real if `type_` is."""
        kind = self.kind(pointer)
        text = self._new(_Value(self.place(pointer), kind, ATOM, self._statements))
        return self.convert("", INT, type_, text) if type_.real and kind not in ("float", "double") else text

    def store(self, type_: Type, value: str, pointer: str, options: str) -> None:
        """Writes an assignment of `value` to the number at `pointer`, with ``+=`` if possible."""
        place, text, kind = self.place(pointer), self._text(value), self.kind(pointer)
        is_literal, is_integer = value not in self._values, kind[-2:] == "_t"
        left, right = ("", "") if is_literal else self._values[value].parts
        if left == place and kind == _kind_of(type_):
            self.write([f"{place} += {right};"])
        elif is_integer and _kind_of(type_) != kind and not is_literal:
            self.write([f"{place} = ({kind}){self._text(value, ATOM)};"])
        else:
            number = text.removesuffix("f").removesuffix(".0") if is_literal and is_integer else text
            self.write([f"{place} = {number};"])

    def clear(self, pointer: str, size: int, count: str, byte: int) -> None:
        """Writes a loop that sets `count` numbers to 0; only LLVM uses `size` and `byte`."""
        with self.loop("0", count, "1", "o") as o:
            self.store(INT, "0", self.offset(INT, pointer, o), "")

    def copy(self, target: str, source: str, size: int, count: str) -> None:
        """Writes an assignment of `count` numbers, in a loop if there are several."""
        if count == "1":
            self.write([f"{self.place(target)} = {self.place(source)};"])
            return
        with self.loop("0", count, "1", "o") as o:
            places = [self.place(self.offset(INT, pointer, o)) for pointer in (target, source)]
            self.write([f"{' = '.join(places)};"])

    def variable(self, type_: Type, value: str) -> str:
        """Defines a variable of C with the first value `value`, and returns a pointer to it."""
        name, kind = self._fresh("value"), _kind_of(type_)
        self.write([f"{kind} {name} = {self._text(value)};"])
        return self.number(name, kind)

    @contextmanager
    def loop(self, first: str, last: str, by: str, name: str) -> Iterator[str]:
        """Writes a ``for`` loop around the statements of the block; yields its index."""
        step = "++" if by == "1" else f" += {self._text(by)}"
        bounds = self._text(first), self._text(last, SUM)
        if self._read(last) is not None:
            raise RuntimeError(f"the loop's end {bounds[1]} is read from memory: give it a name")
        outer_names, i = set(self._used_names), self._fresh(name or "i")
        with self._block(f"for (int {i} = {bounds[0]}; {i} < {bounds[1]}; {i}{step})"):
            yield self._new(_Value(i, "int"))
        self._used_names = outer_names

    @contextmanager
    def when(self, condition: str) -> Iterator[None]:
        """Writes an ``if`` around the statements of the block."""
        with self._block(f"if ({self._text(condition)})"):
            yield

    @contextmanager
    def _block(self, head: str) -> Iterator[None]:
        """A block of C after `head`; its names end with it."""
        outer_names = set(self._used_names)
        self.write([f"{head} {{"])
        self.depth += 1
        yield
        self.depth -= 1
        self.write(["}"])
        self._used_names = outer_names

    def _new(self, value: _Value) -> str:
        """The identifier of a new `value`."""
        name = f"%{len(self._values)}"
        self._values[name] = value
        return name

    def _join(
        self, kind: str, operator: str, level: int, left: tuple[str, int], right: tuple[str, int]
    ) -> str:
        """The expression ``left operator right``; each operand is a value and its loosest level."""
        first, second = self._text(*left), self._text(*right)
        parts = (first, self._text(right[0])) if operator == "+" else ("", "")
        read = self._read(left[0], right[0])
        return self._new(_Value(f"{first} {operator} {second}", kind, level, read, parts))

    def _text(self, text: str, loosest: int = CHOICE) -> str:
        """The expression of a value, in parentheses if it binds more loosely than `loosest`."""
        value = self._values.get(text)
        if value is None:
            return text
        if value.read not in (None, self._statements):
            raise RuntimeError(f"{value.text} was read before a statement that may change it: give it a name")
        return f"({value.text})" if value.level > loosest else value.text

    def _read(self, *texts: str) -> int | None:
        """:attr:`_Value.read` of the first of the values `texts` that reads memory; None if no value does."""
        return next((v.read for t in texts if (v := self._values.get(t)) and v.read is not None), None)

    def place(self, pointer: str) -> str:
        """The expression of the number that a pointer points to."""
        self._text(pointer)
        value = self._values[pointer]
        if value.text[0] == "&":
            return value.parts[0]
        array, index = value.parts
        return f"{self._text(array)}[{index}]" if array else f"{value.text}[0]"

    def _fresh(self, name: str) -> str:
        """`name`, with a number if a constant or variable of the same or an outer block has it."""
        names = chain([name], (f"{name}{i}" for i in count(2)))
        unique = next(candidate for candidate in names if candidate not in self._used_names)
        self._used_names.add(unique)
        return unique


def _kind_of(type_: Type) -> str:
    """C's type of a value; ``int`` for indices."""
    return {FLOAT: "float", DOUBLE: "double", INT: "int32_t", SHORT: "int16_t"}.get(type_, "int")


def _simplified(name: str, left: str, right: str) -> str | None:
    """The result of the operation `name` on two indices if no operation is needed, else None."""
    if left.isdecimal() and right.isdecimal() and name in ("add", "mul"):
        return str(int(left) + int(right) if name == "add" else int(left) * int(right))
    if right == {"add": "0", "sub": "0", "mul": "1", "udiv": "1"}.get(name):
        return left
    if (name, right) in (("mul", "0"), ("urem", "1")):
        return "0"
    return right if (name, left) == ("add", "0") else None


def block(head: str, lines: Iterable[str]) -> list[str]:
    """`lines` in braces after `head`."""
    return [f"{head} {{".lstrip(), *(f"    {line}" for line in lines), "}"]


def each(index: str, count: int | str, lines: Iterable[str]) -> list[str]:
    """A loop around `lines`, with `index` from 0 to `count` - 1."""
    return block(f"for (size_t {index} = 0; {index} < {count}; {index}++)", lines)


def comment_text(text: str) -> str:
    """`text` without the characters that would end a comment of C or form a trigraph."""
    plain = re.sub(r"[^ -~]", "?", text).replace("\\", "/")
    return re.sub(r"\*(?=/)|/(?=\*)|\?(?=\?)", r"\g<0> ", plain)


def array(name: str, kind: str, values: Tensor) -> list[str]:
    """A constant array of C's type `kind` with the numbers of `values`, and their shape in a comment."""
    shape = "".join(f"[{side}]" for side in values.shape) if values.ndim > 1 else ""
    flat = values.detach().cpu().flatten().tolist()
    numbers = [literal(n, kind).strip("()") for n in flat]
    width, longest = values.shape[-1], max(map(len, numbers), default=0)
    per_line = max(1, 104 // (longest + 2))
    rows = (numbers[start : start + width] for start in range(0, len(numbers), width))
    parts = (row[start : start + per_line] for row in rows for start in range(0, width, per_line))
    lines = [f"    {', '.join(part)}," for part in parts]
    return [f"static const {kind} {name}[{len(numbers)}] = {{{shape and f' /* {shape} */'}", *lines, "};"]
