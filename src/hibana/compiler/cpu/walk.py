"""The split of a sequence into rows, and of rows among threads, for a CPU kernel."""

from collections.abc import Sequence
from math import lcm
from typing import NamedTuple

import torch
from torch import Tensor

from hibana.compiler.cpu.binding import Binding, Pack
from hibana.compiler.cpu.body import LINE
from hibana.compiler.cpu.row_walk import FOLDED, OUTPUT_OFFSET, PAGE
from hibana.compiler.packed import row_bytes
from hibana.runtime.kernels import Kernel, Work, ready

__all__ = [
    "ALIASING_FROM",
    "MULTIPLE",
    "REVERSED",
    "SHORTEST",
    "Bound",
    "Walk",
    "folded",
    "pattern_sizes",
    "patterns_of",
    "split_rows",
    "unaliased",
    "walk",
    "written_out",
]

SHORTEST = 512
"""Neurons in a row at least."""

ROW_BEGINS = 128
"""Neurons that could be done in the time in which a row's memory begins to arrive."""

MULTIPLE = 64
"""What a row is a multiple of: the bits of as many are a whole number of words."""

LONGER = 1.1
"""How much longer a thread may take so that patterns fit rows, and need not be written out."""

SMALLEST_SHARE = 1 << 15
"""Neuron-steps that are worth a thread of their own."""

REVERSED = 512
"""Neurons at the end of a thread's last row that are walked in reverse, against false sharing: what the
prefetcher fetches goes on past the end of a row, and there it would take lines from the thread that writes
them, at each step; from a row of the same thread it fetches what comes next."""


class Bound(NamedTuple):
    """A kernel, the arguments that it declares, those of them that no shape changes, and its longest row."""

    kernel: Kernel
    arguments: tuple[str, ...]
    fixed: dict[str, int]
    """The addresses of the functions that it calls."""
    row: int
    """How many neurons a row of it has at most."""


class Walk(NamedTuple):
    """How a kernel goes over sequences of one shape: all but where its tensors are."""

    work: Work
    binding: Binding
    pack: Pack
    repeated: bool
    """Whether parameters that repeat are given as one; else they are written out."""
    rows: int
    """How many rows there are."""
    reduced: tuple[int, ...]
    """How many neurons each sum over time ends in, of each row; none, if they are not folded."""

    def run(self, *given: int) -> None:
        """Runs the kernel over all rows; it is given what :func:`walk` was told the names of."""
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
    """A kernel over `steps` of `neurons`, split among `threads`; at each launch it is given `names`.

    `patterns` are how many neurons a parameter is given for, over and over; 0, if for each. `reduced` are how
    many each sum over time ends in.
    """
    count, width, grain, repeated = split_rows(steps, neurons, threads, bound.row, [*patterns, *reduced])
    sizes = {"steps": steps, "neurons": neurons, "width": width, "reversed": REVERSED}
    sizes |= {"row_bytes": row_bytes(neurons), "residual_step": neurons} | pattern_sizes(
        patterns, reduced, repeated
    )
    binding = Binding(bound.arguments, bound.fixed | sizes)
    work = ready(bound.kernel.address, count, grain)
    repeating = (repeated, count, tuple(reduced) if repeated else ())
    return Walk(work, binding, binding.pack_named(names), *repeating)


def folded(length: int) -> int:
    """How many neurons a sum is folded to that is wanted of `length`: as many, or a few more of them."""
    return length if length >= FOLDED else lcm(length, FOLDED)


def split_rows(
    steps: int, neurons: int, threads: int, longest: int, patterns: Sequence[int]
) -> tuple[int, int, int, bool]:
    """How many rows, how wide, how many are not worth a thread, and whether all `patterns` fit each.

    As even a split as can be had. A row is counted :data:`ROW_BEGINS` neurons longer than it is.
    """

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
    """By the argument of a kernel: how many neurons a parameter is for, over and over; 0, if for each.

    And how many neurons a sum ends in.
    """
    sizes = {f"p{i}_length": length if repeated else 0 for i, length in enumerate(patterns)}
    return sizes | {f"sum{i}_fold": length for i, length in enumerate(reduced)}


def patterns_of(parameters: Sequence[Tensor], neurons: int) -> tuple[int, ...]:
    """How many neurons each is given for, over and over; 0, if for each or as one number."""
    whole = (1, neurons)
    return tuple([0 if (count := parameter.numel()) in whole else count for parameter in parameters])


def written_out(parameters: Sequence[Tensor], patterns: Sequence[int], neurons: int) -> list[Tensor]:
    """`parameters` of which those that repeat, as `patterns` say, are given for each of the `neurons`."""
    return [
        parameter.as_strided((neurons // length, length), (0, 1)).reshape(-1) if length else parameter
        for parameter, length in zip(parameters, patterns, strict=True)
    ]


ALIASING_FROM = 256 << 10
"""Bytes from which on 4K aliasing matters; a page more is little then."""


def unaliased(read: Tensor, shape: torch.Size) -> Tensor:
    """A new tensor of `shape`, offset within a page so that stores to it and loads from `read` do not alias.

    See :data:`hibana.compiler.cpu.row_walk.OUTPUT_OFFSET`. A small one begins where its memory does.
    """
    count, dtype = shape.numel(), read.dtype
    if count * dtype.itemsize < ALIASING_FROM:
        if read.shape == shape and read.is_contiguous():
            return torch.empty_like(read)  # sizes that come from Python take twice as long
        return torch.empty(shape, dtype=dtype, device="cpu")
    buffer = torch.empty(count + PAGE // dtype.itemsize, dtype=dtype, device="cpu")
    shift = (read.data_ptr() + OUTPUT_OFFSET - buffer.data_ptr()) & (PAGE - LINE)
    buffer.set_(buffer.untyped_storage(), shift // dtype.itemsize, shape, ())
    return buffer.data  # to which nothing was written yet, as others may ask of its version
