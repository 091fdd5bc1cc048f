"""Tables: a row a sample, a column a number or a category, one of them to be learned."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

import numpy as np
import torch
from torch import Tensor

from hibana.data.own import scale
from hibana.data.own.base import Inputs, Own, Raw, called, listed
from hibana.data.own.dates import DATES, lookup_numbers, parts, without_part
from hibana.data.own.opening import PLAIN, opened

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = ["Column", "Table", "TableInputs"]

LABELS = ("label", "labels", "target", "class", "classes", "diagnosis", "species", "outcome", "y")
"""What columns that are to be learned are often called, the surest first."""
TIMES = ("time", "t", "step", "timestamp", "frame", "seconds")
"""What columns that say the time are called,"""
GROUPS = (
    "case",
    "group",
    "sequence",
    "series",
    "subject",
    "patient",
    "trial",
    "sample",
    "recording",
    "session",
)
"""and what may stand before ``id`` in the name of one that says which sequence a row is of."""
MOST_CATEGORIES = 100
NAMES = ("id", "index", "unnamed: 0", "row", "no", "nr")
"""What columns that number the rows are called."""


@dataclass(frozen=True)
class Column:
    """A column: numbers, whose missing ones are `fill`; or `categories`, of which a row has one or none."""

    name: str
    categories: tuple[str, ...]
    fill: float


@dataclass(frozen=True)
class TableInputs(Inputs):
    """A table's columns, and the scale of their features: a number each, or one for each category."""

    columns: tuple[Column, ...]
    scale: scale.Scale
    missing: str
    label: str

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override] # a frozen dataclass has no attribute for it
        """The features, each a number or a category."""
        return (sum(len(column.categories) or 1 for column in self.columns),)

    def read(self, source: Any, label: str | None = None) -> Raw:
        table, how = opened(source)
        inputs = self.chosen(table)
        labels = None
        if self.label in table.columns:
            written = table[self.label]
            labels = listed(written.astype(object).where(written.notna(), "").tolist())
        return Raw(inputs, labels, _rows(table), label=self.label, how=how)

    def chosen(self, table: "DataFrame") -> "DataFrame":
        """The columns that were trained on; of a `table` without names that has these alone, all, in order.

        Raises:
            ValueError: if one is not there.
        """
        import pandas

        names = [column.name for column in self.columns]
        there = set(table.columns)
        written = list(dict.fromkeys(name if name in there else without_part(name) for name in names))
        if _unnamed(table) and len(table.columns) == len(written):
            table.columns = written
            there = set(written)
        whole = [name for name in written if name in there and name not in names]  # dates, of which parts are
        table = pandas.concat([table, *(parts(name, table[name]) for name in whole)], axis=1)
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
            ValueError: naming row and column of what is infinite, no number, or missing and refused.
        """
        made = np.empty((len(values), *self.shape))
        widths = np.array([len(column.categories) or 1 for column in self.columns])
        places = np.cumsum(widths) - widths  # of a column's first feature
        for column, place in zip(self.columns, places, strict=True):
            if column.categories:
                written = np.array(listed(values[column.name].tolist()))
                for k, category in enumerate(column.categories):
                    made[:, place + k] = written == category
        numeric = np.array([not column.categories for column in self.columns])
        chosen = [column for column in self.columns if not column.categories]
        numbers = _matrix(values[[column.name for column in chosen]])
        gaps = np.isnan(numbers)
        if self.missing == "refuse" and gaps.any():
            at = int(gaps.any(axis=0).argmax())
            row = int(gaps[:, at].argmax()) + 1
            raise ValueError(f"table must have no missing values, row {row} has none in {chosen[at].name!r}")
        made[:, places[numeric]] = np.where(gaps, [column.fill for column in chosen], numbers)
        return torch.from_numpy(made)

    def unlike(self, values: "DataFrame") -> str:
        names = [
            f"column {column.name!r}" for column in self.columns for _ in range(len(column.categories) or 1)
        ]
        return self.scale.unlike(self._features(values), names)


@final
class Table(Own):
    """A table: a CSV or Parquet file, or a ``pandas.DataFrame``.

    Whether the file has a header, what separates its columns, which are numbers and which categories, and
    which is to be learned is seen from it, and said in :attr:`summary`. Numbers are brought to mean 0 and
    deviation 1 by the training part; categories become one number each; a column of another text in each row,
    or that numbers the rows, is left out. Rows without a label are left out.

    Args:
        source: a file, or a ``pandas.DataFrame``.
        columns: those to learn from; all others if ``None``.
        dates: what is done about columns of dates: ``refuse``; ``drop``, which leaves them out; ``parts``,
            which makes numbers of them: days, day of year, day of week, hour.
        options: see :class:`Own`; `label` is the column to be learned, one that is called so, or the last.

    >>> import pandas
    >>> frame = pandas.DataFrame({"size": range(20), "kind": ["a", "b"] * 10})
    >>> table = Table(frame, label="kind")
    >>> table.setup()
    >>> print(table.summary)
    Table: 20 rows, 1 number, label `kind`: 2 classes (training part: a 7, b 7)
    """

    kind = "table"

    def __init__(
        self, source: Any, *, columns: Sequence[str] | None = None, dates: str = "refuse", **options: Any
    ) -> None:
        super().__init__(source, **options)
        if dates not in DATES:
            raise ValueError(f"dates must be one of {', '.join(DATES)}; got {dates!r}")
        self.dates = dates
        self.columns = None if columns is None else list(columns)

    def read(self, source: Any) -> Raw:
        table, how = opened(source)
        known = None if self.description is None else self.description.inputs
        assert known is None or isinstance(known, TableInputs)
        label = self._found(table) if known is None else known.label
        name = called(source, type(self).__name__)
        if label not in table.columns:
            raise ValueError(f"{name} must have a column {label!r}, the label that was trained on")
        unlabelled = table[label].isna()
        table = table[~unlabelled].reset_index(drop=True)
        if len(table) == 0:
            raise ValueError(f"{name} must have rows with a label; {label!r} is empty in all")
        if unlabelled.any() and table[label].nunique() == 1:
            raise ValueError(
                f"label {label!r} must have at least two classes, got {table[label].iloc[0]}; "
                f"{int(unlabelled.sum()):,} rows of {name} have none: NA, N/A, None, nan, ? and nothing are "
                f"read so"
            )
        inputs, left = self._inputs(table, label) if known is None else (known.chosen(table), [])
        gaps = inputs.isna()
        share = float(gaps.to_numpy().mean()) if inputs.size else 0.0
        summary = [f"{len(table):,} rows", *_counted(inputs)]
        if share and self.missing == "drop":
            whole = ~gaps.any(axis=1)
            inputs, table = inputs[whole].reset_index(drop=True), table[whole].reset_index(drop=True)
            summary.append(f"{int((~whole).sum()):,} rows with missing values left out")
        elif share:
            summary.append(f"{share:.1%} missing, filled with the median")
        if unlabelled.any():
            summary.append(f"{int(unlabelled.sum()):,} rows without a label left out")
        summary += left
        summary += _grouping(table)
        labels = listed(table[label].tolist())
        return Raw(inputs, labels, _rows(table), ", ".join(summary), label=label, how=how)

    def learn(self, raw: Raw, training: Sequence[int]) -> Inputs:
        frame = raw.values
        part = frame.iloc[list(training)]
        are_numbers = _are_numbers(frame)
        numbers = _matrix(part.loc[:, are_numbers])
        numbers[:, np.isnan(numbers).all(axis=0)] = 0.0  # nothing is known that fills them
        medians = iter(np.nanmedian(numbers, axis=0).tolist())
        columns = []
        for name, is_number in zip(frame.columns, are_numbers, strict=True):
            if is_number:
                columns.append(Column(name, (), next(medians)))
            else:
                found = sorted(set(listed(part[name].dropna().tolist()) or []))
                columns.append(Column(name, tuple(found), 0.0))
        blank = scale.Scale((), (), (), (), clipped=False)
        made = TableInputs(tuple(columns), blank, self.missing, raw.label)
        learned = scale.learned_from(made._features(part), unit=self.unit)
        return TableInputs(tuple(columns), learned, self.missing, raw.label)

    def _found(self, table: "DataFrame") -> str:
        """The column to be learned."""
        names = [str(name) for name in table.columns]
        if self.label is not None:
            named = PLAIN + self.label if self.label.isdigit() and self.label not in names else self.label
            if named not in names:
                known = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
                several = "; several labels of a sample (multi-label) are not learned yet"
                hint = several if set(self.label.split(",")) <= set(names) else ""
                raise ValueError(
                    f"label must be a column of {self.called}: {known}; got {self.label!r}{hint}"
                )
            return named
        called = named_label(names)
        if called is not None:
            return called
        few = [name for name in table.columns[~_are_numbers(table)] if table[name].nunique() <= 50]
        return few[0] if len(few) == 1 and few[0] == names[0] else names[-1]

    def _inputs(self, table: "DataFrame", label: str) -> tuple["DataFrame", list[str]]:
        """The columns to learn from, and what to say of others."""
        if self.columns is not None:
            unknown = [name for name in self.columns if name not in table.columns]
            if unknown or label in self.columns:
                raise ValueError(
                    f"columns must be others than the label of {self.called}, got {unknown or label}"
                )
        names = [name for name in table.columns if name != label] if self.columns is None else self.columns
        chosen, summary = lookup_numbers(table[names], self.dates, self.called)
        if self.columns is not None:
            return chosen, summary
        kept, left = [], []
        empty = chosen.isna().all().to_numpy()
        most = min(MOST_CATEGORIES, len(table) // 2)
        for name, is_number, is_empty in zip(chosen.columns, _are_numbers(chosen), empty, strict=True):
            numbering = name.lower() in NAMES and chosen[name].nunique() == len(table)
            if is_empty or numbering or (not is_number and chosen[name].nunique() > most):
                left.append(f"`{name}`")
            else:
                kept.append(name)
        if not kept:
            why = "; left out, as empty, numbers of rows or text that differs from row to row: "
            shown = why + ", ".join(left) if left else ""
            raise ValueError(f"{self.called} must have columns to learn from beside {label!r}{shown}")
        return chosen[kept], summary + ([f"left out: {', '.join(left)}"] if left else [])


def _rows(table: "DataFrame") -> list[str]:
    return [f"row {row}" for row in range(1, len(table) + 1)]


def named_label(names: Sequence[str]) -> str | None:
    """The column whose name says that it is to be learned; ``y`` beside ``z`` is a place's."""
    lower = [name.lower() for name in names]
    known = [label for label in LABELS if label in lower and not (label == "y" and "z" in lower)]
    return names[lower.index(known[0])] if known else None


