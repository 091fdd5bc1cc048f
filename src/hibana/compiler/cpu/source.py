"""The source of the CPU kernels: the passes of a step, forward and backward, in a loop nest."""

from collections.abc import Mapping

from hibana.compiler.cpu.kernel_writer import BACKWARD, FORWARD, Source, own
from hibana.compiler.cpu.row_function import NUMBERS
from hibana.compiler.cpu.row_loops import SIZES, RowWalk
from hibana.compiler.cpu.sample_loops import SampleWalk
from hibana.compiler.cpu.time_loop import Parts, moving_back, moving_forward
from hibana.compiler.graph.passes import Stores, backward_pass, before_pass, forward_pass, leaves
from hibana.compiler.graph.plan import Plan
from hibana.compiler.graph.step import Step, Value
from hibana.compiler.graph.synapses import with_masks

_OVER_ROWS, _OVER_SAMPLES = "neurons", "step"
"""The arguments that are strides over time of numbers, of kernels over rows and over samples."""


def forward_source(
    step: Step,
    plan: Plan | None,
    real: str,
    calls: frozenset[str],
    nontemporal: bool = False,
) -> Source:
    """The kernel that runs `step` over time and writes the residuals of `plan`, if it is given.

    Args:
        step: the step.
        plan: the residuals.
        real: the dtype of all numbers.
        calls: the operations computed by vector functions.
        nontemporal: whether sequences are written by non-temporal stores.
    """
    once = forward_pass(step, plan)
    *carried, emitted = step.states
    moving = moving_forward(step, once, _OVER_ROWS)
    left = {**{name: name for name in carried}, "emitted_before": emitted}
    inner = _emitted_before(step, once)
    if inner and (spikes := once[emitted].as_boolean):  # a bit is less to read again than a number
        once["fired"] = spikes
        inner["emitted_before"] = Value("to_float", (Value("bits", data="fired"),))
    parts = Parts("forward", once, moving, left, inner, NUMBERS[real], calls, nontemporal, earlier=-1)
    walk = RowWalk("forward", NUMBERS[real], parts.all(), calls, moving, forwards=True)
    walk.read(
        step,
        [*map(own, carried), *(["fired"] if "fired" in once else [])],
        SIZES,
        FORWARD,
        [f"{name}_first" for name in step.states],
        [f"{name}_last" for name in carried],
        plan.names if plan else (),
    )
    with walk.each_row():
        for name in carried:
            walk.carried(name, f"{name}_last", f"{name}_first")
        walk.parameters(step)
        walk.steps(parts, {"emitted_before": walk.either(f"{emitted}_first")})
    return walk.made()


def forward_over_samples(step: Step, plan: Plan | None, real: str, calls: frozenset[str]) -> Source:
    """The forward kernel of a step with matrix products: one work item computes some samples, all neurons."""
    once = forward_pass(step, plan)
    *carried, emitted = step.states
    moving, inner = moving_forward(step, once, _OVER_SAMPLES), _emitted_before(step, once)
    parts = Parts("forward", once, moving, {}, inner, NUMBERS[real], calls, False, earlier=-1, aligned=False)
    walk = SampleWalk("forward", step, parts, calls, carried, {"emitted_before": f"{emitted}_first"})
    walk.begun = {name: f"{name}_first" for name in carried}
    walk.ends = {name: f"{name}_last" for name in carried}
    return walk.made()


def backward_source(
    step: Step,
    plan: Plan,
    real: str,
    calls: frozenset[str],
    wants_input: bool,
    nontemporal: bool = False,
) -> Source:
    """The kernel that runs the gradient of `step` back over time; as :func:`forward_source`.

    Args:
        step: the step.
        plan: the residuals.
        real: the dtype of all numbers.
        calls: the operations computed by vector functions.
        wants_input: whether the gradient of the input is computed.
        nontemporal: whether sequences are written by non-temporal stores.
    """
    once = backward_pass(step, plan, wants_input=wants_input)
    before = before_pass(step, plan)
    *carried, emitted = step.states
    moving, sums = moving_back(step, plan, once, _OVER_ROWS)
    rows = [*(f"{name}_grad" for name in step.states), *sums]
    left = {name: name for name in rows}
    parts = Parts("backward", once, moving, left, before, NUMBERS[real], calls, nontemporal, earlier=1)
    walk = RowWalk("backward", NUMBERS[real], parts.all(), calls, moving, forwards=False)
    walk.read(
        step,
        map(own, rows),
        SIZES,
        BACKWARD,
        [f"{name}_first" for name in step.states],
        [f"{name}_last_grad" for name in carried],
        [f"{name}_first_grad" for name in step.states],
        plan.names,
        [f"sum{i}_all" for i in range(len(step.grad_sums))],
    )
    with walk.each_row():
        for name in carried:
            walk.carried(f"{name}_grad", f"{name}_first_grad", f"{name}_last_grad")
        walk.carried(f"{emitted}_grad", f"{emitted}_first_grad")
        for name, base in sums.items():
            walk.carried(name, base)
        walk.parameters(step)
        walk.steps(parts, {name: walk.either(first) for name, first in _firsts(before).items()})
    return walk.made()


def backward_over_samples(
    step: Step, plan: Plan, real: str, calls: frozenset[str], *, wants_input: bool
) -> Source:
    """:func:`backward_source` of a step with matrix products."""
    step, gates = with_masks(step)
    once = backward_pass(step, plan, wants_input=wants_input)
    before = before_pass(step, plan)
    moving, sums = moving_back(step, plan, once, _OVER_SAMPLES)
    inner = before | {
        f"gate{state}": Value("bits", data=f"residual{plan.residuals.index(gate)}_earlier")
        for state, gate in gates.items()
    }
    parts = Parts("backward", once, moving, {}, inner, NUMBERS[real], calls, False, earlier=1, aligned=False)
    grads = [f"{name}_grad" for name in step.states]
    walk = SampleWalk("backward", step, parts, calls, [*grads, *sums], _firsts(before))
    walk.begun = {f"{name}_grad": f"{name}_last_grad" for name in step.states[:-1]}
    walk.ends = {f"{name}_grad": f"{name}_first_grad" for name in step.states} | sums
    return walk.made()


def _emitted_before(step: Step, once: Stores) -> Stores:
    """The output of the step before, where `once` reads it, as the row that was written."""
    read = "emitted_before" in leaves(once)
    return {"emitted_before": Value("row", data=f"{step.states[-1]}_earlier")} if read else {}


def _firsts(before: Stores) -> Mapping[str, str]:
    """The arguments that are the states `before` time 0."""
    return {name: f"{name.removesuffix('_before')}_first" for name in before}
