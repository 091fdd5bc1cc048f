"""The source of the GPU kernels: a step's passes in Triton, in a loop over time.

A program holds the state of a block in registers while all T steps run over it. A block is some neurons, or,
where a step multiplies by matrices, all neurons of some samples. Every value is a whole block: scalars are
broadcast when the kernel begins. Sequences advance by adding their stride to a pointer, so that no product of
sizes overflows. The branches of a pointer that is None are left out.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from hibana.compiler.analysis.text import statements
from hibana.compiler.graph.analysis import reachable
from hibana.compiler.graph.passes import backward_pass, before_pass, forward_pass, leaves
from hibana.compiler.graph.plan import Plan
from hibana.compiler.graph.step import Step, Value
from hibana.compiler.triton.draws import draws
from hibana.compiler.triton.language import Language, block, program

ANY_SIZE = ("steps", "size", "seed_low", "seed_high")
"""Arguments that kernels are not specialised for."""


def function_source(language: Language, op: str) -> str:
    """A kernel that computes `op` of every number of ``input``; of ``root``, the reciprocal."""
    value = Value(op, (Value("row", data="x"),))
    if op == "root":
        value = Value("div", (Value("number", data=1), value))
    lines, results = statements({"y": value}, {"x": "x"}, language.dialect)
    body = ["x = tl.load(input + j, there)", *lines, f"tl.store(outputs + j, {results['y']}, there)"]
    return program("function", ("input", "outputs"), ("input", "outputs"), (), body, language)


def forward_source(step: Step, plan: Plan | None, language: Language) -> str:
    """The kernel that runs `step` over time and writes the residuals of `plan`, if it is given."""
    stores = forward_pass(step, plan)
    read = leaves(stores)
    drawing = [*_times("t", language), *draws(read, language)] if step.draws else []
    emitted = step.states[-1]
    residuals = {name: value for name, value in stores.items() if name not in step.states}
    standing = {**_standing(read), "emitted_before": emitted}
    lines, results = statements(stores, standing, language.dialect)
    firsts, lasts = ([f"{name}_{end}" for name in step.states] for end in ("first", "last"))
    bits = [f"{name}_all" for name, value in residuals.items() if value.boolean]
    reals = [f"{name}_all" for name, value in residuals.items() if not value.boolean]
    arguments = (
        *("input", "input_step", "outputs", *firsts, *lasts),
        *(f"{name}_all" for name in residuals),
        *_shared(step, stores),
    )
    rows = ("input", "outputs", *firsts, *lasts, *reals, *_parameter_rows(read))
    body = [
        *_spread(read, language),
        *(_begun(name, f"{name}_first", language) for name in step.states),
        "for t in range(steps):",
        block(
            [
                *([f"x = {language.cast('tl.load(input + j, there)')}"] if "x" in read else []),
                *drawing,
                *lines,
                f"tl.store(outputs + j, {results[emitted]}, there)",
                *(
                    line
                    for name, value in residuals.items()
                    for line in _stored(name, value, results[name], language)
                ),
                *_renewed({name: results[name] for name in step.states}),
                "input += input_step",
                "outputs += neurons",
                *(f"{name}_all += {_stride(value)}" for name, value in residuals.items()),
            ]
        ),
        *(_given_back(f"{name}_last", name) for name in step.states),
    ]
    return program("forward", arguments, rows, bits, body, language)


def backward_source(step: Step, plan: Plan, language: Language, *, wants_input: bool) -> str:
    """The kernel that runs the gradient of `step` back over time; see :func:`backward_pass`."""
    before = before_pass(step, plan)
    stores = backward_pass(step, plan, wants_input=wants_input)
    now, then = leaves(stores), leaves(before)
    drawing = [*_times("steps - 1 - back", language), *draws({**now, **then}, language)] if step.draws else []
    rebuilding, rebuilt = statements(before, _standing(then), language.dialect)
    lines, results = statements(stores, _standing(now), language.dialect)
    emitted = step.states[-1]
    residuals = {f"residual{i}": value for i, value in enumerate(plan.residuals) if not value.is_input}
    streams = [_Stream("x", "input", "input_step", False)]
    streams += [_Stream(n, f"{n}_all", _stride(value), value.boolean) for n, value in residuals.items()]
    streams = [s for s in streams if s.name in now or s.earlier in then]
    both = [s for s in streams if s.name in now and s.earlier in then]
    written = [f"tl.store(grad_input + j, {results.pop('x_grad')}, there)"] if wants_input else []
    firsts, last_grads, first_grads = (
        [f"{name}_{end}" for name in step.states] for end in ("first", "last_grad", "first_grad")
    )
    sums = [f"sum{i}" for i in range(len(step.grad_sums))]
    outer = {name: results.pop(name) for name in stores if name.startswith("outer")}
    shared = _shared(step, {**before, **stores})
    arguments = (
        *("input", "input_step", "grad_outputs", "grad_outputs_step", "grad_input"),
        *(*firsts, *last_grads, *first_grads),
        *(f"{name}_all" for name in (*residuals, *sums, *outer)),
        *shared,
    )
    bits = [s.base for s in streams if s.bits]
    rows = [a for a in arguments if a not in ("input_step", "grad_outputs_step", *shared, *bits)]
    body = [
        *_spread({**then, **now}, language),
        *(_begun(f"{name}_first", f"{name.removesuffix('_before')}_first", language) for name in before),
        *(_begun(f"{name}_grad", f"{name}_last_grad", language) for name in step.states),
        f"arriving = {emitted}_grad",
        f"{emitted}_grad = {language.number(0)}",
        *(f"{name} = {language.number(0)}" for name in results if not name.endswith("_state_grad")),
        *("last = (steps - 1).to(tl.int64)", "grad_outputs += last * grad_outputs_step"),
        *(["grad_input += last * neurons"] if wants_input else []),
        *(f"{name}_all += last * neurons" for name in outer),
        *(f"{s.base} += last * {s.stride}" for s in streams),
        *(f"{s.name} = {s.loaded('there', language)}" for s in both),
        "for back in range(steps):",
        block(
            [
                f"emitted_grad = {language.cast('tl.load(grad_outputs + j, there)')} + arriving",
                f"arriving = {language.number(0)}",
                *(f"{s.name} = {s.loaded('there', language)}" for s in streams if s.earlier not in then),
                *(f"{s.base} -= {s.stride}" for s in streams),
                *([f"begun = tl.full({language.shape}, back, tl.int32) == steps - 1"] if before else []),
                *(
                    f"{s.earlier} = {s.loaded('there & ~begun', language)}"
                    for s in streams
                    if s.earlier in then
                ),
                *drawing,
                *rebuilding,
                *(f"{n} = tl.where(begun, {n}_first, {text})" for n, text in rebuilt.items()),
                *lines,
                *written,
                *(f"tl.store({name}_all + j, {text}, there)" for name, text in outer.items()),
                *_renewed(results),
                *(f"{s.name} = {s.earlier}" for s in both),
                "grad_outputs -= grad_outputs_step",
                *(["grad_input -= neurons"] if wants_input else []),
                *(f"{name}_all -= neurons" for name in outer),
            ]
        ),
        *(_given_back(f"{name}_first_grad", f"{name}_grad") for name in step.states),
        *(_given_back(f"{name}_all", name) for name in sums),
    ]
    rows += _parameter_rows({**then, **now})
    return program("backward", arguments, rows, bits, body, language)


@dataclass(frozen=True)
class _Stream:
    """A sequence that a backward reads, step by step."""

    name: str
    base: str
    stride: str
    bits: bool

    @property
    def earlier(self) -> str:
        """Its name at the step before."""
        return f"{self.name}_earlier"

    def loaded(self, where: str, language: Language) -> str:
        if self.bits:
            return f"((tl.load({self.base} + octet, {where}, 0) >> bit) & 1) != 0"
        return language.cast(f"tl.load({self.base} + j, {where})")


def _standing(read: Mapping[str, Value]) -> dict[str, str]:
    """The variable of each leaf: of ``c[0]`` and ``p0[0]``, ``c0`` and ``p0``."""
    return {name: _spread_name(name) if leaf.is_scalar else name for name, leaf in read.items()}


def _spread_name(scalar: str) -> str:
    return scalar.replace("[0]", "") if scalar[0] == "p" else scalar.replace("[", "").rstrip("]")


def _spread(read: Mapping[str, Value], language: Language) -> list[str]:
    places = {
        name: f"{_spread_name(name)}_at" if name[0] == "p" else f"constants + {name[2:-1]}"
        for name, leaf in read.items()
        if leaf.is_scalar
    }
    scalars = [f"{_spread_name(n)} = {language.number(f'tl.load({at})')}" for n, at in places.items()]
    return scalars + [f"{at[:-3]} = tl.load({at} + j, there)" for at in _parameter_rows(read)]


def _parameter_rows(read: Mapping[str, Value]) -> list[str]:
    rows = [name for name, leaf in read.items() if leaf.is_row and name[0] == "p"]
    return [f"{name}_at" for name in rows if name[1:].isdigit()]


def _shared(step: Step, stores: Mapping[str, Value]) -> tuple[str, ...]:
    """The arguments of both directions: constants, the cell's tensors, and the matrices of `stores`."""
    factors = {int(v.data) for v in reachable(stores.values()) if v.is_product}
    matrices = (f"M{i // 2}{'_transposed' if i % 2 else ''}_at" for i in sorted(factors))
    seed = ("seed_low", "seed_high") if step.draws else ()
    return ("constants", *(f"p{i}_at" for i in range(step.parameters)), *matrices, *seed)


