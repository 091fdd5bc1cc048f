"""The functions of a CPU kernel that process one row of neurons, for one step or several.

A pass (``graph.passes``) becomes a function of rows, cut where it calls a library's vector function or a
product: there a row of numbers goes through memory.
"""

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field, replace

from hibana.compiler.cpu.body import row_function
from hibana.compiler.graph.ops import CALLS, OPERATIONS, Written
from hibana.compiler.graph.passes import Stores, leaves, substitute
from hibana.compiler.graph.plan import evaluated
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
    does: list["Call"] = field(default_factory=list)
    """The calls, in order."""
    scratch: list[str] = field(default_factory=list)
    """Scratch rows of numbers, and those that products are written to."""
    products: list[str] = field(default_factory=list)
    called: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.leaves = leaves(self.stores)
        stores = _spelled_out(self.stores, self.calls, inline=self.number is Floats)
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
        if value.op != "product":
            self.called.add(value.op)
            self.does.append(Call(value.op, rows))
            return name
        result = f"{name}.product{len(self.does)}"
        self.products.append(result)
        given = str(value.args[0].data) if _is_read(value) else name
        where = [str(gate.data) for gate in value.args[1:]]
        self.does.append(Call("product", [given, *where, result], matrix=int(value.data)))
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
        self.does.append(Call(function, rows, scalars, draws=draws))


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
    return len(evaluated(stores.values(), ())) >= LONG


def _handed_over(stores: Stores, roots: Iterable[Value]) -> list[Value]:
    """The values behind `roots` that the rest of `stores` uses too, and reads rather than recomputes."""
    here = [value for value in evaluated(roots, ()) if value.args]
    inside = set(here)
    everything = evaluated(stores.values(), ())
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


def _spelled_out(stores: Stores, calls: Container[str], *, inline: bool) -> Stores:
    """`stores` in operations that LLVM or a vector function knows.

    What no function of `calls` computes is written out, as its row of the table says, and ``exp`` within the
    loop if `inline`. A product with a truth value becomes a select: ``x * s`` is ``x`` where s holds and
    ``x * 0`` elsewhere, to the last bit, and that product does not wait for the comparison.
    """
    new: dict[Value, Value] = {}
    names = {"exp": "inline_exp"} if inline and "exp" not in calls else {}
    zero = Value("number")
    for value in evaluated(stores.values(), ()):
        args = tuple(new[a] for a in value.args)
        if value.op not in calls and (row := OPERATIONS.get(value.op)) and row.written:
            new[value] = _written(row.written, args, names)
        elif value.op in names:
            new[value] = Value(names[value.op], args)
        elif value.op == "sub" and args[0].is_number(1) and args[1].op == "to_float":
            new[value] = Value("to_float", (Value("not", args[1].args),))
        elif value.op == "mul" and any(a.op == "to_float" for a in args):
            gate, other = args if args[0].op == "to_float" else args[::-1]
            new[value] = Value("where", (gate.args[0], other, Value("mul", (other, zero))))
        else:
            new[value] = replace(value, args=args) if args else value
    return {name: new[value] for name, value in stores.items()}


def _written(how: Written, args: tuple[Value, ...], names: Mapping[str, str]) -> Value:
    """:attr:`Operation.written` applied to `args`, its operations renamed by `names`."""
    if isinstance(how, tuple):
        return Value(names.get(how[0], how[0]), tuple(_written(part, args, names) for part in how[1:]))
    return args[int(how[1:-1])] if how.startswith("{") else Value("number", data=int(how))


def kernel_says(op: str) -> bool:
    """Whether a kernel computes `op` without a vector function: written out, or by the C library."""
    row = OPERATIONS[op]
    return bool(row.written or (row.libm and row.arity == 1))


def _operands(value: Value) -> tuple[Value, ...]:
    """The arguments that are rows of numbers; a product's others are masks."""
    return value.args[:1] if value.op == "product" else value.args


_CUTS = CALLS | {"product"}
"""What is computed a whole row at a time."""


def _ready(stores: Stores) -> list[Value]:
    """The vector calls and products in `stores` that depend on no other one."""
    behind: set[Value] = set()
    found: list[Value] = []
    for value in evaluated(stores.values(), ()):
        if any(argument in behind for argument in value.args):
            behind.add(value)
        elif value.op in _CUTS:
            found.append(value)
            behind.add(value)
    return found


def _is_read(value: Value) -> bool:
    """Whether a product's operand is a row already in memory."""
    return value.op == "product" and len(value.args) == 1 and value.args[0].op == "row"
