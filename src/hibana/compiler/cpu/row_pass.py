"""A pass of a CPU kernel: the functions that process one row of neurons, for one step or several.

A row is an array with one number per neuron. A pass (:mod:`hibana.compiler.graph.passes`) becomes functions
of rows. It is cut at each vector function and each matrix product, which read and write rows in memory.
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
"""Minimum values of a *long* pass, which is written for a short compile time: its functions read the values
that earlier functions computed, and have only the masked code for a block of neurons."""

FEW_RECOMPUTED = 4
"""A function of a long pass recomputes a value that takes fewer values, and reads any other."""


@dataclass(eq=False)
class Pass:
    """The functions of a pass over one row, and the sequence of a kernel's calls of them."""

    name: str
    stores: Stores
    number: type[Pointer]
    calls: frozenset[str]
    """Operations whose vector functions are arguments of the kernel."""
    sequences: frozenset[str] = frozenset()
    """Rows of sequences, which are prefetched."""
    nontemporal: bool = False
    """Whether rows of numbers of sequences are written by non-temporal stores."""
    aligned: bool = True
    """Whether rows begin at neurons whose numbers are multiples of a vector's."""
    functions: int = 0
    """The number of functions."""
    sequence: list["Call"] = field(default_factory=list)
    """The calls in order."""
    scratch: list[str] = field(default_factory=list)
    """Rows of numbers between the calls."""
    products: list[str] = field(default_factory=list)
    """Rows of the results of matrix products."""
    operations: set[str] = field(default_factory=set)
    """The operations that vector functions compute."""

    def __post_init__(self) -> None:
        """Splits the pass at vector functions and matrix products, and adds the calls in order."""
        self.leaves = leaves(self.stores)
        stores = _Lowering(self.calls, in_loop=self.number is Floats).rewrite(self.stores)
        self.long = len(reachable(stores.values())) >= LONG
        while cuts := _first_cuts(stores):  # the vector functions and products that can be called next
            operands = [(cut, operand) for cut in cuts for operand in _row_operands(cut)]
            names = self._rows(stores, len(operands))
            operand_rows = dict(zip(names, operands, strict=True))
            rows_of: dict[Value, list[str]] = {}
            for name, (cut, _) in operand_rows.items():
                rows_of.setdefault(cut, []).append(name)
            computed = {name: operand for name, (cut, operand) in operand_rows.items() if not _reads_row(cut)}
            shared = _shared_values(stores, computed.values()) if self.long else []
            shared_rows = dict(zip(self._rows(stores, len(shared), names), shared, strict=True))
            self._function(computed | shared_rows)
            results = {cut: Value("row", data=self._call(rows, cut)) for cut, rows in rows_of.items()}
            results |= {
                v: Value("bits" if v.boolean else "row", data=name) for name, v in shared_rows.items()
            }
            stores = substitute(stores, results)
        if stores:
            self._function(stores)

    def _rows(self, stores: Stores, count: int, reserved: Container[str] = ()) -> list[str]:
        """Names of `count` scratch rows that `stores` do not read and that are not `reserved`."""
        in_use = leaves(stores) if self.long else self.scratch
        free = [name for name in self.scratch if name not in in_use and name not in reserved][:count]
        first = len(self.scratch)
        new = [f"{self.name}.{first + i}" for i in range(count - len(free))]
        self.scratch += new
        return free + new

    def _call(self, rows: list[str], value: Value) -> str:
        """Adds the call that computes `value`, a vector function or product; returns the row of its result.

        `rows` are the names of the rows that hold its arguments.
        """
        name = rows[0]
        if not value.is_product:
            self.operations.add(value.op)
            self.sequence.append(Call(value.op, rows))
            return name
        result = f"{name}.product{len(self.sequence)}"
        self.products.append(result)
        operand = str(value.args[0].data) if _reads_row(value) else name
        mask = [str(gate.data) for gate in value.args[1:]]
        self.sequence.append(Call("product", [operand, *mask, result], matrix=int(value.data)))
        return result

    def _function(self, stores: Stores) -> None:
        """Adds a function that computes `stores`, and its call."""
        if not stores:
            return
        function, rows, scalars, draws = row_function(
            f"{self.name}{self.functions or ''}",
            stores,
            self.number,
            short=self.long,
            aligned=self.aligned,
            sequences=self.sequences,
            nontemporal=self.nontemporal,
        )
        self.functions += 1
        self.sequence.append(Call(function, rows, scalars, draws=draws))


