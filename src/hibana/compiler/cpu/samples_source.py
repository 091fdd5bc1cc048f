"""The source of the kernels over samples: the passes of a step, forward and backward, in their loop nest."""

from hibana.compiler.cpu.body import LINE, NUMBERS
from hibana.compiler.cpu.parts import Parts, moving_back, moving_forward, with_uniform
from hibana.compiler.cpu.sample_walk import SampleWalk
from hibana.compiler.cpu.schedule import Source
from hibana.compiler.graph.passes import Stores, backward_pass, before_pass, forward_pass, leaves
from hibana.compiler.graph.plan import Plan
from hibana.compiler.graph.step import Step, Value
from hibana.compiler.graph.synapses import gated

__all__ = ["backward_source", "forward_source", "workspace"]


def workspace(rows: int, padded: int, per_tile: int, size: int) -> int:
    """Bytes of a thread's own memory, for `rows` rows of each of `per_tile` samples."""
    lists = per_tile * padded * (4 + size) + 3 * LINE + 8 * per_tile + 8 * padded
    return (rows * per_tile + 1) * padded * size + lists + padded // 4


def forward_source(step: Step, plan: Plan | None, real: str, calls: frozenset[str]) -> Source:
    """The kernel that runs `step` over time and keeps what `plan` says."""
    once = forward_pass(step, plan)
    *carried, emitted = step.states
    moving = moving_forward(step, once, whole="step", kept="step")
    inner: Stores = {}
    if "emitted_before" in leaves(once):
        inner["emitted_before"] = Value("row", data=f"{emitted}_earlier")
    parts = Parts("forward", once, moving, {}, inner, NUMBERS[real], calls, nontemporal=False, earlier=-1)
    schedule = SampleWalk("forward", step, parts, calls, [*carried], {"emitted_before": f"{emitted}_first"})
    schedule.begun = {name: f"{name}_first" for name in carried}
    schedule.ends = {name: f"{name}_last" for name in carried}
    return schedule.made()


def backward_source(
    step: Step,
    plan: Plan,
    real: str,
    calls: frozenset[str],
    *,
    wants_input: bool,
    constant_input: bool,
) -> Source:
    """The kernel that runs the gradient of `step` back over time."""
    step, gates = gated(step)
    once = with_uniform(backward_pass(step, plan, wants_input=wants_input, constant_input=constant_input))
    before = before_pass(step, plan)
    *carried, _ = step.states
    moving, sums = moving_back(step, plan, once, constant_input=constant_input, whole="step", kept="step")
    inner = before | {
        f"gate{state}": Value("bits", data=f"residual{plan.residuals.index(gate)}_earlier")
        for state, gate in gates.items()
    }
    parts = Parts("backward", once, moving, {}, inner, NUMBERS[real], calls, nontemporal=False, earlier=1)
    grads = [f"{name}_grad" for name in step.states]
    begun = {name: f"{name.removesuffix('_before')}_first" for name in before}
    schedule = SampleWalk("backward", step, parts, calls, [*grads, *sums], begun)
    schedule.begun = {f"{name}_grad": f"{name}_last_grad" for name in carried}
    schedule.ends = {f"{name}_grad": f"{name}_first_grad" for name in step.states} | sums
    return schedule.made()
