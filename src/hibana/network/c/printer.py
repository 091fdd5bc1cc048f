"""Prints the statements of :mod:`hibana.runtime.loops` as C99.

A value is an expression, which is printed in the expression that uses it. It becomes a constant of C if it is
used more than once, or long, or if :meth:`hibana.runtime.values.Value.named` gave it a name. A number that is
read from memory needs a name if a statement comes before its last use.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, count
from typing import Any

from hibana.compiler.c.source import literal
from hibana.network.c.code import comment_text
from hibana.runtime import loops
from hibana.runtime.loops import Constant, Operand, Result, is_inversion
from hibana.runtime.types import BIT, BYTE, DOUBLE, FLOAT, INT, LONG, SHORT, Type

__all__ = ["CONSTANT", "CPrinter"]

ATOM, PRODUCT, SUM, RELATION, COMPARISON, AND, OR, CHOICE = range(8)
"""Levels of precedence of expressions; lower levels bind more tightly."""
_ON_NUMBERS = {
    **{"mul": ("*", PRODUCT, PRODUCT, ATOM), "div": ("/", PRODUCT, PRODUCT, ATOM)},
    **{"rem": ("%", PRODUCT, PRODUCT, ATOM)},
    **{"add": ("+", SUM, SUM, PRODUCT), "sub": ("-", SUM, SUM, PRODUCT)},
    **{"lt": ("<", RELATION, SUM, SUM), "le": ("<=", RELATION, SUM, SUM)},
    **{"gt": (">", RELATION, SUM, SUM), "ge": (">=", RELATION, SUM, SUM)},
    **{"eq": ("==", COMPARISON, SUM, SUM), "ne": ("!=", COMPARISON, SUM, SUM)},
    **{"shl": ("<<", OR, ATOM, ATOM), "shr": (">>", OR, ATOM, ATOM)},
    **{"and": ("&", OR, ATOM, ATOM), "or": ("|", OR, ATOM, ATOM), "xor": ("^", OR, ATOM, ATOM)},
}
"""By operation: C's operator, the level of its result, and the loosest levels of its operands.

Compilers warn of operators on bits without parentheses, so these have them.
"""
_ON_BOOLEANS = {
    **_ON_NUMBERS,
    **{"and": ("&&", AND, AND, COMPARISON), "or": ("||", OR, COMPARISON, COMPARISON)},
    "xor": ("!=", COMPARISON, SUM, SUM),
}
_LONGEST = 80
"""Characters of an operand beyond which it becomes a constant."""
CONSTANT = "const IN_FLASH"
"""The qualifiers of arrays whose numbers the program contains; ``IN_FLASH`` is a macro."""
_QUALIFIERS = {"variable": "", "read-only": "const ", "constant": f"{CONSTANT} "}
"""By access to an array, what C writes before the type of its elements."""


@dataclass(frozen=True)
class _Expression:
    """An expression of C."""

    text: str
    kind: str = ""
    """C's type; for a pointer, the type of its elements."""
    level: int = ATOM
    read: int | None = None
    """Number of statements before the value was read from memory; None if it reads no memory."""
    parts: tuple[str, str] = ("", "")
    """The two summands of a sum, or an array and an index."""
    number: str = ""
    """For the address of a single number: the expression of the number."""
    is_literal: bool = False


