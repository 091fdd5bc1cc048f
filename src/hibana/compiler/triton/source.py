"""Triton source of the kernels of a step: its forward and backward pass in a loop over time.

A program keeps the state of a block in registers during all T steps. A block is some neurons or, if the step
has matrix products, all neurons of some samples. Every value has the shape of a block: the kernel broadcasts
scalars before the loop. The pointer of a sequence advances by its stride at each step, so no product of sizes
overflows. Triton removes the branches of pointers that are None.
"""

from collections.abc import Mapping
from dataclasses import replace

from hibana.compiler.analysis.text import statements
from hibana.compiler.graph.analysis import reachable
from hibana.compiler.graph.leaf import INPUT, OUTPUT, Leaf
from hibana.compiler.graph.loops import Loop, SequenceRow, StateRow, backward_loop, forward_loop
from hibana.compiler.graph.passes import leaves
from hibana.compiler.graph.plan import Plan
from hibana.compiler.graph.step import Step, Value
from hibana.compiler.triton.draws import draws
from hibana.compiler.triton.language import Language, block, program

ANY_SIZE = ("steps", "size", "seed_low", "seed_high")
"""Arguments whose values do not cause a new compilation."""


def function_source(language: Language, op: str) -> str:
    """Triton source of a kernel that computes `op`, or ``1 / root``, of every number of ``input``."""
    value = Value(op, (Value("row", leaf=INPUT),))
    if op == "root":
        value = Value("div", (Value("number", data=1), value))
    lines, results = statements({OUTPUT: value}, {}, language.dialect)
    body = ["x = tl.load(input + j, there)", *lines, f"tl.store(outputs + j, {results[OUTPUT]}, there)"]
    return program("function", ("input", "outputs"), ("input", "outputs"), (), body, language)


def forward_source(step: Step, plan: Plan | None, language: Language) -> str:
    """Triton source of a kernel that runs `step` over time and stores what the backward needs (`plan`)."""
    loop, emitted = forward_loop(step, plan), step.carried[-1]
    # The last output is a state too: kernels for half precision return it before it is rounded.
    stores = loop.stores | {emitted: loop.stores[OUTPUT]}
    states = {**loop.states, emitted: StateRow(f"{step.output}_first", f"{step.output}_last")}
    return _source(replace(loop, stores=stores, states=states), step, language)


def backward_source(step: Step, plan: Plan, language: Language, *, wants_input: bool) -> str:
    """Triton source of a kernel that computes the gradient of `step` from the last time step to the first."""
    return _source(backward_loop(step, plan, wants_input=wants_input), step, language)


def _source(loop: Loop, step: Step, language: Language) -> str:
    """Triton source of the kernel of a `loop` of `step`.

    At each step, the kernel loads rows of sequences (`now`, and `then` of the step before), computes again
    the values of the step before that it needs, and computes its results: rows of sequences, and states.
    """
    now, then = leaves(loop.stores), leaves(loop.before)
    rows = {
        leaf: row
        for leaf, row in loop.sequences.items()
        if leaf in now or leaf.at(-1) in then or leaf in loop.stores
    }
    loaded = {leaf: _load(row, row.base, "there", language) for leaf, row in rows.items() if leaf in now}
    loaded_earlier = {
        leaf.at(-1): _load(row, f"{row.base} - {row.stride}", "there & ~is_first", language)
        for leaf, row in rows.items()
        if leaf.at(-1) in then
    }
    earlier = {leaf: leaf.at(-1) for leaf in loaded if leaf.at(-1) in loaded_earlier}
    rebuilding, rebuilt = statements(loop.before, {}, language.dialect)
    lines, results = statements(loop.stores, {}, language.dialect)
    stores = [_store(row, results.pop(leaf), language) for leaf, row in rows.items() if leaf in loop.stores]
    direction, time = ("+", "t") if loop.forwards else ("-", "steps - 1 - t")
    drawing = []
    if step.draws:  # `now` and `earlier` are the indices of this step and of the step before
        drawing = [f"now = tl.full({language.shape}, {time}, tl.int32)", "earlier = now - 1"]
        drawing += draws({**now, **then}, language)
    body = [
        *_load_parameters({**then, **now}, language),
        *(_load_or_zero(f"{leaf}_first", pointer, language) for leaf, pointer in loop.initial.items()),
        *(_load_or_zero(str(leaf), row.start, language) for leaf, row in loop.states.items()),
    ]
    if not loop.forwards:
        body += [f"{row.base} += (steps - 1).to(tl.int64) * {row.stride}" for row in rows.values()]
    iteration = [
        *(f"{leaf} = {text}" for leaf, text in loaded.items() if leaf not in earlier),
        *([f"is_first = tl.full({language.shape}, {time}, tl.int32) == 0"] if loop.before else []),
        *(f"{leaf} = {text}" for leaf, text in loaded_earlier.items()),
        *drawing,
        *rebuilding,
        *(f"{leaf} = tl.where(is_first, {leaf}_first, {text})" for leaf, text in rebuilt.items()),
        *lines,
        *(line for store in stores for line in store),
        *(f"{leaf}_next = {text}" for leaf, text in results.items()),  # all from the old values
        *(f"{leaf} = {leaf}_next" for leaf in results),
        *(f"{leaf} = {before}" for leaf, before in earlier.items()),
        *(f"{row.base} {direction}= {row.stride}" for row in rows.values()),
    ]
    body += [
        *(f"{leaf} = {loaded[leaf]}" for leaf in earlier),
        *("for t in range(steps):", block(iteration)),
        *(
            f"if {row.end} is not None:\n    tl.store({row.end} + j, {leaf}, there)"
            for leaf, row in loop.states.items()
            if row.end
        ),
    ]
    bits = [row.base for row in rows.values() if row.bits]
    numbers = [row.base for row in rows.values() if not row.bits]
    numbers += [
        *(pointer for row in loop.states.values() for pointer in row if pointer),
        *loop.initial.values(),
    ]
    strides = [row.stride for row in rows.values() if row.stride not in ("step_size", "row_bytes")]
    arguments = (*numbers, *bits, *strides, *_shared(step, {**loop.before, **loop.stores}))
    pointers = [*numbers, *(f"{leaf}_at" for leaf in _parameter_rows({**then, **now}))]
    return program(loop.direction, arguments, pointers, bits, body, language)


