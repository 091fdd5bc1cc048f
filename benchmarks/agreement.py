"""The gate: hibana agrees with its reference loop, or it is not timed."""

import torch
from torch import Tensor

import hibana as hb

__all__ = ["disagreement", "gradients_differ"]


def disagreement(cell: hb.Cell, inputs: Tensor, grad_outputs: Tensor) -> str | None:
    """What differs between ``unroll`` as it chooses by itself and the reference loop, or None.

    Spikes and states must be equal, bit for bit; the gradient of the input close.
    """
    chosen, reference = (
        _outcome(cell, inputs, grad_outputs, backend=backend) for backend in ("auto", "reference")
    )
    names = ["outputs", *(f"state {name}" for name in cell.state_names())]
    for name, got, wanted in zip(names, chosen[0], reference[0], strict=True):
        if not torch.equal(got, wanted):
            return f"{name} differ in {int((got != wanted).sum())} of {got.numel()} places"
    return gradients_differ({"input": chosen[1]}, {"input": reference[1]})


def _outcome(
    cell: hb.Cell, inputs: Tensor, grad_outputs: Tensor, *, backend: str
) -> tuple[list[Tensor], Tensor]:
    inputs = inputs.detach().requires_grad_()
    outputs, state = hb.unroll(cell, inputs, backend=backend)
    (gradient,) = torch.autograd.grad(outputs, inputs, grad_outputs)
    return [outputs.detach(), *(value.detach() for value in state)], gradient


def gradients_differ(got: dict[str, Tensor], wanted: dict[str, Tensor]) -> str | None:
    """Which gradient is further than float tolerance from the wanted one, and by how much, or None."""
    for name, right in wanted.items():
        scale = max(1.0, float(right.abs().max()))
        off = (got[name] - right).abs() - 1e-4 * right.abs()
        if not bool((off <= 1e-5 * scale).all()):
            return f"gradient of {name} is off by {float((got[name] - right).abs().max()):.3g}"
    return None
