"""Tables: one row per sample; one column is the label, the others are numbers or categories."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, final

import numpy as np
import torch
from torch import Tensor

from hibana.data.user_data.base import Inputs, UserData
from hibana.data.user_data.samples import RawSamples, Scale, fit_scale
from hibana.data.user_data.table_files import PLAIN, read_table
from hibana.data.user_data.target import column_texts, texts

if TYPE_CHECKING:
    from pandas import DataFrame


LABELS = ("label", "labels", "target", "class", "classes", "diagnosis", "species", "outcome", "y")
"""Usual names of the column to learn, the most specific first."""
TIMES = ("time", "t", "step", "timestamp", "frame", "seconds")
"""Usual names of columns that contain the time."""
MOST_CATEGORIES = 100
"""A column of text with more different values is left out."""
LEAST_ROWS = 5
"""With fewer rows, no column of numbers counts as numbering the rows."""
IDENTIFIERS = ("id", "index", "unnamed: 0", "row", "no", "nr")
"""Usual names of columns that identify rows; such a column is left out if all its values differ."""


@dataclass(frozen=True)
class Column:
    """A column: numbers, whose missing values are replaced by `fill`, or `categories`."""

    name: str
    categories: tuple[str, ...]
    fill: float


@dataclass(frozen=True)
class TableInputs(Inputs):
    """A table's columns, and the scale of its features: one per number column, one per category."""

    columns: tuple[Column, ...]
    scale: Scale
    label: str
    encoding: str = ""
    """Encoding of text files; detected if empty."""

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override] # a property instead of a field
        """The number of features."""
        return (sum(len(column.categories) or 1 for column in self.columns),)

    @property
    def feature_names(self) -> list[str]:
        """A name for each feature: that of a column of numbers, or ``COLUMN=CATEGORY``."""
        return [
            f"{column.name}={category}" if category else column.name
            for column in self.columns
            for category in column.categories or ("",)
        ]

    def select_columns(self, table: "DataFrame") -> "DataFrame":
        """The columns to learn from; by position if `table` has no header and as many columns.

        Raises ValueError if a column is missing.
        """
        names = [column.name for column in self.columns]
        if str(table.columns[0]) == f"{PLAIN}1" and len(table.columns) == len(names):
            table.columns = names
        if unknown := [name for name in names if name not in table.columns]:
            raise ValueError(
                f"table must have the {len(names)} columns that were trained on; it has "
                f"{len(table.columns)}, and no {unknown[0]!r}"
            )
        return table[names]

    def tensor(self, values: "DataFrame") -> Tensor:
        """The features after scaling, ``[rows, F]``."""
        return self.scale(self.features(values))

    def features(self, values: "DataFrame") -> Tensor:
        """The features before scaling, ``[rows, F]``.

        Raises ValueError, naming row and column of a value that is infinite or not a number.
        """
        features: list[np.ndarray[Any, Any]] = []
        for column in self.columns:
            if column.categories:
                cells = np.array(texts(values[column.name].tolist()))
                features += [(cells == category).astype(np.float64) for category in column.categories]
            else:
                numbers = numbers_of(column.name, values[column.name])
                features.append(np.where(np.isnan(numbers), column.fill, numbers))
        return torch.from_numpy(np.stack(features, axis=1))

    def difference_from_training(self, values: "DataFrame") -> str:
        """A clause on a column with a new category or another range than in training; empty without one."""
        for column in self.columns:
            if column.categories:
                present = values[column.name].dropna()
                for cell in sorted(set(texts(present.tolist())) - set(column.categories)):
                    return f"column {column.name!r} has {cell!r}, which is not in the training data"
        names = [f"column {c.name!r}" for c in self.columns for _ in range(len(c.categories) or 1)]
        return self.scale.difference_from_training(self.features(values), names)


