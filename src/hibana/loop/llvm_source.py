"""The source of the CPU kernels: a step's passes in LLVM's language, and the walk over rows and time.

The loop runs over memory: a *row* is a stretch of neurons whose state stays in the first-level cache
while all T steps run over it. Where a row is whole, two steps are done at once, and the state between them
stays in registers. Words that PyTorch computes by a library's vector functions are computed by the same
functions, a row at a time.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from hibana.loop.llvm_text import LANES, Writer, body, libm_row, named, splat
from hibana.loop.passes import Stores, backward_pass, before_pass, forward_pass, leaves, substitute
from hibana.loop.plan import Plan, evaluated
from hibana.loop.trace import Step, Value
from hibana.loop.words import CALLS

__all__ = ["ROW", "Source", "backward_source", "forward_source"]

ROW = 512
"""Neurons in a row at most; a multiple of 64. Rows of this and the next step fit in a first-level cache."""

REAL = {"float32": "float", "float64": "double"}


@dataclass(frozen=True)
class Source:
    """A kernel's source, and what its arguments are, in order."""

    text: str
    arguments: tuple[str, ...]


@dataclass
class _Pass:
    """The functions that do a pass over one row, and the calls by which the kernel does it."""

    name: str
    stores: Stores
    real: str
    calls: frozenset[str]
    """Words whose vector functions the kernel is given; the C library stands in for the others."""
    functions: list[str] = field(default_factory=list)
    does: list[tuple[str, list[str], list[str]]] = field(default_factory=list)
    """What to call, with which rows and with which scalars."""
    scratch: list[str] = field(default_factory=list)
    """Rows of the pass's own, of numbers."""
    called: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.leaves = leaves(self.stores)
        stores = _spelled_out(self.stores)
        while ready := _ready(stores):
            arguments = {f"{self.name}.{len(self.scratch) + i}": v.args[0] for i, v in enumerate(ready)}
            self._function(arguments)
            self.called |= {value.word for value in ready}
            for name, value in zip(arguments, ready, strict=True):
                self.does.append((value.word, [name], []))
            results = {v: Value("row", data=name) for name, v in zip(arguments, ready, strict=True)}
            stores = substitute(stores, results)
            self.scratch += arguments
        if stores:
            self._function(stores)

    def _function(self, stores: Stores) -> None:
        read = leaves(stores)
        rows = list(dict.fromkeys([*(n for n, leaf in read.items() if leaf.word != "scalar"), *stores]))
        scalars = [name for name, leaf in read.items() if leaf.word == "scalar"]
        name = f"{self.name}{len(self.functions) or ''}"
        self.functions.append(_row_function(name, self.real, stores, rows, scalars))
        self.does.append((f"@{name}", rows, scalars))


def _spelled_out(stores: Stores) -> Stores:
    """`stores` in words that LLVM or a vector function knows: a gradient may ask for the logistic function."""
    new: dict[Value, Value] = {}
    one = Value("number", data=1)
    for value in evaluated(stores.values(), ()):
        if value.word == "sigmoid":
            power = Value("exp", (Value("neg", (new[value.args[0]],)),))
            new[value] = Value("div", (one, Value("add", (one, power))))
        else:
            new[value] = replace(value, args=tuple(new[a] for a in value.args)) if value.args else value
    return {name: new[value] for name, value in stores.items()}


def _ready(stores: Stores) -> list[Value]:
    """Vector calls in `stores` whose argument needs no other."""
    found = [v for v in evaluated(stores.values(), ()) if v.word in CALLS]
    return [v for v in found if not any(a.word in CALLS for a in evaluated(v.args, ()))]


