"""The functions of a CPU kernel that work on one row of neurons: one step, or several at once.

A pass (``graph.passes``) becomes a function of rows. Where it calls a library's vector function, it
is cut there, and a row of numbers goes from one part to the next; where it calls none, several steps are made
one function, and what a step leaves to the next stays in registers.
"""

from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from hibana.loop.cpu.body import LANES, Writer, body, named, splat
from hibana.loop.graph.ops import CALLS, OPERATIONS, Written
from hibana.loop.graph.passes import Stores, leaves, substitute
from hibana.loop.graph.plan import evaluated
from hibana.loop.graph.step import Value

__all__ = ["AT_ONCE", "Call", "Moving", "Parts", "Pass", "kernel_says", "plain"]

AT_ONCE = 4
"""Steps done at once: each reads its input and writes its output, and all share one pass over the state."""


LONG = 256
"""Values from which on a pass is written so that it compiles soon: what one part computed, the next reads,
and whole blocks of neurons are done by the code for a part of one."""

FEW_RECOMPUTED = 4
"""Values that a part of a long pass recomputes rather than reads."""


@dataclass(frozen=True)
class Moving:
    """A row that is another one at each step: where its sequence begins, and how far steps are apart."""

    base: str
    stride: str
    bits: bool = False


@dataclass(eq=False)
class Pass:
    """The functions that do a pass over one row, and the calls by which the kernel does it."""

    name: str
    stores: Stores
    real: str
    calls: frozenset[str]
    """Operations whose vector functions the kernel is given; the C library stands in for the others."""
    nontemporal: frozenset[str] = frozenset()
    """The rows that are written by non-temporal stores."""
    ahead: frozenset[str] = frozenset()
    """The rows that come from memory, and of which what follows is asked for."""
    functions: list[str] = field(default_factory=list)
    does: list["Call"] = field(default_factory=list)
    """What to call, in this order."""
    scratch: list[str] = field(default_factory=list)
    """Rows of the pass's own, of numbers."""
    products: list[str] = field(default_factory=list)
    """Rows of the pass's own that products are written to."""
    called: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.leaves = leaves(self.stores)
        stores = _spelled_out(self.stores, self.calls)
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
        """Names of `count` rows of the pass's own: those that `stores` don't need, then new ones."""
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
        read = leaves(stores)
        rows = list(dict.fromkeys([*(n for n, leaf in read.items() if leaf.op != "scalar"), *stores]))
        scalars = [name for name, leaf in read.items() if leaf.op == "scalar"]
        name = f"{self.name}{len(self.functions) or ''}"
        if self.long:
            function = _short_function(name, self.real, stores, rows, scalars)
        else:
            function = _row_function(name, self.real, stores, rows, scalars, self.nontemporal, self.ahead)
        self.functions.append(function)
        self.does.append(Call(f"@{name}", rows, scalars))


@dataclass(frozen=True)
class Call:
    """What is done to rows: a function of the pass's own (``@name``), a vector function, or ``product``."""

    function: str
    rows: list[str]
    """A product's are its operand, the bits of where it matters if it doesn't everywhere, and its result."""
    scalars: list[str] = field(default_factory=list)
    matrix: int = 0


def is_long(stores: Stores) -> bool:
    """Whether `stores` take :data:`LONG` values or more."""
    return len(evaluated(stores.values(), ())) >= LONG


def _handed_over(stores: Stores, roots: Iterable[Value]) -> list[Value]:
    """What of the values behind `roots` is to be left for the rest of `stores`, which uses it as well."""
    here = [value for value in evaluated(roots, ()) if value.args]
    inside = set(here)
    everything = evaluated(stores.values(), ())
    wanted = {*stores.values(), *(a for v in everything if v not in inside for a in v.args)}
    recomputed: dict[Value, int] = {}
    """How many values are recomputed where this one is."""
    handed = []
    for value in here:
        recomputed[value] = 1 + sum(recomputed.get(argument, 0) for argument in value.args)
        if value in wanted and recomputed[value] >= FEW_RECOMPUTED:
            handed.append(value)
            recomputed[value] = 0
    return handed


