"""A producer fused with the forward that consumes it, one cache-sized piece of neurons at a time.

The inputs of a piece, at all steps, go to a buffer that the next piece reuses, and never leave the cache.
"""

import ctypes
from collections.abc import Sequence
from math import lcm
from typing import NamedTuple

from hibana.compiler.cpu.binding import Binding, Pack, in_memory
from hibana.compiler.cpu.body import LINE
from hibana.compiler.cpu.row_walk import OUTPUT_OFFSET, PAGE
from hibana.compiler.cpu.walk import MULTIPLE, Bound, pattern_sizes
from hibana.compiler.strides import row_bytes
from hibana.runtime.kernels import (
    LONG,
    Bytes,
    Code,
    Floats,
    Function,
    Longs,
    Pointer,
    Value,
    Work,
    kernel,
    ready,
)

FUSED = ("producer_args", "forward_args", "outputs")
"""Arguments of the kernel that change at each launch."""


@kernel
def fused(
    code: Code,
    begin: Value,
    end: Value,
    *,
    producer: Pointer,
    forward: Pointer,
    producer_args: Longs,
    forward_args: Longs,
    outputs: Bytes,
    producer_count: Value,
    forward_count: Value,
    target: Value,
    input_: Value,
    steps: Value,
    pieces: Value,
    length: Value,
    rows: Value,
) -> None:
    """Work items of `length` neurons, which are `rows` rows of the forward.

    `target` is the position of the producer's argument that it writes to, `input_` of the forward's that it
    reads.
    """
    numbers = steps * length + PAGE // Floats.element.size
    with code.scratch((Longs, producer_count), (Longs, forward_count), (Floats, numbers)) as found:
        own_producer, own_forward, block = found
        produce, run = (Function.at(each, LONG, LONG, Longs) for each in (producer, forward))
        own_producer.copy(producer_args, producer_count)
        own_forward.copy(forward_args, forward_count)
        shift = (outputs.address() - OUTPUT_OFFSET - block.address()) & (PAGE - LINE)
        buffer = (block.of(Bytes) + shift).of(Floats)
        with code.loop(begin, end) as piece:
            with code.loop(0, steps) as step:
                of_all = step * pieces + piece
                own_producer[target] = (buffer + (step - of_all) * length).address()
                produce.do(code, of_all, of_all + 1, own_producer)
            own_forward[input_] = (buffer + (0 - piece) * length).address()
            run.do(code, piece * rows, (piece + 1) * rows, own_forward)


class Produced(NamedTuple):
    """The address of a producer's kernel, how many arguments it takes, and as of a :class:`Producer`."""

    address: int
    arguments: int
    target: int
    pieces: int
    length: int


class Fusion(NamedTuple):
    """A producer and a forward bound to alternate over the pieces of sequences of one shape."""

    work: Work
    pack: Pack
    forward: Pack

    def run(self, producer: bytes, forward: Sequence[int], outputs: int) -> None:
        """Runs both: `forward` are the values of the `names` of :func:`fuse`, `outputs` is an address."""
        arguments = producer, self.forward(forward)
        held = in_memory(arguments)
        self.work.go(self.pack((*map(ctypes.addressof, held), outputs)))


def fuse(
    bound: Bound,
    names: Sequence[str],
    produced: Produced,
    steps: int,
    neurons: int,
    patterns: Sequence[int] = (),
) -> Fusion | None:
    """Binds a forward to `steps` of `neurons` of a producer; as :func:`walk`.

    None if `patterns`, the periods of the parameters, do not fit rows, or rows do not fit pieces.
    """
    unit, length = lcm(MULTIPLE, *filter(None, patterns)), produced.length
    fitting = [width for width in range(unit, bound.row + 1, unit) if length % width == 0]
    if not fitting or produced.pieces * length != neurons:
        return None
    width = fitting[-1]
    sizes = {"steps": steps, "neurons": neurons, "width": width, "reversed": 0, "input_step": length}
    sizes |= {"row_bytes": row_bytes(neurons), "residual_step": neurons} | pattern_sizes(patterns, (), True)
    binding = Binding(bound.arguments, bound.fixed | sizes)
    known = {
        **{"producer": produced.address, "producer_count": produced.arguments, "target": produced.target},
        **{"forward": bound.kernel.address, "forward_count": len(binding.arguments)},
        **{"input_": binding.places(["input"])[0], "steps": steps, "pieces": produced.pieces},
        **{"length": length, "rows": length // width},
    }
    work = ready(fused.built().address, produced.pieces)
    pack = Binding(fused.arguments.order, known).pack_named(FUSED)
    return Fusion(work, pack, binding.pack_named([name for name in names if name != "input_step"]))