@dataclass(frozen=True)
class Call:
    """A call on rows: of a function of the pass, of an operation's vector function, or ``"product"``."""

    function: Function | str
    rows: list[str]
    """The arguments of a function; for a product its operand, the mask of its result or nothing, its
    result."""
    scalars: list[str] = field(default_factory=list)
    """The names of the function's scalar arguments."""
    matrix: int = 0
    """For a product, twice the number of the matrix, plus 1 if it is transposed."""
    draws: bool = False
    """Whether the function draws random numbers."""


def _shared_values(stores: Stores, roots: Iterable[Value]) -> list[Value]:
    """Values computed for `roots` that later functions read from memory instead of computing them again.

    `roots` are the arguments of the next vector functions and products, `stores` all results of the pass.
    """
    dependencies = [value for value in reachable(roots) if value.args]
    inside = set(dependencies)
    everything = reachable(stores.values())
    used_later = {*stores.values(), *(a for v in everything if v not in inside for a in v.args)}
    cost: dict[Value, int] = {}
    """The number of values that recomputing this value takes."""
    shared = []
    for value in dependencies:
        cost[value] = 1 + sum(cost.get(argument, 0) for argument in value.args)
        if value in used_later and cost[value] >= FEW_RECOMPUTED:
            shared.append(value)
            cost[value] = 0
    return shared


class _Lowering(Rewriting):
    """Rewrites values in operations that LLVM or a vector function computes.

    An operation without a function in `calls` is replaced by its :attr:`Operation.expansion`, and ``exp`` is
    computed within the loop if `in_loop`. A product with a truth value becomes a select: ``x * s`` is ``x``
    if s is true and ``x * 0`` otherwise, with the same bits, and does not wait for the comparison.
    """

    def __init__(self, calls: Container[str], *, in_loop: bool) -> None:
        """Stores the names of vector functions, and whether ``exp`` is computed within the loop."""
        super().__init__()
        self.calls = calls
        self.in_loop = in_loop and "exp" not in calls
        self.zero = Value("number")

    def operation(self, value: Value, row: Operation, args: Sequence[Value]) -> Value:
        """Replaces an operation by operations that LLVM or a vector function computes.

        `args` are the replaced arguments of `value`; vector functions compute the operations in `calls`.
        """
        if row.expansion and value.op not in self.calls:
            return self._expand(row.expansion, args)
        if value.op == "exp" and self.in_loop:
            return Value("exp", tuple(args), IN_LOOP)
        if value.op == "sub" and args[0].is_number(1) and args[1].as_boolean:
            return Value("to_float", (Value("not", (args[1].as_boolean,)),))
        if value.op == "mul":
            first, second = args
            # `as_boolean` is the boolean that the number 1 or 0 was converted from
            boolean, other = (first.as_boolean, second) if first.as_boolean else (second.as_boolean, first)
            if boolean:
                return Value("where", (boolean, other, Value("mul", (other, self.zero))))
        return super().operation(value, row, list(args))

    def _expand(self, expression: Expression, args: Sequence[Value]) -> Value:
        """The value of an expression such as ``("mul", "{0}", "2")``, with `args` for its placeholders."""
        if not isinstance(expression, tuple):
            if expression.startswith("{"):
                return args[int(expression[1:-1])]
            return Value("number", data=int(expression))
        op, *parts = expression
        value = Value(op, tuple(self._expand(part, args) for part in parts))
        return self.operation(value, OPERATIONS[op], value.args)


def _row_operands(value: Value) -> tuple[Value, ...]:
    """The arguments of a vector function, or the vector of a matrix product (any other one is its mask)."""
    return value.args[:1] if value.is_product else value.args


def _first_cuts(stores: Stores) -> list[Value]:
    """The vector functions and matrix products in `stores` that depend on no other one of these."""
    values = reachable(stores.values())
    cuts = [v for v in values if v.is_product or (v.is_call and v.data != IN_LOOP)]
    later = dependents(values, cuts)
    return [value for value in cuts if not any(argument in later for argument in value.args)]


def _reads_row(value: Value) -> bool:
    """Whether `value` is a matrix product without mask, of a vector that is already a row in memory."""
    return value.is_product and len(value.args) == 1 and value.args[0].is_row
