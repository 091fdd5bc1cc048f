"""Long series for anomalies: tables whose rows are steps in the order of time."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from hibana.data.user_data.folders import visible_entries
from hibana.data.user_data.table import TIMES, numbers_of, numeric
from hibana.data.user_data.table_files import number, read_table

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = ["Recording", "read_recordings"]

DATES = (*TIMES, "date", "datetime", "日時", "日付", "時刻")
"""Usual names of columns that contain the time, in lower case."""


@dataclass(frozen=True)
class Recording:
    """A series.

    Attributes:
        name: name of its file.
        columns: names of its columns.
        values: ``[steps, columns]``, missing values replaced by the value before.
        times: date or number of each step as text.
        seconds: median time between steps; None without dates.
        is_normal: whether each step is labelled normal, ``[steps]``; all are without labels.
        notes: how the file was parsed.
    """

    name: str
    columns: tuple[str, ...]
    values: Tensor
    times: list[str]
    seconds: float | None
    is_normal: Tensor
    notes: list[str]


def read_recordings(
    source: Path, columns: tuple[str, ...] = (), label: str | None = None, encoding: str | None = None
) -> list[Recording]:
    """Returns the series in a table, or in each table of a folder, in the order of the names.

    A column of dates is recognized by its values, a column of times as numbers by its name.

    Args:
        source: a text or Parquet file, or a folder of such files.
        columns: names of the columns to read; all columns of numbers if empty.
        label: a column that is 0, ``normal`` or empty in normal steps; it is not an input.
        encoding: encoding of text files; detected if ``None``.

    Raises:
        ValueError: naming the file, if it has no columns of numbers, or dates that are not in order, twice
            the same, or missing.
    """
    if not source.exists():
        raise ValueError(f"data must be a file or folder, there is no {source}")
    suffixes = (".csv", ".tsv", ".txt", ".parquet", ".pq")
    files = [source]
    if source.is_dir():
        files = sorted(path for path in visible_entries(source) if path.suffix.lower() in suffixes)
    if not files:
        raise ValueError(f"data must be tables such as {source}/NAME.csv, {source} holds none")
    recordings = []
    for path in files:
        table, notes = read_table(path, encoding)
        try:
            recordings.append(_recording(path.name, table, notes, columns, label))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        columns = columns or recordings[0].columns
    return recordings


def _recording(
    name: str, table: "DataFrame", notes: list[str], columns: tuple[str, ...], label: str | None
) -> Recording:
    """The series in `table`; see :func:`read_recordings`."""
    is_normal = torch.ones(len(table), dtype=torch.bool, device="cpu")
    if label is not None:
        _check_columns(table, (label,))
        words = table.pop(label).fillna("").astype(str).str.strip().str.lower()
        normal = [word in ("", "normal", "false") or number(word) == 0 for word in words]
        is_normal = torch.tensor(normal, dtype=torch.bool, device="cpu")
    times, seconds = _times(table)
    numeric_columns = [str(name) for name in table.columns[numeric(table)]]
    columns = columns or tuple(name for name in numeric_columns if name.lower() not in DATES)
    _check_columns(table, columns)
    if not columns:
        raise ValueError(f"series must have columns of numbers, got {', '.join(table.columns)}")
    values = np.stack([numbers_of(column, table[column]) for column in columns], axis=1)
    missing = np.isnan(values)
    if missing.all(0).any():
        raise ValueError(f"column {columns[int(missing.all(0).argmax())]!r} must have values, it has none")
    if missing.any():
        notes = [*notes, f"{missing.sum():,} missing values replaced by the value before"]
        values = _filled(values)
    return Recording(name, columns, torch.from_numpy(values), times, seconds, is_normal, notes)


def _check_columns(table: "DataFrame", names: tuple[str, ...]) -> None:
    """Raises a ValueError that names a missing column."""
    if missing := [name for name in names if name not in table.columns]:
        raise ValueError(f"columns must be of {', '.join(table.columns)}; there is no {missing[0]!r}")


def _filled(values: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
    """`values` with each NaN replaced by the number before it, at the beginning by the first number."""
    import pandas

    filled: np.ndarray[Any, Any] = pandas.DataFrame(values).ffill().bfill().to_numpy(copy=True)
    return filled


def _times(table: "DataFrame") -> tuple[list[str], float | None]:
    """The date or number of each step, and the median time between steps in seconds, None without dates.

    Raises ValueError if dates are missing, equal, or not in order.
    """
    import pandas

    is_number = numeric(table)
    for name, is_numeric in zip(table.columns, is_number, strict=True):
        if is_numeric:
            if name.lower() not in DATES:
                continue
            times = table[name]
        else:
            times = pandas.to_datetime(table[name], errors="coerce", format="mixed")
            if times.notna().mean() < 0.5:
                continue
        _check_order(name, times, table[name])
        steps = times.diff().median()
        is_date = not is_numeric
        return table[name].astype(str).tolist(), steps.total_seconds() if is_date and len(times) > 1 else None
    return [str(step) for step in range(1, len(table) + 1)], None


def _check_order(name: str, times: Any, texts: Any) -> None:
    """Raises a ValueError that names the first row whose time does not follow the row before."""
    steps = times.diff()
    zero = steps - steps
    wrong = times.isna() | (steps <= zero)
    if wrong.any():
        row = int(wrong.argmax())
        text = texts.iloc[row]
        if times.isna().iloc[row]:
            raise ValueError(f"column {name!r} must have a time in each row, row {row + 1} has {text!r}")
        problem = "equal to" if times.iloc[row] == times.iloc[row - 1] else "before"
        raise ValueError(
            f"column {name!r} must be in the order of time, row {row + 1} ({text}) is {problem} row {row}; "
            "sort the rows and remove duplicates"
        )