def _load(row: SequenceRow, pointer: str, where: str, language: Language) -> str:
    """The values of one step of a sequence at `pointer`, for neurons in the mask `where`."""
    if row.bits:
        return f"((tl.load({pointer} + octet, {where}, 0) >> bit) & 1) != 0"
    return language.cast(f"tl.load({pointer} + j, {where})")


def _store(row: SequenceRow, result: str, language: Language) -> list[str]:
    """Statements that store the expression `result`, numbers or packed bits, as one step of a sequence."""
    if not row.bits:
        return [f"tl.store({row.base} + j, {result}, there)"]
    *before, last = language.shape.strip("(),").split(", ")
    half, quarter, eighth = (f"({', '.join([*before, f'{last} // {n}', '2'])})" for n in (2, 4, 8))
    return [
        f"even, odd = tl.split(tl.reshape((({result}) & there).to(tl.int32), {half}))",
        f"even, odd = tl.split(tl.reshape(even | (odd << 1), {quarter}))",
        f"even, odd = tl.split(tl.reshape(even | (odd << 2), {eighth}))",
        f"tl.store({row.base} + eighth, (even | (odd << 4)).to(tl.uint8), there_eighth)",
    ]


def _load_parameters(leaves: Mapping[Leaf, Value], language: Language) -> list[str]:
    """Statements that load parameters and constants, and broadcast scalars."""
    places = {
        leaf: f"constants + {leaf.index}" if leaf.kind == "constant" else f"{leaf}_at"
        for leaf, value in leaves.items()
        if value.is_scalar
    }
    scalars = [f"{leaf} = {language.number(f'tl.load({place})')}" for leaf, place in places.items()]
    return scalars + [f"{leaf} = tl.load({leaf}_at + j, there)" for leaf in _parameter_rows(leaves)]


def _parameter_rows(leaves: Mapping[Leaf, Value]) -> list[Leaf]:
    """The parameters with a number per neuron."""
    return [leaf for leaf, value in leaves.items() if value.is_row and leaf.kind == "parameter"]


def _shared(step: Step, stores: Mapping[Leaf, Value]) -> tuple[str, ...]:
    """Arguments of both directions: constants, parameters, matrices in `stores`, and the seed."""
    factors = {v.data for v in reachable(stores.values()) if v.is_product}
    matrices = (f"M{i // 2}{'_transposed' if i % 2 else ''}_at" for i in sorted(factors))
    seed = ("seed_low", "seed_high") if step.draws else ()
    return ("constants", *(f"p{i}_at" for i in range(step.parameters)), *matrices, *seed)


def _load_or_zero(name: str, pointer: str, language: Language) -> str:
    """A statement that loads `name` from `pointer`, or sets it to zero if that is None, or an empty name."""
    zero = f"{name} = {language.number(0)}"
    if not pointer:
        return zero
    return f"if {pointer} is None:\n    {zero}\nelse:\n    {name} = tl.load({pointer} + j, there)"
