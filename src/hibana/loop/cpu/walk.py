"""How a CPU kernel goes over a sequence: how long its rows are, and which threads do them.

Also recomputation in tiles: a forward and a backward alternately, a row at a time, so that what the first
keeps for the second never leaves the cache.
"""

from array import array
from collections.abc import Sequence
from functools import cache
from itertools import accumulate
from typing import NamedTuple

import torch

from hibana.loop.cpu.body import LINE
from hibana.loop.cpu.recompute import recompute_source
from hibana.loop.cpu.source import PAGE, ROW
from hibana.native import Kernel, Work, arguments, assemble, ready

__all__ = ["BUFFER_OFFSET", "Bound", "Recomputation", "Walk", "fits_tiles", "recompute", "row_bytes", "walk"]

SHORTEST = 512
"""Neurons in a row at least."""

ROW_BEGINS = 128
"""Neurons that could be done in the time in which a row's memory begins to arrive."""

SMALLEST_SHARE = 1 << 15
"""Neuron-steps that are worth a thread of their own."""

REVERSED = 512
"""Neurons at the end of a thread's last row that are walked in reverse, against false sharing: what the
prefetcher fetches goes on past the end of a row, and there it would take lines from the thread that writes
them, at each step; from a row of the same thread it fetches what comes next."""

ROOM = 256 << 10
"""Bytes that a second run forward keeps at a time, at most: a part of a second-level cache."""

BUFFER_OFFSET = 3200
"""How far after the gradients that are read, within a page, a buffer begins: as ``source.OUTPUT_OFFSET``."""

Bound = tuple[Kernel, tuple[int, ...], int]
"""A kernel, what its arguments end with, and how many neurons a row of it has at most."""


Call = tuple[int, int, int, tuple[int, ...], tuple[int, ...]]
"""A kernel's address, its pieces of work and how many are not worth a thread, and what its arguments begin
and end with."""


class Walk(NamedTuple):
    """How a kernel goes over sequences of one shape: all but where its tensors are."""

    work: Work
    sizes: tuple[int, ...]
    """What its arguments begin with: how many steps and neurons there are, how wide a row is, how far apart
    are steps of what is kept, in bytes of bits and in numbers, and how much of the last row is walked in
    reverse."""

    tail: tuple[int, ...]
    """What they end with: the functions that it calls."""

    def call(self, constants: int) -> Call:
        """It as ``node.cpp`` takes it, with the step's constants at `constants`."""
        return (*self.work[:3], self.sizes, (constants, *self.tail))

    def run(self, *between: int) -> None:
        """Runs the kernel over all rows; `between` are its arguments between the sizes and the tail."""
        self.work.go(arguments((*self.sizes, *between, *self.tail)))


class Recomputation(NamedTuple):
    """How a forward that keeps and the backward that reads it go alternately over rows of one shape."""

    work: Work
    sizes: tuple[int, ...]
    kernels: tuple[int, int]
    tails: tuple[tuple[int, ...], tuple[int, ...]]
    tables: tuple["array[int]", "array[int]"]
    """Where in a buffer what is kept begins, and what it takes of a neuron and step."""
    buffer: int
    """Bytes of all buffers, one for each thread."""
    rest: tuple[int, ...]
    """The last of ``recompute.ARGUMENTS``."""

    def calls(self, constants: int) -> tuple[Call, tuple[Call, Call, list[int], list[int], int]]:
        """It as ``node.cpp`` takes it: the backward, and what goes with it."""
        forward, backward = (
            (address, 0, 0, self.sizes, (constants, *tail))
            for address, tail in zip(self.kernels, self.tails, strict=True)
        )
        starts, bits = (list(table) for table in self.tables)
        return backward, ((*self.work[:3], (), self.rest), forward, starts, bits, self.buffer)

    def run(self, forward: tuple[Sequence[int], ...], backward: tuple[Sequence[int], ...], read: int) -> None:
        """Runs both, each with its arguments between the ends, before and after those for what is kept.

        `read` is where the gradients that they read are.
        """
        starts, bits = self.tables
        none = (0,) * len(bits)
        given = [
            array("q", (*self.sizes, *before, *none, *after, *tail))
            for (before, after), tail in zip((forward, backward), self.tails, strict=True)
        ]
        buffer = torch.empty(self.buffer + PAGE, dtype=torch.uint8, device="cpu")
        shift = (read + BUFFER_OFFSET - buffer.data_ptr()) & (PAGE - LINE)
        values = (  # in the order of recompute.ARGUMENTS
            *self.kernels,
            *(each.buffer_info()[0] for each in given),
            *(8 * len(each) for each in given),
            *(len(self.sizes) + len(before) for before, _ in (forward, backward)),
            *(len(bits), starts.buffer_info()[0], bits.buffer_info()[0]),
            *(buffer.data_ptr() + shift, *self.rest),
        )
        self.work.go(arguments(values))


def walk(bound: Bound, steps: int, neurons: int, threads: int) -> Walk:
    """A kernel over `steps` of `neurons`, split among `threads`."""
    kernel, tail, longest = bound
    count, width, grain = _rows(steps, neurons, threads, longest)
    sizes = (steps, neurons, width, row_bytes(neurons), neurons, REVERSED)
    return Walk(ready(kernel.address, count, grain), sizes, tail)


def row_bytes(neurons: int) -> int:
    """Bytes of the bits of a step's `neurons`."""
    return (neurons + 7) // 8


def fits_tiles(bits: Sequence[int], steps: int) -> bool:
    """Whether rows that are worth recomputing have a buffer for `bits` of each neuron and step."""
    return _widest(bits, steps) >= SHORTEST


def recompute(
    kernels: tuple[Bound, Bound], bits: Sequence[int], steps: int, neurons: int, threads: int
) -> Recomputation:
    """A forward and a backward alternately over `steps` of `neurons`; `bits` are kept of each."""
    (forward, forward_tail, _), (backward, backward_tail, _) = kernels
    longest = min(_widest(bits, steps), *(row for _, _, row in kernels))
    rows, width, _ = _rows(steps, neurons, threads, longest)
    pieces = max(1, min(rows, threads))
    sizes = (steps, neurons, width, width // 8, width, 0)
    ends = list(accumulate((-(-steps * width * b // (8 * LINE)) * LINE for b in bits), initial=0))
    return Recomputation(
        ready(_recompute_kernel().address, pieces),
        sizes,
        (forward.address, backward.address),
        (forward_tail, backward_tail),
        (array("q", ends[:-1]), array("q", bits)),
        pieces * ends[-1],
        (ends[-1], width, rows, -(-rows // pieces), len(sizes) - 1, REVERSED),
    )


def _rows(steps: int, neurons: int, threads: int, longest: int) -> tuple[int, int, int]:
    """How many rows, how wide, and how many are not worth a thread: as even a split as can be had.

    A row is counted :data:`ROW_BEGINS` neurons longer than it is.
    """
    widths = range(min(SHORTEST, longest), longest + 1, 64)
    width = min(widths, key=lambda w: (-(-neurons // (w * threads)) * (w + ROW_BEGINS), -w))
    return -(-neurons // width), width, max(1, SMALLEST_SHARE // (steps * width))


def _widest(bits: Sequence[int], steps: int) -> int:
    """How wide a row is at most, a multiple of 64 neurons, of which `bits` fit a buffer."""
    return min(ROW, 8 * ROOM // (sum(bits) * steps) // 64 * 64)


@cache
def _recompute_kernel() -> Kernel:
    (kernel,) = assemble(recompute_source(), ("recompute",))
    return kernel
