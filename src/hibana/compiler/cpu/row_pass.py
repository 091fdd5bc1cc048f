"""A pass of a CPU kernel: the functions that process one row of neurons, for one step or several.

A row is an array with one number per neuron. A pass (:mod:`hibana.compiler.graph.passes`) becomes functions
of rows. It is cut at each vector function and each matrix product, which read and write rows in memory.
"""

from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, field

from hibana.compiler.cpu.row_function import IN_LOOP, row_function
from hibana.compiler.graph.analysis import Rewriting, dependents, reachable
from hibana.compiler.graph.leaf import Leaf
from hibana.compiler.graph.ops import OPERATIONS, Expression, Operation
from hibana.compiler.graph.passes import Stores, leaves, substitute
from hibana.compiler.graph.step import Value
from hibana.runtime.kernels import Floats, Function, Pointer

LONG = 256
"""Minimum values of a *long* pass, which is written for a short compile time: its functions read the values
that earlier functions computed, and have only the masked code for a block of neurons."""

FEW_RECOMPUTED = 4
"""A function of a long pass recomputes a value that takes fewer values, and reads any other."""


@dataclass(frozen=True)
class Pass:
    """The functions of a pass over one row, in the sequence in which a kernel calls them."""

    leaves: dict[Leaf, Value]
    """The values that the pass reads."""
    calls: frozenset[str]
    """Operations whose vector functions are arguments of the kernel."""
    sequence: tuple["Call", ...]
    """The calls in order."""
    scratch: tuple[Leaf, ...]
    """Rows of numbers between the calls."""
    products: tuple[Leaf, ...]
    """Rows of the results of matrix products."""
    operations: frozenset[str]
    """The operations that vector functions compute."""
    long: bool
    """Whether the pass has at least `LONG` values."""


def row_pass(
    name: str,
    stores: Stores,
    number: type[Pointer],
    calls: frozenset[str],
    *,
    sequences: frozenset[Leaf] = frozenset(),
    nontemporal: bool = False,
    aligned: bool = True,
) -> Pass:
    """Cuts a pass at vector functions and matrix products, and writes its functions of rows.

    Args:
        name: the prefix of the names of the functions.
        stores: the values that the pass computes, by their row.
        number: the pointer type of numbers.
        calls: operations whose vector functions are arguments of the kernel.
        sequences: rows of sequences, which are prefetched.
        nontemporal: whether rows of numbers of sequences are written by non-temporal stores.
        aligned: whether rows begin at neurons whose numbers are multiples of a vector's.
    """
    cutter = _Cutter(name, stores, number, calls, sequences, nontemporal, aligned)
    cutter.cut()
    return Pass(
        leaves=leaves(stores),
        calls=calls,
        sequence=tuple(cutter.sequence),
        scratch=tuple(cutter.scratch),
        products=tuple(cutter.products),
        operations=frozenset(cutter.operations),
        long=cutter.long,
    )


class _Cutter:
    """Cuts a pass into calls: of functions of rows, of vector functions, and of matrix products.

    The arguments are those of :func:`row_pass`.
    """

    def __init__(
        self,
        name: str,
        stores: Stores,
        number: type[Pointer],
        calls: frozenset[str],
        sequences: frozenset[Leaf],
        nontemporal: bool,
        aligned: bool,
    ) -> None:
        self.name, self.number, self.sequences = name, number, sequences
        self.nontemporal, self.aligned = nontemporal, aligned
        self.stores = _Lowering(calls, in_loop=number is Floats).rewrite(stores)
        """What remains to be computed."""
        self.long = len(reachable(self.stores.values())) >= LONG
        self.functions = 0
        """The number of functions."""
        self.sequence: list[Call] = []
        self.scratch: list[Leaf] = []
        self.products: list[Leaf] = []
        self.operations: set[str] = set()

    def cut(self) -> None:
        """Adds all calls of the pass in order."""
        while cuts := _first_cuts(self.stores):  # the vector functions and products that can be called next
            self._add_calls_of(cuts)
        self._add_function(self.stores)

    def _add_calls_of(self, cuts: list[Value]) -> None:
        """Adds a function that computes the operands of `cuts`, and their calls; then `cuts` are rows."""
        operands = [(cut, operand) for cut in cuts for operand in _row_operands(cut)]
        scratch = self._rows(len(operands))
        rows_of: dict[Value, list[Leaf]] = {}
        computed: Stores = {}
        for row, (cut, operand) in zip(scratch, operands, strict=True):
            rows_of.setdefault(cut, []).append(row)
            if not _reads_row(cut):
                computed[row] = operand
        shared = _shared_values(self.stores, computed.values()) if self.long else []
        shared_rows = dict(zip(self._rows(len(shared), scratch), shared, strict=True))
        self._add_function(computed | shared_rows)
        results = {cut: Value("row", leaf=self._add_call(rows, cut)) for cut, rows in rows_of.items()}
        for row, value in shared_rows.items():
            results[value] = Value("bits" if value.boolean else "row", leaf=row)
        self.stores = substitute(self.stores, results)

    def _rows(self, count: int, reserved: Container[Leaf] = ()) -> list[Leaf]:
        """`count` scratch rows that no later call reads and that are not `reserved`."""
        in_use = leaves(self.stores) if self.long else self.scratch
        free = [row for row in self.scratch if row not in in_use and row not in reserved][:count]
        first = len(self.scratch)
        new = [Leaf("scratch", first + i) for i in range(count - len(free))]
        self.scratch += new
        return free + new

    def _add_call(self, rows: list[Leaf], value: Value) -> Leaf:
        """Adds the call that computes `value`, a vector function or product; returns the row of its result.

        `rows` hold its arguments.
        """
        if not value.is_product:
            self.operations.add(value.op)
            self.sequence.append(Call(value.op, rows))
            return rows[0]
        result = Leaf("product", len(self.products))
        self.products.append(result)
        operand = value.args[0].leaf if _reads_row(value) else rows[0]
        mask = [gate.leaf for gate in value.args[1:]]
        self.sequence.append(Call("product", [operand, *mask, result], matrix=value.data))
        return result

    def _add_function(self, stores: Stores) -> None:
        """Adds a function that computes `stores`, and its call; nothing if `stores` is empty."""
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
    rows: list[Leaf]
    """The arguments of a function; for a product its operand, the mask of its result or nothing, its
    result."""
    scalars: list[Leaf] = field(default_factory=list)
    """The function's scalar arguments."""
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
