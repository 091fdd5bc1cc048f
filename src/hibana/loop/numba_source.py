"""The source of the CPU kernels: a step's passes in Numba, and the walk over rows and time around them.

The loop runs over memory: a *row* is a stretch of neurons whose state stays in the first-level cache
while all T steps run over it. One step of one row is a small function that LLVM vectorises. Words that
PyTorch computes by a library's vector functions are computed by the same functions, a row at a time.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from hibana.loop.emit import Dialect, statements
from hibana.loop.passes import Stores, backward_pass, before_pass, forward_pass, leaves, substitute
from hibana.loop.plan import Plan, evaluated
from hibana.loop.trace import Step, Value
from hibana.loop.words import CALLS

__all__ = ["ROW", "Source", "backward_source", "forward_source"]

ROW = 512
"""Neurons in a row at most; a multiple of 64. Rows of this and the next step fit in a first-level cache."""

_SIGNS = {
    **{"add": "+", "sub": "-", "mul": "*", "div": "/", "and": "&", "or": "|", "xor": "^"},
    **{"gt": ">", "ge": ">=", "lt": "<", "le": "<=", "eq": "==", "ne": "!="},
}
NUMBA = Dialect(
    words={
        **{word: f"({{0}} {sign} {{1}})" for word, sign in _SIGNS.items()},
        **{word: f"np.{name}({{0}})" for word, name in {**{w: w for w in CALLS}, "atan": "arctan"}.items()},
        **{word: f"math.{word}({{0}})" for word in ("erf", "erfc")},
        **{word: f"np.{word}({{0}})" for word in ("floor", "ceil", "trunc")},
        "root": "np.sqrt({0})",
        "not": "(not {0})",
        "neg": "(-{0})",
        "abs": "abs({0})",
        "sign": "(real({0} > real(0)) - real({0} < real(0)))",
        "maximum": "({0} if ({0} > {1}) | ({0} != {0}) else {1})",
        "minimum": "({0} if ({0} < {1}) | ({0} != {0}) else {1})",
        "where": "({1} if {0} else {2})",
        "to_float": "real({0})",
        "to_bool": "({0} != real(0))",
        "sigmoid": "(real(1) / (real(1) + np.exp(-{0})))",
    },
    number="real({0})",
)


@dataclass(frozen=True)
class Source:
    """A kernel's source, and what its arguments are, in order."""

    text: str
    arguments: tuple[str, ...]


@dataclass
class _Pass:
    """The functions that do a pass over one row, and the lines with which the kernel calls them."""

    name: str
    stores: Stores
    calls: frozenset[str]
    functions: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    rows: int = 0
    """Scratch rows, of numbers."""
    called: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.leaves = leaves(self.stores)
        stores = self.stores
        while ready := self._ready(stores):
            arguments = {f"{self.name}_{self.rows + i}": v.args[0] for i, v in enumerate(ready)}
            self._function(arguments)
            self.called |= {value.word for value in ready}
            for name, value in zip(arguments, ready, strict=True):
                self.lines.append(f"call_1({value.word}_at, n, {name}_at, {name}_at)")
            results = {v: Value("row", data=name) for name, v in zip(arguments, ready, strict=True)}
            stores = substitute(stores, results)
            self.rows += len(ready)
        if stores:
            self._function(stores)

    def _ready(self, stores: Stores) -> list[Value]:
        """Vector calls in `stores` whose argument needs no other."""
        found = [v for v in evaluated(stores.values(), ()) if v.word in self.calls]
        return [v for v in found if not any(a.word in self.calls for a in evaluated(v.args, ()))]

    def _function(self, stores: Stores) -> None:
        read = leaves(stores)
        rows = [name for name, leaf in read.items() if leaf.word != "scalar"]
        scalars = {name: f"k{i}" for i, name in enumerate(n for n, v in read.items() if v.word == "scalar")}
        standing = scalars | {name: f"{name}_j" for name in rows}
        lines, results = statements(stores, standing, NUMBA)
        arguments = [
            *dict.fromkeys([*rows, *stores]),
            *dict.fromkeys(s.partition("[")[0] for s in scalars),
            "n",
        ]
        name = f"{self.name}_step{len(self.functions) or ''}"
        body = [
            *(f"{row}_j = {row}[j]{' != 0' if read[row].boolean else ''}" for row in rows),
            *lines,
            *(_store(store, stores[store], result) for store, result in results.items()),
        ]
        self.functions.append(
            _indented(
                f"@function\ndef {name}({', '.join(arguments)}):",
                [*(f"{k} = {text}" for text, k in scalars.items()), "for j in range(n):", _block(body)],
            )
        )
        self.lines.append(f"{name}({', '.join(arguments)})")

    def scratch(self) -> list[str]:
        """The lines that set up this pass's own rows."""
        names = [f"{self.name}_{i}" for i in range(self.rows)]
        return [line for name in names for line in _scratch_row(name)]


