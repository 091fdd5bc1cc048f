"""Compares hibana with its reference loop; a cell whose results differ is not timed."""

import torch
from torch import Tensor

import hibana as hb

__all__ = ["disagreement", "gradients_differ"]


def disagreement(cell: hb.Cell, inputs: Tensor, grad_outputs: Tensor) -> str | None:
    """Describes how ``hb.unroll`` with the backend ``"auto"`` differs from the reference loop, or None.

    Spikes and states must be equal bit for bit, the gradient of the input up to rounding.
    """
    automatic, reference = (
        _outcome(cell, inputs, grad_outputs, backend=backend) for backend in ("auto", "reference")
    )
    names = ["outputs", *(f"state {name}" for name in cell.state_names())]
    for name, actual, expected in zip(names, automatic[0], reference[0], strict=True):
        if not torch.equal(actual, expected):
            return f"{name} differ in {int((actual != expected).sum())} of {actual.numel()} places"
    return gradients_differ({"input": automatic[1]}, {"input": reference[1]})


def _outcome(
    cell: hb.Cell, inputs: Tensor, grad_outputs: Tensor, *, backend: str
) -> tuple[list[Tensor], Tensor]:
    """The outputs and final states of `cell`, and the gradient of its input."""
    inputs = inputs.detach().requires_grad_()
    outputs, state = hb.unroll(cell, inputs, backend=backend)
    (gradient,) = torch.autograd.grad(outputs, inputs, grad_outputs)
    return [outputs.detach(), *(value.detach() for value in state)], gradient


def gradients_differ(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> str | None:
    """Names the first gradient of `actual` that differs from `expected` by more than rounding, or None."""
    for name, gradient in expected.items():
        scale = max(1.0, float(gradient.abs().max()))
        error = (actual[name] - gradient).abs()
        if not bool((error - 1e-4 * gradient.abs() <= 1e-5 * scale).all()):
            return f"gradient of {name} is off by {float(error.max()):.3g}"
    return None
