"""One case of a step: the compiled run beside the reference loop."""

from contextlib import nullcontext
from dataclasses import dataclass
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

NAMED = (Unsupported, ValueError, TypeError, NotImplementedError)
"""What a call may raise where it can't serve, with a sentence."""


class Different(AssertionError):  # noqa: N818 # it names a state of affairs, as Unsupported does
    """A run that is not the reference's, nor refused by name."""


@dataclass
class Counts:
    """What became of cases."""

    compared: int = 0
    refused: int = 0
    """By a named error of the compiled backend; what ``"auto"`` gave was compared all the same."""
    invalid: int = 0
    """PyTorch itself raises, in the reference loop."""
    beside_nan: int = 0
    """Of those compared: a gradient is NaN in one run alone, as docs/how/numerics.md allows."""

    @property
    def all(self) -> int:
        """Cases run."""
        return self.compared + self.refused + self.invalid


@dataclass
class _Found:
    values: dict[str, Tensor]
    grads: dict[str, Tensor | None]


def compare_all(step: Step, count: int, counts: Counts) -> None:
    """So many cases of a step; fewer of one that is refused, where the reference is compared with itself.

    Raises:
        Different: for the first that is not the reference's.
    """
    kind = step.kind()
    before = counts.compared
    for made, variation in enumerate(variations(0, count)):
        if made >= count // 8 and counts.compared == before:
            return
        compare(step, kind, variation, counts)


def compare(
    step: Step, kind: type[hb.Cell], variation: Variation, counts: Counts, backend: str = "cpu"
) -> None:
    """One case.

    Raises:
        Different: if it is not the reference's, with the step and the case.
    """
    cell = _cell(kind, variation)
    try:
        wanted = _run(cell, variation, "reference")
    except Exception:  # whatever PyTorch says
        counts.invalid += 1
        _ends(cell, variation, backend)
        return
    try:
        found = _run(cell, variation, backend)
        counts.compared += 1
    except NAMED as error:
        _is_a_sentence(step, variation, error)
        counts.refused += 1
        try:
            found = _run(cell, variation, "auto")
            wanted = _run(cell, variation, "reference", middle=False)
        except NAMED as error:
            _is_a_sentence(step, variation, error)
            return
        except Exception as error:
            raise _different(step, variation, f"auto raises {type(error).__name__}: {error}") from error
    except Exception as error:
        raise _different(step, variation, f"{type(error).__name__}: {error}") from error
    try:
        for name, value in wanted.values.items():
            assert_same(found.values[name], value, name)
            _assert_same_signs(found.values[name], value, name)
        if variation.dtype in TOLERANCE:
            counts.beside_nan += _assert_close(cell, variation, found, wanted)
    except AssertionError as error:
        raise _different(step, variation, str(error)) from error


def _cell(kind: type[hb.Cell], variation: Variation) -> hb.Cell:
    cell = kind(variation.shape[-1], variation.kind, **SETTINGS[variation.setting % len(SETTINGS)])
    if variation.dtype == torch.float64:
        cell = cell.double()
        cell.each = cell.each.double()
    return cell


def _run(cell: hb.Cell, variation: Variation, backend: str, *, middle: bool = True) -> _Found:
    """What `backend` makes of it; the reference, if `middle`, with the zeros of the middle of a tensor."""
    cell.__dict__["count"] = 0
    cell.zero_grad()
    inputs = variation.inputs().requires_grad_()
    carried = torch.float64 if variation.dtype == torch.float64 else torch.float32
    state = variation.begun(3, carried)
    if state is not None:
        state = tuple(value.requires_grad_() for value in state)
    chooses = middle and backend == "reference" and "imum(" in str(cell.__doc__)
    with _Middle() if chooses else nullcontext():
        outputs, last = hb.unroll(cell, inputs, state, backend=backend)
    values = {"what is emitted": outputs.detach().clone()}
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
    return _Found(values, grads)


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


def _assert_same_signs(found: Tensor, wanted: Tensor, what: str) -> None:
    different = (found.signbit() != wanted.signbit()) & ~wanted.isnan()
    assert not different.any(), f"{what}: {int(different.sum())} zeros of another sign"


