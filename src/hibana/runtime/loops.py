"""The loops of a function as data: values, and statements in the order in which they run.

`code`, `values` and `pointers` build the statements from Python expressions. Printers turn them into text:
:mod:`hibana.runtime.llvm` into LLVM IR, :mod:`hibana.network.c.printer` into C. A value is identified by its
object, never by a name: printers make names.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Literal

from hibana.runtime.types import Type


@dataclass(frozen=True, slots=True)
class Constant:
    """A number, in each lane of its type."""

    type: Type
    number: float


@dataclass(frozen=True, slots=True)
class Lanes:
    """The vector 0, 1, 2, … of integers."""

    type: Type


@dataclass(frozen=True, slots=True)
class Undefined:
    """A value that is not defined."""

    type: Type


@dataclass(frozen=True, eq=False, slots=True)
class Result:
    """A value that a statement defines, or a variable."""

    type: Type | None
    """None: it is an address."""
    array: "Array | None" = None
    """The array that an address points into, if it is known."""


@dataclass(frozen=True, eq=False, slots=True)
class Parameter(Result):
    """An argument of the function."""

    name: str = ""


@dataclass(frozen=True, eq=False, slots=True)
class Array(Result):
    """The address of an array, or of a single number, that the surrounding program defines.

    Its address is known, so :attr:`type` and :attr:`array` are None.
    """

    name: str = ""
    owner: str = ""
    """What C writes before the name, such as ``net->``."""
    kind: str = ""
    """C's type of its elements."""
    is_number: bool = False
    """Whether it is a single number."""
    access: Literal["variable", "read-only", "constant"] = "variable"
    """Whether the program writes to it, only reads it, or contains its numbers."""

    @property
    def expression(self) -> str:
        """Its expression in C, such as ``net->v``."""
        return f"{self.owner}{self.name}"


Operand = Constant | Lanes | Undefined | Result


@dataclass(frozen=True, eq=False, slots=True)
class Let:
    """``result = operation(operands)``, which reads no memory.

    The operations on numbers are ``add``, ``sub``, ``mul``, ``div`` and ``rem`` (unsigned for integers),
    ``neg``, ``and``, ``or``, ``xor``, ``shl``, ``shr``, ``lt``, ``le``, ``gt``, ``ge``, ``eq``, ``ne`` and
    ``select``. Conversions are ``extend`` and ``shorten`` (integers are unsigned), ``extend signed``,
    ``real`` (of a signed integer), ``bits`` (reinterprets them), ``address`` and ``pointer`` (between
    addresses and integers), and ``exists`` (whether an address is not null). On vectors there are ``spread``,
    ``shuffle``, ``extract`` and ``insert``, which take `lanes`, and ``sum``. Any other operation is an
    intrinsic of LLVM, and in C a function of ``math.h``.
    """

    result: Result
    operation: str
    operands: tuple[Operand, ...]
    lanes: tuple[int, ...] = ()


def is_inversion(let: Let) -> bool:
    """Whether an operation inverts all bits of a value: ``xor`` with -1."""
    return let.operation == "xor" and isinstance(let.operands[1], Constant) and let.operands[1].number == -1


@dataclass(frozen=True, eq=False, slots=True)
class Offset:
    """`result` is the address `count` elements after `address`."""

    result: Result
    element: Type
    address: Operand
    count: Operand


@dataclass(frozen=True, eq=False, slots=True)
class Name:
    """`result` is `value`, which printers for readers store in a constant called `name`."""

    result: Result
    value: Operand
    name: str


@dataclass(frozen=True, eq=False, slots=True)
class Load:
    """`result` is read from `address`, a multiple of `align` bytes."""

    result: Result
    address: Operand
    align: int


@dataclass(frozen=True, eq=False, slots=True)
class MaskedLoad:
    """`result` is the vector at `address`; its lanes outside of `mask` are not read but `other`."""

    result: Result
    address: Operand
    align: int
    mask: Operand
    other: Operand