def forward_source(step: Step, plan: Plan | None, real: str, calls: frozenset[str]) -> Source:
    """The kernel that runs `step` over time and keeps what `plan` says (nothing, if it is None)."""
    body = _Pass("forward", forward_pass(step, plan), calls)
    *carried, emitted = step.states
    kept = {name: value for name, value in body.stores.items() if name not in step.states}
    bits = [name for name, value in kept.items() if value.boolean]
    reals = [f"{name}_all" for name, value in kept.items() if not value.boolean]
    arguments = (
        *("steps", "neurons", "width", "row_bytes", "input", "input_step", "outputs"),
        *(f"{name}_first" for name in step.states),
        *(f"{name}_last" for name in carried),
        *(f"{name}_all" for name in kept),
        *_shared_arguments(step, body.called),
    )
    earlier = f"outputs + ((t - 1) * neurons + lo) * SIZE if t > 0 else {_or_zeros(f'{emitted}_first')}"
    text = _kernel(
        "forward",
        arguments,
        once=[
            *_constants(step),
            *body.scratch(),
            *(f"{name} = bytes_at(scratch({ROW}), {ROW})" for name in bits),
            *(f"{name}_own_at = scratch({ROW} * 8)" for name in carried),
            *_zeros(),
        ],
        per_row=[
            *(line for name in carried for line in _started(name, f"{name}_last", f"{name}_first", own=True)),
            *_parameter_rows(body.leaves),
        ],
        steps="range(steps)",
        per_step=[
            "ahead = min(t + 1, steps - 1)",
            *(_prefetched("prefetch", base, stride) for base, stride in _streams(body.leaves, [])),
            *(_prefetched("prefetch_to_write", base, "neurons") for base in ("outputs", *reals)),
            *_row_if("x" in body.leaves, "x", "input", "input_step"),
            _row(emitted, "outputs", "neurons"),
            *([f"emitted_before = reals_at({earlier}, n)"] if "emitted_before" in body.leaves else []),
            *(_row(name, f"{name}_all", "neurons") for name in kept if name not in bits),
            *body.lines,
            *(f"pack({name}, {_bits(name, 't')}, n)" for name in bits),
        ],
    )
    return Source(_module(real, body.functions, text), arguments)