def _grouping(table: "DataFrame") -> list[str]:
    """What to say where rows look like steps of sequences: there is a time, and an id that comes again."""
    names = [str(name) for name in table.columns]
    if not any(name.lower() in TIMES for name in names):
        return []
    for name in names:
        before = name.lower().removesuffix("id").rstrip("_ -")
        if before in ("", *GROUPS) and 1 < table[name].nunique() <= len(table) // 2:
            return [f"rows of one `{name}` may be the steps of a sequence (--group {name})"]
    return []


def _unnamed(table: "DataFrame") -> bool:
    return str(table.columns[0]) == f"{PLAIN}1"


def _is_number(series: Any) -> bool:
    from pandas.api.types import is_bool_dtype, is_numeric_dtype

    return bool(is_numeric_dtype(series) or is_bool_dtype(series))


def _are_numbers(table: "DataFrame") -> "np.ndarray[Any, Any]":
    """Of each column whether it holds numbers, by its type alone."""
    known = {dtype: _is_number(dtype) for dtype in set(table.dtypes)}
    return np.array([known[dtype] for dtype in table.dtypes], bool)


def _matrix(table: "DataFrame") -> "np.ndarray[Any, Any]":
    """The numbers of all columns, missing ones NaN; all columns of numbers are converted at once.

    Raises:
        ValueError: naming row and column of what is infinite or no number.
    """
    made = np.empty(table.shape)
    are_numbers = _are_numbers(table)
    made[:, are_numbers] = table.loc[:, are_numbers].to_numpy(np.float64, na_value=np.nan)
    finite = ~np.isinf(made).any(axis=0)
    for column in np.flatnonzero(~(are_numbers & finite)):
        made[:, column] = _numbers(table.columns[column], table.iloc[:, column])
    return made


def _numbers(name: str, series: Any) -> "np.ndarray[Any, Any]":
    """A column's numbers, missing ones NaN.

    Raises:
        ValueError: naming the row of what is infinite or no number.
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
    numbers = int(_are_numbers(table).sum())
    kinds = ((numbers, "number", "numbers"), (len(table.columns) - numbers, "category", "categories"))
    return [f"{count} {one if count == 1 else many}" for count, one, many in kinds if count]
