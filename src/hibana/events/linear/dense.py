"""The dense product by oneDNN, which torch has beside its BLAS and takes for convolutions only.

    y = x W^T + b,   dL/dx = G W,   dL/dW = G^T x,   dL/db = sum of the rows of G

On an AMD EPYC (Zen 5) it takes half as long as MKL's, whose kernels are Intel's. Sums are in another order.
Where few values of G are not zero, dL/dW is summed over these.
"""

from typing import Any

import torch
from torch import Tensor

from hibana.events.linear.few import are_few, weight_gradient_of_few

__all__ = ["linear", "there"]


def there() -> bool:
    """Whether torch has it."""
    return torch._C._has_mkldnn and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def linear(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # noqa: A002 - torch's name
    """``input W^T + b`` of float32 numbers on the CPU, with derivatives of every order."""
    apply: Any = _Linear.apply  # torch leaves it without types
    out: Tensor = apply(input, weight, bias)
    return out


def _product(left: Tensor, right: Tensor, bias: Tensor | None = None) -> Tensor:
    """``left right^T + bias``."""
    out: Tensor = torch.ops.mkldnn._linear_pointwise(left, right, bias, "none", [], "")
    return out


def _weight_gradient(grads: Tensor, rows: Tensor) -> Tensor:
    """``grads.T @ rows`` of contiguous matrices."""
    if are_few(grads):
        return weight_gradient_of_few(grads, rows)
    return _product(grads.T, rows.T)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # noqa: A002
        ctx.save_for_backward(input, weight)
        rows = input.reshape(-1, weight.shape[1]).contiguous()
        out = _product(rows, weight.contiguous(), bias)
        shaped: Tensor = torch.ops.aten._unsafe_view(out, [*input.shape[:-1], len(weight)])
        return shaped  # no view to autograd

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        input_, weight = ctx.saved_tensors
        rows, grads = input_.reshape(-1, weight.shape[1]), grad.reshape(-1, len(weight))
        wanted = ctx.needs_input_grad
        to_input = to_weight = None
        if torch.is_grad_enabled():  # to be differentiated again
            to_input = grads @ weight if wanted[0] else None
            to_weight = grads.T @ rows if wanted[1] else None
        else:
            grads = grads.resolve_neg().contiguous()
            to_input = _product(grads, weight.contiguous().T) if wanted[0] else None
            to_weight = _weight_gradient(grads, rows.contiguous()) if wanted[1] else None
        to_bias = grads.sum(0) if wanted[2] else None
        return None if to_input is None else to_input.view(input_.shape), to_weight, to_bias
