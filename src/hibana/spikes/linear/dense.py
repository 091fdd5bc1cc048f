"""The dense product, whose weights' gradient is summed over few values where the output's gradient has few.

    y = x W^T + b,   dL/dx = G W,   dL/dW = G^T x,   dL/db = sum of the rows of G

By torch's own BLAS, or by oneDNN, which torch has beside it and takes for convolutions only: on an AMD EPYC
(Zen 5) it takes half as long as MKL's, whose kernels are Intel's. Sums are in another order.
"""

from typing import Any, final

import torch
from torch import Tensor
from torch.nn import functional

from hibana.compiler.derivatives import applied, are_batched
from hibana.spikes.checks import check_saved
from hibana.spikes.linear.few import are_few, weight_gradient_of_few

__all__ = ["Fewness", "linear", "there"]


AGAIN = 64
"""Updates of the weights after which gradients are looked at again."""


@final
class Fewness:
    """Whether the gradients of a layer's output had few values that are not zero when last looked at."""

    def __init__(self) -> None:
        self.few = True
        self.updates = 0
        self._version, self._likely = -1, True

    def likely(self, weight: Tensor) -> bool:
        """Whether gradients should be looked at: as the last were, and now and then anyway.

        The same for all calls between two updates of the `weight`: a checkpoint's call is repeated in the
        backward, and must save the same tensors.
        """
        if weight._version != self._version:
            self.updates += 1
            self._version, self._likely = weight._version, self.few or self.updates % AGAIN == 0
        return self._likely


def there() -> bool:
    """Whether torch has oneDNN."""
    available = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call] # torch leaves it so
    return available and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def linear(
    input: Tensor,  # noqa: A002 - torch's name
    weight: Tensor,
    bias: Tensor | None,
    by_onednn: bool = True,
    fewness: Fewness | None = None,
) -> Tensor:
    """``input W^T + bias`` of float32 numbers on the CPU, with derivatives of every order.

    `fewness` is told what the gradient's values were.
    """
    out: Tensor = _apply(input, weight, bias, by_onednn, fewness)
    return out


def _product(left: Tensor, right: Tensor, bias: Tensor | None, by_onednn: bool) -> Tensor:
    """``left right^T + bias``."""
    if not by_onednn:
        return functional.linear(left, right, bias)
    out: Tensor = torch.ops.mkldnn._linear_pointwise(left, right, bias, "none", [], "")
    return out


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,  # noqa: A002
        weight: Tensor,
        bias: Tensor | None,
        by_onednn: bool,
        fewness: Fewness | None,
    ) -> Tensor:
        # the last is what the forward read, whatever ``weight.data`` is set to, as torch's layer has it
        ctx.save_for_backward(input, weight, weight.detach())
        ctx.shape = input.shape
        ctx.by_onednn, ctx.fewness = by_onednn, fewness
        rows = input.reshape(-1, weight.shape[1]).contiguous()
        out = _product(rows, weight.contiguous(), bias, by_onednn)
        shaped: Tensor = torch.ops.aten._unsafe_view(out, [*input.shape[:-1], weight.shape[0]])
        return shaped  # no view to autograd

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        input_, weight, read = ctx.saved_tensors
        check_saved(input_, ctx.shape)
        weight = weight if torch.is_grad_enabled() else read
        rows, grads = input_.reshape(-1, weight.shape[1]), grad.reshape(-1, weight.shape[0])
        wanted = ctx.needs_input_grad
        to_input = to_weight = None
        if torch.is_grad_enabled() or are_batched([grad]):  # to be differentiated again, or several at once
            to_input = grads @ weight if wanted[0] else None
            to_weight = grads.T @ rows if wanted[1] else None
        else:
            grads = grads.resolve_neg().contiguous()
            to_input = _product(grads, weight.contiguous().T, None, ctx.by_onednn) if wanted[0] else None
            to_weight = _weight_gradient(ctx, grads, rows.contiguous()) if wanted[1] else None
        to_bias = grads.sum(0) if wanted[2] else None
        return None if to_input is None else to_input.view(input_.shape), to_weight, to_bias, None, None


_apply = applied(_Linear)


def _weight_gradient(ctx: Any, grads: Tensor, rows: Tensor) -> Tensor:
    """``grads.T @ rows`` of contiguous matrices."""
    few = are_few(grads)
    if ctx.fewness is not None:
        ctx.fewness.few = few
    return weight_gradient_of_few(grads, rows) if few else _product(grads.T, rows.T, None, ctx.by_onednn)