def backward_source(
    step: Step, plan: Plan, real: str, calls: frozenset[str], *, wants_input: bool, constant_input: bool
) -> Source:
    """The kernel that runs the gradient of `step` back over time; see :func:`backward_pass`."""
    before = _Pass("before", before_pass(step, plan), calls)
    stores = backward_pass(step, plan, wants_input=wants_input, constant_input=constant_input)
    body = _Pass("backward", stores, calls)
    *carried, emitted = step.states
    kept = {f"kept{i}": value for i, value in enumerate(plan.kept) if value.word != "input"}
    bits = [name for name, value in kept.items() if value.boolean]
    reals = [name for name, value in kept.items() if not value.boolean]
    sums = [f"sum{i}" for i in range(len(step.grad_sums))]
    arguments = (
        *("steps", "neurons", "width", "row_bytes", "input", "input_step"),
        *("grad_outputs", "grad_outputs_step", "grad_input"),
        *(f"{name}_first" for name in step.states),
        *(f"{name}_last_grad" for name in carried),
        *(f"{name}_first_grad" for name in step.states),
        *(f"{name}_all" for name in kept),
        *(f"{name}_all" for name in sums),
        *_shared_arguments(step, before.called | body.called),
    )
    rebuilt = list(before.stores)
    ahead = [name for name in bits if f"{name}_earlier" in before.leaves]
    sums_input, writes_input = wants_input and constant_input, wants_input and not constant_input
    read = {**before.leaves, **body.leaves}
    text = _kernel(
        "backward",
        arguments,
        once=[
            *_constants(step),
            *before.scratch(),
            *body.scratch(),
            *(f"{name}_flip = scratch({2 * ROW})" for name in bits),
            *(line for name in rebuilt for line in _scratch_row(f"{name.removesuffix('_before')}_rebuilt")),
            *(f"{name}_grad_own_at = scratch({ROW} * 8)" for name in step.states),
            *_zeros(),
        ],
        per_row=[
            *(
                line
                for s in carried
                for line in _started(f"{s}_grad", f"{s}_first_grad", f"{s}_last_grad", own=True)
            ),
            *_started(f"{emitted}_grad", f"{emitted}_first_grad", own=True),
            *(line for name in sums for line in _started(name, f"{name}_all")),
            *(_started("x_grad", "grad_input") if sums_input else []),
            *_parameter_rows(read),
            *(f"unpack({_bits(name, 'steps - 1')}, {_flip(name, 'steps - 1')}, n)" for name in ahead),
        ],
        steps="range(steps - 1, -1, -1)",
        per_step=[
            f"ahead = max(t - {2 if rebuilt else 1}, 0)",
            *(_prefetched("prefetch", base, stride) for base, stride in _streams(read, reals)),
            *(f"prefetch({name}_all + ahead * row_bytes + lo // 8, n // 8 + 1)" for name in bits),
            "ahead = max(t - 1, 0)",
            _prefetched("prefetch", "grad_outputs", "grad_outputs_step"),
            *([_prefetched("prefetch_to_write", "grad_input", "neurons")] if writes_input else []),
            _row("emitted_grad", "grad_outputs", "grad_outputs_step"),
            *_row_if(writes_input, "x_grad", "grad_input", "neurons"),
            *_row_if("x" in body.leaves, "x", "input", "input_step"),
            *(f"{name} = {_flip(name, 't')}" for name in bits),
            *(f"unpack({_bits(name, 't')}, {name}, n)" for name in bits if name not in ahead),
            *(_row(name, f"{name}_all", "neurons") for name in reals),
            *_earlier(before, ahead, rebuilt),
            *body.lines,
        ],
    )
    return Source(_module(real, [*before.functions, *body.functions], text), arguments)


def _earlier(before: _Pass, bits: list[str], rebuilt: list[str]) -> list[str]:
    """The states before step t: from what was kept at t - 1, or the state that the run began with."""
    if not before.stores:
        return []
    needed = {
        name.removesuffix("_earlier"): leaf for name, leaf in before.leaves.items() if "_earlier" in name
    }
    rows = [
        (name, *(("input", "input_step") if name == "x" else (f"{name}_all", "neurons")))
        for name, leaf in needed.items()
        if leaf.word == "row"
    ]
    states = [name.removesuffix("_before") for name in rebuilt]
    return [
        "if t > 0:",
        _block(
            [
                *(f"{name}_earlier = {_flip(name, 't - 1')}" for name in bits),
                *(f"unpack({_bits(name, 't - 1')}, {name}_earlier, n)" for name in bits),
                *(_row(f"{name}_earlier", base, stride, "t - 1") for name, base, stride in rows),
                *(f"{name}_before = {name}_rebuilt" for name in states),
                *before.lines,
            ]
        ),
        "else:",
        _block([f"{name}_before = reals_at({_or_zeros(f'{name}_first')}, {ROW})" for name in states]),
    ]


def _shared_arguments(step: Step, calls: Iterable[str]) -> tuple[str, ...]:
    return (
        "constants",
        *(f"p{i}_at" for i in range(step.parameters)),
        *(f"{word}_at" for word in sorted(calls)),
    )


