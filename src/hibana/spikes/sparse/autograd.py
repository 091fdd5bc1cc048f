"""Products of sparse synapses as autograd nodes: of spikes, and of any numbers."""

import warnings
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from hibana.compiler.derivatives import unwrapped_apply, without_autocast
from hibana.spikes.checks import dense_for_more, kernels_accept
from hibana.spikes.linear.product import gradient_mask
from hibana.spikes.planes import Planes
from hibana.spikes.provenance import Provenance, probe
from hibana.spikes.sparse import Connections, product
from hibana.spikes.sparse.product import SynapseIndex

__all__ = ["multiply_numbers", "multiply_spikes", "multiply_traced"]

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch warns once per process that sparse matrices are in a beta state
    torch.eye(1, device="cpu", dtype=torch.float32).to_sparse_csr()

MASKED_UP_TO = 0.1
"""Density of a surrogate's mask up to which the input gradient is computed only where the mask is set.

Measured with 1, 5 and 10% of 2048 x 2048 synapses: the full gradient takes the time of a mask of 10 to 12%.
"""


def multiply_spikes(
    input: Tensor,  # noqa: A002 - torch's name
    weight: Tensor,
    bias: Tensor | None,
    spikes: Planes,
    support: Provenance | None,
    index: SynapseIndex,
    skip: int = 0,
) -> Tensor:
    """The sums over all synapses of an input of spikes, with gradients.

    Args:
        input: ``[..., inputs]``; if `index` has delays, ``[steps, sequences, inputs]``.
        weight: ``[synapses]``.
        bias: ``[outputs]``, or None.
        spikes: the input as bits.
        support: provenance of the input, whose mask may restrict the input gradient; or None.
        index: the synapses.
        skip: number of first steps whose output is not computed.
    """
    leaf = probe() if support is not None else None
    with without_autocast():
        out: Tensor = _apply(input, weight, bias, leaf, spikes, support, index, skip)
    return out