def _row_function(name: str, real: str, stores: Stores, rows: list[str], scalars: list[str]) -> str:
    """A function that computes `stores` for the `n` neurons of a row."""
    arguments = [*(f"ptr {named(row)}" for row in rows), *(f"{real} %{_plain(s)}" for s in scalars), "i64 %n"]
    writer = Writer()
    standing = {s: splat(writer, real, f"%{_plain(s)}", LANES) for s in scalars}
    writer.let("whole", f"and i64 %n, {-LANES}")
    with writer.loop("j", "0", "%whole", LANES) as j:
        writer.let("j.octet", f"lshr i64 {j}, 3")
        body(writer, real, stores, standing, j)
    writer.let("left", "sub i64 %n, %whole")
    writer.let("whole.octet", "lshr i64 %whole, 3")
    writer.let("some", "icmp ne i64 %left, 0")
    with writer.when("tail", "%some"):
        body(writer, real, stores, standing, "%whole", masked="%left")
    writer.do("ret void")
    return "\n".join([f"define internal void @{name}({', '.join(arguments)}) {{", *writer.lines, "}"])


def _plain(scalar: str) -> str:
    """``c[0]`` as a name."""
    return scalar.replace("[", ".").replace("]", "")


@dataclass(frozen=True)
class _Moving:
    """A row that is another one at each step: where its sequence begins, and how far steps are apart."""

    base: str
    stride: str
    bits: bool = False


def forward_source(step: Step, plan: Plan | None, real: str, calls: frozenset[str]) -> Source:
    """The kernel that runs `step` over time and keeps what `plan` says (nothing, if it is None)."""
    once = forward_pass(step, plan)
    *carried, emitted = step.states
    kept = [name for name in once if name not in step.states]
    moving = {"x": _Moving("input", "input_step"), emitted: _Moving("outputs", "neurons")}
    moving |= {name: _sequence(name, once[name].boolean) for name in kept}
    left = {**{name: name for name in carried}, "emitted_before": emitted}
    number = REAL[real]
    single = _Pass("forward_step", _together(once, 1, moving, left), number, calls)
    pair = _pair("forward_two_steps", _together(once, 2, moving, left), number, calls)
    walk = _Walk("forward", number, [single, *([pair] if pair else [])], calls, moving, "add")
    walk.begin(
        step,
        carried,
        ["steps", "neurons", "width", "row_bytes", "input", "input_step", "outputs"],
        [f"{name}_first" for name in step.states],
        [f"{name}_last" for name in carried],
        [f"{name}_all" for name in kept],
    )
    writer = walk.writer
    with walk.rows():
        for name in carried:
            walk.carried(name, f"{name}_last", f"{name}_first")
        begun = walk.either(f"{emitted}_first", "zeros")
        walk.parameters(step)

        def at(t: str) -> dict[str, str]:
            earlier = walk.moved(moving[emitted], writer.let("", f"sub i64 {t}, 1"))
            later = writer.let("", f"icmp sgt i64 {t}, 0")
            return {"emitted_before": writer.let("", f"select i1 {later}, ptr {earlier}, ptr {begun}")}

        walk.steps(single, pair, 0, at if "emitted_before" in single.leaves else lambda t: {})
    return walk.source()


