"""The report on one cell for :func:`hibana.explain`: equations, backend, residuals and code."""

import copy
from dataclasses import replace
from functools import partial
from textwrap import indent
from typing import NamedTuple

import torch

from hibana.cells import Cell
from hibana.compiler import programs
from hibana.compiler.analysis.text import Dialect, statements, templates
from hibana.compiler.backend import default_backend, refusal
from hibana.compiler.gradient_warning import NO_DERIVATIVE
from hibana.compiler.graph.analysis import Rewriting
from hibana.compiler.graph.leaf import OUTPUT, Leaf
from hibana.compiler.graph.ops import Unsupported
from hibana.compiler.graph.passes import Stores, backward_pass, forward_pass, leaves
from hibana.compiler.graph.plan import Plan, cost_in_bits, passes_gradient
from hibana.compiler.graph.step import Step, Value
from hibana.compiler.reference import state_dtype
from hibana.compiler.tensors import evaluate_parametrizations, fitting_shape, is_parametrized

REFERENCE = "backend    reference loop, because "


def mathematics() -> Dialect:
    """The notation of the equations."""
    operations = {**templates("text"), "product": "({0} @ {matrix})"}
    return Dialect("text", operations, number="{0}", bare={"to_float"})


class Report(NamedTuple):
    """The description of one layer, by itself and as entries of a table."""

    runs: str
    """The backend that computes it, and the reason."""
    text: str
    """The complete description without the code."""
    source: str = ""
    """The generated code."""
    keeps: str = ""
    """Bits that the backward needs."""
    gradient: str = ""
    """Where the gradient of the outputs matters."""


def explain_cell(
    cell: Cell, shape: tuple[int, ...] | None, dtype: torch.dtype, backend: str = "cpu"
) -> Report:
    """Describes how `backend` computes `cell`: equations, stored bits and source.

    `shape` is the shape of one step of input; None for a shape that the cell's tensors broadcast to.
    """
    name = type(cell).__name__
    dtype = state_dtype(dtype)
    if is_parametrized(cell):
        cell = evaluate_parametrizations(copy.deepcopy(cell))  # a parametrization may change its own state
    if shape is None:
        shape = fitting_shape(cell)
    reason = ""
    on_cpu, on_cuda = (refusal(backend, device) for device in ("cpu", "cuda"))
    if on_cpu and on_cuda:
        reason = on_cpu if backend == default_backend("cpu") else on_cuda
    else:
        try:
            kernels = programs.kernels_of(cell, backend, torch.Size(shape), dtype)
        except Unsupported as error:
            reason = str(error)
    if reason:
        return Report(f"reference loop, because {reason}", f"{name}\n{REFERENCE}{reason}\n")
    step, plan, number_bits = kernels.step, kernels.plan, torch.finfo(dtype).bits
    bit_count = _bits(plan.bits(number_bits))
    region, sentence = _support(step, plan)
    lines = [
        f"{name}   state ({', '.join(cell.state_names())}), emits {cell.state_names()[-1]}",
        f"backend    {kernels.about}",
    ]
    if kernels.approximate:
        operations = ", ".join(kernels.approximate)
        lines.append(f"numerics   {operations}: within 2 ulp, not PyTorch's own bits")
    lines.append(f"residuals  {bit_count} per neuron and step for the backward, nothing for inference")
    lines += [
        f"           {_bits(cost_in_bits(value, number_bits))}: "
        f"{'whether ' * value.boolean}{_description(step, value)}"
        for value in plan.residuals
    ]
    if step.sparse:
        matrices = ", ".join(f"M{i}" for i in step.sparse)
        lines.append(f"synapses   {matrices}: sparse; a spike adds the weights of its own synapses")
    if step.draws:
        count = f"{step.draws} random number{'s' * (step.draws != 1)}"
        lines.append(f"draws      {count} per neuron and step, from one seed per call; none is stored")
    lines += [
        f"gradient   {sentence}",
        "",
        "one step ([...] is 1 where true, else 0)",
        *_equations(step, forward_pass(step, None)),
        "",
        "its gradient, from after the step to before it",
        *_equations(step, backward_pass(step, plan, wants_input=True)),
    ]
    source = "".join(
        f"source, {direction}\n{indent(kernels.source(direction).rstrip(), '  ')}\n\n"
        for direction in ("forward", "backward")
    )
    return Report(kernels.about, "\n".join(lines) + "\n", source, bit_count, region)


def _equations(step: Step, stores: Stores) -> list[str]:
    """The equations of the values in `stores` as text, one per line, for :func:`hibana.explain`."""
    name = partial(_result, step=step)
    lines, results = statements(stores, _notations(step, stores), mathematics(), name)
    lines += [f"{name(leaf)} = {result}" for leaf, result in results.items() if name(leaf) != result]
    return [f"  {line}" for line in lines]


def _notations(step: Step, stores: Stores) -> dict[Leaf, str]:
    """The notation of each leaf of `stores`."""
    return {leaf: _notation(leaf, step) for leaf in leaves(stores)}


def _notation(leaf: Leaf, step: Step) -> str:
    """The notation of a leaf: the value of a constant, or the cell's name of a state or of the output."""
    if leaf.kind == "constant":
        return f"{step.constants[leaf.index]:.7g}"
    if leaf == OUTPUT.gradient:
        return "d_emitted"
    if leaf.kind not in ("state", "output"):
        return str(leaf)
    name = step.states[-1 if leaf.kind == "output" else leaf.index]
    return f"{name}{'_grad' * leaf.is_gradient}{'_before' * bool(leaf.offset)}"


def _result(leaf: Leaf, step: Step) -> str:
    """The notation of a result: with a prime after the step; gradients of a backward are before the step."""
    return _notation(leaf, step) + (" before" if leaf.is_gradient else "'")


def _description(step: Step, value: Value) -> str:
    """A residual in words, such as ``s is 1``."""
    for name, next_ in zip(step.states, step.nexts, strict=True):
        if value is next_:
            return f"{name} after the step"
        if value is next_.as_boolean:
            return f"{name} is 1"
    if value.is_input:
        return "the input itself"
    stores = forward_pass(step, Plan((value,), (), (), None, support_is_spikes=False))
    _, residual = stores.popitem()
    after = {next_: Value("row", leaf=leaf.at(1)) for leaf, next_ in reversed(stores.items()) if next_.args}
    residual = Rewriting(after).of(residual)
    names = _notations(step, {OUTPUT: residual}) | {leaf.at(1): _result(leaf, step) for leaf in stores}
    _, results = statements({OUTPUT: residual}, names, replace(mathematics(), assigns=False))
    return results[OUTPUT]


def _support(step: Step, plan: Plan) -> tuple[str, str]:
    """Where the gradient of the outputs has an effect, as a table entry and as the end of a sentence."""
    if not passes_gradient(step):
        return "none", f"of what is emitted never reaches the input: {NO_DERIVATIVE}"
    if plan.support is None:
        return "everywhere", "of what is emitted can matter everywhere"
    region = f"where {_description(step, plan.support)}"
    return region, f"of what is emitted matters only {region}"


def _bits(count: int) -> str:
    """A number of bits in words, such as ``1 bit``."""
    return f"{count} bit{'' if count == 1 else 's'}"
