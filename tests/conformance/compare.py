"""The comparisons of the conformance suite; test_compare.py tests them.

Outputs and states must equal the reference's bit for bit. Gradients are sums in another order, so they agree
up to rounding: each relative to the largest gradient of its neuron's states at its step or later, because it
is a sum of these gradients.
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
"""Terms of a loss: the outputs, the last states."""


def assert_same(result: Tensor, expected: Tensor, name: str) -> None:
    """Asserts the same shape, dtype and values; NaN equals NaN."""
    assert result.shape == expected.shape, f"{name}: shape {result.shape}, expected {expected.shape}"
    assert result.dtype == expected.dtype, f"{name}: {result.dtype}, expected {expected.dtype}"
    different = (result != expected) & ~(result.isnan() & expected.isnan())
    assert not different.any(), (
        f"{name}: {int(different.sum())} of {result.numel()} differ, the first at "
        f"{different.nonzero()[0].tolist()}: {result[different][0]!r}, expected {expected[different][0]!r}"
    )


def assert_close(
    result: Tensor | None, expected: Tensor | None, scale: Tensor, tolerance: float, name: str
) -> None:
    """Asserts that `result` is close to `expected`: within `tolerance` times `scale` or `expected`.

    If `expected` is None, `result` may be None or zero; else `result` must not be None.
    """
    if expected is None:
        assert result is None or not result.any(), f"{name}: a gradient that the reference does not have"
        return
    assert result is not None, f"{name}: no gradient"
    assert result.shape == expected.shape, f"{name}: shape {result.shape}, expected {expected.shape}"
    assert result.dtype == expected.dtype, f"{name}: {result.dtype}, expected {expected.dtype}"
    finite = expected.isfinite()
    assert_same(result.masked_fill(finite, 0), expected.masked_fill(finite, 0), f"{name}, not finite")
    allowed = tolerance * torch.maximum(scale.expand_as(expected).to(expected.dtype), expected.abs())
    wrong = finite & ~((result - expected).abs() <= allowed)
    assert not wrong.any(), (
        f"{name}: {int(wrong.sum())} of {result.numel()} differ, the first at {wrong.nonzero()[0].tolist()}: "
        f"{result[wrong][0]!r}, expected {expected[wrong][0]!r} within {allowed[wrong][0].item():.3g}"
    )


@dataclass(frozen=True)
class Gradients:
    """The gradients of one loss."""

    inputs: Tensor | None
    state: tuple[Tensor | None, ...]
    learned: dict[str, Tensor | None]


def on_its_device(run: Run, cell: hb.Cell, *tensors: Tensor) -> tuple[hb.Cell, list[Tensor]]:
    """`cell` and `tensors` on the device of `run`; copies, unless that is the CPU."""
    device = getattr(run, "device", "cpu")
    if device == "cpu":
        return cell, list(tensors)
    return copy.deepcopy(cell).to(device), [tensor.to(device) for tensor in tensors]


def reference(
    cell: hb.Cell, inputs: Tensor, state: tuple[Tensor, ...] | None
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Outputs and last states by the reference loop."""
    return hb.unroll(cell, inputs, state, backend="reference")


def assert_conforms(run: Run, cell: hb.Cell, inputs: Tensor, *, uses: Sequence[str] = tuple(USES)) -> None:
    """Asserts that `run` has the reference's values and gradients, from rest and from an initial state."""
    cell, (inputs,) = on_its_device(run, cell, inputs)
    initial = reference(cell, inputs.detach().flip(0), None)[1]
    for state in (None, tuple(value.detach().clone() for value in initial)):
        assert_same_gradients(run, cell, inputs, state, *uses)


def assert_same_values(
    run: Run, cell: hb.Cell, inputs: Tensor, state: tuple[Tensor, ...] | None = None
) -> None:
    """Asserts that outputs and last states of `run` equal the reference's bit for bit, without autograd."""
    cell, (inputs, *initial) = on_its_device(run, cell, inputs, *(state or ()))
    state = tuple(initial) if state else None
    with torch.no_grad():
        _assert_same_run(run(cell, inputs, state), reference(cell, inputs, state), cell)


