"""Prints the loops that a :class:`hibana.runtime.code.Code` builds as C99.

A value is an expression, which its users contain. A value that is to be a constant has to be given a name
(:meth:`hibana.runtime.values.Value.named`): one that reads memory, if a statement comes before its last use.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, count

from hibana.compiler.c.source import literal
from hibana.runtime.types import BIT, DOUBLE, FLOAT, INT, Type
from hibana.runtime.writer import Writer

__all__ = ["CWriter"]

_LEVELS = (
    {"mul": "*", "div": "/", "udiv": "/", "urem": "%"},
    {"add": "+", "sub": "-"},
    {"lt": "<", "le": "<=", "gt": ">", "ge": ">="},
    {"eq": "==", "ne": "!="},
)
"""C's sign of each instruction, those that bind most tightly first."""
_SIGNS = {name: (sign, level) for level, signs in enumerate(_LEVELS, 1) for name, sign in signs.items()}
ATOM, SUM, COMPARISON, AND, OR, CHOICE = 0, 2, 4, 5, 6, 7
"""How tightly an expression binds."""


@dataclass(frozen=True)
class _Value:
    """An expression of C."""

    text: str
    kind: str
    """C's type, of a pointer that of its elements."""
    level: int = ATOM
    read: int | None = None
    """How many statements there were when memory was read, if it was."""
    parts: tuple[str, str] = ("", "")
    """The two summands of a sum, or an array and an index."""