def backward_source(
    step: Step,
    plan: Plan,
    real: str,
    calls: frozenset[str],
    *,
    wants_input: bool,
    constant_input: bool,
) -> Source:
    """The kernel that runs the gradient of `step` back over time.

    Args:
        step: the step.
        plan: what its forward kept.
        real: the dtype of all numbers.
        calls: the words computed by vector functions.
        wants_input: whether the gradient of the input is asked for.
        constant_input: whether that gradient is a sum over time.
    """
    once = backward_pass(step, plan, wants_input=wants_input, constant_input=constant_input)
    before = before_pass(step, plan)
    *carried, emitted = step.states
    kept = {f"kept{i}": v.boolean for i, v in enumerate(plan.kept) if v.word != "input"}
    moving = {"x": _Moving("input", "input_step"), "emitted_grad": _Moving("grad_outputs", "grad_outputs_step")}
    moving |= {name: _sequence(name, boolean) for name, boolean in kept.items()}
    sums = {f"sum{i}": f"sum{i}_all" for i in range(len(step.grad_sums))}
    if wants_input and constant_input:
        sums["x_grad"] = "grad_input"
    elif wants_input:
        moving["x_grad"] = _Moving("grad_input", "neurons")
    held = [*(f"{name}_grad" for name in step.states), *sums]
    left = dict(zip(held, held, strict=True))
    number = REAL[real]
    single = _Pass("backward_step", _together(once, 1, moving, left, before), number, calls)
    pair = _pair("backward_two_steps", _together(once, 2, moving, left, before), number, calls)
    first = _Pass("backward_first_step", _together(once, 1, moving, left), number, calls) if before else None
    walk = _Walk("backward", number, [p for p in (single, pair, first) if p], calls, moving, "sub")
    walk.begin(
        step,
        held,
        ["steps", "neurons", "width", "row_bytes", "input", "input_step"],
        ["grad_outputs", "grad_outputs_step", "grad_input"],
        [f"{name}_first" for name in step.states],
        [f"{name}_last_grad" for name in carried],
        [f"{name}_first_grad" for name in step.states],
        [f"{name}_all" for name in kept],
        [f"sum{i}_all" for i in range(len(step.grad_sums))],
    )
    with walk.rows():
        for name in carried:
            walk.carried(f"{name}_grad", f"{name}_first_grad", f"{name}_last_grad")
        walk.carried(f"{emitted}_grad", f"{emitted}_first_grad")
        for name, base in sums.items():
            walk.carried(name, base)
        walk.parameters(step)
        walk.steps(single, pair, 1 if first else 0, lambda t: {})
        if first:
            begun = {name: walk.either(f"{name.removesuffix('_before')}_first", "zeros") for name in before}
            walk.do(first, "0", lambda t: begun)
    return walk.source()


def _pair(name: str, stores: Stores, real: str, calls: frozenset[str]) -> _Pass | None:
    """Two steps as one function, if nothing of them has to pass through memory."""
    made = _Pass(name, stores, real, calls)
    return made if len(made.does) == 1 else None


def _sequence(name: str, boolean: bool) -> _Moving:
    return _Moving(f"{name}_all", "row_bytes" if boolean else "neurons", boolean)


def _together(
    once: Stores, count: int, moving: Mapping[str, _Moving], left: Mapping[str, str], before: Stores | None = None
) -> Stores:
    """`count` successive passes as one: what one leaves to the next is passed on, not stored and read.

    A row that moves is called ``{name}.0`` at the first step done, ``{name}.1`` at the second, and so on.

    Args:
        once: one pass.
        count: how many.
        moving: the rows that are others at each step.
        left: for a row that one step leaves to the next, the store that it is.
        before: what gives ``{state}_before`` from what was kept a step earlier, if that is wanted.
    """
    known: dict[tuple[str, str], Value] = {}
    together: Stores = {}
    passed: dict[str, Value] = {}
    for i in range(count):

        def standing(value: Value, ahead: int = i) -> Value | None:
            if value.word not in ("row", "bits"):
                return None
            name = str(value.data)
            if name in passed:
                return passed[name]
            own = name.removesuffix("_earlier")
            if own in moving:
                name = f"{own}.{ahead + (own != name)}"
            return known.setdefault((value.word, name), Value(value.word, data=name))

        earlier = _replaced(before or {}, standing)
        now = _replaced(
            once, lambda v, e=earlier, s=standing: (e.get(str(v.data)) if v.word == "row" else None) or s(v)
        )
        together |= {f"{name}.{i}" if name in moving else name: value for name, value in now.items()}
        passed = {leaf: now[store] for leaf, store in left.items() if store in now}
    return together


def _replaced(stores: Stores, replacement: Callable[[Value], Value | None]) -> Stores:
    found = {}
    for value in evaluated(stores.values(), ()):
        other = replacement(value)
        if other is not None:
            found[value] = other
    return substitute(stores, found)