@final
class Table(UserData):
    """A table: a CSV or Parquet file, or a ``pandas.DataFrame``.

    The header, encoding, separator, types of the columns and the column to learn are detected, and reported
    in :attr:`summary`. Numbers are scaled to mean 0 and deviation 1 on the training part; each category
    becomes one number. Missing numbers become the median of the training part. Columns that number or
    identify the rows are left out, because they reveal the class if the file is sorted by class. So are
    columns of text that differs from row to row, and rows without a label.

    Args:
        source: a file, or a ``pandas.DataFrame``.
        columns: names of the columns to learn from; all others if ``None``.
        options: see :class:`UserData`. `label` is the column to predict; by default a column with a usual
            name, such as ``class``, else a first column that alone is text, else the last column.

    >>> import pandas
    >>> frame = pandas.DataFrame({"size": [k % 7 for k in range(20)], "kind": ["a", "b"] * 10})
    >>> table = Table(frame, label="kind")
    >>> table.setup()
    >>> print(table.summary)
    Table: 20 rows, 1 number, label `kind`: 2 classes (training part: a 7, b 7)
    """

    kind = "table"
    inputs = TableInputs

    def __init__(self, source: Any, *, columns: Sequence[str] | None = None, **options: Any) -> None:
        super().__init__(source, **options)
        self.columns = None if columns is None else list(columns)

    def read(self, source: Any) -> RawSamples:
        """The rows of the table `source`, without columns that are left out."""
        table, notes = read_table(source, self.option("encoding"))
        if self._description is None:
            label = self._label_column(table)
            if self.columns is None:
                self._check_rows(table, label)
            inputs, exclusions = self._input_columns(table, label)
        else:
            assert isinstance(self._description.inputs, TableInputs)
            label = self._description.inputs.label
            inputs, exclusions = self._description.inputs.select_columns(table), []
        is_missing = inputs.isna().to_numpy()
        counts = int(numeric(inputs).sum()), int((~numeric(inputs)).sum())
        words = (("number", "numbers"), ("category", "categories"))
        summary = [f"{len(table):,} rows"]
        summary += [f"{n} {names[n > 1]}" for n, names in zip(counts, words, strict=True) if n]
        if is_missing.any():
            summary.append(f"{is_missing.mean():.1%} missing, filled with the median")
        labels = column_texts(table[label]) if label in table.columns else None
        names = [f"row {row}" for row in range(1, len(table) + 1)]
        return RawSamples(inputs, labels, names, ", ".join(summary + exclusions), label=label, notes=notes)

    def learn(self, raw: RawSamples, training: Sequence[int]) -> Inputs:
        """Per column a median or the categories of the training part, and one scale for all features."""
        part = raw.values.iloc[list(training)]
        columns = []
        for name, is_number in zip(part.columns, numeric(part), strict=True):
            present = part[name].dropna()
            if is_number:
                fill = float(np.median(numbers_of(name, present))) if len(present) else 0.0
                columns.append(Column(name, (), fill))
            else:
                columns.append(Column(name, tuple(sorted(set(texts(present.tolist())))), 0.0))
        empty = Scale((), (), (), (), clipped=False)
        inputs = TableInputs(tuple(columns), empty, raw.label, self.encoding or "")
        return replace(inputs, scale=fit_scale(inputs.features(part), unit=self.unit))

    def _label_column(self, table: "DataFrame") -> str:
        """The name of the column to learn."""
        names = [str(name) for name in table.columns]
        if self.label is not None:
            label = PLAIN + self.label if self.label.isdigit() and self.label not in names else self.label
            check_column("label", label, names, self.source_name)
            return label
        if usual := usual_label(names):
            return usual
        categories = [name for name in table.columns[~numeric(table)] if table[name].nunique() <= 50]
        return names[0] if categories == names[:1] else names[-1]

    def _check_rows(self, table: "DataFrame", label: str) -> None:
        """Raises a ValueError if the rows are the steps of sequences.

        They are if times repeat, but differ in all rows with the same value of another column, and the label
        is the same in these rows. Single rows would put one sequence in both the training and the test part.
        """
        times = [name for name in table.columns if name.lower() in TIMES and name != label]
        if not times or table[times[0]].is_unique:
            return
        for name in table.columns.drop(list({times[0], label})):
            is_repeated = table[name].dtype.kind != "f" and 1 < table[name].nunique() <= len(table) // 2
            if not is_repeated or table.duplicated([name, times[0]]).any():
                continue
            if table.groupby(name)[label].nunique(dropna=False).max() == 1:
                raise ValueError(
                    f"{self.source_name} seems to have the steps of sequences as rows: the times "
                    f"{times[0]!r} repeat for each {name!r}, whose rows have one label {label!r}. Join them "
                    f"by --group {name} (hb.data.Sequences(..., group={name!r})), or name the columns to "
                    f"learn from (--columns)"
                )

    def _input_columns(self, table: "DataFrame", label: str) -> tuple["DataFrame", list[str]]:
        """The columns to learn from, and notes on the columns that are left out."""
        names = [name for name in table.columns if name != label]
        for name in self.columns or ():
            check_column("each of columns", name, names, self.source_name)
        if self.columns is not None:
            return table[self.columns], []
        inputs = table[names]
        identifiers, unusable, max_categories = [], [], min(MOST_CATEGORIES, len(table) // 2)
        are_numbers, are_empty = numeric(inputs), inputs.isna().all()
        for place, name in enumerate(inputs.columns):
            column = inputs.iloc[:, place]
            is_identifier = name.lower() in IDENTIFIERS and column.nunique() == len(table)
            if is_identifier or (are_numbers[place] and is_row_number(column)):
                identifiers.append(name)
            elif are_empty.iloc[place] or (not are_numbers[place] and column.nunique() > max_categories):
                unusable.append(name)
        inputs = inputs.drop(columns=[*identifiers, *unusable])
        if not len(inputs.columns):
            excluded = _quoted([*identifiers, *unusable]) or "none"
            raise ValueError(
                f"{self.source_name} must have columns to learn from beside {label!r}; left out as empty, as "
                f"identifiers of rows or as text that differs from row to row: {excluded}"
            )
        exclusions = {
            "left out as they identify rows (--columns uses them)": identifiers,
            "left out": unusable,
        }
        return inputs, [f"{reason}: {_quoted(names)}" for reason, names in exclusions.items() if names]


def check_column(argument: str, name: str, columns: Sequence[str], table: str) -> None:
    """Raises a ValueError about `argument` unless `name` is one of the `columns` of the file `table`."""
    if name not in columns:
        listed = ", ".join(columns[:20]) + (", ..." if len(columns) > 20 else "")
        raise ValueError(f"{argument} must be a column of {table}: {listed}; got {name!r}")


def is_row_number(column: Any) -> bool:
    """Whether a column's numbers count or identify rows, and so reveal the label of a file sorted by class.

    They are at least five different whole numbers without gaps, in any order, or that increase or decrease
    from row to row.

    >>> import pandas
    >>> [is_row_number(pandas.Series(rows)) for rows in ([3, 1, 2, 5, 4], [1, 3, 4, 8, 9], [4, 9, 1, 2, 8])]
    [True, True, False]
    """
    values = column.to_numpy(np.float64, na_value=np.nan)
    if len(values) < LEAST_ROWS or not (np.isfinite(values) & (values == np.floor(values))).all():
        return False
    steps = np.diff(values)
    has_no_gaps = (np.diff(np.sort(values)) == 1).all()
    return bool(has_no_gaps or (steps > 0).all() or (steps < 0).all())


def usual_label(names: Sequence[str]) -> str | None:
    """The first column with a usual name of a label; ``y`` next to ``z`` is a coordinate."""
    lower = [name.lower() for name in names]
    labels = [label for label in LABELS if label in lower and not (label == "y" and "z" in lower)]
    return names[lower.index(labels[0])] if labels else None


def numeric(table: "DataFrame") -> "np.ndarray[Any, Any]":
    """Whether each column has a numeric type, ``[columns]``."""
    from pandas.api.types import is_numeric_dtype

    return np.array([is_numeric_dtype(dtype) for dtype in table.dtypes], bool)


def numbers_of(name: str, series: Any) -> "np.ndarray[Any, Any]":
    """The numbers of the column `name`, NaN for missing values.

    Raises ValueError, naming the row of a value that is infinite or not a number.
    """
    import pandas

    numeric_series = pandas.to_numeric(series, errors="coerce")
    numbers: np.ndarray[Any, Any] = numeric_series.to_numpy(np.float64, na_value=np.nan)
    is_wrong = np.isinf(numbers) | (np.isnan(numbers) & ~series.isna().to_numpy())
    if is_wrong.any():
        row = int(is_wrong.argmax())
        value = series.iloc[row]
        text = repr(value) if isinstance(value, str) else str(value)
        raise ValueError(f"column {name!r} must be finite numbers, row {row + 1} has {text}")
    return numbers


def _quoted(names: Sequence[str]) -> str:
    """The names in backquotes, separated by commas."""
    return ", ".join(f"`{name}`" for name in names)
