"""The comparators that the conformance suite stands on; they are themselves tested, in test_compare.py.

What is emitted and the states must be the reference's to the last bit. Gradients are sums in another
order, so they agree to rounding: each relative to the largest gradient that flowed through its neuron at
its step or after, for that is what it was summed from.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

import hibana as hb

Run = Callable[[hb.Cell, Tensor, tuple[Tensor, ...] | None], tuple[Tensor, tuple[Tensor, ...]]]
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}
USES = {"outputs and states": (True, True), "outputs only": (True, False), "states only": (False, True)}
"""What a loss is made of: the emitted sequence, the states that a run ends in."""


def assert_same(found: Tensor, expected: Tensor, what: str) -> None:
    """The same shape, dtype and values; NaN is the same as NaN."""
    assert found.shape == expected.shape, f"{what}: shape {found.shape}, expected {expected.shape}"
    assert found.dtype == expected.dtype, f"{what}: {found.dtype}, expected {expected.dtype}"
    different = (found != expected) & ~(found.isnan() & expected.isnan())
    assert not different.any(), (
        f"{what}: {int(different.sum())} of {found.numel()} differ, the first at "
        f"{different.nonzero()[0].tolist()}: {found[different][0]!r}, expected {expected[different][0]!r}"
    )


def assert_close(
    found: Tensor | None, expected: Tensor | None, scale: Tensor, tolerance: float, what: str
) -> None:
    """`found` is `expected` but for `tolerance`, relative to `scale` or to itself where that is larger.

    No gradient and a gradient of zero are the same, in that order only: what the reference gives a
    gradient must get one.
    """
    if expected is None:
        assert found is None or not found.any(), f"{what}: a gradient that the reference does not have"
        return
    assert found is not None, f"{what}: no gradient"
    assert found.shape == expected.shape, f"{what}: shape {found.shape}, expected {expected.shape}"
    assert found.dtype == expected.dtype, f"{what}: {found.dtype}, expected {expected.dtype}"
    finite = expected.isfinite()
    assert_same(found.masked_fill(finite, 0), expected.masked_fill(finite, 0), f"{what}, not finite")
    allowed = tolerance * torch.maximum(scale.expand_as(expected).to(expected.dtype), expected.abs())
    wrong = finite & ~((found - expected).abs() <= allowed)
    assert not wrong.any(), (
        f"{what}: {int(wrong.sum())} of {found.numel()} differ, the first at {wrong.nonzero()[0].tolist()}: "
        f"{found[wrong][0]!r}, expected {expected[wrong][0]!r} within {allowed[wrong][0].item():.3g}"
    )


@dataclass(frozen=True)
class Gradients:
    """The gradients of one loss."""

    inputs: Tensor | None
    state: tuple[Tensor | None, ...]
    learned: dict[str, Tensor | None]


def on_its_device(run: Run, cell: hb.Cell, *tensors: Tensor) -> tuple[hb.Cell, list[Tensor]]:
    """`cell` and `tensors` where `run` has its device; a copy of them, if that is not the CPU."""
    device = getattr(run, "device", "cpu")
    if device == "cpu":
        return cell, list(tensors)
    return copy.deepcopy(cell).to(device), [tensor.to(device) for tensor in tensors]


def reference(
    cell: hb.Cell, inputs: Tensor, state: tuple[Tensor, ...] | None
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The specification."""
    return hb.unroll(cell, inputs, state, backend="reference")


def assert_conforms(run: Run, cell: hb.Cell, inputs: Tensor, *, uses: Sequence[str] = tuple(USES)) -> None:
    """`run` is the reference loop: values, and every gradient, from rest and from a state."""
    cell, (inputs,) = on_its_device(run, cell, inputs)
    begun = reference(cell, inputs.detach().flip(0), None)[1]
    for state in (None, tuple(value.detach().clone() for value in begun)):
        assert_same_gradients(run, cell, inputs, state, *uses)


def assert_same_values(
    run: Run, cell: hb.Cell, inputs: Tensor, state: tuple[Tensor, ...] | None = None
) -> None:
    """What `run` emits and ends in is the reference's, bit for bit, with nothing kept for a backward."""
    cell, (inputs, *begun) = on_its_device(run, cell, inputs, *(state or ()))
    state = tuple(begun) if state else None
    with torch.no_grad():
        _assert_same_run(run(cell, inputs, state), reference(cell, inputs, state), cell)


