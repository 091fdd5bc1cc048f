"""Tables of the 16 sums of subsets of four weight rows, looked up by four bits of the input."""

from collections.abc import Callable, Iterable
from functools import partial

from hibana.runtime.kernels import FLOAT, Code, Pointer, Value
from hibana.spikes.simd.lists import WORD
from hibana.spikes.simd.rows import VECTOR, Row

__all__ = ["TABLES", "Sum", "add_subsets"]

STRIP = 2
"""Vectors of a row that are looked up at a time."""
PITCH = 17
"""Rows from one four's table to the next: one more than its 16, lest a subset of all lie in one cache set."""
TABLES = WORD // 4 * PITCH * STRIP * VECTOR
"""Floats of the tables of 64 rows; 34 KiB, so that they stay in the nearest cache."""

Sum = tuple[Value, Pointer, Pointer]
"""Which of 64 rows are added, what they are added to, and where that is written."""


def add_subsets(
    code: Code,
    row: Row,
    tables: Pointer,
    source: Pointer,
    count: Value,
    sums: Callable[[Value], Iterable[Sum]],
) -> None:
    """Adds those of the `count` rows at `source` whose bits are set, by look-ups, to each of some sums.

    Args:
        code: the kernel that is being written.
        row: of the rows and of the sums.
        tables: room for TABLES floats.
        source: the rows; up to 31 more than `count` are read.
        count: how many rows there are.
        sums: for the number of a word of bits, goes through the sums, as :meth:`Code.vectors` does.
    """
    whole = (count + (WORD // 2 - 1)) // WORD
    with code.loop(0, whole) as word:
        _add(code, row, tables, source + word * (WORD * row.floats), WORD // 4, partial(sums, word))
    with code.when(whole * WORD < count):
        _add(code, row, tables, source + whole * (WORD * row.floats), WORD // 8, partial(sums, whole))


def _add(
    code: Code, row: Row, tables: Pointer, source: Pointer, fours: int, sums: Callable[[], Iterable[Sum]]
) -> None:
    """Adds of the first `fours` of rows."""
    strip = Row(min(STRIP, row.vectors), row.compresses)
    for first in range(0, row.floats, strip.floats):
        with code.loop(0, fours) as four:
            rows = [source + (four * 4 + i) * row.floats + first for i in range(4)]
            _tabulate(code, strip, tables + four * (PITCH * strip.floats), rows)
        for bits, start, target in sums():
            totals = strip.load(start + first)
            for n in range(fours):
                subset = tables + ((bits >> 4 * n) & 15) * strip.floats
                values = strip.load(subset + PITCH * strip.floats * n)
                totals = [total + value for total, value in zip(totals, values, strict=True)]
            strip.store(totals, target + first)


def _tabulate(code: Code, strip: Row, table: Pointer, rows: list[Pointer]) -> None:
    """The sums of the subsets of four rows, subset ``b`` as row ``b`` of the table."""
    for v in range(strip.vectors):
        sums = [code.constant(0.0, FLOAT.of(VECTOR))]
        for at in rows:
            value = (at + VECTOR * v).load(VECTOR)
            sums += [total + value if n else value for n, total in enumerate(sums)]
        for subset, value in enumerate(sums):
            (table + (strip.floats * subset + VECTOR * v)).store(value)
