"""Products of sparse synapses as autograd nodes: of spikes by native kernels, and of any numbers by torch."""

import warnings
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from hibana.compiler.derivatives import unwrapped_apply, without_autocast
from hibana.spikes.checks import dense_for_more
from hibana.spikes.linear.product import gradient_mask
from hibana.spikes.planes import Planes
from hibana.spikes.provenance import Provenance, probe
from hibana.spikes.sparse import product
from hibana.spikes.sparse.product import SynapseIndex

__all__ = ["multiply_numbers", "multiply_spikes", "multiply_traced"]

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch warns once per process that sparse matrices are in a beta state
    torch.eye(1, device="cpu").to_sparse_csr()

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
            steps, gradient = len(rows), rows[None]
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
    mask = gradient_mask(ctx.support, bits, index.inputs, ctx.density)
    if mask is not None and (index.reach or mask.density < MASKED_UP_TO):
        return product.input_gradient(index, mask.bits, weight, gradient, steps)
    if not index.reach:
        return product.full_input_gradient(index, weight, gradient[0])
    everywhere = torch.full_like(bits, -1)
    if index.inputs % 64:
        everywhere[:, -1] = (1 << index.inputs % 64) - 1
    return product.input_gradient(index, everywhere, weight, gradient, steps)


def multiply_numbers(
    input: Tensor,  # noqa: A002
    weight: Tensor,
    row_starts: Tensor,
    targets: Tensor,
    delays: Tensor | None,
    outputs: int,
    skip: int = 0,
) -> Tensor:
    """The sums over all synapses of an input of any numbers, without bias, with all derivatives.

    Time and memory are proportional to the synapses.

    Args:
        input: ``[..., inputs]``; with delays, ``[steps, sequences, inputs]``.
        weight: ``[synapses]``, in the dtype of `input`.
        row_starts: see :class:`Connections`.
        targets: see :class:`Connections`.
        delays: see :class:`Connections`.
        outputs: number of outputs.
        skip: number of first steps whose output is not computed.
    """
    if delays is None:
        rows = input.reshape(-1, input.shape[-1])
        return _multiply(rows, weight, row_starts, targets, outputs).view(*input.shape[:-1], outputs)
    out = input.new_zeros(*input.shape[:-1], outputs)
    for delay in delays.bincount().nonzero()[:, 0].tolist():
        synapses = (delays == delay).nonzero()[:, 0]
        starts = torch.searchsorted(synapses, row_starts)
        earlier = input[: max(0, len(input) - delay)]
        sums = _multiply(earlier.flatten(0, 1), weight[synapses], starts, targets[synapses], outputs)
        out = out + functional.pad(
            sums.view(*earlier.shape[:2], outputs), (0, 0, 0, 0, len(input) - len(earlier), 0)
        )
    return out[skip:]


def multiply_traced(
    input: Tensor,  # noqa: A002
    weight: Tensor,
    row_starts: Tensor,
    targets: Tensor,
    delays: Tensor | None,
    outputs: int,
    reach: int,
    skip: int = 0,
) -> Tensor:
    """:func:`multiply_numbers` in operations that torch can compile and transform.

    Memory is proportional to the synapses times the rows of the input. `reach` is the longest delay.
    """
    sources = torch.repeat_interleave(row_starts.diff(), output_size=targets.numel())
    if delays is None:
        terms = input.index_select(-1, sources) * weight
        return terms.new_zeros(*input.shape[:-1], outputs).index_add(-1, targets, terms)
    padded = functional.pad(input, (0, 0, 0, 0, reach, 0))
    steps = torch.arange(skip, len(input), device=input.device)[:, None] + (reach - delays.long())
    terms = padded[steps, :, sources] * weight[:, None]  # [steps, synapses, sequences]
    return terms.new_zeros(len(steps), outputs, input.shape[1]).index_add(1, targets, terms).transpose(1, 2)