def assert_same_gradients(
    run: Run, cell: hb.Cell, inputs: Tensor, state: tuple[Tensor, ...] | None, *uses: str
) -> None:
    """Asserts that values, and the gradients of one loss per entry of `uses`, are the reference's."""
    cell, (inputs, *initial) = on_its_device(run, cell, inputs, *(state or ()))
    state = tuple(initial) if state else None
    inputs = inputs.detach().requires_grad_()
    state = None if state is None else tuple(value.detach().requires_grad_() for value in state)
    weights = _weights(cell, inputs)
    expected_run, steps = reference(cell, inputs, state), _steps(cell, inputs, state)
    tolerance = TOLERANCE[inputs.dtype if inputs.dtype == torch.float64 else torch.float32]
    for use in uses:
        run_ = run(cell, inputs, state)
        _assert_same_run(run_, expected_run, cell)
        grads = _gradients(_loss(*run_, weights, use), cell, inputs, state)
        expected = _gradients(_loss(*expected_run, weights, use), cell, inputs, state, retain=True)
        flow = _flow(*steps, inputs, weights, use)
        label = f"{cell}, {'at rest' if state is None else 'from a state'}, {use}"
        assert_close(grads.inputs, expected.inputs, flow, tolerance, f"{label}: gradient of the input")
        first = flow[0] if len(flow) else flow
        for name, grad, target in zip(cell.state_names(), grads.state, expected.state, strict=False):
            assert_close(grad, target, first, tolerance, f"{label}: gradient of the first {name}")
        for name, target in expected.learned.items():
            assert_close(grads.learned[name], target, flow.sum(), tolerance, f"{label}: gradient of {name}")


def _assert_same_run(result: tuple[Tensor, tuple], expected: tuple[Tensor, tuple], cell: hb.Cell) -> None:
    assert_same(result[0], expected[0], f"{cell}: outputs")
    for name, one, other in zip(cell.state_names(), result[1], expected[1], strict=True):
        assert_same(one, other, f"{cell}: last {name}")


def _weights(cell: hb.Cell, inputs: Tensor) -> tuple[Tensor, list[Tensor]]:
    generator = torch.Generator().manual_seed(11)

    def draw(shape: torch.Size) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(inputs)

    return draw(inputs.shape), [draw(inputs.shape[1:]) for _ in cell.state_names()]


def _loss(
    outputs: Tensor, state: tuple[Tensor, ...], weights: tuple[Tensor, list[Tensor]], use: str
) -> Tensor:
    to_outputs, to_state = weights
    terms = [(to_outputs * outputs).sum()] if USES[use][0] else []
    if USES[use][1]:
        terms += [(weight * value).sum() for weight, value in zip(to_state, state, strict=True)]
    return torch.stack([term.to(to_outputs.dtype) for term in terms]).sum()


def _gradients(
    loss: Tensor, cell: hb.Cell, inputs: Tensor, state: tuple[Tensor, ...] | None, *, retain: bool = False
) -> Gradients:
    learned = {name: tensor for name, tensor in cell.named_parameters() if tensor.requires_grad}
    sources = [inputs, *(state or ()), *learned.values()]
    if not loss.requires_grad:
        grads = [None] * len(sources)
    else:
        grads = list(torch.autograd.grad(loss, sources, allow_unused=True, retain_graph=retain))
    count = len(state or ())
    return Gradients(
        grads[0], tuple(grads[1 : 1 + count]), dict(zip(learned, grads[1 + count :], strict=True))
    )


Steps = tuple[Tensor, tuple[Tensor, ...] | None, list[list[Tensor]]]


def _steps(cell: hb.Cell, inputs: Tensor, state: tuple[Tensor, ...] | None) -> Steps:
    """Outputs and last states of the reference, and the states of each step that require a gradient."""
    steps, emitted, state_ = [], [], state
    for input_ in inputs:
        outputs, state_ = reference(cell, input_[None], state_)
        emitted.append(outputs[0])
        steps.append([value for value in state_ if value.requires_grad])
    return torch.stack(emitted), state_, steps


def _flow(
    emitted: Tensor,
    last: tuple[Tensor, ...] | None,
    steps: list[list[Tensor]],
    inputs: Tensor,
    weights: tuple[Tensor, list[Tensor]],
    use: str,
) -> Tensor:
    """The reference's largest gradient of any state, per neuron, at each step or later."""
    loss = _loss(emitted, last, weights, use)
    flat = [value for values in steps for value in values]
    if not (flat and loss.requires_grad):
        return torch.zeros_like(inputs)
    grads = iter(torch.autograd.grad(loss, flat, allow_unused=True, retain_graph=True))
    largest = []
    for values, input_ in zip(steps, inputs.detach(), strict=True):
        sizes = [grad.abs() for grad in (next(grads) for _ in values) if grad is not None]
        largest.append(torch.stack([torch.zeros_like(input_), *sizes]).nan_to_num(0, 0, 0).amax(0))
    return torch.stack(largest).flip(0).cummax(0).values.flip(0)
