"""The gradient of a dense layer's weights where few values of the output's gradient are not zero.

    dL/dW_o = sum over the rows m with G_mo != 0 of G_mo x_m

Such is the gradient of a picture's first layer: a neuron that was never in the window of its surrogate has
none, nor has its sum over time.
"""

from functools import lru_cache

import torch
from torch import Tensor

from hibana.runtime.kernels import FLOAT, INT, LONG, Code, Floats, Ints, Longs, Shorts, Value, kernel
from hibana.spikes.simd.lists import SLACK, WORD, listed, values_together
from hibana.spikes.simd.rows import LANES, Row, add_scaled_rows, panel, transposed

__all__ = ["are_few", "share_of_values", "weight_gradient_of_few"]

BLOCK = 256
"""Rows that are gone through at a time: a panel of them is near."""
MOST = 0.3
"""Up to this density of values the sums of rows are sooner done than the dense product."""
SAMPLE = 64


def are_few(grads: Tensor) -> bool:
    """Whether so few of the values of `grads`, ``[rows, outputs]``, are not zero, as a sample says."""
    return share_of_values(grads, SAMPLE) <= MOST


def share_of_values(rows: Tensor, most: int) -> float:
    """Which part of the numbers in so many of the contiguous `rows`, all over, is not zero.

    A step of their own would meet the same places of each image.
    """
    count, wide = rows.shape
    places, found = _places(count, most), torch.empty(1, dtype=torch.int64, device="cpu")
    _count(1, source=rows, places=places, found=found, rows=places.shape[0], wide=wide)
    return found.item() / max(1, places.shape[0] * wide)


@kernel
def _count(
    code: Code,
    begin: Value,
    end: Value,
    *,
    source: Floats,
    places: Longs,
    found: Longs,
    rows: Value,
    wide: Value,
) -> None:
    """How many numbers of the rows at these places are not zero: one piece of work."""
    with code.loop(begin, end):
        total = code.variable(0, LONG)
        with code.loop(0, rows) as i:
            row = source + places[i] * wide
            for at, there in code.vectors(wide, WORD):
                total.value += (row + at).load(WORD, there).differs(0.0).word().ones()
        found[0] = total.value


@lru_cache(maxsize=64)
def _places(count: int, most: int) -> Tensor:
    steps = torch.arange(min(most, count), dtype=torch.float64, device="cpu")
    return (steps * 0.6180339887 % 1 * count).long()


def weight_gradient_of_few(grads: Tensor, rows: Tensor) -> Tensor:
    """``grads.T @ rows``, ``[outputs, inputs]``, of contiguous matrices, from the values that are there."""
    (count, outputs), inputs = grads.shape, rows.shape[1]
    row, blocks = panel(inputs), -(-count // BLOCK)
    size = blocks, outputs, BLOCK + SLACK
    values = torch.empty(size, dtype=torch.float32, device="cpu")
    offsets = torch.empty(size, dtype=torch.int32, device="cpu")
    counts = torch.empty(blocks, outputs, dtype=torch.int64, device="cpu")
    lists = {"values": values, "offsets": offsets, "counts": counts, "outputs": outputs, "total": count}
    _values(blocks * -(-outputs // LANES), 4, gradient=grads, **lists, row=row)
    out = torch.empty(outputs, inputs, dtype=torch.float32, device="cpu")
    _sums(-(-inputs // row.floats), 1, source=rows, target=out, **lists, inputs=inputs, row=row)
    return out


@kernel
def _values(
    code: Code,
    begin: Value,
    end: Value,
    *,
    gradient: Floats,
    values: Floats,
    offsets: Ints,
    counts: Longs,
    outputs: Value,
    total: Value,
    row: Row,
) -> None:
    """For 16 outputs and a block of rows: each output's values that are there, and where their rows begin."""
    groups = (outputs + (LANES - 1)) // LANES
    with (
        code.scratch((Floats, LANES * WORD), (Longs, LANES), (Shorts, LANES * (BLOCK + SLACK))) as parts,
        code.loop(begin, end) as item,
    ):
        square, found, index = parts
        block, first = item // groups, item % groups * LANES
        wide = (outputs - first).smaller(LANES)
        rows = (total - block * BLOCK).smaller(BLOCK)
        found.clear(LANES)
        with code.loop(0, rows, WORD) as top:
            there = (rows - top).smaller(WORD)
            square.clear(LANES * WORD)
            at = gradient + (block * BLOCK + top) * outputs + first
            transposed(code, square, code.constant(WORD), at, outputs, there, wide)
            with code.loop(0, wide) as k:
                mine, n = square + k * WORD, found[k]
                word = mine.load(WORD).differs(0.0).word()
                to = values + (block * outputs + first + k) * (BLOCK + SLACK) + n
                values_together(code, row, to, mine, word)
                found[k] = listed(code, row, word, top, index + k * (BLOCK + SLACK), n)
        with code.loop(0, wide) as k:
            out = block * outputs + first + k
            counts[out] = found[k]
            with code.loop(0, found[k], LANES) as i:
                places = (index + k * (BLOCK + SLACK) + i).load(LANES).to(INT) * (row.floats * FLOAT.size)
                (offsets + out * (BLOCK + SLACK) + i).store(places)


@kernel
def _sums(
    code: Code,
    begin: Value,
    end: Value,
    *,
    source: Floats,
    values: Floats,
    offsets: Ints,
    counts: Longs,
    target: Floats,
    inputs: Value,
    outputs: Value,
    total: Value,
    row: Row,
) -> None:
    """Panels of inputs: each output's sum of rows, scaled by its values."""
    with (
        code.scratch((Floats, BLOCK * row.floats), (Floats, row.floats), (Floats, row.floats)) as parts,
        code.loop(begin, end) as panel,
    ):
        near, nothing, tail = parts
        nothing.clear(row.floats)
        wide = (inputs - panel * row.floats).smaller(row.floats)
        narrow = wide < row.floats
        with code.loop(0, total, BLOCK) as top:
            block = top // BLOCK
            for masks in row.whole_or_part(code, wide):
                with code.loop(0, (total - top).smaller(BLOCK)) as i:
                    at, to = source + (top + i) * inputs + panel * row.floats, near + i * row.floats
                    for v, there in enumerate(masks):
                        (to + LANES * v).store((at + LANES * v).load(LANES, there))
            with code.loop(0, outputs) as output:
                out = target + output * inputs + panel * row.floats
                with code.when(narrow & (block > 0)):
                    tail.copy(out, wide)
                into, which = out.instead(narrow, tail), block * outputs + output
                begun = nothing.instead(block > 0, into)
                first = which * (BLOCK + SLACK)
                given = near, offsets + first, values + first, counts[which]
                add_scaled_rows(code, row, into, begun, *given)
                with code.when(narrow):
                    out.copy(tail, wide)
