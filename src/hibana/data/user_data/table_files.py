"""Readers of ``.ts`` files and of tables, whose encoding, separator, decimal mark and header are detected."""

import codecs
import csv
import io
import math
import re
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hibana.data.user_data.samples import check_size, reading

if TYPE_CHECKING:
    from pandas import DataFrame


MAX_COLUMNS = 1 << 16
"""Columns of a table; measurements of gene expression have up to 60,000, which take half a minute."""
PLAIN = "column "
"""Prefix of the column names of a table without a header; the column's number follows."""
SAMPLE = 1 << 16
"""Characters at the start of a text from which its layout is detected."""
LINES = 50
"""Maximum number of lines from which the layout is detected."""
COUNTED = 3
"""A first row with at least this many numbers that increase by 1 is a header."""
_WITH_POINT, _WITH_COMMA = (re.compile(rf"[+-]?\d*{mark}\d+(e[+-]?\d+)?", re.I) for mark in (r"\.", ","))
_JAPANESE = re.compile(r"([A-Za-z]?)([\u3041-\u30ff\u4e00-\u9fff])")
"""A kana or kanji, and the Latin letter before it, if any."""


def read_table(source: Any, encoding: str | None = None) -> "tuple[DataFrame, list[str]]":
    """The table in a file, or `source` itself if it is a DataFrame, with notes on how it was parsed.

    Args:
        source: a text or Parquet file, or a ``pandas.DataFrame``.
        encoding: encoding of a text file; detected by :func:`decode` if ``None``.

    Raises:
        ValueError: if the file can't be read as a table.
    """
    import pandas

    if isinstance(source, pandas.DataFrame):
        return source.rename(columns=str).reset_index(drop=True), []
    path, notes = Path(source), list[str]()
    with reading(f"table {path}"):
        if path.suffix.lower() in (".parquet", ".pq"):
            _check_parquet(path)
            table = pandas.read_parquet(path)
        else:
            table, notes = _parse(path.read_bytes(), encoding)
    table = table.copy()  # consolidates the columns into one block per type, which is faster
    if len(table) == 0:
        raise ValueError(f"table {path} must have rows, it has none")
    if all(isinstance(name, int) for name in table.columns):
        table.columns = [f"{PLAIN}{number}" for number in range(1, len(table.columns) + 1)]
    return table.rename(columns=str), notes


def _check_parquet(path: Path) -> None:
    """Raises a ValueError if the table in a Parquet file has too many columns or bytes."""
    import pyarrow
    from pyarrow import compute, parquet

    metadata = parquet.read_metadata(path)
    _check_columns(metadata.num_columns)
    encoded = sum(metadata.row_group(index).total_byte_size for index in range(metadata.num_row_groups))
    check_size(path, max(encoded, 8 * metadata.num_rows * metadata.num_columns))
    is_text = (pyarrow.types.is_string, pyarrow.types.is_large_string, pyarrow.types.is_binary)
    names = [field.name for field in parquet.read_schema(path) if any(check(field.type) for check in is_text)]
    size = 0
    for column in parquet.read_table(path, columns=names, read_dictionary=names).columns:
        for chunk in column.chunks:  # a text that occurs often is stored once, but read as often
            lengths = compute.binary_length(chunk.dictionary).cast(pyarrow.int64())
            size += compute.sum(lengths.take(chunk.indices)).as_py() or 0
    check_size(path, size)


def _check_columns(count: int) -> None:
    """Raises a ValueError if a table has too many columns."""
    if count > MAX_COLUMNS:
        raise ValueError(f"it has {count:,} columns; at most {MAX_COLUMNS:,} are read")


def decode(content: bytes, encoding: str | None = None) -> tuple[str, str]:
    """The text in `content`, and its encoding.

    Without `encoding`, text is UTF-16 if it starts with that byte order mark, else UTF-8 if that is valid.
    Otherwise it is cp932 (Shift-JIS) if all of it decodes to text with kana or kanji that are not misread
    Western letters. All other text is cp1252.

    Raises:
        ValueError: if `encoding` does not exist, or the content is not valid text in any of these encodings.

    >>> decode("番号,良品".encode("cp932"))[1], decode("Mädchen,année".encode("cp1252"))[1]
    ('cp932', 'cp1252')
    """
    if encoding:
        try:
            return content.decode(encoding), encoding
        except (LookupError, UnicodeDecodeError) as error:
            raise ValueError(f"it is not text in the encoding {encoding}: {error}") from error
    has_mark = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    if not has_mark and b"\0" in content:
        raise ValueError("the file contains zero bytes, so it is not a text file")
    for name in ["utf-16"] if has_mark else ["utf-8-sig", "cp932", "cp1252"]:
        with suppress(UnicodeDecodeError):
            text = content.decode(name)
            if name != "cp932" or _is_japanese(text):
                return text, name
    raise ValueError("its text is neither UTF-8 nor cp932 nor cp1252; give its encoding (--encoding)")