def _spelled_out(stores: Stores, calls: Container[str]) -> Stores:
    """`stores` in operations that LLVM or a vector function knows, and that wait least for what was compared.

    What no function of `calls` computes is written out, as its row of the table says. A factor that is a
    truth value, 0 or 1, chooses instead: ``x * s`` is ``x`` where s holds and ``x * 0`` elsewhere, to the
    last bit, and that product waits for nothing.
    """
    new: dict[Value, Value] = {}
    zero = Value("number")
    for value in evaluated(stores.values(), ()):
        args = tuple(new[a] for a in value.args)
        if value.op not in calls and (row := OPERATIONS.get(value.op)) and row.written:
            new[value] = _written(row.written, args)
        elif value.op == "sub" and _is_one(args[0]) and args[1].op == "to_float":
            new[value] = Value("to_float", (Value("not", args[1].args),))
        elif value.op == "mul" and any(a.op == "to_float" for a in args):
            gate, other = args if args[0].op == "to_float" else args[::-1]
            new[value] = Value("where", (gate.args[0], other, Value("mul", (other, zero))))
        else:
            new[value] = replace(value, args=args) if args else value
    return {name: new[value] for name, value in stores.items()}


def _written(how: Written, args: tuple[Value, ...]) -> Value:
    """What a row of the table has as `how` it is written, of `args`."""
    if isinstance(how, tuple):
        return Value(how[0], tuple(_written(part, args) for part in how[1:]))
    return args[int(how[1:-1])] if how.startswith("{") else Value("number", data=int(how))


def kernel_says(op: str) -> bool:
    """Whether a kernel computes `op` with no function given: it is written out, or the C library does."""
    row = OPERATIONS[op]
    return bool(row.written or (row.libm and row.arity == 1))


def _is_one(value: Value) -> bool:
    return value.op == "number" and value.data == 1


def _operands(value: Value) -> tuple[Value, ...]:
    """What a function or a product takes as rows; the rest of a product's arguments are bits."""
    return value.args[:1] if value.op == "product" else value.args


_CUTS = CALLS | {"product"}
"""What is computed a whole row at a time."""


def _ready(stores: Stores) -> list[Value]:
    """Vector calls and products in `stores` whose argument needs no other."""
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
    """Whether a product's operand is a row that need not be written first."""
    return value.op == "product" and len(value.args) == 1 and value.args[0].op == "row"


def _short_function(name: str, real: str, stores: Stores, rows: list[str], scalars: list[str]) -> str:
    """As :func:`_row_function`, in a third of the code: each block is done as if it were a part of one."""
    writer = Writer()
    standing = {s: splat(writer, real, f"%{plain(s)}", LANES) for s in scalars}
    with writer.loop("j", "0", "%n", LANES) as j:
        writer.let("j.octet", f"lshr i64 {j}, 3")
        writer.let("left", f"sub i64 %n, {j}")
        body(writer, real, stores, standing, j, masked="%left")
    writer.do("ret void")
    return _defined(name, real, rows, scalars, writer)


def _row_function(
    name: str,
    real: str,
    stores: Stores,
    rows: list[str],
    scalars: list[str],
    nontemporal: frozenset[str],
    ahead: frozenset[str],
) -> str:
    """A function that computes `stores` for `n` neurons of a row, the last `in_reverse` last to first."""
    writer = Writer()
    standing = {s: splat(writer, real, f"%{plain(s)}", LANES) for s in scalars}
    writer.let("whole", f"and i64 %n, {-LANES}")
    forth = writer.let("", "sub i64 %whole, %in_reverse")
    writer.let("turn", f"call i64 @llvm.smax.i64(i64 {forth}, i64 0)")
    with writer.loop("j", "0", "%turn", LANES) as j:
        writer.let("j.octet", f"lshr i64 {j}, 3")
        body(writer, real, stores, standing, j, nontemporal=nontemporal, ahead=ahead)
    writer.let("end", f"sub i64 %whole, {LANES}")
    writer.let("length", "sub i64 %whole, %turn")
    with writer.loop("i", "0", "%length", LANES) as i:
        j = writer.let("back.j", f"sub i64 %end, {i}")
        writer.let("back.j.octet", f"lshr i64 {j}, 3")
        body(writer, real, stores, standing, j, nontemporal=nontemporal)
    writer.let("left", "sub i64 %n, %whole")
    writer.let("whole.octet", "lshr i64 %whole, 3")
    writer.let("some", "icmp ne i64 %left, 0")
    with writer.when("tail", "%some"):
        body(writer, real, stores, standing, "%whole", masked="%left")
    writer.do("ret void")
    return _defined(name, real, rows, scalars, writer)


def _defined(name: str, real: str, rows: list[str], scalars: list[str], writer: Writer) -> str:
    arguments = [
        *(f"ptr {named(row)}" for row in rows),
        *(f"{real} %{plain(s)}" for s in scalars),
        "i64 %n",
        "i64 %in_reverse",
    ]
    return "\n".join([f"define internal void @{name}({', '.join(arguments)}) {{", *writer.lines, "}"])


def plain(scalar: str) -> str:
    """``c[0]`` as a name."""
    return scalar.replace("[", ".").replace("]", "")


