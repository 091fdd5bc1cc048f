"""The dense product by oneDNN, which torch has beside its BLAS and uses for convolutions only.

    y = x W^T + b,   dL/dx = G W,   dL/dW = G^T x,   dL/db = sum of the rows of G

On some of AMD's processors it takes half the time of MKL, whose kernels are Intel's; on others as long. Sums
are in another order.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from hibana.compiler.derivatives import applied, are_batched
from hibana.spikes import select
from hibana.spikes.checks import check_saved

__all__ = ["FROM", "is_faster", "is_there", "linear", "product"]

FROM = 4_000_000
"""Multiplications from which on it is timed beside torch's BLAS."""


def is_faster(input: Tensor, weight: Tensor) -> bool:  # noqa: A002 - torch's name
    """Whether :func:`linear` took less time than torch's BLAS for such a product, where torch has oneDNN."""
    rows, inputs = input.numel() // weight.shape[1], weight.shape[1]
    if rows * weight.numel() < FROM or not is_there():
        return False
    sizes = select.bucket(rows), inputs, weight.shape[0]
    key = select.Key("linear by oneDNN", sizes, torch.get_num_threads())
    numbers, of_outputs = input.detach().reshape(rows, inputs), weight.detach()
    calls = (
        lambda: linear(numbers, of_outputs, None),
        lambda: functional.linear(numbers, of_outputs),
    )
    return select.faster(key, lambda: calls, prior=False)


def is_there() -> bool:
    """Whether torch has oneDNN's linear product."""
    available = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call] # torch leaves it so
    return available and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def linear(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # noqa: A002
    """``input W^T + bias`` of float32 numbers on the CPU, with derivatives of every order."""
    out: Tensor = _apply(input, weight, bias)
    return out


def product(left: Tensor, right: Tensor, bias: Tensor | None) -> Tensor:
    """``left right^T + bias``."""
    out: Tensor = torch.ops.mkldnn._linear_pointwise(left, right, bias, "none", [], "")
    return out


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # noqa: A002
        # the last is what the forward read, whatever ``weight.data`` is set to, as torch's layer has it
        ctx.save_for_backward(input, weight, weight.detach())
        ctx.shape = input.shape
        rows = input.reshape(-1, weight.shape[1]).contiguous()
        out = product(rows, weight.contiguous(), bias)
        shaped: Tensor = torch.ops.aten._unsafe_view(out, [*input.shape[:-1], weight.shape[0]])
        return shaped  # no view to autograd

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        input_, weight, read = ctx.saved_tensors
        check_saved(input_, ctx.shape)
        weight = weight if torch.is_grad_enabled() else read
        rows, grads = input_.reshape(-1, weight.shape[1]), grad.reshape(-1, weight.shape[0])
        wanted = ctx.needs_input_grad
        if torch.is_grad_enabled() or are_batched([grad]):  # to be differentiated again, or several at once
            to_input = grads @ weight if wanted[0] else None
            to_weight = grads.T @ rows if wanted[1] else None
        else:
            grads = grads.resolve_neg().contiguous()
            to_input = product(grads, weight.contiguous().T, None) if wanted[0] else None
            to_weight = product(grads.T, rows.T, None) if wanted[1] else None
        to_bias = grads.sum(0) if wanted[2] else None
        return None if to_input is None else to_input.view(input_.shape), to_weight, to_bias


_apply = applied(_Linear)
