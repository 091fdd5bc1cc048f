"""The functions of a CPU kernel that process one row of neurons, for one step or several.

A pass (``graph.passes``) becomes a function of rows, cut where it calls a library's vector function or a
product: there a row of numbers goes through memory.
"""

from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, field

from hibana.compiler.cpu.row_function import IN_LOOP, row_function
from hibana.compiler.graph.analysis import Rewriting, dependents, reachable
from hibana.compiler.graph.ops import OPERATIONS, Expression, Operation
from hibana.compiler.graph.passes import Stores, leaves, substitute
from hibana.compiler.graph.step import Value
from hibana.runtime.kernels import Floats, Function, Pointer

LONG = 256
"""Values from which on a pass is written for a short compile time: its parts read what earlier ones computed,
and there is only the masked code for a block of neurons."""

FEW_RECOMPUTED = 4
"""A part of a long pass recomputes what takes fewer values, and reads the rest."""


@dataclass(eq=False)
class Pass:
    """The functions of a pass over one row, and the calls that the kernel makes."""

    name: str
    stores: Stores
    number: type[Pointer]
    calls: frozenset[str]
    """Operations whose vector functions are arguments of the kernel; the others call the C library."""
    nontemporal: frozenset[str] = frozenset()
    """Rows that are written by non-temporal stores."""
    ahead: frozenset[str] = frozenset()
    """Rows that are prefetched."""
    aligned: bool = True
    """Whether rows begin at neurons whose numbers are multiples of a vector's."""
    functions: int = 0
    sequence: list["Call"] = field(default_factory=list)
    """The calls, in order."""
    scratch: list[str] = field(default_factory=list)
    """Scratch rows of numbers, and those that products are written to."""
    products: list[str] = field(default_factory=list)
    operations: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.leaves = leaves(self.stores)
        stores = _SpelledOut(self.calls, in_loop=self.number is Floats).rewrite(self.stores)
        self.long = is_long(stores)
        while ready := _ready(stores):
            operands = [(value, operand) for value in ready for operand in _operands(value)]
            names = self._rows(stores, len(operands))
            given = dict(zip(names, operands, strict=True))
            calls: dict[Value, list[str]] = {}
            for name, (value, _) in given.items():
                calls.setdefault(value, []).append(name)
            arguments = {name: operand for name, (value, operand) in given.items() if not _is_read(value)}
            handed = _handed_over(stores, arguments.values()) if self.long else []
            more = dict(zip(self._rows(stores, len(handed), names), handed, strict=True))
            self._function(arguments | more)
            results = {v: Value("row", data=self._call(rows, v)) for v, rows in calls.items()}
            results |= {v: Value("bits" if v.boolean else "row", data=name) for name, v in more.items()}
            stores = substitute(stores, results)
        if stores:
            self._function(stores)

    def _rows(self, stores: Stores, count: int, taken: Container[str] = ()) -> list[str]:
        """Names of `count` scratch rows: those that `stores` don't read, then new ones."""
        needed = leaves(stores) if self.long else self.scratch
        found = [name for name in self.scratch if name not in needed and name not in taken][:count]
        first = len(self.scratch)
        new = [f"{self.name}.{first + i}" for i in range(count - len(found))]
        self.scratch += new
        return found + new

    def _call(self, rows: list[str], value: Value) -> str:
        """Adds the call that computes `value` from `rows`, and returns the result's row."""
        name = rows[0]
        if not value.is_product:
            self.operations.add(value.op)
            self.sequence.append(Call(value.op, rows))
            return name
        result = f"{name}.product{len(self.sequence)}"
        self.products.append(result)
        given = str(value.args[0].data) if _is_read(value) else name
        where = [str(gate.data) for gate in value.args[1:]]
        self.sequence.append(Call("product", [given, *where, result], matrix=int(value.data)))
        return result

    def _function(self, stores: Stores) -> None:
        if not stores:
            return
        function, rows, scalars, draws = row_function(
            f"{self.name}{self.functions or ''}",
            stores,
            self.number,
            short=self.long,
            aligned=self.aligned,
            nontemporal=self.nontemporal,
            ahead=self.ahead,
        )
        self.functions += 1
        self.sequence.append(Call(function, rows, scalars, draws=draws))


