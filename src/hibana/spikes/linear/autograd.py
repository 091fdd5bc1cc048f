"""Products of spikes and weights: which of them are computed per spike, and their autograd node."""

from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from hibana.compiler.derivatives import unwrapped_apply, without_autocast
from hibana.compiler.memory_layout import constant_step
from hibana.spikes import select
from hibana.spikes.bits import ONE, Planes, pack_multiples
from hibana.spikes.checks import check_saved, dense_for_more
from hibana.spikes.layer import (
    Mode,
    mask_provenance,
    needs_gradient,
    pack_input,
)
from hibana.spikes.linear import product as linear
from hibana.spikes.linear.product import GradientMask, explanation, gradient_mask
from hibana.spikes.provenance import Provenance, probe
from hibana.spikes.select import ALL, Call, Choice
from hibana.spikes.simd.lists import WORD
from hibana.spikes.simd.rows import panel

__all__ = ["Gradients", "Product", "linear_key", "multiply", "multiply_planes"]

Gradients = tuple[Tensor | None, Tensor | None]
"""Two gradients; None for a gradient that is not needed."""
STEPS = 4
"""Steps with the same gradient from which on one dense product of one step is the fastest."""


class Product:
    """The linear product ``x W^T`` of an input x ``[..., inputs]`` and weights ``[outputs, inputs]``.

    A subclass computes another product. The *gradient rows* are the output gradient ``[rows, outputs]``.
    """

    reads_replaced_weights: ClassVar[bool] = False
    """Whether the backward reads the tensor to which ``weight.data`` was set after the forward, as torch's
    backward of this product does."""
    restricts_gradient = True
    """Whether the input gradient can be computed only where a mask is set."""

    def __init__(self, shape: torch.Size, key: select.Key, row_length: int) -> None:
        self.shape = shape
        """Shape of the input."""
        self.key = key
        """Kind and sizes of the product."""
        self.row_length = row_length
        """Elements of a row of the input; its bits begin at a word."""
        self.table: Tensor | None = None
        """The weights that :meth:`forward` packed, for :meth:`input_gradient`."""

    @classmethod
    def linear(cls, shape: torch.Size, weight: Tensor) -> "Product":
        """The linear product of an input of this `shape`."""
        outputs, inputs = weight.shape
        key = linear_key(shape.numel(), inputs, outputs)._replace(learning=needs_gradient(weight))
        return cls(shape, key, inputs)

    def rows(self, numbers: Tensor) -> Tensor:
        """The input `numbers` as contiguous rows."""
        return numbers.reshape(-1, self.row_length).contiguous()

    def gradient_rows(self, gradient: Tensor) -> Tensor:
        """The output `gradient` as contiguous gradient rows."""
        return gradient.reshape(-1, self.key.outputs).contiguous()

    def forward(self, input_: Planes, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The output per spike.

        It is no view: a write to another view of its memory would make autograd drop hooks on it.
        """
        table = linear.pack_weights(weight, panel(self.key.outputs), input_.scales)
        self.table = table if input_.scales == ONE else None
        out = linear.forward(input_.joint, input_.density, weight, bias, input_.scales, table)
        return out.view(*self.shape[:-1], -1).detach()

    def weight_gradient(self, input_: Planes, rows: Tensor) -> Tensor:
        """The gradient of the weight per spike, from gradient `rows`."""
        bits, density, scales = input_.joint, input_.density, input_.scales
        return linear.weight_gradient(bits, density, rows, self.key.inputs, scales)

    def input_gradient(self, mask: GradientMask, weight: Tensor, rows: Tensor) -> Tensor:
        """The input gradient where `mask` is set, zero elsewhere, from gradient `rows`."""
        table = linear.pack_weights(weight, panel(self.key.outputs)) if self.table is None else self.table
        return linear.input_gradient(mask, table, rows, self.key.inputs).view(self.shape)

    def dense(self, numbers: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The output by torch, no view."""
        out = linear.dense_product(numbers.reshape(-1, self.row_length), weight, bias)
        return out.view(*self.shape[:-1], -1).detach()

    def dense_gradients(
        self, numbers: Tensor | None, weight: Tensor, rows: Tensor, needed: tuple[bool, bool]
    ) -> Gradients:
        """The gradients of input and weight by torch, from gradient `rows`.

        `needed` tells which of both to compute. That of the weight needs the `numbers` of the input.
        """
        to_input = to_weight = None
        if needed[0]:
            to_input = linear.dense_product(rows, weight.T).view(self.shape)
        if needed[1]:
            assert numbers is not None
            to_weight = linear.dense_product(rows.T, numbers.reshape(-1, self.row_length).T)
        return to_input, to_weight

    def constant_input_gradient(self, gradient: Tensor, weight: Tensor) -> Tensor | None:
        """The input gradient of one step, expanded, if the output `gradient` is the same at each step."""
        one_step = constant_step(gradient) if gradient.shape[0] >= STEPS else None
        return None if one_step is None else (one_step @ weight).expand(self.shape)


def linear_key(numbers: int, inputs: int, outputs: int) -> select.Key:
    """Kind and sizes of a linear product of an input of so many `numbers`."""
    rows, lists = numbers // max(1, inputs), -(-inputs // WORD)
    return select.Key("linear", (), rows, inputs, outputs, numbers, lists)


def multiply(
    product: Product,
    input: Tensor,  # noqa: A002 - torch's name
    weight: Tensor,
    bias: Tensor | None,
    provenance: Provenance | None,
    is_ordered: bool,
    mode: Mode,
) -> tuple[Tensor, str] | str:
    """The output of `product` with gradients, and how it was computed.

    A text instead of both tells why torch must or should compute the output.

    Args:
        product: the kind and sizes of the product.
        input: the numbers to multiply.
        weight: the weights.
        bias: ``[outputs]``, or None.
        provenance: the gradient mask that a layer attached to `input`, or None.
        is_ordered: whether the memory of `input` is in the order of :meth:`Product.rows`.
        mode: ``"auto"`` or ``"events"``.
    """
    auto, numbers = mode == "auto", input.detach()
    bias = None if bias is None else bias.contiguous()
    planes = pack_input(numbers, partial(product.rows, numbers), product.key, auto)
    if isinstance(planes, str):
        return planes
    choice = _choose(product, planes, numbers, weight, bias) if auto else ALL
    if not choice.any:
        return choice.dense_reason(planes.density)
    reason = explanation(planes, product.key.outputs, choice)
    return multiply_planes(product, input, weight, bias, planes, provenance, is_ordered, choice), reason


def multiply_planes(
    product: Product,
    input: Tensor,  # noqa: A002
    weight: Tensor,
    bias: Tensor | None,
    planes: Planes,
    provenance: Provenance | None,
    is_ordered: bool,
    choice: Choice = ALL,
) -> Tensor:
    """The output of `product` with gradients, for an input with the bits `planes`.

    `choice` tells which products are computed per spike; see :func:`multiply` for the other arguments.
    """
    if not needs_gradient(input, weight, bias):
        return product.forward(planes, weight, bias)
    support = mask_provenance(provenance, input.detach(), is_ordered, planes, product.row_length)
    leaf = None if support is None else probe()
    with without_autocast():
        out: Tensor = _apply(input, weight, bias, leaf, product, planes, support, choice)
    return out


def _choose(product: Product, planes: Planes, numbers: Tensor, weight: Tensor, bias: Tensor | None) -> Choice:
    """The products that are computed per spike for an input with these `numbers`, packed as `planes`."""
    weight, bias = weight.detach(), None if bias is None else bias.detach()
    plane_count = planes.bits.shape[0]
    key = product.key._replace(planes=plane_count)

    def calls() -> list[Call]:
        """The candidates that :func:`select.choose` times."""
        rows = product.gradient_rows(product.dense(numbers, weight, bias))
        forward: list[Call] = [
            lambda: product.forward(planes, weight, bias),
            lambda: product.dense(numbers, weight, bias),
        ]
        gradient: list[Call] = [
            lambda: product.weight_gradient(planes, rows),
            lambda: product.dense_gradients(numbers, weight, rows, (False, True)),
        ]
        scan: list[Call] = [lambda: pack_multiples(product.rows(numbers))]
        return forward + gradient * key.learning + scan

    return select.choose(key, planes.density * plane_count, calls)


class _Multiply(torch.autograd.Function):
    """The autograd node of a product; it saves the bits of the spikes for the backward, not the spikes."""

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,  # noqa: A002
        weight: Tensor,
        bias: Tensor | None,
        leaf: Tensor | None,
        product: Product,
        planes: Planes,
        support: Provenance | None,
        choice: Choice,
    ) -> Tensor:
        """The output, per spike or by torch; `support` tells where the input gradient is needed."""
        ctx.product, ctx.support, ctx.choice = product, support, choice
        ctx.density, ctx.factor, ctx.weight_shape = planes.density, planes.factor, weight.shape
        saved_weight = weight if product.reads_replaced_weights else weight.detach()
        ctx.save_for_backward(planes.bits, saved_weight, input if choice.weights is False else None)
        out = product.forward(planes, weight, bias) if choice.forward else product.dense(input, weight, bias)
        if support is None:
            product.table = None  # nothing reads it
        return out

    @staticmethod
    @dense_for_more
    def backward(ctx: Any, grad: Tensor) -> Any:
        """The gradients of input, weight and bias; None for those not needed and for all other arguments."""
        bits, weight, numbers = ctx.saved_tensors
        product: Product = ctx.product
        check_saved(weight, ctx.weight_shape)
        grad = grad.resolve_neg()
        rows = product.gradient_rows(grad)
        to_input = to_weight = to_bias = None
        needs_input, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        if needs_input:
            to_input = product.constant_input_gradient(grad, weight)
        if needs_input and to_input is None:
            to_input = _masked_input_gradient(ctx, weight, rows)
        dense_gradients = needs_input and to_input is None, needs_weight and numbers is not None
        if any(dense_gradients):
            to_dense_input, to_weight = product.dense_gradients(numbers, weight, rows, dense_gradients)
            to_input = to_input if to_dense_input is None else to_dense_input
        if needs_weight and numbers is None:
            to_weight = product.weight_gradient(Planes(bits, ctx.density, ctx.factor), rows)
        if needs_bias:
            to_bias = rows.flatten(0, -2).sum(0)
        if to_input is not None:  # not a view, so that autograd may accumulate in place
            to_input = to_input.detach()
        to_weight = None if to_weight is None else to_weight.reshape(ctx.weight_shape)
        return to_input, to_weight, to_bias, None, None, None, None, None


_apply = unwrapped_apply(_Multiply)


def _masked_input_gradient(ctx: Any, weight: Tensor, rows: Tensor) -> Tensor | None:
    """The input gradient where the layer that emitted the input needs it, zero elsewhere.

    None if that is slower than the full gradient, or if something else may read the full gradient.
    """
    product: Product = ctx.product
    mask = None
    if product.restricts_gradient:
        mask = gradient_mask(ctx.support, product.row_length)
    if mask is None:
        return None
    restricted = partial(product.input_gradient, mask, weight, rows)
    full = partial(product.dense_gradients, None, weight, rows, (True, False))
    key = product.key._replace(product=f"{product.key.product} input", learning=False)
    is_faster = select.restricts_gradient(ctx.choice, key, mask.density, lambda: (restricted, full))
    return restricted() if is_faster else None