@dataclass(frozen=True, eq=False, slots=True)
class Gather:
    """`result` is the vector of the elements at `indices` from `address`; `other` outside of `mask`."""

    result: Result
    element: Type
    address: Operand
    indices: Operand
    mask: Operand
    other: Operand


@dataclass(frozen=True, eq=False, slots=True)
class Store:
    """Writes `value` to `address`, a multiple of `align` bytes."""

    address: Operand
    value: Operand
    align: int
    nontemporal: bool = False
    """Whether the processor does not keep the number in its caches."""


@dataclass(frozen=True, eq=False, slots=True)
class MaskedStore:
    """Writes the lanes of `value` inside of `mask` to `address`."""

    address: Operand
    value: Operand
    align: int
    mask: Operand


@dataclass(frozen=True, eq=False, slots=True)
class Define:
    """Defines the `variable`, with the first value `value`."""

    variable: Result
    value: Operand


@dataclass(frozen=True, eq=False, slots=True)
class Read:
    """`result` is the current value of `variable`."""

    result: Result
    variable: Result


@dataclass(frozen=True, eq=False, slots=True)
class Assign:
    """Assigns `value` to `variable`."""

    variable: Result
    value: Operand


@dataclass(frozen=True, eq=False, slots=True)
class Allocate:
    """`result` is the address of `count` elements on the stack."""

    result: Result
    element: Type
    count: int
    align: int


@dataclass(frozen=True, eq=False, slots=True)
class Fill:
    """Sets all bytes of `count` elements of `size` bytes to `byte`."""

    address: Operand
    size: int
    count: Operand
    byte: int


@dataclass(frozen=True, eq=False, slots=True)
class Copy:
    """Copies `count` elements of `size` bytes between arrays that do not overlap."""

    target: Operand
    source: Operand
    size: int
    count: Operand


@dataclass(frozen=True, eq=False, slots=True)
class AtomicAdd:
    """Adds `value` to the number at `address`, sequentially consistent; `result` is the earlier number."""

    result: Result
    address: Operand
    value: Operand


@dataclass(frozen=True, eq=False, slots=True)
class AtomicLoad:
    """`result` is the number at `address`, sequentially consistent."""

    result: Result
    address: Operand


@dataclass(frozen=True, eq=False, slots=True)
class Fence:
    """A sequentially consistent memory fence."""


@dataclass(frozen=True, eq=False, slots=True)
class Prefetch:
    """Prefetches the cache line of `address`."""

    address: Operand
    to_write: bool


@dataclass(frozen=True, slots=True)
class Declaration:
    """A function of another library."""

    name: str
    result: Type | None
    parameters: tuple[Type | None, ...]
    """The types of its parameters; None for an address."""


Linkage = Literal["internal", "exported", "kernel"]


@dataclass(frozen=True, eq=False, slots=True)
class Definition:
    """A function with its statements."""

    name: str
    parameters: tuple[Parameter, ...]
    body: "Body"
    result: Operand | None
    linkage: Linkage
    """Who may call it: its module, other modules, or threads, as a kernel."""

    def __str__(self) -> str:
        """The statements for readers; values are numbered in order."""
        names: dict[Result, str] = {parameter: parameter.name for parameter in self.parameters}
        parameters = ", ".join(f"{x.name}: {x.type or 'address'}" for x in self.parameters)
        end = [] if self.result is None else [f"    return {_text(self.result, names)}"]
        return "\n".join([f"{self.name}({parameters}):", *_lines(self.body, names), *end])


@dataclass(frozen=True, eq=False, slots=True)
class Call:
    """Calls a function, or the ``void`` function at an address; `result` is None if it returns nothing."""

    result: Result | None
    function: Definition | Declaration | Operand
    arguments: tuple[Operand, ...]


@dataclass(frozen=True, eq=False, slots=True)
class For:
    """Runs `body` for each `index` from `start` to below `stop`, in steps of `step`."""

    index: Result
    start: Operand
    stop: Operand
    step: Operand
    body: "Body"
    name: str
    """The name of the index for readers."""