def _assert_close(cell: hb.Cell, variation: Variation, found: _Found, wanted: _Found) -> bool:
    """Whether gradients that are NaN had to be left out: zero times infinity is zero in kernels alone."""
    tolerance = TOLERANCE[variation.dtype]
    try:
        _each_close(found, wanted, 1.0, tolerance)
    except AssertionError:
        flow = _largest_gradient(cell, variation)
        try:
            _each_close(found, wanted, flow, tolerance)
        except AssertionError:
            both_ways = not _is_finite(variation, wanted)
            if not both_ways and not _is_guarded(cell, variation):
                raise
            _each_close(_without_nan(found, wanted, both_ways), wanted, flow, tolerance)
            return True
    return False


def _is_finite(variation: Variation, wanted: _Found) -> bool:
    """Whether what is read and what is left is finite."""
    begun = variation.begun(3, torch.float64) or ()
    return all(bool(t.isfinite().all()) for t in (variation.inputs(), *begun, *wanted.values.values()))


def _is_guarded(cell: hb.Cell, variation: Variation) -> bool:
    """Whether a derivative of the step may be infinite, so that kernels guard products of gradients."""
    carried = torch.float64 if variation.dtype == torch.float64 else torch.float32
    step = trace(cell, torch.Size(variation.shape), carried, draws=True)
    return gradients(guard_products(step)) != gradients(step)


def _without_nan(found: _Found, wanted: _Found, both_ways: bool) -> _Found:
    """`found`, with gradients of `wanted` where those are NaN; if `both_ways`, where either is."""
    grads: dict[str, Tensor | None] = {}
    for name, grad in found.grads.items():
        other = wanted.grads[name]
        if grad is not None:
            other = torch.zeros_like(grad) if other is None else other
            nan = other.isnan() | grad.isnan() if both_ways else other.isnan()
            grad = torch.where(nan, other, grad)
        grads[name] = grad
    return _Found(found.values, grads)


def _each_close(found: _Found, wanted: _Found, scale: float, tolerance: float) -> None:
    for name, grad in wanted.grads.items():
        if grad is None:
            got = found.grads.get(name)
            assert got is None or not got.nan_to_num(1.0).any(), f"{name}: the reference has none"
            continue
        assert_close(found.grads.get(name), grad, grad.new_tensor(scale), tolerance, name)


class _Middle(TorchDispatchMode):
    """Has PyTorch choose between zeros of two signs as it does in the middle of a tensor, at its end too."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func not in (torch.ops.aten.maximum.default, torch.ops.aten.minimum.default):
            return func(*args, **(kwargs or {}))
        one, other = args
        if one.dtype == torch.bool or one.dtype != other.dtype:
            return func(one, other)
        first = one > other if func is torch.ops.aten.maximum.default else one < other
        return torch.where(first | one.isnan(), one, other)


class _Watching(TorchDispatchMode):
    """Watches how large numbers come, which is what rounding is relative to."""

    largest = 1.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and out.is_floating_point() and out.numel():
            size = float(out.detach().abs().nan_to_num(0.0, 0.0, 0.0).max())
            self.largest = max(self.largest, size)
        return out


def _largest_gradient(cell: hb.Cell, variation: Variation) -> float:
    """The largest number met in the reference's forward and backward."""
    with _Watching() as watching:
        _run(cell, variation, "reference")
    return watching.largest


def _is_a_sentence(step: Step, variation: Variation, error: Exception) -> None:
    if len(str(error).split()) < 3:
        raise _different(step, variation, f"{type(error).__name__} without a sentence: {error}") from error


def _ends(cell: hb.Cell, variation: Variation, backend: str) -> None:
    """Runs what PyTorch refuses: it may raise anything, if only it does not crash."""
    try:
        _run(cell, variation, backend)
    except Exception:  # as PyTorch does
        return


def _different(step: Step, variation: Variation, what: str) -> Different:
    return Different(f"{what}\n{step}\n{variation}")
