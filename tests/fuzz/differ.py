"""Compares the compiled run of a random step with the reference loop."""

from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import hibana as hb
from conformance.compare import TOLERANCE, assert_close, assert_same
from fuzz.steps import SETTINGS, Step
from fuzz.variations import Variation, variations
from hibana.compiler.analysis.bounds import guard_products
from hibana.compiler.graph.ops import Unsupported
from hibana.compiler.graph.plan import gradients
from hibana.compiler.graph.trace import trace

__all__ = ["Counts", "Different", "compare", "compare_all"]

REFUSALS = (Unsupported, ValueError, TypeError, NotImplementedError)
"""Errors with which hibana may refuse a step, if they have a message."""


class Different(AssertionError):  # noqa: N818 # a name without "Error", like Unsupported
    """The results of a run differ from the reference, or the run failed without a proper message."""


@dataclass
class Counts:
    """Numbers of cases by outcome."""

    compared: int = 0
    refused: int = 0
    """Refused by the compiled backend with a message; the results of ``"auto"`` were compared instead."""
    invalid: int = 0
    """PyTorch raises an error in the reference loop."""
    one_sided_nan: int = 0
    """Compared cases in which a gradient is NaN in only one run, as docs/how/numerics.md allows."""

    @property
    def all(self) -> int:
        """Number of all cases."""
        return self.compared + self.refused + self.invalid


@dataclass
class _Results:
    values: dict[str, Tensor]
    grads: dict[str, Tensor | None]


def compare_all(step: Step, count: int, counts: Counts) -> None:
    """Compares a step in `count` cases, or in an eighth of them if the compiled backend refuses the step.

    Raises:
        Different: at the first case whose results differ from the reference.
    """
    cell_class = step.kind()
    before = counts.compared
    for position, variation in enumerate(variations(0, count)):
        if position >= count // 8 and counts.compared == before:
            return
        compare(step, cell_class, variation, counts)


def compare(
    step: Step, cell_class: type[hb.Cell], variation: Variation, counts: Counts, backend: str = "cpu"
) -> None:
    """Compares one case and counts it.

    Raises:
        Different: if the results differ from the reference; the message contains the step and the case.
    """
    cell = _cell(cell_class, variation)
    try:
        expected = _run(cell, variation, "reference")
    except Exception:  # PyTorch refuses the step
        counts.invalid += 1
        _run_without_crash(cell, variation, backend)
        return
    try:
        actual = _run(cell, variation, backend)
        counts.compared += 1
    except REFUSALS as error:
        _check_message(step, variation, error)
        counts.refused += 1
        try:
            actual = _run(cell, variation, "auto")
            expected = _run(cell, variation, "reference", vectorized=False)
        except REFUSALS as error:
            _check_message(step, variation, error)
            return
        except Exception as error:
            raise _different(step, variation, f"auto raises {type(error).__name__}: {error}") from error
    except Exception as error:
        raise _different(step, variation, f"{type(error).__name__}: {error}") from error
    try:
        for name, value in expected.values.items():
            assert_same(actual.values[name], value, name)
            _assert_same_signs(actual.values[name], value, name)
        if variation.dtype in TOLERANCE:
            counts.one_sided_nan += _assert_close(cell, variation, actual, expected)
    except AssertionError as error:
        raise _different(step, variation, str(error)) from error


def _cell(cell_class: type[hb.Cell], variation: Variation) -> hb.Cell:
    cell = cell_class(variation.shape[-1], variation.kind, **SETTINGS[variation.setting % len(SETTINGS)])
    if variation.dtype == torch.float64:
        cell = cell.double()
        cell.each = cell.each.double()
    return cell