@dataclass(frozen=True, eq=False, slots=True)
class Repeat:
    """Runs `body` once, and again while `again` is true after it."""

    body: "Body"
    again: Operand


@dataclass(frozen=True, eq=False, slots=True)
class If:
    """Runs `body` if `condition` is true."""

    condition: Operand
    body: "Body"


@dataclass(frozen=True, eq=False, slots=True)
class Scratch:
    """Runs `body` with heap memory of `size` bytes at `result`."""

    result: Result
    size: Operand
    body: "Body"


@dataclass(frozen=True, eq=False, slots=True)
class Section:
    """Runs `body`, which has a `title` for readers."""

    title: str
    body: "Body"


_Memory = Load | MaskedLoad | Gather | Store | MaskedStore | Fill | Copy | Prefetch
_Atomic = AtomicAdd | AtomicLoad | Fence
_Variable = Define | Read | Assign
_Block = For | Repeat | If | Scratch | Section
Statement = Let | Offset | Name | Allocate | Call | _Memory | _Atomic | _Variable | _Block
Body = tuple[Statement, ...]


VALUES = Let | Offset | Load | Read | Name
"""Statements without an effect but their result."""


def count_uses(body: Body, uses: Counter[object]) -> None:
    """Adds to `uses` how often each value and array is an operand in `body`, from the last statement on.

    A statement of :data:`VALUES` whose result has no use uses nothing.
    """
    for statement in reversed(body):
        if isinstance(statement, VALUES) and not uses[statement.result]:
            continue
        for field in fields(statement):
            part = getattr(statement, field.name)
            if field.name == "body":
                count_uses(part, uses)
            elif field.name != "result":
                uses.update(part if isinstance(part, tuple) else (part,))


def _text(part: object, names: dict[Result, str]) -> str:
    """A part of a statement for readers; adds a new name to `names` for a value without one."""
    if isinstance(part, Result):
        return names.setdefault(part, getattr(part, "name", "") or f"%{len(names)}")
    if isinstance(part, Constant):
        return f"{part.number:g}"
    if isinstance(part, tuple):
        return ", ".join(_text(each, names) for each in part)
    return getattr(part, "name", "") or str(part)


def _lines(body: Body, names: dict[Result, str]) -> list[str]:
    """The lines of statements for readers."""
    lines = []
    for statement in body:
        parts = {field.name: getattr(statement, field.name) for field in fields(statement)}
        result, inner = parts.pop("result", None), parts.pop("body", ())
        name = parts.pop("operation", type(statement).__name__.lower())
        arguments = ", ".join(_text(part, names) for part in parts.values() if part not in ((), ""))
        lines.append(f"    {f'{_text(result, names)} = ' if result else ''}{name}({arguments})")
        lines += [f"    {line}" for line in _lines(inner, names)]
    return lines


class Builder:
    """Collects the statements of one function in order."""

    def __init__(self) -> None:
        self._bodies: list[list[Statement]] = [[]]
        """The statements of the function and of each open loop or branch, outermost first."""

    def add(self, statement: Statement) -> None:
        """Appends a statement."""
        self._bodies[-1].append(statement)

    def let(
        self, type_: Type | None, operation: str, *operands: Operand, lanes: tuple[int, ...] = ()
    ) -> Result:
        """Appends a :class:`Let`, and returns its result of type `type_`."""
        result = Result(type_)
        self.add(Let(result, operation, operands, lanes))
        return result

    @contextmanager
    def inside(self) -> Iterator[list[Statement]]:
        """Collects the statements of the ``with`` block in the list that it yields."""
        body = list[Statement]()
        self._bodies.append(body)
        yield body
        self._bodies.pop()

    def take(self) -> Body:
        """Removes and returns the statements of the function."""
        (body,) = self._bodies
        statements = tuple(body)
        body.clear()
        return statements
