"""The source of a step's CPU kernels: its forward or backward pass in a loop over time."""

from hibana.compiler.cpu.kernel_writer import Source
from hibana.compiler.cpu.row_function import NUMBERS
from hibana.compiler.cpu.row_loops import RowLoops
from hibana.compiler.cpu.sample_loops import SampleLoops
from hibana.compiler.cpu.time_loop import StateRow, TimeLoop, sequence_rows
from hibana.compiler.graph.passes import Stores, backward_pass, before_pass, forward_pass, leaves
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
    states = {name: StateRow(f"{name}_first", f"{name}_last") for name in carried}
    before: Stores = {}
    initial: dict[str, str] = {}
    if "emitted_before" in leaves(stores):
        if step.matrices:  # reads the output of the step before
            before["emitted_before"] = Value("row", data=f"{emitted}_earlier")
            initial["emitted_before"] = f"{emitted}_first"
        else:  # outputs may bypass the cache: a copy of the last one is a state
            stores["emitted_before"] = stores[emitted]
            states["emitted_before"] = StateRow(f"{emitted}_first", "")
    sequences = sequence_rows(step, stores, plan, "forward")
    rest = NUMBERS[real], calls, not step.matrices, nontemporal
    return _source(step, TimeLoop("forward", stores, sequences, states, before, initial, *rest))


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
    gates = {
        f"gate{state}": Value("bits", data=f"residual{plan.residuals.index(mask)}_earlier")
        for state, mask in masks.items()
    }
    initial = {name: f"{name.removesuffix('_before')}_first" for name in before}
    rest = before | gates, initial, NUMBERS[real], calls, not step.matrices, nontemporal
    return _source(step, TimeLoop("backward", stores, sequences, states, *rest))


def _source(step: Step, loop: TimeLoop) -> Source:
    """The source of the kernel: a kernel over samples for a step with products, else over rows."""
    return (RowLoops if loop.by_rows else SampleLoops)(step, loop).source()
