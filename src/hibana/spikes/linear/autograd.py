"""The product of spikes and weights as an autograd node."""

from typing import Any

import torch
from torch import Tensor

from hibana.compiler.derivatives import unwrapped_apply, without_autocast
from hibana.compiler.memory_layout import constant_step
from hibana.spikes import select
from hibana.spikes.checks import dense_for_more
from hibana.spikes.linear import product
from hibana.spikes.planes import ONE, Planes
from hibana.spikes.provenance import Provenance, probe
from hibana.spikes.select import Choice
from hibana.spikes.simd.rows import panel

__all__ = ["linear"]

STEPS = 4
"""Steps with the same gradient from which on one dense product of one step is the fastest."""


def linear(
    input: Tensor,  # noqa: A002 - torch's name
    weight: Tensor,
    bias: Tensor | None,
    planes: Planes,
    support: Provenance | None,
    choice: Choice,
) -> Tensor:
    """``input @ weight.T + bias``, with gradients, for an `input` ``[..., in_features]`` packed as `planes`.

    `support` tells where the input gradient is needed; None: everywhere. `choice`: which products are
    computed per spike. The result is no view: a write to another view of the same matrix would make autograd
    drop hooks on this view.
    """
    leaf = probe() if support is not None else None
    with without_autocast():
        out: Tensor = _apply(input, weight, bias, leaf, planes, support, choice)
    return out


class _Linear(torch.autograd.Function):
    """The autograd node of the product; it saves the bits of the spikes for the backward, not the spikes."""

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,  # noqa: A002
        weight: Tensor,
        bias: Tensor | None,
        leaf: Tensor | None,
        planes: Planes,
        support: Provenance | None,
        choice: Choice,
    ) -> Tensor:
        """Returns the product, computed per spike or by torch; saves the tensors that the backward needs."""
        bits, ctx.density, ctx.scales = planes.joint, planes.density, planes.scales
        ctx.leading = leading = input.shape[:-1]
        ctx.support, ctx.choice, ctx.table = support, choice, None
        if choice.forward:
            out, table = product.forward(bits, ctx.density, weight, bias, ctx.scales, leading)
            ctx.table = table if support is not None and ctx.scales == ONE else None
        else:
            out = _dense_product(input, weight, bias)
        # as in torch, the backward reads the forward's tensor even if ``weight.data`` is set to another
        ctx.save_for_backward(bits, weight.detach(), input if choice.weights is False else None)
        return out

    @staticmethod
    @dense_for_more
    def backward(ctx: Any, grad: Tensor) -> Any:
        """The gradients of input, weight and bias; None for those not needed and for all other arguments."""
        bits, weight, numbers = ctx.saved_tensors
        outputs, inputs = weight.shape
        grad = grad.resolve_neg()
        rows = grad.reshape(-1, outputs).contiguous()
        to_input = to_weight = to_bias = None
        if ctx.needs_input_grad[0]:
            to_input = _input_gradient(ctx, bits, weight, grad, rows)
        if ctx.needs_input_grad[1] and numbers is None:
            has_bias = ctx.needs_input_grad[2]
            to_weight, to_bias = product.weight_gradient(
                bits, ctx.density, rows, inputs, has_bias, ctx.scales
            )
        elif ctx.needs_input_grad[1]:
            to_weight = rows.T @ _as_matrix(numbers)
        if ctx.needs_input_grad[2] and to_bias is None:
            to_bias = rows.sum(0)
        return to_input, to_weight, to_bias, None, None, None, None


_apply = unwrapped_apply(_Linear)


def _as_matrix(input: Tensor) -> Tensor:  # noqa: A002
    """`input`, ``[..., features]``, as ``[rows, features]``."""
    return input.reshape(-1, input.shape[-1])


def _dense_product(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # noqa: A002
    """``input @ weight.T + bias`` by torch; the result is no view."""
    outputs = weight.shape[0]
    out = torch.empty(*input.shape[:-1], outputs, dtype=torch.float32, device="cpu")
    rows = _as_matrix(input)
    if bias is None:
        torch.mm(rows, weight.T, out=out.view(-1, outputs))
    else:
        torch.addmm(bias, rows, weight.T, out=out.view(-1, outputs))
    return out


def _input_gradient(ctx: Any, bits: Tensor, weight: Tensor, grad: Tensor, rows: Tensor) -> Tensor:
    """``grad @ weight``, in one of three ways.

    If the gradient is the same at each step, the product of one step, expanded; else, if allowed and faster,
    the product where the producer's surrogate mask is set; else the product by torch.
    """
    steps = grad.shape[0]
    one_step = constant_step(grad) if steps >= STEPS else None
    if one_step is not None:
        return (one_step @ weight).expand(steps, *one_step.shape[:-1], weight.shape[1])
    restricted = _masked_input_gradient(ctx, bits, weight, rows)
    return grad @ weight if restricted is None else restricted


def _masked_input_gradient(ctx: Any, bits: Tensor, weight: Tensor, rows: Tensor) -> Tensor | None:
    """The input gradient where the layer that emitted the input needs it, zero elsewhere.

    None if that is slower than the full gradient, or if something else may read the gradient.
    """
    outputs, inputs = weight.shape
    mask = product.gradient_mask(ctx.support, bits, inputs, ctx.density)
    if mask is None:
        return None

    def masked_product() -> Tensor:
        """The input gradient where the mask is set, zero elsewhere."""
        table = product.pack_weights(weight, panel(outputs)) if ctx.table is None else ctx.table
        return product.input_gradient(mask, table, rows, inputs, ctx.leading)

    bucket = select.density_bucket(mask.density)
    key = select.Key("linear input", (), len(rows), inputs, outputs, bucket)
    calls = masked_product, lambda: rows @ weight
    if select.restricts_gradient(ctx.choice, key, mask.density, lambda: calls):
        return masked_product()
    return None
