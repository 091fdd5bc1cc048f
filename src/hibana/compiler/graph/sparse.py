"""Sparse synapses in the step of a cell: the operations that a trace records for them.

A sparse matrix ``[N, N]`` is three tensors: the weights of the synapses, ``[synapses]``, ordered by source
neuron; ``row_starts``, ``[N + 1]``, the index of each source's first synapse; and the target of each synapse.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

__all__ = ["PRODUCT", "SUMS", "TracedSparseLinear"]

_LIBRARY: Any = torch.library.Library("hibana_step", "DEF")  # type: ignore[no-untyped-call] # torch's own
_MATRIX = "Tensor weights, Tensor row_starts, Tensor targets, int outputs"
_LIBRARY.define(f"product(Tensor x, {_MATRIX}, bool transposed) -> Tensor")
_LIBRARY.define(f"sums(Tensor x, Tensor gradient, {_MATRIX}) -> Tensor")
_LIBRARY.impl("product", lambda x, *_: torch.zeros_like(x), "CompositeExplicitAutograd")
_LIBRARY.impl("sums", lambda x, _, weights, *__: torch.zeros_like(weights), "CompositeExplicitAutograd")
PRODUCT = torch.ops.hibana_step.product.default
"""``x M`` or, transposed, ``x M^T``. A trace records it; called, it returns zeros of the right shape."""
SUMS = torch.ops.hibana_step.sums.default
"""For each synapse the sum over samples of ``x[source] gradient[target]``; called, it returns zeros."""


class TracedSparseLinear(nn.Module):
    """A :class:`hibana.SparseLinear` in a trace: a product that the trace records, and a bias."""

    reads: ClassVar = ("out_features",)
    """The attributes that :meth:`forward` reads, besides tensors."""
    weight: Tensor
    bias: Tensor | None
    row_starts: Tensor
    targets: Tensor
    out_features: int

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch.nn.Linear's name for it
        """The recorded product of `input` with the sparse matrix, plus the bias."""
        matrix = self.weight, self.row_starts, self.targets, self.out_features
        product: Tensor = _Product.apply(input, *matrix)  # type: ignore[no-untyped-call] # torch leaves it so
        return product if self.bias is None else product + self.bias


class _Product(torch.autograd.Function):
    """The recorded product, and its recorded derivative."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *matrix: Any) -> Any:
        """``x M``; `matrix` has the arguments of the matrix in :data:`PRODUCT`."""
        *tensors, ctx.outputs = matrix
        ctx.save_for_backward(x, *tensors)
        return PRODUCT(x, *matrix, False)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        """The gradients of `x` and of the weights; None for the other arguments."""
        x, *tensors = ctx.saved_tensors
        needs_x, needs_weights, *_ = ctx.needs_input_grad
        grad_x = PRODUCT(grad, *tensors, ctx.outputs, True) if needs_x else None
        grad_weights = SUMS(x, grad, *tensors, ctx.outputs) if needs_weights else None
        return grad_x, grad_weights, None, None, None
