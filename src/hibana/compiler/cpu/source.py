"""The source of a step's CPU kernels: its forward or backward pass in a loop over time."""

from hibana.compiler.cpu.kernel_writer import Source
from hibana.compiler.cpu.row_function import NUMBERS
from hibana.compiler.cpu.row_loops import RowLoops
from hibana.compiler.cpu.sample_loops import SampleLoops
from hibana.compiler.cpu.time_loop import StateRow, TimeLoop, sequence_rows
from hibana.compiler.graph.passes import backward_pass, before_pass, forward_pass, leaves
from hibana.compiler.graph.plan import Plan
from hibana.compiler.graph.step import Step, Value
from hibana.compiler.graph.synapses import with_masks


def forward_source(
    step: Step, plan: Plan | None, real: str, calls: frozenset[str], nontemporal: bool = False
) -> Source:
    """The kernel that runs `step` over time.

    A step with matrix products gets a kernel over samples, any other step a kernel over rows of neurons.

    Args:
        step: the step of the cell.
        plan: the residuals that the kernel writes; None for none.
        real: the dtype of all numbers, ``"float32"`` or ``"float64"``.
        calls: the operations that vector functions compute.
        nontemporal: whether sequences are written by non-temporal stores.
    """
    stores = forward_pass(step, plan)
    *carried, emitted = step.states
    sequences = sequence_rows(step, stores, plan, "forward")
    inner, edge = {}, {}
    if "emitted_before" in leaves(stores):
        inner["emitted_before"] = Value("row", data=f"{emitted}_earlier")
        edge["emitted_before"] = f"{emitted}_first"
    next_values: dict[str, str] = {}
    if not step.matrices:
        next_values = {**{name: name for name in carried}, "emitted_before": emitted}
        if inner and (spikes := stores[emitted].as_boolean):  # one bit is faster to read again than a number
            stores["fired"] = spikes
            inner["emitted_before"] = Value("to_float", (Value("bits", data="fired"),))
    states = {name: StateRow(f"{name}_first", f"{name}_last") for name in carried}
    rest = next_values, inner, edge, NUMBERS[real], calls, nontemporal, not step.matrices
    return _source(step, TimeLoop("forward", stores, sequences, states, *rest))


def backward_source(
    step: Step, plan: Plan, real: str, calls: frozenset[str], wants_input: bool, nontemporal: bool = False
) -> Source:
    """The kernel that runs the gradient of `step` back over time.

    Args:
        step: the step of the cell.
        plan: the residuals that the forward wrote.
        real: the dtype of all numbers, ``"float32"`` or ``"float64"``.
        calls: the operations that vector functions compute.
        wants_input: whether the kernel computes the gradient of the input.
        nontemporal: whether sequences are written by non-temporal stores.
    """
    masks: dict[int, Value] = {}
    if step.matrices:
        step, masks = with_masks(step)
    stores = backward_pass(step, plan, wants_input=wants_input)
    before = before_pass(step, plan)
    *carried, emitted = step.states
    sequences = sequence_rows(step, stores, plan, "backward")
    states = {f"{name}_grad": StateRow(f"{name}_last_grad", f"{name}_first_grad") for name in carried}
    states[f"{emitted}_grad"] = StateRow("", f"{emitted}_first_grad")
    states |= {f"sum{i}": StateRow("", f"sum{i}_all") for i in range(len(step.grad_sums))}
    inner = before | {
        f"gate{state}": Value("bits", data=f"residual{plan.residuals.index(mask)}_earlier")
        for state, mask in masks.items()
    }
    edge = {name: f"{name.removesuffix('_before')}_first" for name in before}
    next_values = {} if step.matrices else {name: name for name in states}
    rest = next_values, inner, edge, NUMBERS[real], calls, nontemporal, not step.matrices
    return _source(step, TimeLoop("backward", stores, sequences, states, *rest))


def _source(step: Step, loop: TimeLoop) -> Source:
    """The source of the kernel: a kernel over samples for a step with products, else over rows."""
    return (SampleLoops if step.matrices else RowLoops)(step, loop).source()
