"""The split of a sequence into rows, and of rows among threads, for a CPU kernel."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from hibana.compiler.cpu.binding import Binding, Pack
from hibana.compiler.cpu.row_function import LINE
from hibana.compiler.cpu.row_loops import OUTPUT_OFFSET, PAGE
from hibana.compiler.memory_layout import row_bytes
from hibana.runtime.kernels import BoundKernel, Kernel, bind_kernel

SHORTEST = 512
"""Minimum neurons in a row."""

ROW_BEGINS = 128
"""Cost of beginning a row, in neurons: its memory has yet to arrive."""

MULTIPLE = 64
"""Rows are multiples of it: the bits of as many neurons are whole words."""

SMALLEST_SHARE = 1 << 15
"""Neuron-steps from which on a thread is worth starting."""

REVERSED = 512
"""Neurons at the end of a thread's last row that are walked in reverse, against false sharing: the prefetcher
goes on past the end of a row, where it would take lines from the thread that writes them."""


class Bound(NamedTuple):
    """A kernel, its arguments, the addresses of the functions among them, and its maximum row in neurons."""

    kernel: Kernel
    arguments: tuple[str, ...]
    fixed: dict[str, int]
    row: int


class Walk(NamedTuple):
    """A kernel bound to sequences of one shape: all of its arguments but addresses."""

    work: BoundKernel
    pack: Pack

    def run(self, *given: int) -> None:
        """Runs the kernel over all rows, with the values of the `names` of :func:`walk`."""
        self.work.run(self.pack(given))


def walk(bound: Bound, names: Sequence[str], steps: int, neurons: int, threads: int) -> Walk:
    """Binds a kernel to `steps` of `neurons`, split among `threads`; each launch passes `names`."""
    count, width, grain = split_rows(steps, neurons, threads, bound.row)
    sizes = {"steps": steps, "neurons": neurons, "width": width}
    sizes |= {"row_bytes": row_bytes(neurons), "reversed": REVERSED}
    binding = Binding(bound.arguments, bound.fixed | sizes)
    return Walk(bind_kernel(bound.kernel.address, count, grain), binding.pack_named(names))


def split_rows(steps: int, neurons: int, threads: int, longest: int) -> tuple[int, int, int]:
    """The most even split of `neurons`: the number of rows, their width, and the rows of a thread's share."""

    def takes(width: int) -> int:
        return -(-neurons // (width * threads)) * (width + ROW_BEGINS)

    widths = range(min(SHORTEST, longest), longest + 1, MULTIPLE)
    width = min(widths, key=lambda w: (takes(w), -w))
    return -(-neurons // width), width, max(1, SMALLEST_SHARE // (steps * width))


ALIASING_FROM = 256 << 10
"""Bytes from which on 4K aliasing matters, and another page of memory does not."""


def unaliased(read: Tensor, shape: torch.Size, may_offset: bool = True) -> Tensor:
    """A new tensor of `shape`, whose memory begins, if it is large, OUTPUT_OFFSET bytes after that of `read`
    modulo a page: stores and loads at equal places of a page would wait for one another (4K aliasing).
    """
    count, dtype = shape.numel(), read.dtype
    if not may_offset or count * dtype.itemsize < ALIASING_FROM:
        if read.shape == shape and read.is_contiguous():
            return torch.empty_like(read)  # sizes that come from Python take twice as long
        return torch.empty(shape, dtype=dtype, device="cpu")
    buffer = torch.empty(count + PAGE // dtype.itemsize, dtype=dtype, device="cpu")
    shift = (read.data_ptr() + OUTPUT_OFFSET - buffer.data_ptr()) & (PAGE - LINE)
    buffer.set_(buffer.untyped_storage(), shift // dtype.itemsize, shape, ())
    return buffer.data  # to which nothing was written yet, as others may ask of its version