@dataclass(frozen=True)
class Parts:
    """The passes that a walk over time is made of: one step or several, at the edge of time or inside.

    The step at time 0 is at the *edge*: the states before it are those that the run begins with, and are read
    from where they were given; inside they come from what another step left.
    """

    name: str
    once: Stores
    moving: Mapping[str, Moving]
    left: Mapping[str, str]
    """For a row that one step leaves to the next, the store that it is."""
    inner: Stores
    """For each leaf that is another one at the edge, what it is inside."""
    real: str
    calls: frozenset[str]
    nontemporal: bool
    earlier: int
    """How many steps later than a step the one before it in time is done: 1 going back, else -1."""

    @cached_property
    def before(self) -> Pass | None:
        """For a long step, a pass for what is another at the edge, where the step is then the same."""
        if not self.inner or not is_long(self._together(1, edge=False)):
            return None
        made = Pass(
            f"{self.name}_before", _replaced(self.inner, {}, self._standing(0, {}, {})), self.real, self.calls
        )
        made.scratch += self.inner
        return made

    @cached_property
    def step(self) -> Pass:
        """One step, inside."""
        return self._pass("step", 1, edge=self.before is not None)

    @cached_property
    def steps(self) -> Pass | None:
        """Several, if nothing of them has to pass through memory."""
        short = len(self.step.does) == 1 and not self.step.long
        return self._pass("steps", AT_ONCE, edge=False) if short else None

    @cached_property
    def edge_step(self) -> Pass | None:
        """One step at time 0, if that differs."""
        if self.before is not None:
            return self.step
        return self._pass("edge_step", 1, edge=True) if self.inner else None

    @cached_property
    def edge_steps(self) -> Pass | None:
        """Several of which one is at time 0."""
        return self._pass("edge_steps", AT_ONCE, edge=True) if self.inner and self.steps else None

    def all(self) -> list[Pass]:
        """Those that there are."""
        parts = (self.before, self.step, self.steps, self.edge_step, self.edge_steps)
        return list(dict.fromkeys(part for part in parts if part))

    def single(self) -> list[Pass]:
        """Those that do one step."""
        return list(dict.fromkeys(part for part in (self.before, self.step, self.edge_step) if part))

    def _pass(self, name: str, count: int, *, edge: bool) -> Pass:
        stores = self._together(count, edge=edge)
        ahead = frozenset(r for r in (*leaves(stores), *stores) if r.rpartition(".")[0] in self.moving)
        nontemporal = ahead & stores.keys() if self.nontemporal and count > 1 else frozenset()
        return Pass(f"{self.name}_{name}", stores, self.real, self.calls, nontemporal, ahead)

    def _together(self, count: int, *, edge: bool) -> Stores:
        """`count` successive steps as one: what one leaves to the next is passed on, not stored and read.

        A row that moves is called ``{name}.0`` at the first step done, ``{name}.1`` at the second, and so on.
        """
        known: dict[tuple[str, str], Value] = {}
        together: Stores = {}
        now: Stores = {}
        passed: dict[str, Value] = {}
        at_edge = (0 if self.earlier < 0 else count - 1) if edge else None
        for i in range(count):
            standing = self._standing(i, passed, known)
            inside = {} if i == at_edge else {k: v for k, v in self.inner.items() if k not in passed}
            now = _replaced(self.once, _replaced(inside, {}, standing), standing)
            together |= {f"{name}.{i}": v for name, v in now.items() if name in self.moving}
            passed = {leaf: now[store] for leaf, store in self.left.items() if store in now}
        return together | {name: v for name, v in now.items() if name not in self.moving}

    def _standing(
        self, ahead: int, passed: Mapping[str, Value], known: dict[tuple[str, str], Value]
    ) -> Callable[[Value], Value | None]:
        """What stands for each row in the step done `ahead` steps after the first, by its name there."""

        def standing(value: Value) -> Value | None:
            if value.op not in ("row", "bits"):
                return None
            name = str(value.data)
            if name in passed:
                return passed[name]
            own = name.removesuffix("_earlier")
            if own in self.moving:
                name = f"{own}.{ahead if own == name else ahead + self.earlier}"
            return known.setdefault((value.op, name), Value(value.op, data=name))

        return standing


def _replaced(
    stores: Stores, named: Mapping[str, Value], standing: Callable[[Value], Value | None]
) -> Stores:
    """`stores` with each leaf replaced by the one of `named`, or by what `standing` says."""
    found = {}
    for value in evaluated(stores.values(), ()):
        other = named.get(str(value.data)) if value.op in ("row", "bits") else None
        other = other or standing(value)
        if other is not None:
            found[value] = other
    return substitute(stores, found)
