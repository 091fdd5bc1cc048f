"""Tables: one row per sample, columns of numbers or categories, one of which is learned."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, final

import numpy as np
import torch
from torch import Tensor

from hibana.data.user_data import scale
from hibana.data.user_data.base import Inputs, UserData
from hibana.data.user_data.samples import Raw
from hibana.data.user_data.table_files import PLAIN, read_table
from hibana.data.user_data.target import column_texts, texts

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = [
    "Column",
    "Table",
    "TableInputs",
    "is_row_number",
    "named_label",
    "numbers_of",
    "numeric",
]

LABELS = ("label", "labels", "target", "class", "classes", "diagnosis", "species", "outcome", "y")
"""Usual names of the column to learn, the most specific first."""
TIMES = ("time", "t", "step", "timestamp", "frame", "seconds")
"""Usual names of columns that hold the time."""
MOST_CATEGORIES = 100
LEAST = 5
"""Rows from which on their order tells whether a column counts them."""
IDENTIFIERS = ("id", "index", "unnamed: 0", "row", "no", "nr")
"""Usual names of columns that identify rows; one whose values all differ is left out."""


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
    scale: scale.Scale
    missing: str
    label: str
    encoding: str = ""
    """Of text files; detected if empty."""

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override] # a frozen dataclass has no attribute for it
        """The number of features."""
        return (sum(len(column.categories) or 1 for column in self.columns),)

    def chosen(self, table: "DataFrame") -> "DataFrame":
        """The columns to learn from; a `table` without a header that has as many columns is taken in order.

        Raises:
            ValueError: if one is missing.
        """
        names = [column.name for column in self.columns]
        if str(table.columns[0]) == f"{PLAIN}1" and len(table.columns) == len(names):
            table.columns = names
        unknown = [name for name in names if name not in table.columns]
        if unknown:
            raise ValueError(
                f"table must have the {len(names)} columns that were trained on; it has "
                f"{len(table.columns)}, and no {unknown[0]!r}"
            )
        return table[names]

    def tensor(self, values: "DataFrame") -> Tensor:
        return self.scale(self._features(values))

    def _features(self, values: "DataFrame") -> Tensor:
        """The features before scaling, ``[rows, F]``.

        Raises:
            ValueError: naming row and column of a value that is infinite or no number.
        """
        features: list[np.ndarray[Any, Any]] = []
        for column in self.columns:
            if column.categories:
                written = np.array(texts(values[column.name].tolist()))
                features += [(written == category).astype(np.float64) for category in column.categories]
            else:
                numbers = numbers_of(column.name, values[column.name])
                features.append(np.where(np.isnan(numbers), column.fill, numbers))
        return torch.from_numpy(np.stack(features, axis=1))

    def difference_from_training(self, values: "DataFrame") -> str:
        names = [
            f"column {column.name!r}" for column in self.columns for _ in range(len(column.categories) or 1)
        ]
        return self.scale.difference_from_training(self._features(values), names)


@final
class Table(UserData):
    """A table: a CSV or Parquet file, or a ``pandas.DataFrame``.

    Whether the file has a header, its encoding, its separator, which columns are numbers and which are
    categories, and which is to be learned is detected, and reported in :attr:`summary`. Numbers are scaled to
    mean 0 and deviation 1 on the training part; each category becomes one number. Columns that number or
    identify the rows, and columns of text that differs from row to row, are left out: the number of a row
    tells its class if the file is sorted by class. Rows without a label are left out.

    Args:
        source: a file, or a ``pandas.DataFrame``.
        columns: those to learn from; all others if ``None``.
        options: see :class:`UserData`. `label` is the column to predict; by default a column with a usual
            name, such as ``class``, or the last column.

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

    def read(self, source: Any) -> Raw:
        table, notes = read_table(source, self.option("encoding"))
        if self._description is None:
            label = self._label_of(table)
            chosen, left_out = self._inputs(table, label)
        else:
            assert isinstance(self._description.inputs, TableInputs)
            label = self._description.inputs.label
            chosen, left_out = self._description.inputs.chosen(table), []
        missing = chosen.isna().to_numpy()
        gaps: list[str] = []
        summary = [f"{len(table):,} rows", *_counted(chosen)]
        if missing.any():
            gaps = np.where(missing.any(axis=1), chosen.columns[missing.argmax(axis=1)], "").tolist()
            if self.option("missing") == "median":
                summary.append(f"{missing.mean():.1%} missing, filled with the median")
        return Raw(
            chosen,
            column_texts(table[label]) if label in table.columns else None,
            [f"row {row}" for row in range(1, len(table) + 1)],
            ", ".join(summary + left_out),
            label=label,
            notes=notes,
            gaps=gaps,
        )

    def learn(self, raw: Raw, training: Sequence[int]) -> Inputs:
        part = raw.values.iloc[list(training)]
        columns = []
        for name, is_number in zip(part.columns, numeric(part), strict=True):
            present = part[name].dropna()
            if is_number:
                fill = float(np.median(numbers_of(name, present))) if len(present) else 0.0
                columns.append(Column(name, (), fill))
            else:
                columns.append(Column(name, tuple(sorted(set(texts(present.tolist())))), 0.0))
        blank = scale.Scale((), (), (), (), clipped=False)
        inputs = TableInputs(tuple(columns), blank, self.missing, raw.label, self.encoding or "")
        return replace(inputs, scale=scale.fit_scale(inputs._features(part), unit=self.unit))

    def _label_of(self, table: "DataFrame") -> str:
        """The column to learn."""
        names = [str(name) for name in table.columns]
        if self.label is not None:
            label = PLAIN + self.label if self.label.isdigit() and self.label not in names else self.label
            if label not in names:
                several = "; several labels of a sample (multi-label) are not learned yet"
                hint = several if set(self.label.split(",")) <= set(names) else _similar(label, names)
                raise ValueError(
                    f"label must be a column of {self.called}: {_some(names)}; got {self.label!r}{hint}"
                )
            return label
        usual = named_label(names)
        if usual is not None:
            return usual
        few = [name for name in table.columns[~numeric(table)] if table[name].nunique() <= 50]
        return few[0] if len(few) == 1 and few[0] == names[0] else names[-1]

    def _inputs(self, table: "DataFrame", label: str) -> tuple["DataFrame", list[str]]:
        """The columns to learn from, and notes on the others."""
        names = [name for name in table.columns if name != label]
        if self.columns is not None:
            for name in self.columns:
                if name not in names:
                    hint = "; that is the label" if name == label else _similar(name, names)
                    raise ValueError(
                        f"columns must name columns of {self.called}: {_some(names)}; got {name!r}{hint}"
                    )
            return table[self.columns], []
        chosen = table[names]
        identifiers, other, most = [], [], min(MOST_CATEGORIES, len(table) // 2)
        are_numbers, are_empty = numeric(chosen), chosen.isna().all()
        for place, name in enumerate(chosen.columns):
            column = chosen.iloc[:, place]
            is_identifier = name.lower() in IDENTIFIERS and column.nunique() == len(table)
            if is_identifier or (are_numbers[place] and is_row_number(column)):
                identifiers.append(name)
            elif are_empty.iloc[place] or (not are_numbers[place] and column.nunique() > most):
                other.append(name)
        identifying, left_out = (", ".join(f"`{name}`" for name in left) for left in (identifiers, other))
        chosen = chosen.drop(columns=[*identifiers, *other])
        if not len(chosen.columns):
            left = ", ".join(each for each in (identifying, left_out) if each)
            why = "as empty, as identifiers of rows or as text that differs from row to row"
            raise ValueError(
                f"{self.called} must have columns to learn from beside {label!r}"
                + (f"; left out {why}: {left} (--columns uses them)" if left else "")
            )
        notes = (
            [f"left out as they identify rows (--columns uses them): {identifying}"] if identifiers else []
        )
        return chosen, [*notes, f"left out: {left_out}"] if other else notes


def is_row_number(column: Any) -> bool:
    """Whether a column's numbers count or identify rows, and so leak the label of a file sorted by class.

    They are at least five different whole numbers without gaps, in any order, or that increase or decrease
    from row to row.

    >>> import pandas
    >>> [is_row_number(pandas.Series(each)) for each in ([3, 1, 2, 5, 4], [1, 3, 4, 8, 9], [4, 9, 1, 2, 8])]
    [True, True, False]
    """
    values = column.to_numpy(np.float64, na_value=np.nan)
    if len(values) < LEAST or not (np.isfinite(values) & (values == np.floor(values))).all():
        return False
    steps = np.diff(values)
    without_gaps = bool((np.diff(np.sort(values)) == 1).all())
    return without_gaps or bool((steps > 0).all() or (steps < 0).all())


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")


def _similar(name: str, names: Sequence[str]) -> str:
    similar = get_close_matches(name, names, 1)
    return f"; did you mean {similar[0]!r}?" if similar else ""


def named_label(names: Sequence[str]) -> str | None:
    """The column with a usual name of a label; ``y`` next to ``z`` is a coordinate."""
    lower = [name.lower() for name in names]
    labels = [label for label in LABELS if label in lower and not (label == "y" and "z" in lower)]
    return names[lower.index(labels[0])] if labels else None


def numeric(table: "DataFrame") -> "np.ndarray[Any, Any]":
    """Which columns have a numeric type."""
    from pandas.api.types import is_numeric_dtype

    return np.array([is_numeric_dtype(dtype) for dtype in table.dtypes], bool)


def numbers_of(name: str, series: Any) -> "np.ndarray[Any, Any]":
    """A column's numbers, missing ones NaN.

    Raises:
        ValueError: naming the row of a value that is infinite or no number.
    """
    import pandas

    numbers: np.ndarray[Any, Any] = pandas.to_numeric(series, errors="coerce").to_numpy(
        np.float64, na_value=np.nan
    )
    wrong = np.isinf(numbers) | (np.isnan(numbers) & ~series.isna().to_numpy())
    if wrong.any():
        row = int(wrong.argmax())
        value = series.iloc[row]
        got = repr(value) if isinstance(value, str) else str(value)
        raise ValueError(f"column {name!r} must be finite numbers, row {row + 1} has {got}")
    return numbers


def _counted(table: "DataFrame") -> list[str]:
    numbers = int(numeric(table).sum())
    kinds = ((numbers, "number", "numbers"), (len(table.columns) - numbers, "category", "categories"))
    return [f"{count} {one if count == 1 else many}" for count, one, many in kinds if count]