def _constants(step: Step) -> list[str]:
    return [
        f"c = reals_at(constants, {max(1, len(step.constants))})",
        *(f"p{i} = reals_at(p{i}_at, 1)" for i in range(step.parameters)),
    ]


def _parameter_rows(read: Mapping[str, Value]) -> list[str]:
    names = [
        name for name, leaf in read.items() if leaf.word == "row" and name[0] == "p" and name[1:].isdigit()
    ]
    return [f"{name} = reals_at({name}_at + lo * SIZE, n)" for name in names]


def _row(name: str, base: str, stride: str, step: str = "t") -> str:
    step = step if step.isidentifier() else f"({step})"
    return f"{name} = reals_at({base} + ({step} * {stride} + lo) * SIZE, n)"


def _streams(read: Mapping[str, Value], kept: list[str]) -> list[tuple[str, str]]:
    """The sequences that a pass reads a row of at each step: where they are, and their strides."""
    inputs = [("input", "input_step")] if {"x", "x_earlier"} & read.keys() else []
    return [*inputs, *((f"{name}_all", "neurons") for name in kept)]


def _prefetched(function: str, base: str, stride: str) -> str:
    return f"{function}({base} + (ahead * {stride} + lo) * SIZE, n * SIZE)"


def _row_if(wanted: bool, name: str, base: str, stride: str) -> list[str]:
    return [_row(name, base, stride)] if wanted else []


def _started(name: str, base: str, first: str = "", *, own: bool = False) -> list[str]:
    """A row at `base` that starts as the one at `first`, or at zero (`own`: in scratch if `base` is 0)."""
    zero = f"{name}[:] = real(0)"
    given = f"{name}[:] = reals_at({first} + lo * SIZE, n)"
    begin = [f"if {first}:", _block([given]), "else:", _block([zero])]
    place = f"({base} + lo * SIZE if {base} else {name}_own_at)" if own else f"{base} + lo * SIZE"
    return [f"{name} = reals_at({place}, n)", *(begin if first else [zero])]


def _zeros() -> list[str]:
    return [*_scratch_row("zeros"), "zeros[:] = real(0)"]


def _or_zeros(base: str) -> str:
    return f"({base} + lo * SIZE if {base} else zeros_at)"


def _scratch_row(name: str) -> list[str]:
    return [f"{name}_at = scratch({ROW} * 8)", f"{name} = reals_at({name}_at, {ROW})"]


def _bits(name: str, step: str) -> str:
    step = step if step.isidentifier() else f"({step})"
    return f"bytes_at({name}_all + {step} * row_bytes + lo // 8, {ROW // 8})"


def _flip(name: str, step: str) -> str:
    """The truth values of `step`: two rows serve in turn, so that each is unpacked once."""
    step = step if step.isidentifier() else f"({step})"
    return f"bytes_at({name}_flip + ({step} & 1) * {ROW}, {ROW})"


def _store(name: str, value: Value, result: str) -> str:
    return f"{name}[j] = {f'np.uint8({result})' if value.boolean else result}"


def _kernel(
    name: str,
    arguments: tuple[str, ...],
    once: list[str],
    per_row: list[str],
    steps: str,
    per_step: list[str],
) -> str:
    walk = [
        "lo = row * width",
        "n = min(width, neurons - lo)",
        *per_row,
        f"for t in {steps}:",
        _block(per_step),
    ]
    named = [f"{argument} = args[{i}]" for i, argument in enumerate(arguments)]
    body = [*named, *once, "for row in range(begin, end):", _block(walk)]
    return _indented(f"@kernel\ndef {name}(begin, end, args):", body)


def _module(real: str, functions: list[str], kernel: str) -> str:
    size, view = {"float32": (4, "floats_at"), "float64": (8, "doubles_at")}[real]
    head = f"import math\n\nreal, reals_at, SIZE = np.{real}, {view}, {size}"
    return "\n\n\n".join([head, *functions, kernel]) + "\n"


def _block(lines: Iterable[str]) -> str:
    return "\n".join(f"    {line}" for text in lines for line in text.split("\n"))


def _indented(head: str, lines: Iterable[str]) -> str:
    return f"{head}\n{_block(lines)}"