def _is_japanese(text: str) -> bool:
    """Whether `text`, decoded as cp932, has kana or kanji that are not misread Western letters.

    In cp1252, bytes from 0xE0 on are accented lowercase letters, and 0x92 is an apostrophe. In cp932 they are
    first bytes of rare kanji.
    """
    letters = [(latin, letter.encode("cp932")[0]) for latin, letter in _JAPANESE.findall(text)]
    western = [byte for latin, byte in letters if byte >= 0xE0 or (latin and byte == 0x92)]
    return 2 * len(western) < len(letters)


def _parse(content: bytes, encoding: str | None) -> "tuple[DataFrame, list[str]]":
    """The table in the bytes of a text file, with notes on how it was parsed."""
    import pandas

    text, detected = decode(content, encoding)
    text = text.removeprefix("\ufeff")
    layout = _layout(text[:SAMPLE])
    first_line, separator = re.findall(r"\A\s*([^\r\n]*)", text)[0], layout["sep"]
    _check_columns(len(first_line.split()) if separator == r"\s+" else first_line.count(separator) + 1)
    table = pandas.read_csv(
        io.StringIO(text),
        **layout,
        na_values=["?"],
        skipinitialspace=True,
        low_memory=False,  # infers the type of a column from the whole column
    )
    notes = [f"read as {detected}"] if encoding else []
    if detected in ("cp932", "cp1252") and not encoding:
        notes.append(f"not UTF-8, read as {detected}")
    return table, [*notes, "numbers with a decimal comma"] if layout["decimal"] == "," else notes


def _layout(sample: str) -> dict[str, Any]:
    """The arguments `sep`, `header` and `decimal` of pandas for a text that starts with `sample`."""
    lines = [line for line in sample.splitlines() if line.strip()][:LINES]
    if not lines:
        raise ValueError("the file is empty")
    separator = _separator(lines)
    rows = [line.split() for line in lines] if separator == r"\s+" else csv.reader(lines, delimiter=separator)
    rows = [[cell.strip() for cell in row] for row in rows]
    cells = [cell for row in rows for cell in row]
    has_commas = separator != "," and any(map(_WITH_COMMA.fullmatch, cells))
    decimal = "," if has_commas and not any(map(_WITH_POINT.fullmatch, cells)) else "."
    first_row = [cell.replace(decimal, ".") for cell in rows[0]]
    return {"sep": separator, "header": 0 if _is_header(first_row) else None, "decimal": decimal}


def _separator(lines: list[str]) -> str:
    """The column separator; commas come last, because they may be decimal marks."""
    for mark in ";\t|":
        if len({line.count(mark) for line in lines}) == 1 and mark in lines[0]:
            return mark
    separator = max(",;\t|", key=lambda mark: min(line.count(mark) for line in lines))
    if any(separator in line for line in lines):
        return separator
    return r"\s+" if len(lines[0].split()) > 1 else ","


def _is_header(row: list[str]) -> bool:
    """Whether the first row names the columns: it has no numbers, or numbers that count up, such as 0, 1, 2.

    pandas writes such numbers for columns without names; years are another example.
    """
    numbers = [cell for cell in row if not math.isnan(number(cell))]
    if not numbers:
        return True
    counts_up = all(map(str.isdecimal, numbers)) and all(int(b) - int(a) == 1 for a, b in pairwise(numbers))
    return counts_up and len(numbers) >= COUNTED


def number(text: str) -> float:
    """The number that `text` is, or NaN."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def read_ts(path: Path) -> tuple[list["np.ndarray[Any, Any]"], list[str] | None]:
    """The sequences in a file, ``[frames, dimensions]`` each, and their labels, or ``None`` without labels.

    Header lines ``@name value`` precede one sequence per line. ``:`` separates the dimensions of a sequence
    and its label, which is last; ``,`` separates values; ``?`` is a missing value.

    Source: the description of the format in aeon's documentation (*The .ts file format*).

    Raises ValueError if the file can't be read; the message names the line.
    """
    with reading(f"sequences {path}"):
        text, _ = decode(path.read_bytes())
    header: dict[str, str] = {}
    values, labels = [], []
    is_labelled = False
    for row, line in enumerate(map(str.strip, text.splitlines()), start=1):
        if not line or line.startswith("#"):
            continue
        if "@data" not in header:
            name, _, value = line.partition(" ")
            if not name.startswith("@"):
                raise ValueError(f"sequences {path} must be a .ts file; line {row} is before @data")
            header[name.lower()] = value.strip()
            if name.lower() == "@timestamps" and value.strip().lower() == "true":
                raise ValueError(f"sequences {path} must be without timestamps, which are not read")
            has_label = [header.get(key, "").lower() for key in ("@classlabel", "@targetlabel")]
            is_labelled = any(value.startswith("true") for value in has_label)
            continue
        dimensions = line.split(":")
        if is_labelled:
            labels.append(dimensions.pop().strip())
        values.append(_frames(dimensions, f"{path.name}, line {row}"))
    if not values:
        raise ValueError(f"sequences {path} must be a .ts file with lines after @data")
    return values, labels if is_labelled else None


def _frames(dimensions: list[str], place: str) -> "np.ndarray[Any, Any]":
    """A sequence, ``[frames, dimensions]``, from one text per dimension; `place` is its line in messages."""
    with reading(place):
        numbers = [[float(cell.replace("?", "nan")) for cell in text.split(",")] for text in dimensions]
        return np.array(numbers).T
