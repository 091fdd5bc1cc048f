"""The product of spikes and weights as an autograd node."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hibana.events.checks import dense_for_more
from hibana.events.cost import Choice
from hibana.events.lanes.rows import panel
from hibana.events.linear import product
from hibana.events.planes import Planes
from hibana.events.support import Support, probe

__all__ = ["linear"]


def linear(
    rows: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    input_: Planes,
    support: Support | None,
    leading: Sequence[int],
    choice: Choice,
) -> Tensor:
    """``rows @ weight.T + bias`` for rows whose planes of bits are known, in as many dimensions as `leading`.

    No view of such rows: a write to another view of them would make autograd forget hooks on this one.
    """
    leaf = probe() if support is not None else None
    apply: Any = _Linear.apply  # torch leaves it without types
    out: Tensor = apply(rows, weight, bias, leaf, input_, support, leading, choice)
    return out


class _Linear(torch.autograd.Function):
    """Keeps the bits of the spikes, not the spikes."""

    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        leaf: Tensor | None,
        input_: Planes,
        support: Support | None,
        leading: Sequence[int],
        choice: Choice,
    ) -> Tensor:
        bits, ctx.density, ctx.scales = input_.together, input_.density, input_.scales
        ctx.below, ctx.choice, ctx.table = support, choice, None
        if choice.forward:
            out, table = product.forward(bits, ctx.density, weight, bias, ctx.scales, leading)
            ctx.table = table if support is not None else None
        else:
            out = _densely(rows, weight, bias, leading)
        ctx.save_for_backward(bits, weight, rows if choice.weights is False else None)
        return out

    @staticmethod
    @dense_for_more
    def backward(ctx: Any, grad: Tensor) -> Any:
        bits, weight, numbers = ctx.saved_tensors
        outputs, inputs = weight.shape
        grad = grad.resolve_neg().reshape(-1, outputs).contiguous()
        to_rows = to_weight = to_bias = None
        if ctx.needs_input_grad[0]:
            to_rows = _restricted(ctx, bits, weight, grad)
            if to_rows is None:
                to_rows = grad @ weight
        if ctx.needs_input_grad[1] and numbers is None:
            given = bits, ctx.density, grad, inputs, ctx.needs_input_grad[2], ctx.scales
            to_weight, to_bias = product.weight_gradient(*given)
        elif ctx.needs_input_grad[1]:
            to_weight = grad.T @ numbers
        if ctx.needs_input_grad[2] and to_bias is None:
            to_bias = grad.sum(0)
        return to_rows, to_weight, to_bias, None, None, None, None, None


def _densely(rows: Tensor, weight: Tensor, bias: Tensor | None, leading: Sequence[int]) -> Tensor:
    """``rows @ weight.T + bias`` by torch, no view of a matrix."""
    out = torch.empty(*leading, len(weight), dtype=torch.float32, device="cpu")
    if bias is None:
        torch.mm(rows, weight.T, out=out.view(-1, len(weight)))
    else:
        torch.addmm(bias, rows, weight.T, out=out.view(-1, len(weight)))
    return out


def _restricted(ctx: Any, bits: Tensor, weight: Tensor, grad: Tensor) -> Tensor | None:
    """The input's gradient on the support only, if that is allowed and worth it."""
    outputs, inputs = weight.shape
    used = product.used_bits(ctx.below, bits, inputs, ctx.density, ctx.choice)
    if used is None:
        return None
    table = product.packed(weight, panel(outputs)) if ctx.table is None else ctx.table
    return product.input_gradient(used, table, grad, inputs)