def _multiply(rows: Tensor, weight: Tensor, row_starts: Tensor, targets: Tensor, outputs: int) -> Tensor:
    """The sums over all synapses without delays, ``[rows, outputs]``, of `rows` ``[rows, inputs]``."""
    if targets.numel() < 1 << 31:
        row_starts = row_starts.to(targets.dtype)
    else:
        targets = targets.to(row_starts.dtype)
    with without_autocast():
        return _apply_to(_Multiply, rows, weight, row_starts, targets, outputs)


def _apply_to(node: type[torch.autograd.Function], *arguments: Any) -> Tensor:
    """The result of an autograd node."""
    apply: Any = node.apply  # untyped in torch
    out: Tensor = apply(*arguments)
    return out


def _matrix(weight: Tensor, row_starts: Tensor, targets: Tensor, outputs: int) -> Tensor:
    """The synapses as a sparse matrix ``[inputs, outputs]``."""
    shape = row_starts.numel() - 1, outputs
    return torch.sparse_csr_tensor(row_starts, targets, weight.detach(), shape, check_invariants=False)


class _Multiply(torch.autograd.Function):
    """``input @ matrix``, ``[rows, outputs]``, with the synapses as matrix ``[inputs, outputs]``.

    This node and the two nodes of its gradients are bilinear. The derivative of each is given by the others.
    """

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,  # noqa: A002
        weight: Tensor,
        row_starts: Tensor,
        targets: Tensor,
        outputs: int,
    ) -> Tensor:
        """Returns the product."""
        ctx.save_for_backward(input, weight, row_starts, targets)
        ctx.outputs = outputs
        return input.detach() @ _matrix(weight, row_starts, targets, outputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        """The gradients of input and weight."""
        input_, weight, *index = ctx.saved_tensors
        to_input = _apply_to(_MultiplyBack, grad, weight, *index) if ctx.needs_input_grad[0] else None
        to_weight = _apply_to(_PerSynapse, input_, grad, *index) if ctx.needs_input_grad[1] else None
        return to_input, to_weight, None, None, None


class _MultiplyBack(torch.autograd.Function):
    """``gradient @ matrix.T``, ``[rows, inputs]``: the gradient of the input of :class:`_Multiply`."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, weight: Tensor, row_starts: Tensor, targets: Tensor) -> Tensor:
        """Returns the product."""
        ctx.save_for_backward(gradient, weight, row_starts, targets)
        return gradient.detach() @ _matrix(weight, row_starts, targets, gradient.shape[1]).t()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        """The gradients of `gradient` and `weight`."""
        gradient, weight, *index = ctx.saved_tensors
        outputs = gradient.shape[1]
        to_gradient = _apply_to(_Multiply, grad, weight, *index, outputs) if ctx.needs_input_grad[0] else None
        to_weight = _apply_to(_PerSynapse, grad, gradient, *index) if ctx.needs_input_grad[1] else None
        return to_gradient, to_weight, None, None


class _PerSynapse(torch.autograd.Function):
    """``sum over rows of input_source gradient_target``, ``[synapses]``: the weight gradient."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, gradient: Tensor, row_starts: Tensor, targets: Tensor) -> Tensor:  # noqa: A002
        """Returns the sums."""
        ctx.save_for_backward(input, gradient, row_starts, targets)
        zeros = _matrix(input.new_zeros(targets.numel()), row_starts, targets, gradient.shape[1])
        sums: Tensor = torch.sparse.sampled_addmm(zeros, input.detach().T, gradient.detach(), beta=0.0)
        return sums.values()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        """The gradients of `input` and `gradient`."""
        input_, gradient, *index = ctx.saved_tensors
        outputs = gradient.shape[1]
        to_input = _apply_to(_MultiplyBack, gradient, grad, *index) if ctx.needs_input_grad[0] else None
        to_gradient = _apply_to(_Multiply, input_, grad, *index, outputs) if ctx.needs_input_grad[1] else None
        return to_input, to_gradient, None, None
