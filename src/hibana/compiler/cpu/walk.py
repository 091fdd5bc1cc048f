"""The split of a sequence into rows, and of rows among threads, for a CPU kernel."""

from collections.abc import Sequence
from math import lcm
from typing import NamedTuple

import torch
from torch import Tensor

from hibana.compiler.cpu.binding import Binding, Pack
from hibana.compiler.cpu.body import LINE
from hibana.compiler.cpu.row_walk import OUTPUT_OFFSET, PAGE, REDUCTION_WIDTH
from hibana.compiler.strides import row_bytes
from hibana.runtime.kernels import Kernel, Work, ready

SHORTEST = 512
"""Minimum neurons in a row."""

ROW_BEGINS = 128
"""Cost of beginning a row, in neurons: its memory has yet to arrive."""

MULTIPLE = 64
"""Rows are multiples of it: the bits of as many neurons are whole words."""

LONGER = 1.1
"""Slowdown that is accepted so that repeating parameters fit rows and need not be expanded."""

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

    work: Work
    pack: Pack
    repeated: bool
    """Whether parameters that repeat are passed once; else they are expanded."""
    rows: int
    reduced: tuple[int, ...]
    """To how many neurons each row reduces each sum over time; empty, if it doesn't."""

    def run(self, *given: int) -> None:
        """Runs the kernel over all rows, with the values of the `names` of :func:`walk`."""
        self.work.go(self.pack(given))


def walk(
    bound: Bound,
    names: Sequence[str],
    steps: int,
    neurons: int,
    threads: int,
    patterns: Sequence[int] = (),
    reduced: Sequence[int] = (),
) -> Walk:
    """Binds a kernel to `steps` of `neurons`, split among `threads`; each launch passes `names`.

    `patterns` are the periods of the parameters, 0 where they don't repeat; `reduced` those of the sums.
    """
    count, width, grain, repeated = split_rows(steps, neurons, threads, bound.row, [*patterns, *reduced])
    sizes = {"steps": steps, "neurons": neurons, "width": width, "reversed": REVERSED}
    sizes |= {"row_bytes": row_bytes(neurons), "residual_step": neurons} | pattern_sizes(
        patterns, reduced, repeated
    )
    binding = Binding(bound.arguments, bound.fixed | sizes)
    work = ready(bound.kernel.address, count, grain)
    repeating = (repeated, count, tuple(reduced) if repeated else ())
    return Walk(work, binding.pack_named(names), *repeating)


def reduced_length(length: int) -> int:
    """To how many neurons rows reduce a sum of period `length`: a multiple of it, at least a vector."""
    return length if length >= REDUCTION_WIDTH else lcm(length, REDUCTION_WIDTH)


def split_rows(
    steps: int, neurons: int, threads: int, longest: int, patterns: Sequence[int]
) -> tuple[int, int, int, bool]:
    """The most even split: how many rows, how wide, up to how many on one thread, whether `patterns` fit."""

    def takes(width: int) -> int:
        return -(-neurons // (width * threads)) * (width + ROW_BEGINS)

    widths: Sequence[int] = range(min(SHORTEST, longest), longest + 1, MULTIPLE)
    width = min(widths, key=lambda w: (takes(w), -w))
    unit = lcm(MULTIPLE, *filter(None, patterns))
    fitting = range(unit, longest + 1, unit)
    repeated = any(patterns) and len(fitting) > 0
    if repeated:
        of_patterns = min(fitting, key=lambda w: (takes(w), -w))
        repeated = takes(of_patterns) <= LONGER * takes(width)
        width = of_patterns if repeated else width
    return -(-neurons // width), width, max(1, SMALLEST_SHARE // (steps * width)), repeated


def pattern_sizes(patterns: Sequence[int], reduced: Sequence[int], repeated: bool) -> dict[str, int]:
    """The arguments of a kernel that are the periods of parameters (0: none) and of sums."""
    sizes = {f"p{i}_length": length if repeated else 0 for i, length in enumerate(patterns)}
    return sizes | {f"sum{i}_period": length for i, length in enumerate(reduced)}


def patterns_of(parameters: Sequence[Tensor], neurons: int) -> tuple[int, ...]:
    """The period in neurons of each parameter; 0 if it is one number, or has one for each neuron."""
    whole = (1, neurons)
    return tuple([0 if (count := parameter.numel()) in whole else count for parameter in parameters])


def written_out(parameters: Sequence[Tensor], patterns: Sequence[int], neurons: int) -> list[Tensor]:
    """`parameters`, those that repeat expanded to all `neurons`."""
    return [
        parameter.as_strided((neurons // length, length), (0, 1)).reshape(-1) if length else parameter
        for parameter, length in zip(parameters, patterns, strict=True)
    ]


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
