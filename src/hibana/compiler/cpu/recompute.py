"""Recomputation in tiles: a backward that runs the forward again, one row of neurons at a time.

A kernel calls two others alternately, a forward that keeps residuals and the backward that reads them. The
residuals of a row go to a buffer that the next row reuses, and never leave the cache.
"""

import ctypes
from array import array
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import NamedTuple

import torch

from hibana.compiler.cpu.binding import Binding, Pack
from hibana.compiler.cpu.body import LINE
from hibana.compiler.cpu.row_walk import BUFFER_OFFSET, PAGE, ROW
from hibana.compiler.cpu.walk import REVERSED, SHORTEST, Bound, split_rows
from hibana.runtime.kernels import LONG, Bytes, Code, Function, Longs, Pointer, Value, Work, kernel, ready

BUFFER = 256 << 10
"""Maximum bytes of a row's residuals: a part of L2."""

ALTERNATELY = ("forward_args", "backward_args", "buffer")
"""Arguments of the kernel that change at each launch."""


@kernel
def recompute(
    code: Code,
    begin: Value,
    end: Value,
    *,
    forward: Pointer,
    backward: Pointer,
    forward_args: Longs,
    backward_args: Longs,
    forward_count: Value,
    backward_count: Value,
    residuals: Value,
    forward_places: Longs,
    backward_places: Longs,
    offsets: Longs,
    bits: Longs,
    buffer: Bytes,
    buffer_bytes: Value,
    width: Value,
    rows: Value,
    rows_each: Value,
    forward_reversed: Value,
    backward_reversed: Value,
    reversed_: Value,
) -> None:
    """Work items of `rows_each` rows.

    ``*_places`` are the positions of the residuals' addresses among the arguments of either function,
    `offsets` where each residual begins in a buffer, `bits` its bits per neuron and step; ``*_reversed`` is
    the position of the argument that says how many neurons are walked in reverse, `reversed_` its value in a
    work item's last row.
    """
    with code.scratch((Longs, forward_count), (Longs, backward_count)) as (own_forward, own_backward):
        both = [
            (Function.at(forward, LONG, LONG, Longs), own_forward, forward_places, forward_reversed),
            (Function.at(backward, LONG, LONG, Longs), own_backward, backward_places, backward_reversed),
        ]
        own_forward.copy(forward_args, forward_count)
        own_backward.copy(backward_args, backward_count)
        with code.loop(begin, end) as piece:
            last = ((piece + 1) * rows_each).smaller(rows)
            with code.loop(piece * rows_each, last) as row:
                with code.loop(0, residuals) as k:
                    # as if the row were in a whole sequence: the kernels step over the neurons before it
                    outside = (row * width * bits[k]) >> 3
                    place = buffer + (piece * buffer_bytes + offsets[k] - outside)
                    for _, own, places, _ in both:
                        own[places[k]] = place.address()
                in_reverse = (row + 1).equals(last).select(reversed_, 0)
                for _, own, _, in_reverse_at in both:
                    own[in_reverse_at] = in_reverse
                for called, own, _, _ in both:
                    called.do(code, row, row + 1, own)


class Recomputation(NamedTuple):
    """A forward and a backward bound to alternate over the rows of sequences of one shape."""

    work: Work
    pack: Pack
    packs: tuple[Pack, Pack]
    """Of the forward's and of the backward's arguments."""
    tables: tuple["array[int]", ...]
    """The arrays whose addresses `pack` holds."""
    buffer: int
    """Bytes of all buffers, one for each work item."""

    def run(self, forward: Sequence[int], backward: Sequence[int], read: int) -> None:
        """Runs both with the values of their `names`; `read` is the address of the gradients."""
        arguments = [pack(given) for pack, given in zip(self.packs, (forward, backward), strict=True)]
        buffer = torch.empty(self.buffer + PAGE, dtype=torch.uint8, device="cpu")
        shift = (read + BUFFER_OFFSET - buffer.data_ptr()) & (PAGE - LINE)
        held = [(ctypes.c_char * len(each)).from_buffer_copy(each) for each in arguments]
        self.work.go(self.pack((*map(ctypes.addressof, held), buffer.data_ptr() + shift)))


def fits_tiles(bits: Sequence[int], steps: int) -> bool:
    """Whether rows of at least :data:`SHORTEST` neurons fit a buffer with `bits` per neuron and step."""
    return _widest(bits, steps) >= SHORTEST


def recomputation(
    kernels: tuple[Bound, Bound],
    names: tuple[Sequence[str], Sequence[str]],
    residuals: Mapping[str, int],
    steps: int,
    neurons: int,
    threads: int,
) -> Recomputation:
    """Binds a forward and a backward to alternate over `steps` of `neurons`; as :func:`walk`.

    `residuals` are the arguments of both that are residuals, and their bits per neuron and step.
    """
    bits = list(residuals.values())
    longest = min(_widest(bits, steps), *(bound.row for bound in kernels))
    rows, width, _ = split_rows(steps, neurons, threads, longest)
    pieces = max(1, min(rows, threads))
    sizes = {"steps": steps, "neurons": neurons, "width": width, "reversed": 0}
    sizes |= {"row_bytes": width // 8, "residual_step": width, **dict.fromkeys(residuals, 0)}
    ends = list(accumulate((-(-steps * width * b // (8 * LINE)) * LINE for b in bits), initial=0))
    forward, backward = (Binding(bound.arguments, bound.fixed | sizes) for bound in kernels)
    starts, each = array("q", ends[:-1]), array("q", bits)
    at = [array("q", binding.places(list(residuals))) for binding in (forward, backward)]
    known = {
        **{"forward": kernels[0].kernel.address, "backward": kernels[1].kernel.address},
        **{"forward_count": len(forward.arguments), "backward_count": len(backward.arguments)},
        **{"forward_places": at[0].buffer_info()[0], "backward_places": at[1].buffer_info()[0]},
        **{"residuals": len(bits), "offsets": starts.buffer_info()[0], "bits": each.buffer_info()[0]},
        **{"buffer_bytes": ends[-1], "width": width, "rows": rows, "rows_each": -(-rows // pieces)},
        "forward_reversed": forward.places(["reversed"])[0],
        "backward_reversed": backward.places(["reversed"])[0],
        "reversed_": REVERSED,
    }
    return Recomputation(
        ready(recompute.built().address, pieces),
        Binding(recompute.arguments.order, known).pack_named(ALTERNATELY),
        (forward.pack_named(names[0]), backward.pack_named(names[1])),
        (starts, each, *at),
        pieces * ends[-1],
    )


def _widest(bits: Sequence[int], steps: int) -> int:
    """The widest row, a multiple of 64 neurons, whose `bits` per neuron and step fit a buffer."""
    return min(ROW, 8 * BUFFER // (sum(bits) * steps) // 64 * 64)