def assert_same_gradients(
    run: Run, cell: hb.Cell, inputs: Tensor, state: tuple[Tensor, ...] | None, *uses: str
) -> None:
    """A loss of what each of `uses` names has the reference's gradients; values are compared on the way."""
    cell, (inputs, *begun) = on_its_device(run, cell, inputs, *(state or ()))
    state = tuple(begun) if state else None
    inputs = inputs.detach().requires_grad_()
    state = None if state is None else tuple(value.detach().requires_grad_() for value in state)
    weights = _weights(cell, inputs)
    theirs, steps = reference(cell, inputs, state), _steps(cell, inputs, state)
    tolerance = TOLERANCE[inputs.dtype if inputs.dtype == torch.float64 else torch.float32]
    for use in uses:
        ours = run(cell, inputs, state)
        _assert_same_run(ours, theirs, cell)
        found = _gradients(_loss(*ours, weights, use), cell, inputs, state)
        expected = _gradients(_loss(*theirs, weights, use), cell, inputs, state, again=True)
        flow = _flow(*steps, inputs, weights, use)
        begin = f"{cell}, {'at rest' if state is None else 'from a state'}, {use}"
        assert_close(found.inputs, expected.inputs, flow, tolerance, f"{begin}: gradient of the input")
        first = flow[0] if len(flow) else flow
        for name, one, other in zip(cell.state_names(), found.state, expected.state, strict=False):
            assert_close(one, other, first, tolerance, f"{begin}: gradient of the first {name}")
        for name, other in expected.learned.items():
            assert_close(found.learned[name], other, flow.sum(), tolerance, f"{begin}: gradient of {name}")


def _assert_same_run(found: tuple[Tensor, tuple], expected: tuple[Tensor, tuple], cell: hb.Cell) -> None:
    assert_same(found[0], expected[0], f"{cell}: what is emitted")
    for name, one, other in zip(cell.state_names(), found[1], expected[1], strict=True):
        assert_same(one, other, f"{cell}: last {name}")


def _weights(cell: hb.Cell, inputs: Tensor) -> tuple[Tensor, list[Tensor]]:
    generator = torch.Generator().manual_seed(11)

    def some(shape: torch.Size) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(inputs)

    return some(inputs.shape), [some(inputs.shape[1:]) for _ in cell.state_names()]


def _loss(
    outputs: Tensor, state: tuple[Tensor, ...], weights: tuple[Tensor, list[Tensor]], use: str
) -> Tensor:
    to_outputs, to_state = weights
    terms = [(to_outputs * outputs).sum()] if USES[use][0] else []
    if USES[use][1]:
        terms += [(weight * value).sum() for weight, value in zip(to_state, state, strict=True)]
    return torch.stack([term.to(to_outputs.dtype) for term in terms]).sum()


def _gradients(
    loss: Tensor, cell: hb.Cell, inputs: Tensor, state: tuple[Tensor, ...] | None, *, again: bool = False
) -> Gradients:
    learned = {name: tensor for name, tensor in cell.named_parameters() if tensor.requires_grad}
    wanted = [inputs, *(state or ()), *learned.values()]
    if not loss.requires_grad:
        found = [None] * len(wanted)
    else:
        found = list(torch.autograd.grad(loss, wanted, allow_unused=True, retain_graph=again))
    count = len(state or ())
    return Gradients(
        found[0], tuple(found[1 : 1 + count]), dict(zip(learned, found[1 + count :], strict=True))
    )


Steps = tuple[Tensor, tuple[Tensor, ...] | None, list[list[Tensor]]]


def _steps(cell: hb.Cell, inputs: Tensor, state: tuple[Tensor, ...] | None) -> Steps:
    """What the reference emits, its last states, and those of each step that require a gradient."""
    steps, emitted, now = [], [], state
    for input_ in inputs:
        outputs, now = reference(cell, input_[None], now)
        emitted.append(outputs[0])
        steps.append([value for value in now if value.requires_grad])
    return torch.stack(emitted), now, steps


def _flow(
    emitted: Tensor,
    last: tuple[Tensor, ...] | None,
    steps: list[list[Tensor]],
    inputs: Tensor,
    weights: tuple[Tensor, list[Tensor]],
    use: str,
) -> Tensor:
    """The largest gradient of any state, per neuron, at each step or after; in the reference."""
    loss = _loss(emitted, last, weights, use)
    flat = [value for values in steps for value in values]
    if not (flat and loss.requires_grad):
        return torch.zeros_like(inputs)
    found = iter(torch.autograd.grad(loss, flat, allow_unused=True, retain_graph=True))
    largest = []
    for values, input_ in zip(steps, inputs.detach(), strict=True):
        grads = [grad.abs() for grad in (next(found) for _ in values) if grad is not None]
        largest.append(torch.stack([torch.zeros_like(input_), *grads]).nan_to_num(0, 0, 0).amax(0))
    return torch.stack(largest).flip(0).cummax(0).values.flip(0)
