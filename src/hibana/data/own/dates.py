"""Columns of dates in a table: found by how they are written, and as numbers where that is asked for."""

import math
import re
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = ["DATES", "are_dates", "lookup_numbers", "parts", "without_part"]

DATES = ("refuse", "drop", "parts")
"""What is done about columns of dates: refused, left out, or as numbers: the parts of each date."""
PARTS = ("days", "day of year, sine", "day of year, cosine", "day of week", "hour")
"""Days since 1970, with their fraction; where in the year; Monday is 0; with fraction."""
LOOKED_AT = 100
"""Values that tell whether a column of text holds dates."""
_DAYS = (
    r"\d{4}[-/.]\d{1,2}[-/.]\d{1,2}",  # 2024-12-31
    r"\d{1,2}[-/.]\d{1,2}[-/.](?:\d{4}|\d{2})",  # 31.12.2024 or 12/31/24
    r"\d{1,2}[- ][A-Za-z]{3,9}[- ]\d{4}",  # 31 Dec 2024
)
_TIME = r"[T ]+\d{1,2}:\d{2}(?::\d{2}(?:\.\d+)?)? ?(?:Z|UTC|[+-]\d{2}:?\d{2})?"
_DATE = re.compile(f"(?:{'|'.join(_DAYS)})(?:{_TIME})?")


def are_dates(column: Any) -> bool:
    """Whether a column holds dates: by its type, or its first texts."""
    from pandas.api.types import is_datetime64_any_dtype, is_numeric_dtype

    if is_datetime64_any_dtype(column):
        return True
    texts = [] if is_numeric_dtype(column) else column.dropna().head(LOOKED_AT).tolist()
    return bool(texts) and all(_DATE.fullmatch(str(text).strip()) for text in texts)


def lookup_numbers(table: "DataFrame", how: str, called: str) -> tuple["DataFrame", list[str]]:
    """`table` with its dates as `how`, of :data:`DATES`, says; and what to say of them.

    Raises:
        ValueError: if columns hold dates and these are to be refused, or as :func:`parts`.
    """
    import pandas
    from pandas.api.types import is_numeric_dtype

    known = {dtype: is_numeric_dtype(dtype) for dtype in set(table.dtypes)}
    texts = [name for name, dtype in table.dtypes.items() if not known[dtype]]
    dated = [name for name in texts if are_dates(table[name])]
    if not dated:
        return table, []
    shown = ", ".join(f"`{name}`" for name in dated)
    if how == "refuse":
        raise ValueError(
            f"columns of {called} must be numbers or categories, {shown} holds dates such as "
            f"{table[dated[0]].dropna().iloc[0]}; --dates parts makes numbers of them (days, day of year, "
            f"day of week, hour), --dates drop leaves them out"
        )
    if how == "drop":
        return table.drop(columns=dated), [f"dates left out: {shown}"]
    made = [parts(name, table[name]) if name in dated else table[[name]] for name in table.columns]
    return pandas.concat(made, axis=1), [f"dates as numbers: {shown}"]


def parts(name: str, column: Any) -> "DataFrame":
    """The parts of the dates in a column, those of missing ones missing.

    Raises:
        ValueError: naming the row of what is no date, or if days can't be told from months.
    """
    import pandas

    read = _read(name, column)
    seconds = (read - pandas.Timestamp(0)).dt.total_seconds().to_numpy(np.float64)
    days = seconds / 86_400
    year = 2 * math.pi * (read.dt.day_of_year.to_numpy(np.float64) - 1) / 365.25
    numbers = days, np.sin(year), np.cos(year), read.dt.day_of_week, days % 1 * 24
    return pandas.DataFrame({f"{name}: {part}": each for part, each in zip(PARTS, numbers, strict=True)})


def without_part(name: str) -> str:
    """What the column is called of which `name` is a part; `name` itself of others."""
    column, _, part = name.rpartition(": ")
    return column if part in PARTS else name


def _read(name: str, column: Any) -> Any:
    import pandas
    from pandas.api.types import is_datetime64_any_dtype

    if not is_datetime64_any_dtype(column):
        texts = column.astype(object).where(column.notna(), "").astype(str).str.strip()
        first = [re.match(r"(\d{1,2})[-/.](\d{1,2})[-/.]\d", text) for text in texts]
        pairs = [(int(found[1]), int(found[2])) for found in first if found]
        day_first, month_first = (any(pair[k] > 12 for pair in pairs) for k in (0, 1))
        if pairs and day_first == month_first:
            raise ValueError(
                f"column {name!r} must say which number is the month, as 2024-12-31 does; got {texts[0]!r}"
            )
        read = pandas.to_datetime(
            texts.where(texts != ""), format="mixed", dayfirst=day_first, errors="coerce", utc=True
        )
        wrong = (read.isna() & (texts != "")).to_numpy()
        if wrong.any():
            row = int(wrong.argmax())
            raise ValueError(f"column {name!r} must be dates, row {row + 1} has {texts.iloc[row]!r}")
        column = read
    return column.dt.tz_convert(None) if column.dt.tz is not None else column