def _run(cell: hb.Cell, variation: Variation, backend: str, *, vectorized: bool = True) -> _Results:
    """Outputs, last states and gradients of `backend`; see :class:`_Vectorized` for `vectorized`."""
    cell.__dict__["count"] = 0
    cell.zero_grad()
    inputs = variation.inputs().requires_grad_()
    state_dtype = torch.float64 if variation.dtype == torch.float64 else torch.float32
    state = variation.initial_state(3, state_dtype)
    if state is not None:
        state = tuple(value.requires_grad_() for value in state)
    text = str(cell.__doc__)
    vectorized = vectorized and backend == "reference" and ("imum(" in text or "exp2(" in text)
    with _Vectorized() if vectorized else nullcontext():
        outputs, last = hb.unroll(cell, inputs, state, backend=backend)
    values = {"output": outputs.detach().clone()}
    values |= {f"last {name}": value.detach().clone() for name, value in zip("uvs", last, strict=True)}
    grads: dict[str, Tensor | None] = {}
    loss = _loss(outputs, last, variation)
    if loss is not None and loss.requires_grad:
        if variation.hook and outputs.requires_grad and "states" not in variation.use:
            outputs.register_hook(lambda grad: grad * 2)
        names = ["gradient of the input", *(f"gradient of the first {n}" for n in "uvs"[: len(state or ())])]
        names += [f"gradient of {name}" for name, _ in cell.named_parameters()]
        leaves = [inputs, *(state or ()), *cell.parameters()]
        grads = dict(zip(names, torch.autograd.grad(loss, leaves, allow_unused=True), strict=True))
    return _Results(values, grads)


def _loss(outputs: Tensor, last: tuple[Tensor, ...], variation: Variation) -> Tensor | None:
    generator = torch.Generator().manual_seed(variation.seed + 2)

    def weighted(value: Tensor) -> Tensor:
        weights = torch.randn(value.shape, generator=generator, dtype=torch.float64)
        return (value.double() * weights).sum()

    match variation.use:
        case "outputs":
            return weighted(outputs)
        case "outputs and states":
            return weighted(outputs) + sum(weighted(value) for value in last)
        case "states":
            return sum((weighted(value) for value in last), torch.zeros((), dtype=torch.float64))
        case "first state":
            return weighted(last[0])
        case "last step":
            return weighted(outputs[-1])
        case "second step":
            return weighted(outputs[1:2])
    return None


def _assert_same_signs(actual: Tensor, expected: Tensor, name: str) -> None:
    different = (actual.signbit() != expected.signbit()) & ~expected.isnan()
    assert not different.any(), f"{name}: {int(different.sum())} zeros of another sign"


def _assert_close(cell: hb.Cell, variation: Variation, actual: _Results, expected: _Results) -> bool:
    """Compares gradients; returns whether NaNs were skipped, because in kernels 0 * infinity is 0."""
    tolerance = TOLERANCE[variation.dtype]
    try:
        _each_close(actual, expected, 1.0, tolerance)
    except AssertionError:
        scale = _largest_gradient(cell, variation)
        try:
            _each_close(actual, expected, scale, tolerance)
        except AssertionError:
            has_infinity = not _is_finite(variation, expected)
            if not has_infinity and not _is_guarded(cell, variation):
                raise
            _each_close(_without_nan(actual, expected, has_infinity), expected, scale, tolerance)
            return True
    return False


def _is_finite(variation: Variation, expected: _Results) -> bool:
    """Whether inputs, initial state, outputs and last states are finite."""
    state = variation.initial_state(3, torch.float64) or ()
    return all(bool(t.isfinite().all()) for t in (variation.inputs(), *state, *expected.values.values()))


def _is_guarded(cell: hb.Cell, variation: Variation) -> bool:
    """Whether kernels guard products of gradients, because a derivative of the step may be infinite."""
    state_dtype = torch.float64 if variation.dtype == torch.float64 else torch.float32
    step = trace(cell, torch.Size(variation.shape), state_dtype, draws=True)
    return gradients(guard_products(step)) != gradients(step)


