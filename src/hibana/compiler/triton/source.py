"""Triton source of the kernels of a step: its forward and backward pass in a loop over time.

A program keeps the state of a block in registers during all T steps. A block is some neurons or, if the step
has matrix products, all neurons of some samples. Every value has the shape of a block: the kernel broadcasts
scalars before the loop. The pointer of a sequence advances by its stride at each step, so no product of sizes
overflows. Triton removes the branches of pointers that are None.
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
"""Arguments whose values do not cause a new compilation."""


def function_source(language: Language, op: str) -> str:
    """Triton source of a kernel that computes `op`, or ``1 / root``, of every number of ``input``."""
    value = Value(op, (Value("row", data="x"),))
    if op == "root":
        value = Value("div", (Value("number", data=1), value))
    lines, results = statements({"y": value}, {"x": "x"}, language.dialect)
    body = ["x = tl.load(input + j, there)", *lines, f"tl.store(outputs + j, {results['y']}, there)"]
    return program("function", ("input", "outputs"), ("input", "outputs"), (), body, language)


def forward_source(step: Step, plan: Plan | None, language: Language) -> str:
    """Triton source of a kernel that runs `step` over time and stores what the backward needs (`plan`)."""
    stores = forward_pass(step, plan)
    inputs = leaves(stores)
    drawing = [*_draw_steps("t", language), *draws(inputs, language)] if step.draws else []
    emitted = step.states[-1]
    residuals = {name: value for name, value in stores.items() if name not in step.states}
    variables = {**_leaf_variables(inputs), "emitted_before": emitted}
    lines, results = statements(stores, variables, language.dialect)
    firsts, lasts = ([f"{name}_{end}" for name in step.states] for end in ("first", "last"))
    bits = [f"{name}_all" for name, value in residuals.items() if value.boolean]
    reals = [f"{name}_all" for name, value in residuals.items() if not value.boolean]
    arguments = (
        *("input", "input_step", "outputs", *firsts, *lasts),
        *(f"{name}_all" for name in residuals),
        *_shared(step, stores),
    )
    rows = ("input", "outputs", *firsts, *lasts, *reals, *_parameter_rows(inputs))
    body = [
        *_load_parameters(inputs, language),
        *(_load_or_zero(name, f"{name}_first", language) for name in step.states),
        "for t in range(steps):",
        block(
            [
                *([f"x = {language.cast('tl.load(input + j, there)')}"] if "x" in inputs else []),
                *drawing,
                *lines,
                f"tl.store(outputs + j, {results[emitted]}, there)",
                *(
                    line
                    for name, value in residuals.items()
                    for line in _store_residual(name, value, results[name], language)
                ),
                *_assign_together({name: results[name] for name in step.states}),
                "input += input_step",
                "outputs += neurons",
                *(f"{name}_all += {_stride(value)}" for name, value in residuals.items()),
            ]
        ),
        *(_store_unless_none(f"{name}_last", name) for name in step.states),
    ]
    return program("forward", arguments, rows, bits, body, language)


def backward_source(step: Step, plan: Plan, language: Language, *, wants_input: bool) -> str:
    """Triton source of a kernel that computes the gradient of `step` from the last time step to the first.

    `before` are values of the step before that an iteration computes again, `stores` those of its own step.
    """
    before = before_pass(step, plan)
    stores = backward_pass(step, plan, wants_input=wants_input)
    now, then = leaves(stores), leaves(before)
    drawing = (
        [*_draw_steps("steps - 1 - back", language), *draws({**now, **then}, language)] if step.draws else []
    )
    rebuilding, rebuilt = statements(before, _leaf_variables(then), language.dialect)
    lines, results = statements(stores, _leaf_variables(now), language.dialect)
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
        *_load_parameters({**then, **now}, language),
        *(
            _load_or_zero(f"{name}_first", f"{name.removesuffix('_before')}_first", language)
            for name in before
        ),
        *(_load_or_zero(f"{name}_grad", f"{name}_last_grad", language) for name in step.states),
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
                *_assign_together(results),
                *(f"{s.name} = {s.earlier}" for s in both),
                "grad_outputs -= grad_outputs_step",
                *(["grad_input -= neurons"] if wants_input else []),
                *(f"{name}_all -= neurons" for name in outer),
            ]
        ),
        *(_store_unless_none(f"{name}_first_grad", f"{name}_grad") for name in step.states),
        *(_store_unless_none(f"{name}_all", name) for name in sums),
    ]
    rows += _parameter_rows({**then, **now})
    return program("backward", arguments, rows, bits, body, language)


@dataclass(frozen=True)
class _Stream:
    """A sequence that the backward pass reads at each step."""

    name: str
    """The variable with the values of the current step."""
    base: str
    """The pointer."""
    stride: str
    """The distance of two steps."""
    bits: bool
    """Whether it holds a bit per neuron, not a number."""

    @property
    def earlier(self) -> str:
        """The variable with the values of the step before."""
        return f"{self.name}_earlier"

    def loaded(self, where: str, language: Language) -> str:
        """The values at the pointer, for neurons in the mask `where`."""
        if self.bits:
            return f"((tl.load({self.base} + octet, {where}, 0) >> bit) & 1) != 0"
        return language.cast(f"tl.load({self.base} + j, {where})")


def _leaf_variables(leaves: Mapping[str, Value]) -> dict[str, str]:
    """The variable of each leaf, such as ``c0`` for ``c[0]`` and ``p0`` for ``p0[0]``."""
    return {name: _scalar_variable(name) if leaf.is_scalar else name for name, leaf in leaves.items()}


def _scalar_variable(scalar: str) -> str:
    """The variable of a scalar leaf: ``p0`` for ``p0[0]``, ``c0`` for ``c[0]``."""
    return scalar.replace("[0]", "") if scalar[0] == "p" else scalar.replace("[", "").rstrip("]")


def _load_parameters(leaves: Mapping[str, Value], language: Language) -> list[str]:
    """Statements that load parameters and constants, and broadcast scalars."""
    places = {
        name: f"{_scalar_variable(name)}_at" if name[0] == "p" else f"constants + {name[2:-1]}"
        for name, leaf in leaves.items()
        if leaf.is_scalar
    }
    scalars = [f"{_scalar_variable(n)} = {language.number(f'tl.load({at})')}" for n, at in places.items()]
    return scalars + [f"{at[:-3]} = tl.load({at} + j, there)" for at in _parameter_rows(leaves)]


def _parameter_rows(leaves: Mapping[str, Value]) -> list[str]:
    """The pointers of parameters with a number per neuron."""
    rows = [name for name, leaf in leaves.items() if leaf.is_row and name[0] == "p"]
    return [f"{name}_at" for name in rows if name[1:].isdigit()]


def _shared(step: Step, stores: Mapping[str, Value]) -> tuple[str, ...]:
    """Arguments of both directions: constants, parameters, matrices in `stores`, and the seed."""
    factors = {int(v.data) for v in reachable(stores.values()) if v.is_product}
    matrices = (f"M{i // 2}{'_transposed' if i % 2 else ''}_at" for i in sorted(factors))
    seed = ("seed_low", "seed_high") if step.draws else ()
    return ("constants", *(f"p{i}_at" for i in range(step.parameters)), *matrices, *seed)


def _draw_steps(time: str, language: Language) -> list[str]:
    """Statements for the index of the step in draws, ``now``, and of the step before."""
    return [f"now = tl.full({language.shape}, {time}, tl.int32)", "earlier = now - 1"]


def _stride(value: Value) -> str:
    """The distance of two steps of a residual."""
    return "row_bytes" if value.boolean else "neurons"


def _load_or_zero(name: str, pointer: str, language: Language) -> str:
    """A statement that loads `name` from `pointer`, or sets it to zero if that is None."""
    load, zero = f"    {name} = tl.load({pointer} + j, there)", f"    {name} = {language.number(0)}"
    return "\n".join([f"if {pointer} is None:", zero, "else:", load])


def _store_unless_none(pointer: str, name: str) -> str:
    """A statement that stores `name` at `pointer` unless that is None."""
    return f"if {pointer} is not None:\n    tl.store({pointer} + j, {name}, there)"


def _assign_together(values: Mapping[str, str]) -> list[str]:
    """Assignments of all `values` to their variables, after all have been computed from the old values."""
    return [*(f"{n}_next = {text}" for n, text in values.items()), *(f"{n} = {n}_next" for n in values)]


def _store_residual(name: str, value: Value, result: str, language: Language) -> list[str]:
    """Statements that store the residual `name` with the expression `result`: a number, or packed bits."""
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