@dataclass(frozen=True)
class Call:
    """A call on rows: of a function of the pass, a vector function by name, or ``product``."""

    function: Function | str
    rows: list[str]
    """Of a product: its operand, the mask of where the result is used if there is one, and the result."""
    scalars: list[str] = field(default_factory=list)
    matrix: int = 0
    draws: bool = False
    """Whether a function draws random numbers."""


def is_long(stores: Stores) -> bool:
    """Whether `stores` take :data:`LONG` values or more."""
    return len(reachable(stores.values())) >= LONG


def _handed_over(stores: Stores, roots: Iterable[Value]) -> list[Value]:
    """The values behind `roots` that the rest of `stores` uses too, and reads rather than recomputes."""
    here = [value for value in reachable(roots) if value.args]
    inside = set(here)
    everything = reachable(stores.values())
    wanted = {*stores.values(), *(a for v in everything if v not in inside for a in v.args)}
    recomputed: dict[Value, int] = {}
    """How many values recomputing this one takes."""
    handed = []
    for value in here:
        recomputed[value] = 1 + sum(recomputed.get(argument, 0) for argument in value.args)
        if value in wanted and recomputed[value] >= FEW_RECOMPUTED:
            handed.append(value)
            recomputed[value] = 0
    return handed


class _SpelledOut(Rewriting):
    """Rewrites values in operations that LLVM or a vector function computes.

    An operation that no function of `calls` computes is written out, as its row of the table says, and
    ``exp`` is computed within the loop if `in_loop`. A product with a truth value becomes a select: ``x * s``
    is ``x`` where s holds and ``x * 0`` elsewhere, to the last bit, and that product does not wait for the
    comparison.
    """

    def __init__(self, calls: Container[str], *, in_loop: bool) -> None:
        super().__init__()
        self.calls = calls
        self.in_loop = in_loop and "exp" not in calls
        self.zero = Value("number")

    def operation(self, value: Value, row: Operation, args: Sequence[Value]) -> Value:
        if row.expansion and value.op not in self.calls:
            return self._written(row.expansion, args)
        if value.op == "exp" and self.in_loop:
            return Value("exp", tuple(args), IN_LOOP)
        if value.op == "sub" and args[0].is_number(1) and args[1].as_boolean:
            return Value("to_float", (Value("not", (args[1].as_boolean,)),))
        if value.op == "mul":
            first, second = args
            gate, other = (first.as_boolean, second) if first.as_boolean else (second.as_boolean, first)
            if gate:
                return Value("where", (gate, other, Value("mul", (other, self.zero))))
        return super().operation(value, row, list(args))

    def _written(self, how: Expression, args: Sequence[Value]) -> Value:
        """:attr:`Operation.expansion` applied to `args`."""
        if not isinstance(how, tuple):
            return args[int(how[1:-1])] if how.startswith("{") else Value("number", data=int(how))
        value = Value(how[0], tuple(self._written(part, args) for part in how[1:]))
        return self.operation(value, OPERATIONS[how[0]], value.args)


def kernel_says(op: str) -> bool:
    """Whether a kernel computes `op` without a vector function: written out, or by the C library."""
    row = OPERATIONS[op]
    return bool(row.expansion or (row.libm and row.arity == 1))


def _operands(value: Value) -> tuple[Value, ...]:
    """The arguments that are rows of numbers; a product's others are masks."""
    return value.args[:1] if value.is_product else value.args


def _ready(stores: Stores) -> list[Value]:
    """The vector calls and products in `stores` that depend on no other one."""
    values = reachable(stores.values())
    cuts = [v for v in values if v.is_product or (v.is_call and v.data != IN_LOOP)]
    behind = dependents(values, cuts)
    return [value for value in cuts if not any(argument in behind for argument in value.args)]


def _is_read(value: Value) -> bool:
    """Whether a product's operand is a row already in memory."""
    return value.is_product and len(value.args) == 1 and value.args[0].is_row