class _MultiplySpikes(torch.autograd.Function):
    """The autograd node of :func:`multiply_spikes`; it saves the bits of the spikes for the backward."""

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,  # noqa: A002
        weight: Tensor,
        bias: Tensor | None,
        leaf: Tensor | None,
        spikes: Planes,
        support: Provenance | None,
        index: SynapseIndex,
        skip: int,
    ) -> Tensor:
        """Returns the sums; saves bits, weights and indices."""
        bits = spikes.joint
        out = product.forward(index, bits, weight, bias, input.shape[:-1], skip)
        ctx.save_for_backward(bits, weight.detach(), index.row_starts, index.offsets)
        ctx.shape, ctx.density, ctx.support, ctx.index, ctx.skip = (
            input.shape,
            spikes.density,
            support,
            index,
            skip,
        )
        return out

    @staticmethod
    @dense_for_more
    def backward(ctx: Any, grad: Tensor) -> Any:
        """The gradients of input, weight and bias; None for those not needed and for all other arguments."""
        bits, weight, row_starts, offsets = ctx.saved_tensors
        index = ctx.index._replace(row_starts=row_starts, offsets=offsets)
        rows = grad.resolve_neg().reshape(-1, index.outputs).contiguous()
        to_input = to_weight = to_bias = None
        if index.reach:
            steps = ctx.shape[0]
            gradient = _padded_by_sequence(
                rows.view(-1, bits.shape[0] // steps, index.outputs), index, ctx.skip
            )
        else:
            steps, gradient = 1, rows[:, None]
        if ctx.needs_input_grad[0]:
            to_input = _input_gradient(ctx, index, bits, weight, gradient, steps).view(ctx.shape)
        if ctx.needs_input_grad[1]:
            to_weight = product.weight_gradient(index, bits, gradient, steps)
        if ctx.needs_input_grad[2]:
            to_bias = rows.sum(0)
        return to_input, to_weight, to_bias, None, None, None, None, None


_apply = unwrapped_apply(_MultiplySpikes)


def _padded_by_sequence(gradient: Tensor, index: SynapseIndex, skip: int) -> Tensor:
    """`gradient`, ``[steps, sequences, outputs]``, as ``[sequences, skip + steps + reach, outputs]``.

    The steps without an output have zeros, so that a kernel can read `reach` steps after each input step.
    """
    steps, sequences, outputs = gradient.shape
    padded = gradient.new_zeros(sequences, skip + steps + index.reach, outputs)
    padded[:, skip : skip + steps] = gradient.transpose(0, 1)
    return padded


def _input_gradient(
    ctx: Any, index: SynapseIndex, bits: Tensor, weight: Tensor, gradient: Tensor, steps: int
) -> Tensor:
    """The input gradient ``[rows, inputs]``: where the producer's mask is set, if allowed and faster."""
    mask = gradient_mask(ctx.support, index.inputs)
    if mask is not None and (index.reach or mask.density < MASKED_UP_TO):
        return product.input_gradient(index, mask.bits, weight, gradient, steps)
    if not index.reach:
        return product.multiply_numbers(index, weight, gradient[:, 0], transposed=True)
    everywhere = torch.full_like(bits, -1)
    if index.inputs % 64:
        everywhere[:, -1] = (1 << index.inputs % 64) - 1
    return product.input_gradient(index, everywhere, weight, gradient, steps)


def multiply_numbers(
    input: Tensor,  # noqa: A002
    synapses: Connections,
    outputs: int,
    skip: int = 0,
) -> Tensor:
    """The sums over all synapses of an input of any numbers, without bias, with all derivatives.

    Time and memory are proportional to the synapses.

    Args:
        input: ``[..., inputs]``; with delays, ``[steps, sequences, inputs]``.
        synapses: their weights have the dtype of `input`.
        outputs: number of outputs.
        skip: number of first steps whose output is not computed.
    """
    row_starts, targets, delays, weight = synapses
    assert weight is not None
    if delays is None:
        rows = input.reshape(-1, input.shape[-1])
        return _multiply(0, rows, weight, row_starts, targets, outputs).view(*input.shape[:-1], outputs)
    out = input.new_zeros(*input.shape[:-1], outputs)
    for delay in delays.bincount().nonzero()[:, 0].tolist():  # the synapses of one delay at a time
        indices = (delays == delay).nonzero()[:, 0]
        starts = torch.searchsorted(indices, row_starts)
        earlier = input[: max(0, len(input) - delay)]
        sums = _multiply(0, earlier.flatten(0, 1), weight[indices], starts, targets[indices], outputs)
        out = out + functional.pad(
            sums.view(*earlier.shape[:2], outputs), (0, 0, 0, 0, len(input) - len(earlier), 0)
        )
    return out[skip:]


def multiply_traced(
    input: Tensor,  # noqa: A002
    synapses: Connections,
    outputs: int,
    reach: int,
    skip: int = 0,
) -> Tensor:
    """:func:`multiply_numbers` in operations that torch can compile and transform.

    Memory is proportional to the synapses times the rows of the input. `reach` is the longest delay.
    """
    row_starts, targets, delays, weight = synapses
    assert weight is not None
    sources = torch.repeat_interleave(row_starts.diff(), output_size=targets.numel())
    if delays is None:
        terms = input.index_select(-1, sources) * weight
        return terms.new_zeros(*input.shape[:-1], outputs).index_add(-1, targets, terms)
    # shape[0], not len, which torch.export takes for a constant
    padded = functional.pad(input, (0, 0, 0, 0, reach, 0))
    steps = torch.arange(skip, input.shape[0], device=input.device, dtype=torch.int64)[:, None] + (
        reach - delays.long()
    )
    terms = padded[steps, :, sources] * weight[:, None]  # [steps, synapses, sequences]
    return (
        terms.new_zeros(steps.shape[0], outputs, input.shape[1]).index_add(1, targets, terms).transpose(1, 2)
    )


def _multiply(
    kind: int, one: Tensor, two: Tensor, row_starts: Tensor, targets: Tensor, outputs: int
) -> Tensor:
    """A product of two of the three tensors of synapses without delays: see :class:`_Bilinear`."""
    apply: Any = _Bilinear.apply  # untyped in torch
    with without_autocast():
        out: Tensor = apply(kind, one, two, row_starts, targets, outputs)
    return out


class _Bilinear(torch.autograd.Function):
    """One of three products of synapses without delays; the derivatives are the other two.

    Kind 0 is the output ``[rows, outputs]`` of an input ``[rows, inputs]`` and weights ``[synapses]``. Kind 1
    is the input gradient of an output gradient and weights. Kind 2 is the weight gradient of an input and an
    output gradient.
    """

    @staticmethod
    def forward(
        ctx: Any, kind: int, one: Tensor, two: Tensor, row_starts: Tensor, targets: Tensor, outputs: int
    ) -> Tensor:
        """Returns the product of `one` and `two`."""
        ctx.save_for_backward(one, two, row_starts, targets)
        ctx.kind, ctx.outputs = kind, outputs
        one, two = one.detach(), two.detach()
        if kind == 2:
            return product.sums_per_synapse(row_starts, targets, one, two)
        if kernels_accept(one, two):
            index = SynapseIndex(row_starts, targets, row_starts.numel() - 1, outputs, 0)
            return product.multiply_numbers(index, two, one.contiguous(), transposed=kind == 1)
        matrix = product.sparse_matrix(row_starts, targets, two, outputs)
        return one @ (matrix if kind == 0 else matrix.t())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        """The gradients of `one` and `two`; None for all other arguments."""
        one, two, row_starts, targets = ctx.saved_tensors
        for_one = ((1, grad, two), (0, grad, two), (1, two, grad))[ctx.kind]
        for_two = ((2, one, grad), (2, grad, one), (0, one, grad))[ctx.kind]
        to_one, to_two = (
            _multiply(kind, a, b, row_starts, targets, ctx.outputs) if is_needed else None
            for (kind, a, b), is_needed in zip((for_one, for_two), ctx.needs_input_grad[1:3], strict=True)
        )
        return None, to_one, to_two, None, None, None
