"""Operations on rows of packed weights: added, scaled and added, dot products, transposed.

A *row* is one, two or four contiguous vectors of 16 floats; sums stay in registers from the first row to the
last.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from hibana.runtime.kernels import FLOAT, LONG, Code, Floats, Pointer, Value, compresses

__all__ = [
    "VECTOR",
    "Row",
    "add_rows",
    "begin_with",
    "compresses",
    "dots",
    "horizontal_sums",
    "panel",
    "transposed",
    "vectors",
]

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
        """Outputs that a row holds the weights of."""
        return VECTOR * self.vectors

    def panels(self, outputs: Value) -> Value:
        """Panels of so many outputs, each of one row."""
        return (outputs + (self.floats - 1)) // self.floats

    def load(self, at: Pointer) -> list[Value]:
        """The vectors of the row at `at`."""
        return [(at + VECTOR * v).load(VECTOR) for v in range(self.vectors)]

    def store(self, values: Sequence[Value], at: Pointer) -> None:
        """Writes a row to `at`."""
        for v, value in enumerate(values):
            (at + VECTOR * v).store(value)

    def whole_or_part(self, code: Code, wide: Value) -> Iterator[list[Value | None]]:
        """The mask of each vector of a row of `wide` floats: None where the vector is full.

        Yields twice, for a full row and for a part of one, so that the code in the loop is emitted for both.
        """
        with code.when(wide.equals(self.floats)):
            yield [None] * self.vectors
        with code.when(wide < self.floats):
            yield [
                code.first_lanes((wide - VECTOR * v).larger(0).smaller(VECTOR), VECTOR)
                for v in range(self.vectors)
            ]

    @contextmanager
    def placed(
        self, code: Code, panel: Value, target: Floats, outputs: Value, count: Value, block: Pointer
    ) -> Iterator[tuple[Floats, Value]]:
        """Where code in the ``with`` block writes a panel of `count` rows of `target`: the first row, and the
        pitch.

        That is `target` itself, or, for the last panel if it is not full, `block`, which is copied to
        `target` afterwards.
        """
        wide = (outputs - panel * self.floats).smaller(self.floats)
        narrow, into = wide < self.floats, target + panel * self.floats
        yield into.replace_if(narrow, block), narrow.select(self.floats, outputs)
        with code.when(narrow), code.loop(0, count) as k:
            (into + outputs * k).copy(block + self.floats * k, wide)


def panel(outputs: int) -> Row:
    """The row size of packed weights for a layer of so many outputs."""
    return Row(vectors(outputs), compresses())


def vectors(outputs: int) -> int:
    """The vectors of a row for so many outputs."""
    return 1 if outputs <= 16 else 2 if outputs <= 32 else 4


def begin_with(code: Code, row: Row, start: Pointer, bias: Pointer, panel: Value, outputs: Value) -> None:
    """Fills `start` with the initial value of the sums: a panel of the bias, or zeros."""
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
    """``target = start + sum over k < count of table[index[k]]``, rows of floats.

    With `unrolled` > 1, start, target and each summand are that many consecutive rows.
    """
    wide = row._replace(vectors=row.vectors * unrolled)
    sums = [code.variable(value) for value in wide.load(start)]

    def add(position: Value) -> None:
        at = table + index[position].to(LONG) * row.floats
        for v, total in enumerate(sums):
            total.value += (at + VECTOR * v).load(VECTOR)

    whole = count & -UNROLLED
    with code.loop(0, whole, UNROLLED) as i:
        for more in range(UNROLLED):
            add(i + more)
    with code.loop(whole, count) as i:
        add(i)
    wide.store([total.value for total in sums], target)


def dots(
    code: Code,
    row: Row,
    out: Pointer,
    places: Pointer,
    table: Pointer,
    pieces: Value,
    piece_floats: Value,
    index: Pointer,
    count: Value,
) -> None:
    """``out[k] = dot(vector, row k of table)`` for each of the `count` numbers k in `index`.

    Vector and rows consist of `pieces` rows each: the vector's at the addresses in `places`, a table row's
    `piece_floats` apart. Eight or four products are computed at a time, the last index repeated: `index`
    needs room for eight more.
    """
    with code.when(count > 0):
        (index + count).store(index[count - 1].spread(8))
    with code.loop(0, count - 4, 8) as i:
        _some_dots(code, row, 8, out, places, table, pieces, piece_floats, index + i)
    eights = (count + 3) & -8
    with code.when(eights < count):
        _some_dots(code, row, 4, out, places, table, pieces, piece_floats, index + eights)


def _some_dots(
    code: Code,
    row: Row,
    entries: int,
    out: Pointer,
    places: Pointer,
    table: Pointer,
    pieces: Value,
    piece_floats: Value,
    index: Pointer,
) -> None:
    """:func:`dots` of the first `entries` of `index`."""
    which = [index[e].to(LONG) for e in range(entries)]
    rows = [table + k * row.floats for k in which]
    sums = [code.variable(0.0, FLOAT.of(VECTOR)) for _ in which]
    with code.loop(0, pieces) as i:
        piece = Floats.at(places[i])
        unrolled = [at + i * piece_floats for at in rows]
        for v, factor in enumerate(row.load(piece)):
            for total, at in zip(sums, unrolled, strict=True):
                total.value = factor.fused((at + VECTOR * v).load(VECTOR), total.value)
    totals = horizontal_sums([total.value for total in sums])
    for e, k in enumerate(which):
        out[k] = totals.lane(e * VECTOR // entries)


def horizontal_sums(vectors: list[Value]) -> Value:
    """One vector of the sums over each of 2, 4 or 8 vectors, in order, repeated to 16 lanes."""
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


def transposed(
    code: Code,
    target: Pointer,
    target_pitch: Value,
    source: Pointer,
    source_pitch: Value,
    rows: Value,
    columns: Value,
) -> None:
    """`rows` x `columns` floats, their rows `pitch` apart, transposed from `source` to `target`."""
    with code.loop(0, rows, VECTOR) as i, code.loop(0, columns, VECTOR) as j:
        to, at = target + target_pitch * j + i, source + source_pitch * i + j
        square = (i + VECTOR <= rows) & (j + VECTOR <= columns)
        with code.when(square):
            _transposed_square(to, target_pitch, at, source_pitch)
        with code.when(~square):
            down, across = (rows - i).smaller(VECTOR), (columns - j).smaller(VECTOR)
            with code.loop(0, down) as k, code.loop(0, across) as m:
                to[target_pitch * m + k] = at[source_pitch * k + m]


def _transposed_square(
    to: Pointer,
    target_pitch: Value,
    at: Pointer,
    source_pitch: Value,
) -> None:
    """Transposes VECTOR x VECTOR floats from `at` to `to`.

    Each shuffle stays within quads of lanes, or moves whole quads: one instruction of the processor.
    """
    rows = [(at + source_pitch * i).load(VECTOR) for i in range(VECTOR)]
    in_turn = {1: (0, VECTOR, 1, VECTOR + 1), 2: (0, 1, VECTOR, VECTOR + 1)}
    for (
        distance,
        chosen,
    ) in in_turn.items():  # squares of 4 x 4: lanes of two rows by ones, then by twos
        low = [quad + lane for quad in range(0, VECTOR, 4) for lane in chosen]
        high = [lane + 2 for lane in low]
        pairs = [(rows[i], rows[i + distance]) for i in range(VECTOR) if not i & distance]
        rows = [one.shuffled(two, half) for one, two in pairs for half in (low, high)]
    for distance in (4, 8):  # and the squares among them
        low = [lane if not lane & distance else VECTOR + lane - distance for lane in range(VECTOR)]
        high = [lane + distance for lane in low]
        for i in range(VECTOR):
            if not i & distance:
                one, two = rows[i], rows[i + distance]
                rows[i], rows[i + distance] = one.shuffled(two, low), one.shuffled(two, high)
    for i, row in enumerate(rows):
        (to + target_pitch * i).store(row)
