"""A step's CPU kernels where it has matrix products: compiled on first use, run over tensors.

Sequences are ``[T, ..., N]`` with contiguous steps: the N neurons of a sample are multiplied by a matrix.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from hibana.compiler.cpu.base import NativeKernels
from hibana.compiler.cpu.kernel_writer import Source
from hibana.compiler.cpu.product import padded, table_step
from hibana.compiler.cpu.row_function import LINE
from hibana.compiler.cpu.row_kernels import SHAPES
from hibana.compiler.cpu.source import backward_over_samples, forward_over_samples
from hibana.compiler.graph import synapses
from hibana.compiler.graph.plan import Plan
from hibana.compiler.graph.step import Step
from hibana.compiler.memory_layout import row_bytes
from hibana.compiler.named_kernels import Named, NamedKernels
from hibana.runtime.kernels import BoundKernel, Kernel, address_of, assemble, bind_kernel, pack_arguments

NEAR = 256 << 10
"""Maximum bytes of rows of the samples that a thread works on at a time: a part of L2."""

MOST = 16
"""Maximum samples that a thread works on at a time; the more, the fewer passes over the weights."""


class SampleKernels(NamedKernels, NativeKernels):
    """The kernels of one step with products, in one dtype."""

    about: ClassVar = "cpu: one native kernel forward and one back, sample by sample, with products per spike"

    def __init__(self, step: Step, plan: Plan, dtype: torch.dtype) -> None:
        super().__init__(step, plan, dtype)
        self.operands = synapses.operands(step)
        self._kernel = lru_cache(maxsize=64)(self._make_kernel)
        self._schedule = lru_cache(SHAPES)(self._make_schedule)

    def source(self, direction: str, *, keep: bool = True) -> str:
        return self._source(direction, keep).text

    def _launch(
        self, direction: str, variant: bool, shape: torch.Size, parameters: Sequence[Tensor], given: Named
    ) -> None:
        names = self._kernel(direction, variant)[1].arguments
        schedule = self._schedule(direction, variant, shape, torch.get_num_threads())
        memory = torch.empty(schedule.bytes, dtype=torch.uint8, device="cpu")
        given |= {"workspace": memory, "constants": self.constants_at}
        given |= {f"p{i}_at": t for i, t in enumerate(parameters[: self.step.parameters])}
        given |= {f"{op}_at": address for op, address in self.functions.items()}
        for name in names:
            if name.startswith("m") and name.endswith("_at") and name[1:-3].isdigit():
                index, transposed = divmod(int(name[1:-3]), 2)
                given[name] = _table(parameters[self.step.parameters + index], transposed=bool(transposed))
        values = schedule.sizes | given
        schedule.work.run(pack_arguments([_address(values.get(name, 0)) for name in names]))

    def _make_kernel(self, direction: str, variant: bool) -> tuple[Kernel, Source]:
        source = self._source(direction, variant)
        (kernel,) = assemble(source.text, (direction,))
        return kernel, source

    def _source(self, direction: str, variant: bool) -> Source:
        if direction == "forward":
            return forward_over_samples(self.step, self.plan if variant else None, self.real, self.calls)
        return backward_over_samples(self.step, self.plan, self.real, self.calls, wants_input=variant)

    def _make_schedule(self, direction: str, variant: bool, shape: torch.Size, threads: int) -> "_Schedule":
        kernel, source = self._kernel(direction, variant)
        steps, neurons = shape[0], shape[-1]
        samples = shape[1:-1].numel()
        wide = padded(neurons)
        each = max(1, -(-samples // threads))
        near = NEAR // (max(1, source.rows) * wide * self.size)
        per_tile = max(1, min(each, MOST, max(4, near)))
        blocks = -(-samples // per_tile)
        pieces = min(blocks, threads)
        blocks_each = -(-blocks // pieces) if pieces else 0
        # as SampleWalk lays it out: its rows, a row of zeros, lists of spikes, and rows of bits
        lists = per_tile * wide * (4 + self.size) + 8 * per_tile + 8 * wide
        bytes_ = (source.rows * per_tile + 1) * wide * self.size + lists + wide // 4
        bytes_ = -(-bytes_ // LINE) * LINE
        sizes = {
            **{"steps": steps, "samples": samples, "neurons": neurons, "padded": wide},
            **{"per_tile": per_tile, "blocks": blocks, "blocks_each": blocks_each, "workspace_bytes": bytes_},
            **{"sample_bytes": row_bytes(neurons), "row_bytes": samples * row_bytes(neurons)},
        }
        return _Schedule(bind_kernel(kernel.address, pieces), sizes, bytes_ * pieces)


class _Schedule(NamedTuple):
    """A kernel bound to sequences of one shape, and the bytes of all threads' memory."""

    work: BoundKernel
    sizes: dict[str, int]
    bytes: int


def _address(value: Any) -> int:
    if isinstance(value, Tensor):
        return address_of(value)
    return 0 if value is None else int(value)


def _table(matrix: Tensor, *, transposed: bool) -> Tensor:
    """`matrix` as a table (:mod:`hibana.compiler.cpu.product`)."""
    matrix = matrix.squeeze(0) if matrix.ndim == 3 else matrix
    matrix = matrix.T if transposed else matrix
    inputs, outputs = matrix.shape
    table = matrix.new_zeros(inputs, table_step(outputs, matrix.itemsize))
    table[:, :outputs] = matrix
    return table
