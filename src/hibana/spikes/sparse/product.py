"""Products of sparse synapses: with spikes, forward and backward, and with any numbers."""

from typing import Any

import torch
from torch import Tensor

from hibana.runtime.synapses import SynapseIndex
from hibana.spikes import select
from hibana.spikes.bits import Planes, pack_bits
from hibana.spikes.linear.autograd import Gradients, Product
from hibana.spikes.linear.product import GradientMask
from hibana.spikes.simd.lists import WORD
from hibana.spikes.simd.rows import panel
from hibana.spikes.sparse import kernels

__all__ = ["SparseProduct", "multiply_numbers", "sparse_matrix", "sums_per_synapse"]

MASKED_UP_TO = 0.1
"""Density of a surrogate's mask up to which the input gradient is computed only where the mask is set.

Measured with 1, 5 and 10% of 2048 x 2048 synapses: the full gradient takes the time of a mask of 10 to 12%.
"""
PART_SYNAPSES = 1 << 17
"""Synapses of a part of the weight gradient: their offsets and sums fill a 1 MiB L2 cache."""
GRAIN = 8
"""Fewest rows of an input without delays that a thread computes."""


class SparseProduct(Product):
    """The sums over all synapses of an input of spikes.

    Kernels read and write sums as ``[sequences, steps + reach, outputs]``, because a spike adds to the sums
    of its own step and of up to `reach` later steps. Without delays, each row of the input is a sequence of
    one step.

    Args:
        shape: shape of the input, ``[..., inputs]``; with delays ``[steps, sequences, inputs]``.
        index: the synapses.
        skip: number of first steps whose output is not returned.
    """

    def __init__(self, shape: torch.Size, index: SynapseIndex, skip: int = 0) -> None:
        rows = shape.numel() // max(1, index.inputs)
        sizes = rows, index.inputs, index.outputs, shape.numel(), index.inputs
        super().__init__(shape, select.Key("sparse", (), *sizes), index.inputs)
        self.index, self.skip = index, skip
        self.steps = shape[0] if index.reach else 1
        self.sequences = rows // self.steps

    def _arguments(self, bits: Tensor) -> dict[str, Any]:
        """The arguments that all kernels of spikes take: `bits` ``[rows, words]``, synapses and sizes.

        Raises:
            ValueError: if `bits` have another shape.
        """
        index = self.index
        shape = self.steps * self.sequences, -(-index.inputs // WORD)
        if bits.shape != shape or not bits.is_contiguous():
            raise ValueError(f"bits must be {list(shape)} and contiguous, got {list(bits.shape)}")
        sizes = {"steps": self.steps, "sequences": self.sequences, "reach": index.reach}
        sizes |= {"inputs": index.inputs, "outputs": index.outputs}
        places = {"row_starts": index.row_starts, "offsets": index.offsets}
        return {"bits": bits, "row": panel(1), **places, **sizes}

    def gradient_rows(self, gradient: Tensor) -> Tensor:
        """The output `gradient`, ``[sequences, steps + reach, outputs]``; zeros at steps without output."""
        rows, outputs = super().gradient_rows(gradient), self.index.outputs
        if not self.index.reach:
            return rows[:, None]
        padded = rows.new_zeros(self.sequences, self.steps + self.index.reach, outputs)
        by_step = rows.view(self.steps - self.skip, self.sequences, outputs)
        padded[:, self.skip : self.steps] = by_step.transpose(0, 1)
        return padded

    def forward(self, input_: Planes, weight: Tensor, bias: Tensor | None) -> Tensor:
        """``y_t,o = bias_o + sum over synapses k of weight_k s_(t + skip - delay_k), source_k``.

        The result is ``[..., outputs]``, without the first `skip` steps. It is no view.
        """
        reach, outputs = self.index.reach, self.index.outputs
        shape = (self.sequences, self.steps + reach) if reach else self.shape[:-1]
        sums = torch.empty(*shape, outputs, dtype=torch.float32, device="cpu")
        kernels.forward(
            self.sequences,
            1 if reach else GRAIN,
            weight=_contiguous("weight", weight, self.index.synapses),
            bias=None if bias is None else _contiguous("bias", bias, outputs),
            target=sums,
            **self._arguments(input_.joint),
        )
        if not reach:
            return sums
        return sums[:, self.skip : self.steps].transpose(0, 1).clone(memory_format=torch.contiguous_format)

    def weight_gradient(self, input_: Planes, rows: Tensor) -> Tensor:
        """The gradients of the weights, ``[synapses]``."""
        bits, synapses = input_.joint, self.index.synapses
        to_weight = torch.empty(synapses, dtype=torch.float32, device="cpu")
        parts = min(bits.shape[1], max(torch.get_num_threads(), -(-synapses // PART_SYNAPSES)))
        kernels.weight_gradient(parts, gradient=rows, target=to_weight, parts=parts, **self._arguments(bits))
        return to_weight

    def input_gradient(self, mask: GradientMask, weight: Tensor, rows: Tensor) -> Tensor:
        """The input gradient: where `mask` is set and zero elsewhere, or everywhere if that is faster."""
        if not self.index.reach and mask.density >= MASKED_UP_TO:
            return multiply_numbers(self.index, weight, rows[:, 0], transposed=True).view(self.shape)
        to_input = torch.empty(self.shape, dtype=torch.float32, device="cpu")
        kernels.input_gradient(
            self.steps * self.sequences,
            GRAIN,
            weight=_contiguous("weight", weight, self.index.synapses),
            gradient=rows,
            target=to_input,
            **self._arguments(mask.bits),
        )
        return to_input

    def dense_gradients(
        self, numbers: Tensor | None, weight: Tensor, rows: Tensor, needed: tuple[bool, bool]
    ) -> Gradients:
        """The input gradient everywhere; the weight gradient is always computed per spike."""
        everywhere, _ = pack_bits(torch.ones(1, self.index.inputs, dtype=torch.float32, device="cpu"))
        bits = everywhere.expand(self.steps * self.sequences, -1).contiguous()
        return self.input_gradient(GradientMask(bits, 1.0), weight, rows), None

    def constant_input_gradient(self, gradient: Tensor, weight: Tensor) -> Tensor | None:
        """None: the input gradient of each step is computed."""
        return None


def _contiguous(name: str, tensor: Tensor, *shape: int) -> Tensor:
    """`tensor` in contiguous memory; raises ValueError unless it is float32 and has this `shape`."""
    if tensor.shape != shape or tensor.dtype != torch.float32:
        kind = f"{tensor.dtype} of shape {tuple(tensor.shape)}"
        raise ValueError(f"{name} must be torch.float32 of shape {shape}, got {kind}")
    return tensor.contiguous()


def multiply_numbers(index: SynapseIndex, weight: Tensor, source: Tensor, *, transposed: bool) -> Tensor:
    """The output ``[rows, outputs]`` of the input `source`, ``[rows, inputs]``, of synapses without delays.

    If `transposed`, `source` is an output gradient, and the result is the input gradient.
    """
    weight, rows = _contiguous("weight", weight, index.synapses), source.shape[0]
    if transposed:
        row_starts, places, inputs, outputs = index.row_starts, index.offsets, index.outputs, index.inputs
    else:
        inputs, outputs = index.inputs, index.outputs
        row_starts, places, order = index.by_target
        weight = weight[order]
    out = torch.empty(rows, outputs, dtype=torch.float32, device="cpu")
    kernels.multiply_numbers(
        -(-rows // kernels.LANES),
        row_starts=row_starts,
        places=places,
        weight=weight,
        source=_contiguous("source", source, rows, inputs),
        target=out,
        rows=rows,
        inputs=inputs,
        outputs=outputs,
    )
    return out


def sums_per_synapse(index: SynapseIndex, source: Tensor, gradient: Tensor) -> Tensor:
    """The weight gradient ``[synapses]`` of synapses without delays, by torch.

    `source` is the input ``[rows, inputs]``, and `gradient` that of the output, ``[rows, outputs]``.
    """
    if index.synapses > index.inputs * index.outputs:  # some twice: torch refuses such a matrix
        return (source.T @ gradient)[index.sources, index.offsets]
    matrix = sparse_matrix(index, gradient.new_zeros(index.synapses))
    sums: Tensor = torch.sparse.sampled_addmm(matrix, source.T, gradient, beta=0.0)
    return sums.values()


def sparse_matrix(index: SynapseIndex, weight: Tensor) -> Tensor:
    """The matrix ``[inputs, outputs]`` of synapses without delays, in torch's CSR layout."""
    dtype = torch.int64 if index.synapses >= 1 << 31 else torch.int32
    places = index.row_starts.to(dtype), index.offsets.to(dtype)
    shape = index.inputs, index.outputs
    return torch.sparse_csr_tensor(*places, weight, shape, check_invariants=False)
