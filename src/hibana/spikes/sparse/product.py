"""The product of spikes and sparse synapses, and its gradients: checks the indices and calls the kernels."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from hibana.runtime.synapses import check_synapses, remember
from hibana.spikes.simd.rows import panel
from hibana.spikes.sparse import kernels

__all__ = [
    "SynapseIndex",
    "forward",
    "input_gradient",
    "longest_delay",
    "multiply_numbers",
    "sparse_matrix",
    "sums_per_synapse",
    "weight_gradient",
]

PART_SYNAPSES = 1 << 17
"""Synapses of a part of the weight gradient: their offsets and sums fill a 1 MiB L2 cache."""
GRAIN = 8
"""Fewest rows of an input without delays that a thread computes."""
CHUNK = 64
"""Fewest steps that a thread computes of a sequence with delays; it reads `reach` more steps before them."""


class SynapseIndex(NamedTuple):
    """The synapses of a layer, checked: kernels read and write memory at these indices."""

    row_starts: Tensor
    """Index of the first synapse of each source neuron, then the number of all: ``[inputs + 1]``, int64."""
    offsets: Tensor
    """``delay * outputs + target`` of each synapse, ``[synapses]``, int32."""
    inputs: int
    outputs: int
    reach: int
    """The longest delay in steps."""

    @classmethod
    def check(
        cls, row_starts: Tensor, targets: Tensor, delays: Tensor | None, inputs: int, outputs: int
    ) -> Self:
        """The index of synapses from `inputs` to `outputs` neurons, as stored in :class:`Connections`.

        Raises:
            ValueError: if a tensor has a wrong dtype or shape, or an index is out of range.
        """
        count = targets.numel()
        check_synapses(row_starts, targets, count, outputs, targets.device)
        if row_starts.shape != (inputs + 1,):
            raise ValueError(
                f"row_starts must have {inputs + 1} numbers, got shape {tuple(row_starts.shape)}"
            )
        if delays is not None and (delays.dtype != torch.uint8 or delays.shape != targets.shape):
            kind = f"{delays.dtype} of shape {tuple(delays.shape)}"
            raise ValueError(f"delays must be torch.uint8 of shape ({count},), got {kind}")
        reach = 0 if delays is None else longest_delay(delays)
        if (reach + 1) * outputs >= 1 << 31:
            raise ValueError(
                f"out_features * (longest delay + 1) must be below 2^31, got {outputs} * {reach + 1}"
            )
        offsets = targets if delays is None else remember(_offsets, targets, delays, outputs)
        return cls(row_starts, offsets, inputs, outputs, reach)

    @property
    def synapses(self) -> int:
        """The number of synapses."""
        return self.offsets.numel()


def _offsets(targets: Tensor, delays: Tensor, outputs: int) -> Tensor:
    """``delay * outputs + target`` of each synapse, int32."""
    return torch.add(targets, delays, alpha=outputs)


def longest_delay(delays: Tensor) -> int:
    """The longest of `delays` in steps, remembered until these change; 0 without synapses."""
    return remember(_maximum, delays)


def _maximum(delays: Tensor) -> int:
    """The largest number of `delays`; 0 without numbers."""
    return int(delays.max()) if delays.numel() else 0


def _sizes(index: SynapseIndex, bits: Tensor, steps: int) -> dict[str, Any]:
    """The sizes and options that all kernels of spikes take, for `bits` of `steps` steps.

    Raises:
        ValueError: if the shape of `bits` does not fit.
    """
    words = -(-index.inputs // 64)
    if bits.ndim != 2 or bits.shape[1] != words or bits.shape[0] % steps or not bits.is_contiguous():
        raise ValueError(f"bits must be [{steps} * sequences, {words}], got {tuple(bits.shape)}")
    sizes = {"steps": steps, "sequences": bits.shape[0] // steps, "reach": index.reach}
    return {**sizes, "inputs": index.inputs, "outputs": index.outputs, "row": panel(1)}


def _contiguous(name: str, tensor: Tensor, *shape: int) -> Tensor:
    """`tensor` in contiguous memory; raises ValueError unless it is float32 and has this `shape`."""
    if tensor.shape != shape or tensor.dtype != torch.float32:
        kind = f"{tensor.dtype} of shape {tuple(tensor.shape)}"
        raise ValueError(f"{name} must be torch.float32 of shape {shape}, got {kind}")
    return tensor.contiguous()


def _by_sequence(index: SynapseIndex, gradient: Tensor, bits: Tensor, steps: int) -> Tensor:
    """`gradient`, checked to be ``[sequences, steps + reach, outputs]``."""
    return _contiguous("gradient", gradient, len(bits) // steps, steps + index.reach, index.outputs)


def forward(
    index: SynapseIndex,
    bits: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    leading: Sequence[int],
    skip: int = 0,
) -> Tensor:
    """``y_t,o = bias_o + sum over synapses k of weight_k s_(t + skip - delay_k), source_k``.

    Args:
        index: the synapses.
        bits: the spikes, packed to words of 64 bits, ``[rows, words]``.
        weight: ``[synapses]``.
        bias: ``[outputs]``, or None.
        leading: sizes of the input's dimensions, which multiply to the rows; the first is the number of steps
            if any synapse has a delay.
        skip: number of first steps whose output is not computed.

    Returns:
        The sums, ``[*leading, outputs]``, with `skip` steps less.
    """
    steps = leading[0] if index.reach else 1
    sizes = _sizes(index, bits, steps)
    leading = (steps - skip, *leading[1:]) if skip else leading
    out = torch.empty(*leading, index.outputs, dtype=torch.float32, device="cpu")
    chunk = max(CHUNK, 2 * index.reach) if index.reach else 1
    kernels.forward(
        sizes["sequences"] * -(-(steps - skip) // chunk),
        GRAIN if steps == 1 else 1,
        bits=bits,
        row_starts=index.row_starts,
        offsets=index.offsets,
        weight=_contiguous("weight", weight, index.synapses),
        bias=None if bias is None else _contiguous("bias", bias, index.outputs),
        target=out,
        skip=skip,
        chunk=chunk,
        **sizes,
    )
    return out


def weight_gradient(index: SynapseIndex, bits: Tensor, gradient: Tensor, steps: int) -> Tensor:
    """The gradient of the weights, ``[synapses]``.

    Args:
        index: the synapses.
        bits: the spikes, ``[steps * sequences, words]``.
        gradient: gradient of the output, ``[sequences, steps + reach, outputs]``.
        steps: number of steps of the spikes.
    """
    out = torch.empty(index.synapses, dtype=torch.float32, device="cpu")
    parts = min(bits.shape[1], max(torch.get_num_threads(), -(-index.synapses // PART_SYNAPSES)))
    kernels.weight_gradient(
        parts,
        bits=bits,
        row_starts=index.row_starts,
        offsets=index.offsets,
        gradient=_by_sequence(index, gradient, bits, steps),
        target=out,
        parts=parts,
        **_sizes(index, bits, steps),
    )
    return out


def input_gradient(index: SynapseIndex, mask: Tensor, weight: Tensor, gradient: Tensor, steps: int) -> Tensor:
    """The input gradient ``[steps * sequences, inputs]`` where the bits `mask` are set, zero elsewhere.

    `mask` is ``[steps * sequences, words]``, and `gradient` ``[sequences, steps + reach, outputs]``.
    """
    out = torch.empty(mask.shape[0], index.inputs, dtype=torch.float32, device="cpu")
    kernels.input_gradient(
        mask.shape[0],
        GRAIN,
        bits=mask,
        row_starts=index.row_starts,
        offsets=index.offsets,
        weight=_contiguous("weight", weight, index.synapses),
        gradient=_by_sequence(index, gradient, mask, steps),
        target=out,
        **_sizes(index, mask, steps),
    )
    return out


def multiply_numbers(index: SynapseIndex, weight: Tensor, source: Tensor, *, transposed: bool) -> Tensor:
    """The output ``[rows, outputs]`` of the input `source`, ``[rows, inputs]``, of synapses without delays.

    If `transposed`, `source` is an output gradient, and the result is the input gradient.
    """
    rows, length = source.shape[0], index.inputs if transposed else index.outputs
    out = torch.empty(rows, length, dtype=torch.float32, device="cpu")
    kernels.multiply_numbers(
        -(-rows // kernels.LANES),
        row_starts=index.row_starts,
        targets=index.offsets,
        weight=_contiguous("weight", weight, index.synapses),
        source=_contiguous("source", source, rows, index.outputs if transposed else index.inputs),
        target=out,
        rows=rows,
        inputs=index.inputs,
        outputs=index.outputs,
        transposed=transposed,
    )
    return out


def sums_per_synapse(row_starts: Tensor, targets: Tensor, source: Tensor, gradient: Tensor) -> Tensor:
    """The weight gradient ``[synapses]`` of synapses without delays, by torch.

    `source` is the input ``[rows, inputs]``, and `gradient` that of the output, ``[rows, outputs]``.
    """
    if targets.numel() > source.shape[1] * gradient.shape[1]:  # some twice: torch refuses such a matrix
        sources = torch.repeat_interleave(row_starts.diff())
        return (source.T @ gradient)[sources, targets]
    zeros = gradient.new_zeros(targets.numel())
    matrix = sparse_matrix(row_starts, targets, zeros, gradient.shape[1])
    sums: Tensor = torch.sparse.sampled_addmm(matrix, source.T, gradient, beta=0.0)
    return sums.values()


def sparse_matrix(row_starts: Tensor, targets: Tensor, weight: Tensor, outputs: int) -> Tensor:
    """The matrix ``[inputs, outputs]`` of synapses without delays, in torch's CSR layout."""
    is_large = targets.numel() >= 1 << 31
    dtype = torch.promote_types(row_starts.dtype if is_large else torch.int32, targets.dtype)
    shape = row_starts.numel() - 1, outputs
    return torch.sparse_csr_tensor(
        row_starts.to(dtype), targets.to(dtype), weight, shape, check_invariants=False
    )
