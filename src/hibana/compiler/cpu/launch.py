"""The launch of a CPU kernel: its argument block, its rows and threads, and the memory of its results."""

import struct
from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from typing import NamedTuple

import torch
from torch import Tensor

from hibana.compiler.cpu.row_function import LINE
from hibana.compiler.cpu.row_loops import OUTPUT_OFFSET, PAGE

MIN_ROW = 512
"""Minimum neurons in a row."""

MULTIPLE = 64
"""Rows have a multiple of this many neurons, so that their bits fill whole words."""

SMALLEST_SHARE = 1 << 15
"""Minimum neurons times steps for which another thread is worth starting."""

ALIASING_FROM = 256 << 10
"""Bytes of a sequence from which 4K aliasing costs more than one more page of memory."""


class Launch(NamedTuple):
    """A kernel bound to sequences of one shape."""

    kernel: Callable[[bytes], None]
    pack: Callable[[Sequence[int]], bytes]
    """A function from the values of the arguments that change to all arguments as bytes."""
    address: int
    """The address of the kernel, a C function ``void (int64 begin, int64 end, void *arguments)``."""
    pieces: int
    """The number of work items of the kernel."""
    workspace: int | None = None
    """Bytes of the memory that is the last argument of a run; None without such an argument."""


def argument_packer(
    arguments: Sequence[str], constants: Mapping[str, int], names: Sequence[str]
) -> Callable[[Sequence[int]], bytes]:
    """A function from the values of `names` to the argument block of a kernel.

    Args:
        arguments: the kernel's arguments in order.
        constants: the arguments that are the same at each launch, and others, which are ignored.
        names: the arguments that change, and others, which are ignored.

    Raises:
        TypeError: if an argument is neither in `constants` nor in `names`.

    >>> pack = argument_packer(("steps", "input", "outputs"), {"steps": 3}, ("outputs", "input"))
    >>> struct.unpack("3q", pack((8, 16)))
    (3, 16, 8)
    """
    position = {name: i for i, name in enumerate((*constants, *names))}
    missing = [name for name in arguments if name not in position]
    if missing:
        raise TypeError(f"a kernel's arguments {missing} have no value")
    constant_values = tuple(constants.values())
    select = itemgetter(*(position[name] for name in arguments))
    pack = struct.Struct(f"{len(arguments)}q").pack
    return lambda values: pack(*select((*constant_values, *values)))


def split_rows(steps: int, neurons: int, threads: int, max_width: int) -> tuple[int, int, int]:
    """Splits neurons into rows: returns the number of rows, neurons per row, and minimum rows per thread.

    Args:
        steps: steps of the sequence.
        neurons: neurons of a step.
        threads: threads that share the rows.
        max_width: maximum neurons in a row.
    """
    rows_per_thread = max(1, -(-neurons // (threads * max_width)))
    share = -(-neurons // (threads * rows_per_thread))
    width = min(max_width, max(MIN_ROW, -(-share // MULTIPLE) * MULTIPLE))
    return -(-neurons // width), width, max(1, SMALLEST_SHARE // (steps * width))


def unaliased(read: Tensor, may_offset: bool = True) -> Tensor:
    """A new sequence for the results of a kernel that reads the sequence `read`, without 4K aliasing.

    It has the shape of `read` and the strides of its steps, which follow one another. A large sequence begins
    :data:`OUTPUT_OFFSET` bytes after `read` modulo a page, since stores and loads at equal places of a page
    wait for one another. Without `may_offset` it begins at the start of its storage.
    """
    count, dtype = read.numel(), read.dtype
    is_small = not may_offset or count * dtype.itemsize < ALIASING_FROM
    if is_small and read.is_contiguous():
        return torch.empty_like(read)  # half the time of other functions, which parse a shape from Python
    strides = read[0].numel(), *read.stride()[1:]
    if is_small:
        return torch.empty_strided(read.shape, strides, dtype=dtype, device="cpu")
    buffer = torch.empty(count + PAGE // dtype.itemsize, dtype=dtype, device="cpu")
    shift = (read.data_ptr() + OUTPUT_OFFSET - buffer.data_ptr()) & (PAGE - LINE)
    buffer.as_strided_(read.shape, strides, shift // dtype.itemsize)
    return buffer.data  # a tensor whose version counter is 0
