"""Sums of weight rows by tables of the 16 sums of subsets of four rows, indexed by four input bits."""

from collections.abc import Callable, Iterable
from functools import partial

from hibana.runtime.kernels import FLOAT, Code, Pointer, Value
from hibana.spikes.simd.lists import WORD
from hibana.spikes.simd.rows import VECTOR, Row

__all__ = ["TABLES", "Sum", "add_subsets"]

STRIP = 2
"""Vectors of a row that are looked up at a time."""
PITCH = 17
"""Rows from one table to the next: one more than the 16 of a table, so that the same subset's entries in all
tables do not compete for one cache set."""
TABLES = WORD // 4 * PITCH * STRIP * VECTOR
"""Floats of the tables of 64 rows: 34 KiB, which fit into the L1 cache."""

Sum = tuple[Value, Pointer, Pointer]
"""A word whose set bits select up to 64 rows, the row that they are added to, and the row for the result."""


def add_subsets(
    code: Code,
    row: Row,
    tables: Pointer,
    source: Pointer,
    count: Value,
    sums: Callable[[Value], Iterable[Sum]],
) -> None:
    """Adds to several sums the rows at `source` whose bits are set, by tables of the sums of four rows.

    Args:
        code: the kernel that is being written.
        row: size of the rows and of the sums.
        tables: a buffer of TABLES floats for these tables.
        source: the rows; up to 31 rows after the last are read too.
        count: number of rows.
        sums: an iterator over the sums, each with its bits in word number `word`; it emits a loop.
    """
    full_words = (count + (WORD // 2 - 1)) // WORD
    with code.loop(0, full_words) as word:
        _add(code, row, tables, source + word * (WORD * row.floats), WORD // 4, partial(sums, word))
    with code.when(full_words * WORD < count):
        last = source + full_words * (WORD * row.floats)
        _add(code, row, tables, last, WORD // 8, partial(sums, full_words))


def _add(
    code: Code, row: Row, tables: Pointer, source: Pointer, fours: int, sums: Callable[[], Iterable[Sum]]
) -> None:
    """Adds the selected ones of the first ``4 * fours`` rows at `source` to each of the `sums`, by tables."""
    strip = Row(min(STRIP, row.vectors), row.compresses)
    for first in range(0, row.floats, strip.floats):
        with code.loop(0, fours) as four:
            rows = [source + (four * 4 + i) * row.floats + first for i in range(4)]
            _fill_table(code, strip, tables + four * (PITCH * strip.floats), rows)
        for bits, start, target in sums():
            totals = strip.load(start + first)
            for n in range(fours):
                subset = tables + ((bits >> 4 * n) & 15) * strip.floats
                values = strip.load(subset + PITCH * strip.floats * n)
                totals = [total + value for total, value in zip(totals, values, strict=True)]
            strip.store(totals, target + first)


def _fill_table(code: Code, strip: Row, table: Pointer, rows: list[Pointer]) -> None:
    """Writes the sums of the 16 subsets of four `rows` to `table`, the sum of subset ``b`` as row ``b``."""
    for v in range(strip.vectors):
        sums = [code.constant(0.0, FLOAT.of(VECTOR))]
        for at in rows:
            value = (at + VECTOR * v).load(VECTOR)
            sums += [total + value if n else value for n, total in enumerate(sums)]
        for subset, value in enumerate(sums):
            (table + (strip.floats * subset + VECTOR * v)).store(value)
