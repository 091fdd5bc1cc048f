"""How a CPU kernel goes over a sequence: how long its rows are, and which threads do them.

Also recomputation in tiles: a forward and a backward alternately, a row at a time, so that what the first
keeps for the second never leaves the cache.
"""

import ctypes
from array import array
from collections.abc import Mapping, Sequence
from itertools import accumulate
from math import lcm
from typing import Any, NamedTuple

import torch

from hibana.loop.cpu.binding import Binding, Pack
from hibana.loop.cpu.body import LINE
from hibana.loop.cpu.fused import fused as fused_kernel
from hibana.loop.cpu.node import called
from hibana.loop.cpu.recompute import recompute as recompute_kernel
from hibana.loop.cpu.row_walk import BUFFER_OFFSET, FOLDED, PAGE, ROW
from hibana.loop.packed import row_bytes
from hibana.native import Kernel, Work, ready

__all__ = [
    "BACKWARD",
    "FORWARD",
    "Bound",
    "Fusion",
    "Produced",
    "Recomputation",
    "Walk",
    "fits_tiles",
    "folded",
    "fuse",
    "recompute",
    "walk",
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

BUFFER = 256 << 10
"""Bytes that a second run forward keeps at a time, at most: a part of a second-level cache."""


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
    folds: tuple[int, ...]
    """How many neurons each sum over time ends in, of each row; none, if they are not folded."""

    def run(self, *given: int) -> None:
        """Runs the kernel over all rows; it is given what :func:`walk` was told the names of."""
        self.work.go(self.pack(given))


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
    folds: tuple[int, ...]

    def run(self, forward: Sequence[int], backward: Sequence[int], read: int) -> None:
        """Runs both; each is given what :func:`recompute` was told the names of.

        `read` is where the gradients that they read are.
        """
        arguments = [pack(given) for pack, given in zip(self.packs, (forward, backward), strict=True)]
        buffer = torch.empty(self.buffer + PAGE, dtype=torch.uint8, device="cpu")
        shift = (read + BUFFER_OFFSET - buffer.data_ptr()) & (PAGE - LINE)
        held = _in_memory(arguments)
        self.work.go(self.pack((*map(ctypes.addressof, held), buffer.data_ptr() + shift)))

    def called(self, given: Mapping[str, int], groups: Mapping[str, Sequence[str]]) -> dict[str, Any]:
        """The backward, and what goes with it, as ``node.cpp`` takes them."""
        forward, backward = self.bindings
        none = Work(0, 0, 0, self.work.go)  # the kernel of the recomputation calls them
        call = called(self.work, Binding(recompute_kernel.arguments.order, self.known), {}, ALTERNATELY, {})
        return {
            "backward": called(none, backward, given, BACKWARD, groups),
            "recomputation": {
                "call": call,
                "forward": called(none, forward, given, ("input", "input_step"), {}),
                "buffer": self.buffer,
                "tables": (self.tables, self.places),
            },
        }


class Produced(NamedTuple):
    """What a forward that is fused with a producer is made ready for."""

    address: int
    """Of the producer's kernel."""
    arguments: int
    """How many it takes."""
    target: int
    """This and what follows: as of a :class:`hibana.loop.producer.Producer`."""
    pieces: int
    length: int


class Fusion(NamedTuple):
    """How a producer and the forward that reads what it computes go alternately over pieces of one shape."""

    work: Work
    pack: Pack
    """For :data:`FUSED`."""
    forward: Pack

    def run(self, producer: bytes, forward: Sequence[int], outputs: int) -> None:
        """Runs both: the producer with its arguments, the forward with those that :func:`fuse` was told of.

        `outputs` is where what is emitted begins.
        """
        arguments = producer, self.forward(forward)
        held = _in_memory(arguments)
        self.work.go(self.pack((*map(ctypes.addressof, held), outputs)))


def _in_memory(arguments: Sequence[bytes]) -> list["ctypes.Array[ctypes.c_char]"]:
    """Arguments of functions that a kernel calls, where they have addresses while this is held."""
    return [(ctypes.c_char * len(each)).from_buffer_copy(each) for each in arguments]


FORWARD = ("input", "input_step", "outputs")
"""What a forward is given at each launch, whatever the step."""
BACKWARD = ("input", "input_step", "grad_outputs", "grad_outputs_step", "grad_input")
"""And a backward."""
ALTERNATELY = ("forward_args", "backward_args", "buffer")
"""What the kernel of a recomputation is given at each launch."""
FUSED = ("producer_args", "forward_args", "outputs")
"""And that of a producer fused with a forward."""


def walk(
    bound: Bound,
    names: Sequence[str],
    steps: int,
    neurons: int,
    threads: int,
    patterns: Sequence[int] = (),
    folds: Sequence[int] = (),
) -> Walk:
    """A kernel over `steps` of `neurons`, split among `threads`; at each launch it is given `names`.

    `patterns` are how many neurons a parameter is given for, over and over; 0, if for each. `folds` are how
    many each sum over time ends in.
    """
    count, width, grain, repeated = _rows(steps, neurons, threads, bound.row, [*patterns, *folds])
    sizes = {"steps": steps, "neurons": neurons, "width": width, "reversed": REVERSED}
    sizes |= {"row_bytes": row_bytes(neurons), "residual_step": neurons} | _apart(patterns, folds, repeated)
    binding = Binding(bound.arguments, bound.fixed | sizes)
    work = ready(bound.kernel.address, count, grain)
    repeating = (repeated, count, tuple(folds) if repeated else ())
    return Walk(work, binding, binding.pack_named(names), *repeating)


def folded(length: int) -> int:
    """How many neurons a sum is folded to that is wanted of `length`: as many, or a few more of them."""
    return length if length >= FOLDED else lcm(length, FOLDED)


def fits_tiles(bits: Sequence[int], steps: int) -> bool:
    """Whether rows that are worth recomputing have a buffer for `bits` of each neuron and step."""
    return _widest(bits, steps) >= SHORTEST


def recompute(
    kernels: tuple[Bound, Bound],
    names: tuple[Sequence[str], Sequence[str]],
    residuals: Mapping[str, int],
    steps: int,
    neurons: int,
    threads: int,
    patterns: Sequence[int] = (),
    folds: Sequence[int] = (),
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
        folds: how many neurons each sum over time ends in.
    """
    bits = list(residuals.values())
    longest = min(_widest(bits, steps), *(bound.row for bound in kernels))
    rows, width, _, repeated = _rows(steps, neurons, threads, longest, [*patterns, *folds])
    pieces = max(1, min(rows, threads))
    sizes = {"steps": steps, "neurons": neurons, "width": width, "reversed": 0}
    sizes |= {"row_bytes": width // 8, "residual_step": width, **dict.fromkeys(residuals, 0)}
    sizes |= _apart(patterns, folds, repeated)
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
        ready(recompute_kernel.built().address, pieces),
        Binding(recompute_kernel.arguments.order, known).pack_named(ALTERNATELY),
        (forward, backward),
        (forward.pack_named(names[0]), backward.pack_named(names[1])),
        (starts, each),
        (at[0], at[1]),
        known,
        pieces * ends[-1],
        *(repeated, rows, tuple(folds) if repeated else ()),
    )


def fuse(
    bound: Bound,
    names: Sequence[str],
    produced: Produced,
    steps: int,
    neurons: int,
    patterns: Sequence[int] = (),
) -> Fusion | None:
    """A forward over `steps` of `neurons` with what it reads; at each launch it is given `names`.

    `patterns` are how many neurons a parameter is given for, over and over; None if they do not fit rows, or
    rows do not fit pieces.
    """
    unit, length = lcm(MULTIPLE, *filter(None, patterns)), produced.length
    fitting = [width for width in range(unit, bound.row + 1, unit) if length % width == 0]
    if not fitting or produced.pieces * length != neurons:
        return None
    width = fitting[-1]
    sizes = {"steps": steps, "neurons": neurons, "width": width, "reversed": 0, "input_step": length}
    sizes |= {"row_bytes": row_bytes(neurons), "residual_step": neurons} | _apart(patterns, (), True)
    binding = Binding(bound.arguments, bound.fixed | sizes)
    known = {
        **{"producer": produced.address, "producer_count": produced.arguments, "target": produced.target},
        **{"forward": bound.kernel.address, "forward_count": len(binding.arguments)},
        **{"input_": binding.places(["input"])[0], "steps": steps, "pieces": produced.pieces},
        **{"length": length, "rows": length // width},
    }
    work = ready(fused_kernel.built().address, produced.pieces)
    pack = Binding(fused_kernel.arguments.order, known).pack_named(FUSED)
    return Fusion(work, pack, binding.pack_named([name for name in names if name != "input_step"]))


def _rows(
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


def _apart(patterns: Sequence[int], folds: Sequence[int], repeated: bool) -> dict[str, int]:
    """By the argument of a kernel: how many neurons a parameter is for, over and over; 0, if for each.

    And how many neurons a sum ends in.
    """
    apart = {f"p{i}_length": length if repeated else 0 for i, length in enumerate(patterns)}
    return apart | {f"sum{i}_fold": length for i, length in enumerate(folds)}


def _widest(bits: Sequence[int], steps: int) -> int:
    """How wide a row is at most, a multiple of 64 neurons, of which `bits` fit a buffer."""
    return min(ROW, 8 * BUFFER // (sum(bits) * steps) // 64 * 64)
