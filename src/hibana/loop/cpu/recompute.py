"""Recomputation in tiles: a backward that runs forward again, one tile of neurons at a time.

What is kept of a tile never leaves the cache. Two kernels are called alternately, a forward that keeps what a
backward wants and that backward; what is kept of a row goes to a buffer that the next row uses again. Nothing
in here depends on the cell.
"""

from hibana.native import LONG, Bytes, Code, Function, Longs, Pointer, Value, kernel

__all__ = ["recompute"]


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
