"""The report on one cell of :func:`hibana.explain`: equations, backend, residuals and code."""

import copy
import re
from collections.abc import Mapping
from typing import NamedTuple

import torch

from hibana.cells import Cell
from hibana.compiler import programs
from hibana.compiler.analysis.text import Dialect, statements, templates
from hibana.compiler.backend import default_backend, refusal
from hibana.compiler.gradient_warning import NO_DERIVATIVE
from hibana.compiler.graph.ops import Unsupported
from hibana.compiler.graph.passes import backward_pass, forward_pass, leaves
from hibana.compiler.graph.plan import Plan, cost_in_bits, passes_gradient
from hibana.compiler.graph.step import Step, Value
from hibana.compiler.reference import state_dtype
from hibana.compiler.tensors import evaluate_parametrizations, fitting_shape, is_parametrized

REFERENCE = "backend    reference loop, because "


def mathematics() -> Dialect:
    """The language of equations."""
    return Dialect("text", {**templates("text"), "product": "({0} @ {matrix})"}, number="{0}")


class Report(NamedTuple):
    """What is said of a layer: in a line of a table, and by itself."""

    runs: str
    """What computes it, and why."""
    text: str
    """All that is said of it, but the code."""
    source: str = ""
    """The code that was generated."""
    keeps: str = ""
    """Bits for the backward."""
    gradient: str = ""
    """Where the gradient of what it emits matters."""


def explain_cell(
    cell: Cell, shape: tuple[int, ...] | None, dtype: torch.dtype, backend: str = "cpu"
) -> Report:
    """The report on `cell` over steps of `shape`."""
    name = type(cell).__name__
    dtype = state_dtype(dtype)  # what kernels compute in
    if is_parametrized(cell):
        cell = evaluate_parametrizations(copy.deepcopy(cell))  # which may iterate
    if shape is None:
        shape = fitting_shape(cell)
    unserved = f"{name}\n{REFERENCE}"
    on_cpu, on_cuda = (refusal(backend, device) for device in ("cpu", "cuda"))
    if on_cpu and on_cuda:
        reason = on_cpu if backend == default_backend("cpu") else on_cuda
        return Report(f"reference loop, because {reason}", f"{unserved}{reason}\n")
    try:
        made = programs.program(cell, backend, torch.Size(shape), dtype)
    except Unsupported as refused:
        return Report(f"reference loop, because {refused}", f"{unserved}{refused}\n")
    step, plan = made.step, made.plan
    bits = plan.bits(torch.finfo(dtype).bits)
    where, sentence = _support(step, plan)
    lines = [
        f"{name}   state ({', '.join(cell.state_names())}), emits {cell.state_names()[-1]}",
        f"backend    {made.kernels.about}",
        *(
            [f"numerics   {', '.join(made.kernels.approximate)}: within 2 ulp, not PyTorch's own bits"]
            if made.kernels.approximate
            else []
        ),
        f"residuals  {_bits(bits)} per neuron and step for the backward, nothing for inference",
        *(
            f"           {_bits(cost_in_bits(v, torch.finfo(dtype).bits))}: {_kept(step, v)}"
            for v in plan.residuals
        ),
        *_drawn(step),
        f"gradient   {sentence}",
        "",
        "one step ([...] is 1 where true, else 0)",
        *_equations(step, forward_pass(step, None)),
        "",
        "its gradient, from after the step to before it",
        *_equations(step, backward_pass(step, plan, wants_input=True)),
    ]
    source = [
        "source, forward",
        _indented(made.kernels.source("forward")),
        "source, backward",
        _indented(made.kernels.source("backward")),
    ]
    return Report(made.kernels.about, "\n".join(lines) + "\n", "\n".join(source) + "\n", _bits(bits), where)


def _drawn(step: Step) -> list[str]:
    if not step.draws:
        return []
    count = f"{step.draws} random number{'s' * (step.draws != 1)}"
    return [f"draws      {count} per neuron and step, of one seed a call; no number drawn is kept"]


def _equations(step: Step, stores: Mapping[str, Value]) -> list[str]:
    standing = {name: _spoken(name, step) for name in leaves(stores)}
    lines, results = statements(stores, standing, mathematics())
    said = [_as_written(line) for line in lines]
    named = {line.partition(" = ")[0] for line in said}
    rest = [_as_written(f"{store}' = {result}") for store, result in results.items()]
    said += [line for line in rest if line.partition(" = ")[0] not in named]
    return [f"  {_readable(line)}" for line in said]


def _as_written(text: str) -> str:
    """`text` with the names that the cell has for its states, primed after the step."""
    return text.replace("_new", "'").replace("_state", "")


def _spoken(name: str, step: Step) -> str:
    if name.startswith("c["):
        return f"{step.constants[int(name[2:-1])]:.7g}"
    return (
        step.states[-1].removesuffix("_state") if name == "emitted_before" else name.replace("_state", "", 1)
    )


def _readable(line: str) -> str:
    target, _, value = line.partition(" = ")
    value = re.sub(r"\[\((.*)\)\]", r"[\1]", value)
    return f"{target} = {value}".replace("emitted_grad", "d_emitted").replace("_grad'", "_grad before")


def _kept(step: Step, value: Value) -> str:
    for name, next_ in zip(step.states, step.nexts, strict=True):
        name = name.removesuffix("_state")  # as the cell calls it
        if value is next_:
            return f"{name} after the step"
        if value is next_.as_boolean:
            return f"whether {name} is 1"
    if value.is_input:
        return "the input itself"
    stores = forward_pass(step, Plan((value,), (), (), None, None))
    lines, results = statements(stores, {n: _spoken(n, step) for n in leaves(stores)}, mathematics())
    text = results["residual0"]
    for line in reversed(lines):  # what has a name of its own is written out, but for the next states
        name, _, said = line.partition(" = ")
        if name.removesuffix("_new") not in step.states:
            text = said if text == name else re.sub(rf"\b{name}\b", f"({said})", text)
    return f"whether {_as_written(text)}" if value.boolean else _as_written(text)


def _support(step: Step, plan: Plan) -> tuple[str, str]:
    """For ``explain``: at which neurons the gradient of the spikes matters, in short and as a sentence."""
    if not passes_gradient(step):
        return "none", f"of what is emitted never reaches the input: {NO_DERIVATIVE}"
    if plan.support is None:
        return "everywhere", "of what is emitted can matter everywhere"
    where = f"where {_kept(step, plan.support).removeprefix('whether ')}"
    return where, f"of what is emitted matters only {where}"


def _bits(count: int) -> str:
    return f"{count} bit{'' if count == 1 else 's'}"


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" if line else "" for line in text.rstrip().split("\n")) + "\n"
