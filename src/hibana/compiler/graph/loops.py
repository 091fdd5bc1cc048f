"""The loop over time of a step: the sequences and states that a kernel reads and writes, for all backends."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from hibana.compiler.graph.leaf import INPUT, Leaf
from hibana.compiler.graph.passes import (
    OUTPUT_GRADIENT,
    Stores,
    backward_pass,
    before_pass,
    forward_pass,
    leaves,
)
from hibana.compiler.graph.plan import Plan
from hibana.compiler.graph.step import Step, Value
from hibana.compiler.graph.synapses import with_masks


class SequenceRow(NamedTuple):
    """A row of a sequence ``[T, ...]``: it has another address at each step."""

    base: str
    """The kernel argument that is the sequence's address."""
    stride: str
    """The integer that is its stride over time, in numbers or, for bits, in bytes. ``step_size`` is the
    number of neurons of a step."""
    bits: bool = False


class StateRow(NamedTuple):
    """A row that the loop carries from step to step, by the names of two kernel arguments."""

    start: str
    """The address of its initial values; an empty name or a null address stands for zeros."""
    end: str
    """The address that receives its last values; an empty name or a null address if nothing receives them."""


@dataclass(frozen=True)
class Loop:
    """A loop over time, forward or backward."""

    direction: str
    """``"forward"`` or ``"backward"``; a backward runs from the last step to the first."""
    stores: Stores
    """The results of one step."""
    sequences: Mapping[Leaf, SequenceRow]
    states: Mapping[Leaf, StateRow]
    """The rows that pass from step to step: a step reads and writes the same leaf."""
    before: Stores
    """For each leaf that belongs to the step before, its value: a state, or the mask of a gradient."""
    initial: Mapping[Leaf, str]
    """For each leaf of a state before the step, the kernel argument with its values before the first step."""

    @property
    def forwards(self) -> bool:
        """Whether the loop runs from the first step to the last."""
        return self.direction == "forward"


def forward_loop(step: Step, plan: Plan | None, *, rereads_outputs: bool = False) -> Loop:
    """The loop that runs `step` over time.

    Args:
        step: the step of the cell.
        plan: the residuals that the kernel writes; None for none.
        rereads_outputs: whether a step reads the output of the step before from the outputs. By default a
            copy of the last output is a state, since outputs may bypass the cache.
    """
    stores = forward_pass(step, plan)
    *carried, emitted = step.carried
    states = {leaf: StateRow(f"{leaf}_first", f"{leaf}_last") for leaf in carried}
    before: Stores = {}
    initial: dict[Leaf, str] = {}
    if emitted in leaves(stores):
        if rereads_outputs:
            earlier = step.output.at(-1)
            before[emitted] = Value("row", leaf=earlier)
            initial[earlier] = f"{step.output}_first"
        else:
            stores[emitted] = stores[step.output]
            states[emitted] = StateRow(f"{step.output}_first", "")
    return Loop("forward", stores, _sequence_rows(step, stores, plan, "forward"), states, before, initial)


def backward_loop(step: Step, plan: Plan, *, wants_input: bool, masks_products: bool = False) -> Loop:
    """The loop that runs the gradient of `step` back over time.

    Args:
        step: the step of the cell.
        plan: the residuals that the forward wrote.
        wants_input: whether the kernel computes the gradient of the input.
        masks_products: whether matrix products have masks of the neurons whose result is needed.
    """
    masks: dict[int, Value] = {}
    if step.matrices and masks_products:
        step, masks = with_masks(step)
    stores = backward_pass(step, plan, wants_input=wants_input)
    before = before_pass(step, plan)
    states: dict[Leaf, StateRow] = {}
    for i, name in enumerate(step.states):
        last_grad = "" if i == len(step.states) - 1 else f"{name}_state_last_grad"
        states[step.state(i, is_gradient=True)] = StateRow(last_grad, f"{name}_state_first_grad")
    states |= {leaf: StateRow("", f"{leaf}_all") for leaf in stores if leaf.kind == "sum"}
    gates = {
        Leaf("gate", state): Value("bits", leaf=Leaf("residual", plan.residuals.index(mask), -1))
        for state, mask in masks.items()
    }
    initial = {leaf: f"{leaf.at(0)}_first" for leaf in before}
    sequences = _sequence_rows(step, stores, plan, "backward")
    return Loop("backward", stores, sequences, states, before | gates, initial)


def _sequence_rows(step: Step, stores: Stores, plan: Plan | None, direction: str) -> dict[Leaf, SequenceRow]:
    """The sequences ``[T, ...]`` that a loop over time reads or writes, by leaf.

    Args:
        step: the step of the cell.
        stores: the results of a step's pass in this `direction`.
        plan: the residuals that a forward writes or a backward reads.
        direction: ``"forward"`` or ``"backward"``.
    """
    rows = {INPUT: SequenceRow("input", "input_step")}
    if direction == "forward":
        rows[step.output] = SequenceRow("outputs", "step_size")
    else:
        rows[OUTPUT_GRADIENT] = SequenceRow("grad_outputs", "grad_outputs_step")
    for i, value in enumerate(plan.residuals if plan else ()):
        if not value.is_input:
            stride = "row_bytes" if value.boolean else "step_size"
            rows[Leaf("residual", i)] = SequenceRow(f"residual{i}_all", stride, value.boolean)
    rows |= {leaf: SequenceRow(f"{leaf}_all", "step_size") for leaf in stores if leaf.kind == "outer"}
    if INPUT.gradient in stores:
        rows[INPUT.gradient] = SequenceRow("grad_input", "step_size")
    return rows