class _Walk:
    """A kernel as it is written: its arguments, the rows of its range, and the steps of each."""

    def __init__(
        self,
        name: str,
        real: str,
        passes: Sequence[_Pass],
        calls: frozenset[str],
        moving: Mapping[str, _Moving],
        direction: str,
    ) -> None:
        self.name = name
        self.real = real
        self.passes = passes
        self.calls = calls
        self.moving = moving
        self.direction = direction
        """``add`` if later steps are done later, else ``sub``."""
        self.writer = Writer()
        self.arguments: list[str] = []

    def begin(self, step: Step, own: Iterable[str], *arguments: Iterable[str]) -> None:
        """Reads the kernel's arguments and constants, and makes the rows called `own`."""
        called = sorted({word for pass_ in self.passes for word in pass_.called} & self.calls)
        self.arguments = [
            *(name for names in arguments for name in names),
            "constants",
            *(f"p{i}_at" for i in range(step.parameters)),
            *(f"{word}_at" for word in called),
        ]
        writer = self.writer
        for i, name in enumerate(self.arguments):
            kind = "i64" if name in _NUMBERS else "ptr"
            writer.let(name, f"load {kind}, ptr {writer.row('', 'ptr', '%args', str(i))}")
        for name in dict.fromkeys(n for p in self.passes for _, _, scalars in p.does for n in scalars):
            array, _, index = name.rstrip("]").partition("[")
            place = writer.row("", self.real, "%constants" if array == "c" else f"%{array}_at", index)
            writer.let(_plain(name), f"load {self.real}, ptr {place}")
        for name in [*(row for pass_ in self.passes for row in pass_.scratch), *map(_own, own), "zeros"]:
            writer.let(name, f"alloca [{ROW} x {self.real}], align 64")
        size = ROW * _SIZE[self.real]
        writer.do(f"call void @llvm.memset.p0.i64(ptr align 64 %zeros, i8 0, i64 {size}, i1 false)")

    @contextmanager
    def rows(self) -> Iterator[None]:
        """What is written meanwhile is done for each row: its first neuron is `lo`, and it has `n`."""
        writer = self.writer
        with writer.loop("row", "%begin", "%end") as row:
            writer.let("lo", f"mul i64 {row}, %width")
            writer.let("lo.octet", "lshr i64 %lo, 3")
            writer.let("rest", "sub i64 %neurons, %lo")
            writer.let("n", "call i64 @llvm.smin.i64(i64 %width, i64 %rest)")
            writer.let("n.bytes", f"mul i64 %n, {_SIZE[self.real]}")
            yield
        writer.do("ret void")

    def either(self, base: str, other: str) -> str:
        """The row in what is at `base`, or the row `other` if that is null."""
        return self.writer.let("", f"call ptr @row_or(ptr {named(base)}, i64 %lo, ptr {named(other)})")

    def carried(self, name: str, base: str, first: str = "") -> None:
        """A row that one step leaves to the next, kept at `base`; it begins as `first`, or as zeros."""
        begun = self.either(first, "zeros") if first else "%zeros"
        row = self.writer.let(name, f"call ptr @row_or(ptr {named(base)}, i64 %lo, ptr {named(_own(name))})")
        self.writer.do(f"call void @llvm.memcpy.p0.p0.i64(ptr {row}, ptr {begun}, i64 %n.bytes, i1 false)")

    def parameters(self, step: Step) -> None:
        """The rows of the parameters that differ from neuron to neuron."""
        read = {name for pass_ in self.passes for name in pass_.leaves}
        for i in range(step.parameters):
            if f"p{i}" in read:
                self.writer.row(f"p{i}", self.real, f"%p{i}_at", "%lo")

    def moved(self, row: _Moving, t: str, ahead: int = 0) -> str:
        """The row of the step done `ahead` steps after `t`."""
        writer = self.writer
        step = writer.let("", f"{self.direction} i64 {t}, {ahead}") if ahead else t
        function, lo = ("bits", "%lo.octet") if row.bits else ("row", "%lo")
        return writer.let("", f"call ptr @{function}(ptr %{row.base}, i64 {step}, i64 %{row.stride}, i64 {lo})")

    def steps(self, single: _Pass, pair: _Pass | None, lowest: int, at: Callable[[str], Mapping[str, str]]) -> None:
        """All steps down to `lowest`, two at once where a row is whole; `at` gives rows of its own to a step."""
        writer = self.writer
        count = writer.let("count", f"sub i64 %steps, {lowest}")
        done = "0"
        if pair is not None:
            left = writer.let("", f"and i64 %n, {LANES - 1}")
            whole = writer.let("", f"icmp eq i64 {left}, 0")
            half = writer.let("", f"lshr i64 {count}, 1")
            pairs = writer.let("pairs", f"select i1 {whole}, i64 {half}, i64 0")
            with writer.loop("pair", "0", pairs) as i:
                self.do(pair, self._step(writer.let("", f"shl i64 {i}, 1")), at)
            done = writer.let("", f"shl i64 {pairs}, 1")
        with writer.loop("single", done, count) as i:
            self.do(single, self._step(i), at)

    def _step(self, done: str) -> str:
        if self.direction == "add":
            return done
        return self.writer.let("", f"sub i64 {self.writer.let('', 'sub i64 %steps, 1')}, {done}")

    def do(self, pass_: _Pass, t: str, at: Callable[[str], Mapping[str, str]]) -> None:
        """The calls that do `pass_` at step `t`."""
        places = dict(at(t))
        for function, rows, scalars in pass_.does:
            for name in rows:
                own, _, ahead = name.rpartition(".")
                if name not in places:
                    moves = own in self.moving
                    places[name] = self.moved(self.moving[own], t, int(ahead)) if moves else named(name)
            given = [places[name] for name in rows]
            if function in CALLS:
                self._vector_call(function, given[0])
            else:
                said = [*(f"ptr {row}" for row in given), *(f"{self.real} %{_plain(s)}" for s in scalars)]
                self.writer.do(f"call void {function}({', '.join([*said, 'i64 %n'])})")

    def _vector_call(self, word: str, row: str) -> None:
        count = self.writer.let("", "trunc i64 %n to i32")
        function = f"%{word}_at" if word in self.calls else f"@{word}_row"
        self.writer.do(f"call void {function}(i32 {count}, ptr {row}, ptr {row}, i64 {ACCURATE})")

    def source(self) -> Source:
        """The kernel and its functions, as a module."""
        used = {word for pass_ in self.passes for word in pass_.called} - self.calls
        parts = [
            *(_place(name, kind) for name, kind in (("row", self.real), ("bits", "i8"))),
            _ROW_OR.format(real=self.real),
            *(libm_row(word, self.real) for word in sorted(used)),
            *(function for pass_ in self.passes for function in pass_.functions),
            "\n".join([f"define void @{self.name}(i64 %begin, i64 %end, ptr %args) {{", *self.writer.lines, "}"]),
        ]
        return Source("\n\n".join(parts) + "\n", tuple(self.arguments))


def _place(name: str, kind: str) -> str:
    """A function: where the row of step `t` is in a sequence whose steps are `stride` elements apart."""
    return (
        f"define internal ptr @{name}(ptr %base, i64 %t, i64 %stride, i64 %lo) alwaysinline {{\n"
        "  %before = mul i64 %t, %stride\n"
        "  %index = add i64 %before, %lo\n"
        f"  %place = getelementptr {kind}, ptr %base, i64 %index\n"
        "  ret ptr %place\n"
        "}"
    )


_ROW_OR = """define internal ptr @row_or(ptr %base, i64 %lo, ptr %other) alwaysinline {{
  %there = icmp ne ptr %base, null
  %place = getelementptr {real}, ptr %base, i64 %lo
  %chosen = select i1 %there, ptr %place, ptr %other
  ret ptr %chosen
}}"""


def _own(name: str) -> str:
    return f"{name}.own"


_NUMBERS = frozenset(
    {"steps", "neurons", "width", "row_bytes", "input_step", "grad_outputs_step"}
)
_SIZE = {"float": 4, "double": 8}
ACCURATE = 0x2 | 0x100 | 0x140000
"""What PyTorch asks of MKL: high accuracy, errors ignored, denormals kept."""
