"""Columns of dates in a table: detected by their text, and left out or converted to numbers."""

import math
import re
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = ["DATES", "are_dates", "converted", "parts", "without_part"]

DATES = ("refuse", "drop", "parts")
"""Columns of dates are refused, left out, or converted to :data:`PARTS`."""
PARTS = ("days", "day of year, sine", "day of year, cosine", "day of week", "hour")
"""Days since 1970, with their fraction; position in the year; Monday is 0; with fraction."""
_DATE = re.compile(
    r"(?:\d{4}[-/.]\d{1,2}[-/.]\d{1,2}|\d{1,2}[-/.]\d{1,2}[-/.](?:\d{4}|\d{2})"
    r"|\d{1,2}[- ][A-Za-z]{3,9}[- ]\d{4})"
    r"(?:[T ]+\d{1,2}:\d{2}\S*(?: ?(?:UTC|[+-]\d{2}:?\d{2}))?)?"
)
"""2024-12-31, 31.12.2024, 12/31/24 or 31 Dec 2024, with a time or without."""


def are_dates(column: Any) -> bool:
    """Whether a column holds dates: by its type, or its first hundred texts."""
    from pandas.api.types import is_datetime64_any_dtype, is_numeric_dtype

    if is_datetime64_any_dtype(column) or is_numeric_dtype(column):
        return not is_numeric_dtype(column)
    texts = column.dropna().head(100).tolist()
    return bool(texts) and all(_DATE.fullmatch(str(text).strip()) for text in texts)


def converted(table: "DataFrame", how: str, called: str) -> tuple["DataFrame", list[str]]:
    """`table` with its dates handled as `how`, of :data:`DATES`, says, and notes on them.

    Raises:
        ValueError: if dates are to be refused and there are some, or as :func:`parts`.
    """
    import pandas
    from pandas.api.types import is_numeric_dtype

    texts = [name for name, dtype in table.dtypes.items() if not is_numeric_dtype(dtype)]
    dates = [name for name in texts if are_dates(table[name])]
    if not dates:
        return table, []
    shown = ", ".join(f"`{name}`" for name in dates)
    if how == "refuse":
        raise ValueError(
            f"columns of {called} must be numbers or categories, {shown} holds dates such as "
            f"{table[dates[0]].dropna().iloc[0]}; --dates parts makes numbers of them (days, day of year, "
            f"day of week, hour), --dates drop leaves them out"
        )
    if how == "drop":
        return table.drop(columns=dates), [f"dates left out: {shown}"]
    columns = [parts(name, table[name]) if name in dates else table[[name]] for name in table.columns]
    return pandas.concat(columns, axis=1), [f"dates as numbers: {shown}"]


def parts(name: str, column: Any) -> "DataFrame":
    """The :data:`PARTS` of the dates in a column; those of missing dates are missing.

    Raises:
        ValueError: naming the row of a text that is no date, or if days and months can't be distinguished.
    """
    import pandas

    dates = _parse(name, column)
    days = (dates - pandas.Timestamp(0)).dt.total_seconds().to_numpy(np.float64) / 86_400
    year = 2 * math.pi * (dates.dt.day_of_year.to_numpy(np.float64) - 1) / 365.25
    numbers = days, np.sin(year), np.cos(year), dates.dt.day_of_week, days % 1 * 24
    return pandas.DataFrame({f"{name}: {part}": each for part, each in zip(PARTS, numbers, strict=True)})


def without_part(name: str) -> str:
    """The name of the date column of which `name` is a part, or `name`."""
    column, _, part = name.rpartition(": ")
    return column if part in PARTS else name


def _parse(name: str, column: Any) -> Any:
    import pandas

    texts = column.astype(object).where(column.notna(), "").astype(str).str.strip()
    pairs = texts.str.extract(r"^(\d{1,2})[-/.](\d{1,2})[-/.]\d").dropna().astype(int)
    day_first, month_first = (bool((pairs[k] > 12).any()) for k in (0, 1))
    if len(pairs) and day_first == month_first:
        raise ValueError(
            f"column {name!r} must say which number is the month, as 2024-12-31 does; got {texts[0]!r}"
        )
    dates = pandas.to_datetime(
        texts.where(texts != ""), format="mixed", dayfirst=day_first, errors="coerce", utc=True
    )
    wrong = (dates.isna() & (texts != "")).to_numpy()
    if wrong.any():
        row = int(wrong.argmax())
        raise ValueError(f"column {name!r} must be dates, row {row + 1} has {texts.iloc[row]!r}")
    return dates.dt.tz_convert(None)
