"""A producer fused with the forward that reads it: what the one computes of a piece, the other reads at once.

The inputs of a piece, at all steps, go to a buffer that the next piece uses again, and never leave the cache.
Nothing in here depends on the cell, or on what the inputs are.
"""

from hibana.loop.cpu.body import LINE
from hibana.loop.cpu.row_walk import OUTPUT_OFFSET, PAGE
from hibana.native import LONG, Bytes, Code, Floats, Function, Longs, Pointer, Value, kernel

__all__ = ["fused"]


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
    """Pieces of work, each of so many neurons, its `length`, which are so many `rows` of the forward's.

    Both functions, their arguments and how many these are; where what is emitted begins; which argument says
    where the producer writes and which where the forward reads; how many steps there are, and pieces of each.
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