class CPrinter:
    """Prints blocks of a function of C."""

    def __init__(self) -> None:
        self.uses_math = False
        """Whether a printed block needs ``math.h``."""
        self._expressions: dict[Result, _Expression] = {}
        self._uses: Counter[object] = Counter()
        """How often each value is an operand of what is printed."""
        self._statements = 0
        self._used_names: set[str] = set()
        """Names of the constants and variables of this and the outer blocks."""
        self._lines: list[str] = []
        self._depth = 0

    def lines(self, body: loops.Body) -> list[str]:
        """The lines of a block with the statements `body`."""
        loops.count_uses(body, self._uses)
        self._print(body)
        lines, self._lines, self._used_names = self._lines, [], set()
        return lines

    def _print(self, body: loops.Body) -> None:
        """Prints statements."""
        for statement in body:
            if not isinstance(statement, loops.VALUES) or self._uses[statement.result]:
                self._print_statement(statement)

    def _print_statement(self, statement: loops.Statement) -> None:
        """Prints one statement. Raises a TypeError if C has no form of it."""
        match statement:
            case loops.Let(result):
                expression = self._operation(statement)
                if self._uses[result] > 1 and not (expression.is_literal or expression.text.isidentifier()):
                    expression = self._constant("a", expression, result)
                self._expressions[result] = expression
            case loops.Offset(result, _, address, count_):
                self._expressions[result] = self._offset(self._of(address), self._of(count_))
            case loops.Load(result, address):
                self._expressions[result] = self._load(result.type, self._of(address))
            case loops.Read(result, variable):
                self._expressions[result] = self._load(result.type, self._of(variable))
            case loops.Store(address, value):
                self._store(self._of(address), value)
            case loops.Assign(variable, value):
                self._store(self._of(variable), value)
            case loops.Define(variable, value):
                name, kind = self._fresh("value"), _KINDS.get(variable.type, "int")
                self._write([f"{kind} {name} = {self._text(self._of(value))};"])
                self._expressions[variable] = _Expression(f"&{name}", kind, number=name)
            case loops.Name(result, value, name):
                self._expressions[result] = self._constant(name, self._of(value), result)
            case loops.For():
                self._print_for(statement)
            case loops.If(condition, body):
                with self._block(f"if ({self._text(self._of(condition))})"):
                    self._print(body)
            case loops.Fill(address, _, count_, 0):
                with self._each(self._text(self._of(count_), SUM)) as i:
                    self._write([f"{self._place(self._offset(self._of(address), i))} = 0;"])
            case loops.Copy(target, source, _, Constant(number=1)):
                self._write([f"{self._place(self._of(target))} = {self._place(self._of(source))};"])
            case loops.Copy(target, source, _, count_):
                with self._each(self._text(self._of(count_), SUM)) as i:
                    places = [self._place(self._offset(self._of(x), i)) for x in (target, source)]
                    self._write([f"{' = '.join(places)};"])
            case loops.Section(title, body):
                with self._block(""):
                    self._write([f"/* {comment_text(title)} */"])
                    self._print(body)
            case _:
                raise TypeError(f"C has no form of {statement!r}")

    def _constant(self, name: str, expression: _Expression, result: Result) -> _Expression:
        """Prints the definition of a constant with the value `result`; returns its expression."""
        name, kind, array = self._fresh(name), expression.kind, result.array
        if result.type is None:
            head = f"{_QUALIFIERS[array.access] if array else ''}{kind} *const"
        else:
            kind = _wider(result.type, expression)
            head = f"const {kind}"
        self._write([f"{head} {name} = {self._text(expression)};"])
        self._statements -= 1  # it changes no memory
        return _Expression(name, kind)

    def _print_for(self, loop: loops.For) -> None:
        """Prints a loop."""
        stop = self._of(loop.stop)
        if stop.read is not None:
            raise RuntimeError(f"the loop's end {stop.text} is read from memory: give it a name")
        bounds = self._text(self._of(loop.start)), self._text(stop, SUM), self._text(self._of(loop.step))
        with self._each(bounds[1], bounds[0], bounds[2], loop.name or "i") as i:
            self._expressions[loop.index] = i
            self._print(loop.body)

    @contextmanager
    def _each(self, stop: str, start: str = "0", step: str = "1", name: str = "o") -> Iterator[_Expression]:
        """A ``for`` loop around the statements of the block; yields its index."""
        outer_names, i = set(self._used_names), self._fresh(name)
        by = "++" if step == "1" else f" += {step}"
        with self._block(f"for (int {i} = {start}; {i} < {stop}; {i}{by})"):
            yield _Expression(i, "int")
        self._used_names = outer_names

    @contextmanager
    def _block(self, head: str) -> Iterator[None]:
        """A block of C after `head`; its names end with it."""
        outer_names = set(self._used_names)
        self._write([f"{head} {{".lstrip()])
        self._depth += 1
        yield
        self._depth -= 1
        self._write(["}"])
        self._used_names = outer_names

    def _write(self, lines: Iterable[str]) -> None:
        """Appends lines of C."""
        self._statements += 1
        self._lines += ["    " * self._depth + line for line in lines]

    def _of(self, operand: Operand) -> _Expression:
        """The expression of an operand."""
        match operand:
            case Constant(type_, number):
                text = self._number(type_, number)
                return _Expression(text, _KINDS.get(type_, "int"), is_literal=True)
            case loops.Array(expression=text, kind=kind, is_number=True):
                return _Expression(f"&{text}", kind, number=text)
            case loops.Array(expression=text, kind=kind):
                return _Expression(text, kind)
            case loops.Parameter(name=name) if operand.type:
                return _Expression(f"(int){name}", "int")
            case Result():
                return self._expressions[operand]
        raise TypeError(f"C has no form of {operand!r}")

    def _operation(self, let: loops.Let) -> _Expression:
        """The expression of an operation."""
        operands = [self._of(operand) for operand in let.operands]
        for i, (operand, value) in enumerate(zip(let.operands, operands, strict=True)):
            if len(value.text) > _LONGEST and isinstance(operand, Result):
                operands[i] = self._constant("a", value, operand)
        type_, name, first = let.operands[0].type, let.operation, operands[0]
        if name == "select":
            condition, yes, no = (self._text(expression, OR) for expression in operands)
            kind = _wider(let.result.type, *operands[1:])
            return _Expression(f"{condition} ? {yes} : {no}", kind, CHOICE, self._read(*operands))
        if name in _CONVERSIONS:
            assert let.result.type is not None
            return self._convert(type_, let.result.type, first, is_number=name == "extend signed")
        if name == "neg" or is_inversion(let):
            operator = "-" if name == "neg" else "!" if type_ == BIT else "~"
            return _Expression(f"{operator}{self._text(first, ATOM)}", first.kind, ATOM, first.read)
        forms = _ON_BOOLEANS if type_ == BIT else _ON_NUMBERS
        if name not in forms or (type_ and type_.real and name == "rem"):
            return self._function(name, type_, operands)
        if type_ and not type_.real and (simple := _simplified(name, *operands)):
            return simple
        kind = "int" if let.result.type == BIT else _wider(type_, *operands)
        operator, level, *loosest = forms[name]
        left, right = map(self._text, operands, loosest)
        parts = (left, self._text(operands[1])) if operator == "+" else ("", "")
        return _Expression(f"{left} {operator} {right}", kind, level, self._read(*operands), parts)

    def _function(self, name: str, type_: Type | None, operands: list[_Expression]) -> _Expression:
        """A call of a function of ``math.h``."""
        self.uses_math = True
        name = {"roundeven": "rint", "rem": "fmod"}.get(name, name) + "f" * (type_ == FLOAT)
        arguments = ", ".join(map(self._text, operands))
        return _Expression(f"{name}({arguments})", _KINDS[type_], ATOM, self._read(*operands))

    def _convert(
        self, from_: Type | None, to: Type, value: _Expression, *, is_number: bool = False
    ) -> _Expression:
        """`value` cast to the type `to`; unchanged for integers that C converts itself.

        C computes sums of 16-bit numbers in ``int``, which has 16 bits on an AVR: they need the cast.
        `is_number` is whether 64 bits hold a number instead of an index, which is an ``int``.
        """
        kind = "int64_t" if is_number and to == LONG else _KINDS.get(to, "int")
        needs_cast = to.real or SHORT in (from_, to) or "int64_t" in (kind, value.kind)
        if value.is_literal or not needs_cast:
            return value
        return _Expression(f"({kind}){self._text(value, ATOM)}", kind, ATOM, value.read)

    def _offset(self, address: _Expression, index: _Expression) -> _Expression:
        """The address `index` elements after `address`."""
        if index.text == "0":
            return address
        array, earlier = address.parts
        sum_ = f"{earlier} + {self._text(index, SUM)}" if earlier else self._text(index, SUM)
        base = array or self._text(address)
        return _Expression(f"{base} + {sum_}", address.kind, SUM, self._read(address, index), (base, sum_))

    def _load(self, type_: Type | None, address: _Expression) -> _Expression:
        """The number at `address`; integers in an array become real if `type_` is."""
        value = _Expression(self._place(address), address.kind, ATOM, self._statements)
        is_real = type_ is not None and type_.real and address.kind not in ("float", "double")
        return self._convert(INT, type_, value) if type_ and is_real else value

    def _store(self, address: _Expression, value: Operand) -> None:
        """Prints an assignment of `value` to the number at `address`, with ``+=`` if possible."""
        place, kind, expression = self._place(address), address.kind, self._of(value)
        text, is_integer = self._text(expression), kind in _INTEGERS
        is_same_kind = kind == _KINDS.get(value.type, expression.kind)
        if expression.parts[0] == place and is_same_kind:
            self._write([f"{place} += {expression.parts[1]};"])
        elif isinstance(value, Constant):
            self._write([f"{place} = {self._number(INT if is_integer else value.type, value.number)};"])
        elif is_integer and not is_same_kind and not expression.is_literal:
            self._write([f"{place} = ({kind}){self._text(expression, ATOM)};"])
        else:
            self._write([f"{place} = {text};"])

    def _text(self, expression: _Expression, loosest: int = CHOICE) -> str:
        """The text of an expression, in parentheses if it binds more loosely than `loosest`."""
        text = expression.text
        if expression.read not in (None, self._statements):
            raise RuntimeError(f"{text} was read before a statement that may change it: give it a name")
        return f"({text})" if expression.level > loosest else text

    def _read(self, *expressions: _Expression) -> int | None:
        """:attr:`_Expression.read` of the first that reads memory; None if none does."""
        return next((x.read for x in expressions if x.read is not None), None)

    def _place(self, address: _Expression) -> str:
        """The expression of the number at `address`."""
        text, (array, index) = self._text(address), address.parts
        return address.number or (f"{array}[{index}]" if array else f"{text}[0]")

    def _number(self, type_: Type, number: float) -> str:
        """The literal of `number` in C."""
        if not type_.real:
            return "INT32_MIN" if number == -(2**31) else str(int(number))
        self.uses_math |= not math.isfinite(number)
        return literal(number, _KINDS[type_])

    def _fresh(self, name: str) -> str:
        """`name`, with a number if a constant or variable of the same or an outer block has it."""
        names = chain([name], (f"{name}{i}" for i in count(2)))
        unique = next(candidate for candidate in names if candidate not in self._used_names)
        self._used_names.add(unique)
        return unique


