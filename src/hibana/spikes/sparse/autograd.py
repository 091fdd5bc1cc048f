"""Products of sparse synapses and any numbers, with all derivatives."""

import warnings
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from hibana.compiler.derivatives import without_autocast
from hibana.runtime.synapses import SynapseIndex
from hibana.spikes.checks import kernels_accept
from hibana.spikes.sparse import Connections, product

__all__ = ["multiply_numbers", "multiply_traced"]

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch warns once per process that sparse matrices are in a beta state
    torch.eye(1, device="cpu", dtype=torch.float32).to_sparse_csr()


def multiply_numbers(
    input: Tensor,  # noqa: A002
    weight: Tensor,
    index: SynapseIndex,
    skip: int = 0,
) -> Tensor:
    """The sums over all synapses of an input of any numbers, without bias, with all derivatives.

    Time and memory are proportional to the synapses.

    Args:
        input: ``[..., inputs]``; with delays, ``[steps, sequences, inputs]``.
        weight: ``[synapses]``, in the dtype of `input`.
        index: the synapses.
        skip: number of first steps whose output is not computed.
    """
    inputs, outputs = index.inputs, index.outputs
    if not index.reach:
        out = _multiply(0, input.reshape(-1, inputs), weight, index).view(*input.shape[:-1], outputs)
        return out[skip:]
    out = input.new_zeros(*input.shape[:-1], outputs)
    delays, targets = index.offsets // outputs, index.offsets % outputs
    for delay in delays.bincount().nonzero()[:, 0].tolist():  # the synapses of one delay at a time
        indices = (delays == delay).nonzero()[:, 0]
        starts = torch.searchsorted(indices, index.row_starts)
        part = SynapseIndex(starts, targets[indices], inputs, outputs, 0)
        earlier = input[: max(0, len(input) - delay)]
        sums = _multiply(0, earlier.flatten(0, 1), weight[indices], part)
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


def _multiply(kind: int, one: Tensor, two: Tensor, index: SynapseIndex) -> Tensor:
    """A product of two of the three tensors of synapses without delays: see :class:`_Bilinear`."""
    apply: Any = _Bilinear.apply  # untyped in torch
    with without_autocast():
        out: Tensor = apply(kind, one, two, index)
    return out


class _Bilinear(torch.autograd.Function):
    """One of three products of synapses without delays; the derivatives are the other two.

    Kind 0 is the output ``[rows, outputs]`` of an input ``[rows, inputs]`` and weights ``[synapses]``. Kind 1
    is the input gradient of an output gradient and weights. Kind 2 is the weight gradient of an input and an
    output gradient.
    """

    @staticmethod
    def forward(ctx: Any, kind: int, one: Tensor, two: Tensor, index: SynapseIndex) -> Tensor:
        """Returns the product of `one` and `two`."""
        ctx.save_for_backward(one, two)
        ctx.kind, ctx.index = kind, index
        one, two = one.detach(), two.detach()
        if kind == 2:
            return product.sums_per_synapse(index, one, two)
        if kernels_accept(one, two):
            return product.multiply_numbers(index, two, one.contiguous(), transposed=kind == 1)
        matrix = product.sparse_matrix(index, two)
        return one @ (matrix if kind == 0 else matrix.t())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        """The gradients of `one` and `two`; None for all other arguments."""
        one, two = ctx.saved_tensors
        for_one = ((1, grad, two), (0, grad, two), (1, two, grad))[ctx.kind]
        for_two = ((2, one, grad), (2, grad, one), (0, one, grad))[ctx.kind]
        to_one, to_two = (
            _multiply(kind, a, b, ctx.index) if is_needed else None
            for (kind, a, b), is_needed in zip((for_one, for_two), ctx.needs_input_grad[1:3], strict=True)
        )
        return None, to_one, to_two, None