def _without_nan(actual: _Results, expected: _Results, has_infinity: bool) -> _Results:
    """`actual` with the gradients of `expected` where those are NaN; if `has_infinity`, where either is."""
    grads: dict[str, Tensor | None] = {}
    for name, grad in actual.grads.items():
        replacement = expected.grads[name]
        if grad is not None:
            replacement = torch.zeros_like(grad) if replacement is None else replacement
            is_nan = replacement.isnan() | grad.isnan() if has_infinity else replacement.isnan()
            grad = torch.where(is_nan, replacement, grad)
        grads[name] = grad
    return _Results(actual.values, grads)


def _each_close(actual: _Results, expected: _Results, scale: float, tolerance: float) -> None:
    for name, grad in expected.grads.items():
        if grad is None:
            other = actual.grads.get(name)
            assert other is None or not other.nan_to_num(1.0).any(), f"{name}: the reference has none"
            continue
        assert_close(actual.grads.get(name), grad, grad.new_tensor(scale), tolerance, name)


class _Exp2(hb.Cell):
    """The compiled ``exp2``."""

    def forward(self, x: Tensor, s: Tensor) -> tuple[Tensor]:
        """The power of two of `x`."""
        return (torch.exp2(x),)


def _exp2_of_each(x: Tensor) -> Tensor:
    """``exp2`` of each number by PyTorch's scalar loop: of a tensor of one number."""
    return torch.cat([torch.exp2(part) for part in x.flatten().split(1)]).view(x.shape)


@cache
def _is_exp2_scalar(dtype: torch.dtype) -> bool:
    """Whether the compiled ``exp2`` is that of PyTorch's scalar loop, the C library's, on this processor."""
    x = torch.linspace(-3, 3, 512, dtype=dtype)[None, None]
    return torch.equal(hb.unroll(_Exp2(), x, backend="cpu")[0], _exp2_of_each(x))


class _Vectorized(TorchDispatchMode):
    """Computes all elements alike, where PyTorch's code for vectors and its loop for the others differ.

    They choose between 0.0 and -0.0 in ``maximum`` and ``minimum`` (here as for vectors), and have another
    ``exp2`` (here the one that the compiled step has everywhere).
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.exp2.default and args[0].dtype in (torch.float32, torch.float64):
            (x,) = args
            padded = torch.nn.functional.pad(x.flatten(), (0, -x.numel() % 64))
            scalar = _is_exp2_scalar(x.dtype) and x.numel()
            numbers = _exp2_of_each(x) if scalar else func(padded)[: x.numel()].view(x.shape)
            return torch.empty_like(x).copy_(numbers)
        if func not in (torch.ops.aten.maximum.default, torch.ops.aten.minimum.default):
            return func(*args, **(kwargs or {}))
        first, second = args
        if first.dtype == torch.bool or first.dtype != second.dtype:
            return func(first, second)
        is_first = first > second if func is torch.ops.aten.maximum.default else first < second
        return torch.where(is_first | first.isnan(), first, second)


class _LargestNumber(TorchDispatchMode):
    """Records the largest finite number that an operation returns, to which rounding is relative."""

    largest = 1.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and out.is_floating_point() and out.numel():
            size = float(out.detach().abs().nan_to_num(0.0, 0.0, 0.0).max())
            self.largest = max(self.largest, size)
        return out


def _largest_gradient(cell: hb.Cell, variation: Variation) -> float:
    """The largest number in the reference's forward and backward."""
    with _LargestNumber() as recorder:
        _run(cell, variation, "reference")
    return recorder.largest


def _check_message(step: Step, variation: Variation, error: Exception) -> None:
    if len(str(error).split()) < 3:
        raise _different(step, variation, f"{type(error).__name__} without a message: {error}") from error


def _run_without_crash(cell: hb.Cell, variation: Variation, backend: str) -> None:
    """Runs a case that PyTorch refuses; it may raise any exception, but must not crash."""
    try:
        _run(cell, variation, backend)
    except Exception:  # PyTorch raises, too
        return


def _different(step: Step, variation: Variation, message: str) -> Different:
    return Different(f"{message}\n{step}\n{variation}")
