"""A table from a file: in what text it is written, what separates its columns, whether it names them."""

import codecs
import csv
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = ["PLAIN", "Layout", "opened"]

PLAIN = "column "
"""Before the number of a column in a table without a header."""
SAMPLE = 1 << 16
"""Bytes of a text file that its layout is seen from."""
LINES = 50
"""and lines of them, at most."""
COUNTED = 5
"""Numbers that count on by 1 by no accident."""
_MISSING = ("", "?", "-", "na", "n/a", "nan", "none", "null")
"""What stands in the place of a number, and names no column."""
_WITH_POINT, _WITH_COMMA = (re.compile(rf"[+-]?\d*{mark}\d+(e[+-]?\d+)?", re.I) for mark in (r"\.", ","))


class Layout(NamedTuple):
    """How the numbers and names of a text file stand in it."""

    separator: str
    header: bool
    decimal: str


def opened(source: Any) -> "tuple[DataFrame, list[str]]":
    """The table in a file, or `source` itself; and what to say of how it was read.

    Text is UTF-8, or UTF-16 with a byte order mark; what is neither is read as cp1252, which says what
    Latin-1 says of all its letters.

    Raises:
        ValueError: if it can't be read as one.
    """
    import pandas

    if isinstance(source, pandas.DataFrame):
        return source.rename(columns=str).reset_index(drop=True), []
    path = Path(source)
    try:
        if path.suffix.lower() in (".parquet", ".pq"):
            import pyarrow  # noqa: F401 - pandas says of its absence what is no ModuleNotFoundError

            table, summary = pandas.read_parquet(path), list[str]()
        else:
            table, summary = _of_text(path)
    except OSError as error:
        raise ValueError(f"table {path} can't be read: {error.strerror or error}") from error
    except (ValueError, csv.Error) as error:
        raise ValueError(f"table {path} can't be read: {' '.join(str(error).split())[:200]}") from error
    table = table.copy()  # makes one block per type; as read, each column is a block, which is slow
    if len(table) == 0:
        raise ValueError(f"table {path} must have rows, it has none")
    if all(isinstance(name, int) for name in table.columns):
        table.columns = [f"{PLAIN}{number}" for number in range(1, len(table.columns) + 1)]
    return table.rename(columns=str), summary


def _of_text(path: Path) -> "tuple[DataFrame, list[str]]":
    with path.open("rb") as file:
        start = file.read(SAMPLE)
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return _in(path, "utf-16")
    if b"\0" in start:
        raise ValueError("it holds bytes that are 0, which no text does")
    try:
        return _in(path, "utf-8-sig")
    except UnicodeDecodeError:
        try:
            table, summary = _in(path, "cp1252")
        except UnicodeDecodeError:
            raise ValueError("its text is neither UTF-8 nor cp1252; save it as UTF-8") from None
        return table, ["not UTF-8, read as cp1252", *summary]


def _in(path: Path, encoding: str) -> "tuple[DataFrame, list[str]]":
    import pandas

    with path.open(encoding=encoding, newline="") as file:
        layout = _layout(file.read(SAMPLE))
    table = pandas.read_csv(
        path,
        sep=layout.separator,
        header=0 if layout.header else None,
        decimal=layout.decimal,
        na_values=["?"],
        skipinitialspace=True,
        encoding=encoding,
        low_memory=False,  # in parts, a column is guessed and joined once for each part
    )
    return table, ["numbers with a decimal comma"] if layout.decimal == "," else []


def _layout(sample: str) -> Layout:
    """The layout of a text file that begins so."""
    if not sample.strip():
        raise ValueError("it is empty")
    lines = [line for line in sample.splitlines() if line.strip()][:LINES]
    separator = _separator(lines)
    rows = [line.split() for line in lines] if separator == r"\s+" else csv.reader(lines, delimiter=separator)
    cells = [[cell.strip() for cell in row] for row in rows]
    numbers = [cell for row in cells for cell in row]
    commas = separator != "," and any(map(_WITH_COMMA.fullmatch, numbers))
    decimal = "," if commas and not any(map(_WITH_POINT.fullmatch, numbers)) else "."
    pointed = [[cell.replace(decimal, ".") for cell in row] for row in cells]
    return Layout(separator, not any(map(_is_numeral, pointed[0])) or _is_counted(pointed), decimal)


def _separator(lines: list[str]) -> str:
    """What separates columns: a mark that is as often in each line before commas, which decimals have too."""
    for mark in ";\t|":
        if len({line.count(mark) for line in lines}) == 1 and mark in lines[0]:
            return mark
    separator = max(",;\t|", key=lambda each: min(line.count(each) for line in lines))
    if any(separator in line for line in lines):
        return separator
    return r"\s+" if len(lines[0].split()) > 1 else ","


def _is_counted(rows: list[list[str]]) -> bool:
    """Whether the first of these `rows` are names of columns though some are numbers: they count on by 1.

    So pandas calls columns without names. Beside them must stand a text where all else is numbers, as the
    name of a label does, or they are so many that no numbers happen to be.
    """
    first, rest = rows[0], rows[1:]
    numbers = [cell for cell in first if _is_numeral(cell)]
    counted = all(cell.isdecimal() for cell in numbers) and [
        int(cell) - int(numbers[0]) for cell in numbers
    ] == list(range(len(numbers)))
    if not counted or (int(numbers[0]) > 1 and len(numbers) < COUNTED):
        return False
    named = any(
        name.lower() not in _MISSING
        and not _is_numeral(name)
        and (
            below := [
                row[column] for row in rest if len(row) > column and row[column].lower() not in _MISSING
            ]
        )
        and all(map(_is_numeral, below))
        for column, name in enumerate(first)
    )
    return named or len(numbers) >= COUNTED


def _is_numeral(cell: str) -> bool:
    try:
        return not math.isnan(float(cell))
    except ValueError:
        return False
