"""The CPU kernels of a step with matrix products: they run over samples.

Sequences are ``[T, ..., N]`` with contiguous steps: a matrix multiplies the N neurons of a sample.
"""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from hibana.compiler.cpu.kernels import CpuKernels
from hibana.compiler.cpu.launch import Launch, argument_packer
from hibana.compiler.cpu.product import padded, table_stride
from hibana.compiler.cpu.row_function import LINE
from hibana.compiler.memory_layout import row_bytes
from hibana.compiler.named_kernels import Named, Variant
from hibana.runtime.kernels import bind_kernel
from hibana.runtime.synapses import SynapseIndex

TILE_BYTES = 256 << 10
"""Maximum bytes of rows of a tile, the samples that a thread works on at a time: a part of L2."""

MAX_TILE_SAMPLES = 16
"""Maximum samples of a tile; more samples mean fewer passes over the weights."""


class SampleKernels(CpuKernels):
    """The kernels of one step with products, in one dtype."""

    takes_sparse: ClassVar = True
    about: ClassVar = "cpu: one native kernel forward and one back, sample by sample, with products per spike"

    def _bind_all(
        self,
        direction: str,
        variant: Variant,
        shape: torch.Size,
        matrices: Sequence[Tensor],
        arguments: Named,
    ) -> Launch:
        """As :meth:`CpuKernels._bind_all`, with each matrix as a table."""
        _, source = self._kernel(direction, variant)
        for i, matrix in enumerate(matrices[: self.step.matrices]):
            if i in self.step.sparse:
                index = SynapseIndex.check(*self.step.index_of(matrices, i), None, shape[-1], shape[-1])
                if matrix.shape != index.offsets.shape or matrix.device != index.offsets.device:
                    weights = f"{tuple(matrix.shape)} on {matrix.device}"
                    synapses = f"{index.synapses} synapses on {index.offsets.device}"
                    raise ValueError(f"weights must have one number for each of {synapses}, got {weights}")
                names = f"m{2 * i}_at", f"m{2 * i}_starts", f"m{2 * i}_targets"
                places = matrix.contiguous(), index.row_starts, index.offsets
                arguments |= dict(zip(names, places, strict=True))
                continue
            for name, is_transposed in ((f"m{2 * i}_at", False), (f"m{2 * i + 1}_at", True)):
                if name in source.arguments:
                    arguments[name] = _table(matrix, is_transposed=is_transposed)
        return super()._bind_all(direction, variant, shape, matrices, arguments)

    def _bind(
        self,
        direction: str,
        variant: Variant,
        shape: torch.Size,
        names: tuple[str, ...],
        threads: int,
    ) -> Launch:
        """A kernel bound to sequences of one `shape`, with tiles of samples split among `threads`."""
        kernel, source = self._kernel(direction, variant)
        steps, neurons = shape[0], shape[-1]
        samples = shape[1:-1].numel()
        padded_neurons = padded(neurons)
        samples_per_thread = max(1, -(-samples // threads))
        samples_in_cache = TILE_BYTES // (max(1, source.buffer_rows) * padded_neurons * self.size)
        per_tile = max(1, min(samples_per_thread, MAX_TILE_SAMPLES, max(4, samples_in_cache)))
        tiles = -(-samples // per_tile)
        thread_count = min(tiles, threads)
        tiles_per_thread = -(-tiles // thread_count) if thread_count else 0
        # Bytes of a thread's memory, as SampleLoops divides it: the kernel's rows, a row of zeros, the lists
        # of spikes (int32 index and number of each, int64 count per sample, int64 indices), two rows of bits.
        number_bytes = (source.buffer_rows * per_tile + 1) * padded_neurons * self.size
        list_bytes = per_tile * padded_neurons * (4 + self.size) + 8 * per_tile + 8 * padded_neurons
        workspace = -(-(number_bytes + list_bytes + padded_neurons // 4) // LINE) * LINE
        sizes = {"steps": steps, "samples": samples, "neurons": neurons, "padded": padded_neurons}
        sizes |= {"tiles": tiles, "tiles_per_thread": tiles_per_thread, "per_tile": per_tile}
        sizes |= {"sample_bytes": row_bytes(neurons), "row_bytes": samples * row_bytes(neurons)}
        sizes["workspace_bytes"] = workspace
        sizes |= self._function_addresses(source)
        pack = argument_packer(source.arguments, sizes, (*names, "workspace"))
        run = bind_kernel(kernel.address, thread_count)
        return Launch(run, pack, kernel.address, thread_count, workspace * thread_count)


def _table(matrix: Tensor, *, is_transposed: bool) -> Tensor:
    """`matrix` or its transpose, ``[inputs, outputs]``, with rows padded by zeros for the product kernels."""
    matrix = matrix.squeeze(0) if matrix.ndim == 3 else matrix
    matrix = matrix.T if is_transposed else matrix
    inputs, outputs = matrix.shape
    table = matrix.new_zeros(inputs, table_stride(outputs, matrix.itemsize))
    table[:, :outputs] = matrix
    return table