def _times(time: str, language: Language) -> list[str]:
    """The step of the draws, and the one before it."""
    return [f"now = tl.full({language.shape}, {time}, tl.int32)", "earlier = now - 1"]


def _stride(value: Value) -> str:
    return "row_bytes" if value.boolean else "neurons"


def _begun(name: str, pointer: str, language: Language) -> str:
    given, zero = f"    {name} = tl.load({pointer} + j, there)", f"    {name} = {language.number(0)}"
    return "\n".join([f"if {pointer} is None:", zero, "else:", given])


def _given_back(pointer: str, name: str) -> str:
    return f"if {pointer} is not None:\n    tl.store({pointer} + j, {name}, there)"


def _renewed(values: Mapping[str, str]) -> list[str]:
    """Assigns every name its new value, after all were computed from the old ones."""
    return [*(f"{n}_next = {text}" for n, text in values.items()), *(f"{n} = {n}_next" for n in values)]


def _stored(name: str, value: Value, result: str, language: Language) -> list[str]:
    if not value.boolean:
        return [f"tl.store({name}_all + j, {result}, there)"]
    *before, last = language.shape.strip("(),").split(", ")
    half, quarter, eighth = (f"({', '.join([*before, f'{last} // {n}', '2'])})" for n in (2, 4, 8))
    return [
        f"even, odd = tl.split(tl.reshape((({result}) & there).to(tl.int32), {half}))",
        f"even, odd = tl.split(tl.reshape(even | (odd << 1), {quarter}))",
        f"even, odd = tl.split(tl.reshape(even | (odd << 2), {eighth}))",
        f"tl.store({name}_all + eighth, (even | (odd << 4)).to(tl.uint8), there_eighth)",
    ]
