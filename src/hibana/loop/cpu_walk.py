"""How a CPU kernel goes over a sequence: how long its rows are, and which threads do them.

Also a backward that runs forward again: two kernels by turns, a row at a time, so that what the first keeps
for the second never leaves the cache.
"""

import ctypes
from collections.abc import Sequence
from functools import cache, lru_cache
from itertools import accumulate

import torch

from hibana.loop.llvm_replay import replay_source
from hibana.loop.llvm_source import ROW
from hibana.loop.llvm_text import LINE
from hibana.native import Kernel, arguments, assemble, run

__all__ = ["READ", "Turn", "has_room", "replay", "walk"]

SHORTEST = 512
"""Neurons in a row at least."""

ROW_BEGINS = 128
"""Neurons that could be done in the time in which a row's memory begins to arrive."""

SMALLEST_SHARE = 1 << 15
"""Neuron-steps that are worth a thread of their own."""

ROOM = 256 << 10
"""Bytes that a second run forward keeps at a time, at most: a part of a second-level cache."""

WIDTH, READ = 2, 5
"""Where a kernel's arguments say how wide a row is and how far apart are steps of what is kept, and where the
input begins."""

Turn = tuple[Kernel, list[int], list[int]]
"""A kernel, and its arguments before and after those for what is kept."""


def walk(kernel: Kernel, values: list[int], steps: int, neurons: int) -> None:
    """Runs `kernel` with the arguments `values` over all rows."""
    if neurons:
        count, values[WIDTH], grain = _rows(steps, neurons, torch.get_num_threads(), ROW)
        run(kernel.address, count, arguments(values), grain)


def has_room(bits: Sequence[int], steps: int) -> bool:
    """Whether rows that are worth a second run have room for `bits` of each neuron and step."""
    return _widest(bits, steps) >= SHORTEST


def replay(turns: tuple[Turn, Turn], bits: Sequence[int], steps: int, neurons: int) -> None:
    """Runs two kernels by turns over each row: a forward that keeps, and the backward that reads it.

    Args:
        turns: the two, and their arguments.
        bits: what each sequence that is kept takes of a neuron and step.
        steps: of the sequence.
        neurons: of a step.
    """
    if not neurons:
        return
    threads = torch.get_num_threads()
    rows, width, _ = _rows(steps, neurons, threads, _widest(bits, steps))
    pieces = min(rows, threads)
    ends = list(accumulate((-(-steps * width * b // (8 * LINE)) * LINE for b in bits), initial=0))
    room = torch.empty(pieces * ends[-1], dtype=torch.uint8)
    given = []
    for _, before, after in turns:
        before[WIDTH:READ] = width, width // 8, width
        given.append(arguments([*before, *(0 for _ in bits), *after]))
    tables = [arguments(ends[:-1]), arguments(bits)]
    values = [  # in the order of llvm_replay.ARGUMENTS
        *(kernel.address for kernel, _, _ in turns),
        *(*map(_address, given), *map(len, given)),
        *(len(before) for _, before, _ in turns),
        *(len(bits), *map(_address, tables)),
        *(room.data_ptr(), ends[-1], width, rows, -(-rows // pieces)),
    ]
    run(_replay_kernel().address, pieces, arguments(values))


@lru_cache(maxsize=4096)
def _rows(steps: int, neurons: int, threads: int, longest: int) -> tuple[int, int, int]:
    """How many rows, how wide, and how many are not worth a thread: as even a split as can be had.

    A row is counted :data:`ROW_BEGINS` neurons longer than it is.
    """
    widths = range(SHORTEST, longest + 1, 64)
    width = min(widths, key=lambda w: (-(-neurons // (w * threads)) * (w + ROW_BEGINS), -w))
    return -(-neurons // width), width, max(1, SMALLEST_SHARE // (steps * width))


def _widest(bits: Sequence[int], steps: int) -> int:
    """How wide a row is at most, a multiple of 64 neurons, of which `bits` have room."""
    return min(ROW, 8 * ROOM // (sum(bits) * steps) // 64 * 64)


@cache
def _replay_kernel() -> Kernel:
    (kernel,) = assemble(replay_source(), ("replay",))
    return kernel


def _address(given: bytes) -> int:
    return ctypes.cast(ctypes.c_char_p(given), ctypes.c_void_p).value or 0
