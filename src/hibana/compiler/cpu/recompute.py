"""Recomputation in tiles: a backward that runs forward again, one tile of neurons at a time.

What is kept of a tile never leaves the cache. Two kernels are called alternately, a forward that keeps what a
backward wants and that backward; what is kept of a row goes to a buffer that the next row uses again. Nothing
in here depends on the cell.
"""

import ctypes
from array import array
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import torch

from hibana.compiler.cpu.binding import Binding, Pack, in_memory
from hibana.compiler.cpu.body import LINE
from hibana.compiler.cpu.node import called
from hibana.compiler.cpu.row_walk import BUFFER_OFFSET, PAGE, ROW
from hibana.compiler.cpu.schedule import BACKWARD
from hibana.compiler.cpu.walk import REVERSED, SHORTEST, Bound, pattern_sizes, split_rows
from hibana.runtime.kernels import LONG, Bytes, Code, Function, Longs, Pointer, Value, Work, kernel, ready

__all__ = ["Recomputation", "fits_tiles", "recomputation"]

BUFFER = 256 << 10
"""Bytes that a second run forward keeps at a time, at most: a part of a second-level cache."""

ALTERNATELY = ("forward_args", "backward_args", "buffer")
"""What the kernel is given at each launch."""


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
    """Pieces of work, each of some rows.

    Both functions, their arguments and how many these are; how many residuals there are, at which of their
    arguments the addresses of those are, where each begins in a buffer and how many bits of it are a
    neuron's; the buffers, one for each piece of work, and their size; how wide a row is, how many there are,
    and how many of them are one piece of work; which of their arguments says how many neurons are walked in
    reverse, and how many those are in the last row of a piece.
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
    """How a forward that keeps and the backward that reads it go alternately over rows of one shape."""

    work: Work
    pack: Pack
    """For :data:`ALTERNATELY`."""
    bindings: tuple[Binding, Binding]
    packs: tuple[Pack, Pack]
    """For the forward and the backward."""
    tables: tuple["array[int]", "array[int]"]
    """Where in a buffer what is kept begins, and what it takes of a neuron and step."""
    places: tuple["array[int]", "array[int]"]
    """At which of the forward's arguments, and of the backward's, are the addresses of what is kept."""
    known: Mapping[str, int]
    """What is known of the kernel's arguments."""
    buffer: int
    """Bytes of all buffers, one for each thread."""
    repeated: bool
    """This and what follows: as of a :class:`Walk`."""
    rows: int
    reduced: tuple[int, ...]

    def run(self, forward: Sequence[int], backward: Sequence[int], read: int) -> None:
        """Runs both; each is given what :func:`recomputation` was told the names of.

        `read` is where the gradients that they read are.
        """
        arguments = [pack(given) for pack, given in zip(self.packs, (forward, backward), strict=True)]
        buffer = torch.empty(self.buffer + PAGE, dtype=torch.uint8, device="cpu")
        shift = (read + BUFFER_OFFSET - buffer.data_ptr()) & (PAGE - LINE)
        held = in_memory(arguments)
        self.work.go(self.pack((*map(ctypes.addressof, held), buffer.data_ptr() + shift)))

    def called(self, given: Mapping[str, int], groups: Mapping[str, Sequence[str]]) -> dict[str, Any]:
        """The backward, and what goes with it, as ``node.cpp`` takes them."""
        forward, backward = self.bindings
        none = Work(0, 0, 0, self.work.go)  # the kernel of the recomputation calls them
        call = called(self.work, Binding(recompute.arguments.order, self.known), {}, ALTERNATELY, {})
        return {
            "backward": called(none, backward, given, BACKWARD, groups),
            "recomputation": {
                "call": call,
                "forward": called(none, forward, given, ("input", "input_step"), {}),
                "buffer": self.buffer,
                "tables": (self.tables, self.places),
            },
        }


def fits_tiles(bits: Sequence[int], steps: int) -> bool:
    """Whether rows that are worth recomputing have a buffer for `bits` of each neuron and step."""
    return _widest(bits, steps) >= SHORTEST


def recomputation(
    kernels: tuple[Bound, Bound],
    names: tuple[Sequence[str], Sequence[str]],
    residuals: Mapping[str, int],
    steps: int,
    neurons: int,
    threads: int,
    patterns: Sequence[int] = (),
    reduced: Sequence[int] = (),
) -> Recomputation:
    """A forward and a backward alternately over `steps` of `neurons`.

    Args:
        kernels: both.
        names: what each is given at each launch.
        residuals: the arguments of both that what is kept goes by, and its bits of each neuron and step.
        steps: how many there are.
        neurons: of a step.
        threads: among which they are split.
        patterns: how many neurons a parameter is given for, over and over; 0, if for each.
        reduced: how many neurons each sum over time ends in.
    """
    bits = list(residuals.values())
    longest = min(_widest(bits, steps), *(bound.row for bound in kernels))
    rows, width, _, repeated = split_rows(steps, neurons, threads, longest, [*patterns, *reduced])
    pieces = max(1, min(rows, threads))
    sizes = {"steps": steps, "neurons": neurons, "width": width, "reversed": 0}
    sizes |= {"row_bytes": width // 8, "residual_step": width, **dict.fromkeys(residuals, 0)}
    sizes |= pattern_sizes(patterns, reduced, repeated)
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
        (forward, backward),
        (forward.pack_named(names[0]), backward.pack_named(names[1])),
        (starts, each),
        (at[0], at[1]),
        known,
        pieces * ends[-1],
        *(repeated, rows, tuple(reduced) if repeated else ()),
    )


def _widest(bits: Sequence[int], steps: int) -> int:
    """How wide a row is at most, a multiple of 64 neurons, of which `bits` fit a buffer."""
    return min(ROW, 8 * BUFFER // (sum(bits) * steps) // 64 * 64)