_INTEGERS = ("int8_t", "int16_t", "int32_t", "uint8_t", "uint16_t", "uint32_t", "int64_t")
_CONVERSIONS = ("extend", "extend signed", "shorten", "real")
_KINDS: dict[Any, str] = {
    **{FLOAT: "float", DOUBLE: "double"},
    **{BIT: "int", BYTE: "uint8_t", SHORT: "int16_t", INT: "int32_t"},
}
"""C's types of values, except of 64-bit integers: they are indices, or numbers."""


def _wider(type_: Type | None, *operands: _Expression) -> str:
    """C's type of the result of an operation on `operands` of the type `type_`."""
    if type_ == LONG:
        return "int64_t" if any(operand.kind == "int64_t" for operand in operands) else "int"
    return _KINDS[type_]


def _simplified(name: str, left: _Expression, right: _Expression) -> _Expression | None:
    """The result of the operation `name` on two indices if no operation is needed, else None."""
    if left.is_literal and right.is_literal and name in ("add", "mul"):
        numbers = int(left.text), int(right.text)
        return _Expression(str(sum(numbers) if name == "add" else numbers[0] * numbers[1]), is_literal=True)
    if right.is_literal and right.text == {"add": "0", "sub": "0", "mul": "1", "div": "1"}.get(name):
        return left
    if right.is_literal and (name, right.text) in (("mul", "0"), ("rem", "1")):
        return _Expression("0", is_literal=True)
    return right if (name, left.text) == ("add", "0") else None