class CWriter(Writer):
    """The statements of a function of C."""

    def __init__(self) -> None:
        super().__init__()
        self._values: dict[str, _Value] = {}
        self._statements = 0
        self._taken: set[str] = set()
        self._text_lines: list[str] = []

    def write(self, lines: Iterable[str]) -> None:
        """Appends lines of C."""
        self._statements += 1
        self._text_lines += ["    " * (self.depth - 1) + line for line in lines]

    def take(self) -> list[str]:
        """The lines since the last call."""
        lines, self._text_lines, self._taken = self._text_lines, [], set()
        return lines

    def array(self, name: str, kind: str) -> str:
        """The array called `name`, whose elements have C's type `kind`."""
        return self._new(name, kind)

    def number(self, name: str, kind: str) -> str:
        """The address of the number in memory that is called `name`."""
        return self._new(f"&{name}", kind, parts=(name, ""))

    def kind(self, pointer: str) -> str:
        """C's type of the elements of an array."""
        return self._values[pointer].kind.removeprefix("const ")

    def expression(self, text: str) -> str:
        """The C expression of a value or an array."""
        return self._text(text)

    def constant(self, type_: Type, number: float) -> str:
        if type_.real:
            return literal(number, _kind_of(type_))
        return "INT32_MIN" if number == -(2**31) else str(int(number))

    def name(self, type_: Type | None, text: str, name: str) -> str:
        expression, name = self._text(text), self._fresh(name)
        kind = self._values[text].kind if type_ is None else _kind_of(type_)
        self.write([f"{f'{kind} *const' if type_ is None else f'const {kind}'} {name} = {expression};"])
        return self._new(name, kind)

    def binary(self, name: str, type_: Type, one: str, other: str) -> str:
        if type_ == BIT:
            level, most = {"and": (AND, AND), "or": (OR, COMPARISON)}[name]
            return self._join("int", "&&" if name == "and" else "||", level, (one, most), (other, COMPARISON))
        if not type_.real and (simple := _simplified(name, one, other)):
            return simple
        if name[1:4] == "cmp":
            sign, level = _SIGNS[name[-2:]]
            return self._join("int", sign, level, (one, SUM), (other, SUM))
        sign, level = _SIGNS[name.removeprefix("f") if type_.real else name]
        return self._join(_kind_of(type_), sign, level, (one, level), (other, level - 1))

    def select(self, kind: Type, condition: str, type_: Type, yes: str, no: str) -> str:
        first, second, third = (self._text(text, OR) for text in (condition, yes, no))
        read = self._read(condition, yes, no)
        return self._new(f"{first} ? {second} : {third}", _kind_of(type_), CHOICE, read)

    def convert(self, how: str, from_: Type, to: Type, text: str) -> str:
        if not to.real:
            return text
        return self._new(f"({_kind_of(to)}){self._text(text, ATOM)}", _kind_of(to), ATOM, self._read(text))

    def offset(self, element: Type, pointer: str, count: str) -> str:
        if count == "0":
            return pointer
        array, index = self._values[pointer].parts
        sum_ = f"{index} + {self._text(count, SUM)}" if index else self._text(count, SUM)
        base = array or pointer
        kind, read = self._values[pointer].kind, self._read(pointer, count)
        return self._new(f"{self._text(base)} + {sum_}", kind, SUM, read, (base, sum_))

    def load(self, type_: Type, pointer: str, how: str) -> str:
        kind = self.kind(pointer)
        text = self._new(self.place(pointer), kind, ATOM, self._statements)
        return self.convert("", INT, type_, text) if type_.real and kind not in ("float", "double") else text

    def store(self, type_: Type, value: str, pointer: str, how: str) -> None:
        place, text, kind = self.place(pointer), self._text(value), self.kind(pointer)
        one, other = self._values[value].parts if value in self._values else ("", "")
        if one == place and kind == _kind_of(type_):
            self.write([f"{place} += {other};"])
        elif kind[-2:] == "_t" and _kind_of(type_) != kind and value in self._values:
            self.write([f"{place} = ({kind}){self._text(value, ATOM)};"])
        else:
            whole = kind[-2:] == "_t" and value not in self._values
            self.write([f"{place} = {text.removesuffix('f').removesuffix('.0') if whole else text};"])

    def clear(self, pointer: str, size: int, count: str, byte: int) -> None:
        with self.loop("0", count, "1", "o") as o:
            self.store(INT, "0", self.offset(INT, pointer, o), "")

    def copy(self, target: str, source: str, size: int, count: str) -> None:
        if count == "1":
            self.write([f"{self.place(target)} = {self.place(source)};"])
            return
        with self.loop("0", count, "1", "o") as o:
            places = [self.place(self.offset(INT, pointer, o)) for pointer in (target, source)]
            self.write([f"{' = '.join(places)};"])

    def variable(self, type_: Type, value: str) -> str:
        name, kind = self._fresh("found"), _kind_of(type_)
        self.write([f"{kind} {name} = {self._text(value)};"])
        return self.number(name, kind)

    @contextmanager
    def loop(self, first: str, last: str, by: str, name: str) -> Iterator[str]:
        step = "++" if by == "1" else f" += {self._text(by)}"
        bounds = self._text(first), self._text(last, SUM)
        if self._read(last) is not None:
            raise RuntimeError(f"the loop's end {bounds[1]} is read from memory: give it a name")
        taken, i = set(self._taken), self._fresh(name or "i")
        with self._block(f"for (int {i} = {bounds[0]}; {i} < {bounds[1]}; {i}{step})"):
            yield self._new(i, "int")
        self._taken = taken

    @contextmanager
    def when(self, condition: str) -> Iterator[None]:
        with self._block(f"if ({self._text(condition)})"):
            yield

    @contextmanager
    def _block(self, head: str) -> Iterator[None]:
        taken = set(self._taken)
        self.write([f"{head} {{"])
        self.depth += 1
        yield
        self.depth -= 1
        self.write(["}"])
        self._taken = taken

    def _new(
        self,
        text: str,
        kind: str,
        level: int = ATOM,
        read: int | None = None,
        parts: tuple[str, str] = ("", ""),
    ) -> str:
        name = f"%{len(self._values)}"
        self._values[name] = _Value(text, kind, level, read, parts)
        return name

    def _join(self, kind: str, sign: str, level: int, one: tuple[str, int], other: tuple[str, int]) -> str:
        left, right = self._text(*one), self._text(*other)
        parts = (left, self._text(other[0])) if sign == "+" else ("", "")
        return self._new(f"{left} {sign} {right}", kind, level, self._read(one[0], other[0]), parts)

    def _text(self, text: str, most: int = CHOICE) -> str:
        """The expression of a value, in parentheses if it binds more loosely than `most`."""
        value = self._values.get(text)
        if value is None:
            return text
        if value.read not in (None, self._statements):
            raise RuntimeError(f"{value.text} was read before a statement that may change it: give it a name")
        return f"({value.text})" if value.level > most else value.text

    def _read(self, *texts: str) -> int | None:
        """When the values that `texts` are made of were read."""
        return next((v.read for t in texts if (v := self._values.get(t)) and v.read is not None), None)

    def place(self, pointer: str) -> str:
        """The number at a pointer, or a variable."""
        self._text(pointer)
        value = self._values[pointer]
        if value.text[0] == "&":
            return value.parts[0]
        array, index = value.parts
        return f"{self._text(array)}[{index}]" if array else f"{value.text}[0]"

    def _fresh(self, name: str) -> str:
        """`name`, with a number if a constant or variable of the same or an outer block has it."""
        names = chain([name], (f"{name}{i}" for i in count(2)))
        unique = next(one for one in names if one not in self._taken)
        self._taken.add(unique)
        return unique


def _kind_of(type_: Type) -> str:
    """C's type of a value; ``int`` for indices."""
    return {FLOAT: "float", DOUBLE: "double", INT: "int32_t"}.get(type_, "int")


def _simplified(name: str, one: str, other: str) -> str | None:
    """The result of an operation on indices, if it needs none."""
    if one.isdecimal() and other.isdecimal() and name in ("add", "mul"):
        return str(int(one) + int(other) if name == "add" else int(one) * int(other))
    if other == {"add": "0", "sub": "0", "mul": "1", "udiv": "1"}.get(name):
        return one
    if (name, other) in (("mul", "0"), ("urem", "1")):
        return "0"
    return other if (name, one) == ("add", "0") else None
