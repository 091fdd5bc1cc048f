"""Operations on rows of packed weights: sums, dot products, transposition.

A *row* is one, two or four contiguous vectors of 16 floats. Sums stay in registers from the first row to the
last.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from hibana.runtime.kernels import FLOAT, LONG, Code, Floats, Pointer, Value, Variable, compresses

__all__ = ["VECTOR", "Row", "add_rows", "compresses", "dots", "in_eights", "load_bias", "pad_list", "panel"]
__all__ += ["transpose"]

VECTOR = 16
"""Floats of a vector."""
UNROLLED = 4
"""Rows that are added per iteration of a loop."""


class Row(NamedTuple):
    """A row of packed weights."""

    vectors: int
    compresses: bool
    """Whether the processor has ``vpcompressw``, which lists the positions of set bits."""

    @property
    def floats(self) -> int:
        """Number of floats in a row: one weight for each output of a panel."""
        return VECTOR * self.vectors

    def panels(self, outputs: Value) -> Value:
        """The number of panels, groups of :attr:`floats` outputs, that hold all `outputs`."""
        return (outputs + (self.floats - 1)) // self.floats

    def load(self, at: Pointer) -> list[Value]:
        """The vectors of the row at `at`."""
        return [(at + VECTOR * v).load(VECTOR) for v in range(self.vectors)]

    def store(self, values: Sequence[Value], at: Pointer) -> None:
        """Writes a row to `at`."""
        for v, value in enumerate(values):
            (at + VECTOR * v).store(value)

    def read_panel(
        self, code: Code, panel: Value, source: Pointer, outputs: Value, count: Value, block: Pointer
    ) -> None:
        """Copies a panel of `count` rows of `source`, ``[count, outputs]``, to `block`, padded with zeros."""
        output_count = (outputs - panel * self.floats).smaller(self.floats)
        lanes = [(output_count - VECTOR * v).larger(0).smaller(VECTOR) for v in range(self.vectors)]
        masks = [code.first_lanes(width, VECTOR) for width in lanes]
        with code.loop(0, count) as k:
            at = source + (outputs * k + panel * self.floats)
            values = [(at + VECTOR * v).load(VECTOR, mask) for v, mask in enumerate(masks)]
            self.store(values, block + self.floats * k)

    @contextmanager
    def writable_panel(
        self, code: Code, panel: Value, target: Floats, outputs: Value, count: Value, block: Pointer
    ) -> Iterator[tuple[Floats, Value]]:
        """Yields the address of a panel of `count` rows, to be written in full, and the pitch of its rows.

        The address lies in `target`, ``[count, outputs]``. If the last panel is not full, the address is
        `block`, and the panel is copied to `target` at the end of the ``with`` block.
        """
        output_count = (outputs - panel * self.floats).smaller(self.floats)
        is_partial, at = output_count < self.floats, target + panel * self.floats
        yield at.replace_if(is_partial, block), is_partial.select(self.floats, outputs)
        with code.when(is_partial), code.loop(0, count) as k:
            (at + outputs * k).copy(block + self.floats * k, output_count)


def panel(outputs: int) -> Row:
    """The row size of packed weights for a layer of `outputs` outputs, on this processor."""
    return Row(1 if outputs <= 16 else 2 if outputs <= 32 else 4, compresses())


def load_bias(code: Code, row: Row, start: Pointer, bias: Pointer, panel: Value, outputs: Value) -> None:
    """Fills `start` with the initial sums of a panel (group of outputs): its bias, or zeros without bias."""
    start.clear(row.floats)
    with code.when(bias.is_not_null()):
        start.copy(bias + row.floats * panel, (outputs - row.floats * panel).smaller(row.floats))


def add_rows(
    code: Code,
    row: Row,
    target: Pointer,
    start: Pointer,
    table: Pointer,
    index: Pointer,
    count: Value,
    unrolled: int = 1,
) -> None:
    """Adds code for ``target = start + sum over k < count of table[index[k]]``; all are rows of floats.

    With `unrolled` > 1, `start`, `target` and each summand are `unrolled` consecutive rows.
    """
    wide_row = row._replace(vectors=row.vectors * unrolled)
    sums = [code.variable(value) for value in wide_row.load(start)]

    def add(position: Value) -> None:
        """Adds the row of `table` with the number ``index[position]`` to the sums."""
        at = table + index[position].to(LONG) * row.floats
        for v, total in enumerate(sums):
            total.value += (at + VECTOR * v).load(VECTOR)

    unrolled_count = count & -UNROLLED
    with code.loop(0, unrolled_count, UNROLLED) as i:
        for offset in range(UNROLLED):
            add(i + offset)
    with code.loop(unrolled_count, count) as i:
        add(i)
    wide_row.store([total.value for total in sums], target)


def pad_list(code: Code, index: Pointer, first: Value, n: Variable) -> None:
    """Repeats the last entry of the list ``index[first:n]`` until the length is a multiple of four."""
    with code.when(n.value > first):
        (index + n.value).store(index[n.value - 1].spread(4))
        n.value = first + ((n.value - first + 3) & -4)


def in_eights(code: Code, index: Pointer, first: Value, stop: Value) -> Iterator[list[Value]]:
    """Yields eight entries of the list ``index[first:stop]`` at a time, and the last four if four remain.

    The caller's loop writes its code twice: in a loop over eights, and for four. The length of the list is a
    multiple of four.
    """
    eights = stop - ((stop - first) & 4)
    with code.loop(first, eights, 8) as i:
        yield [index[i + e].to(LONG) for e in range(8)]
    with code.when(eights < stop):
        yield [index[eights + e].to(LONG) for e in range(4)]


def dots(
    code: Code,
    row: Row,
    vector: Pointer,
    others: Sequence[Pointer],
    offsets: Iterable[tuple[Value, Value]],
) -> list[Value]:
    """The dot products of one vector with each of 4 or 8 `others`.

    `offsets` yields for one row after another its offset in the vector, and its offset in the others; it
    writes the loops over these rows.
    """
    sums = [code.variable(0.0, FLOAT.of(VECTOR)) for _ in others]
    for in_vector, in_others in offsets:
        addresses = [other + in_others for other in others]
        for v, factor in enumerate(row.load(vector + in_vector)):
            for total, at in zip(sums, addresses, strict=True):
                total.value = factor.fused((at + VECTOR * v).load(VECTOR), total.value)
    totals = horizontal_sums([total.value for total in sums])
    return [totals.lane(e * VECTOR // len(sums)) for e in range(len(sums))]


def horizontal_sums(vectors: list[Value]) -> Value:
    """A vector with the sum over the lanes of each of 2, 4 or 8 `vectors`, in order.

    Each sum is repeated in 8, 4 or 2 consecutive lanes.
    """
    width = VECTOR // 2
    while len(vectors) > 1:
        halves = [[lane for lane in range(2 * VECTOR) if (lane // width) % 2 == side] for side in (0, 1)]
        pairs = zip(vectors[::2], vectors[1::2], strict=True)
        vectors = [one.shuffled(two, halves[0]) + one.shuffled(two, halves[1]) for one, two in pairs]
        width //= 2
    (sums,) = vectors
    while width:
        sums = sums + sums.shuffled(sums, [lane ^ width for lane in range(VECTOR)])
        width //= 2
    return sums


def transpose(
    code: Code,
    target: Pointer,
    target_pitch: Value,
    source: Pointer,
    source_pitch: Value,
    rows: Value,
    columns: Value,
) -> None:
    """Copies `source`, ``[rows, columns]`` floats, to `target`, ``[columns, rows]``.

    Consecutive rows of each are `source_pitch` and `target_pitch` floats apart.
    """
    with code.loop(0, rows, VECTOR) as i, code.loop(0, columns, VECTOR) as j:
        to, at = target + target_pitch * j + i, source + source_pitch * i + j
        is_full = (i + VECTOR <= rows) & (j + VECTOR <= columns)
        with code.when(is_full):
            _transpose_square(to, target_pitch, at, source_pitch)
        with code.when(~is_full):
            down, across = (rows - i).smaller(VECTOR), (columns - j).smaller(VECTOR)
            with code.loop(0, down) as k, code.loop(0, across) as m:
                to[target_pitch * m + k] = at[source_pitch * k + m]


def _transpose_square(to: Pointer, target_pitch: Value, at: Pointer, source_pitch: Value) -> None:
    """Transposes VECTOR x VECTOR floats from `at` to `to`.

    Each shuffle permutes lanes within groups of four, or permutes groups of four: one instruction each.
    """
    rows = [(at + source_pitch * i).load(VECTOR) for i in range(VECTOR)]
    interleaved = {1: (0, VECTOR, 1, VECTOR + 1), 2: (0, 1, VECTOR, VECTOR + 1)}
    for distance, lanes in interleaved.items():  # within squares of 4 x 4: single lanes, then pairs of lanes
        low = [quad + lane for quad in range(0, VECTOR, 4) for lane in lanes]
        high = [lane + 2 for lane in low]
        pairs = [(rows[i], rows[i + distance]) for i in range(VECTOR) if not i & distance]
        rows = [one.shuffled(two, half) for one, two in pairs for half in (low, high)]
    for distance in (4, 8):  # the squares of 4 x 4 themselves
        low = [lane if not lane & distance else VECTOR + lane - distance for lane in range(VECTOR)]
        high = [lane + distance for lane in low]
        for i in range(VECTOR):
            if not i & distance:
                one, two = rows[i], rows[i + distance]
                rows[i], rows[i + distance] = one.shuffled(two, low), one.shuffled(two, high)
    for i, row in enumerate(rows):
        (to + target_pitch * i).store(row)
