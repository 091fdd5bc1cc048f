"""The neurons of a wiring diagram: their ids in the order of a network, and their table."""

import fnmatch
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from pandas import DataFrame, Series

__all__ = ["Ids", "Neurons", "as_ids", "read_ids"]

Ids = np.ndarray[Any, Any]
"""Ids of neurons: int64, or objects that are texts."""

NAMES = ("id", "root_id", "neuron_id", "neuron", "bodyid", "body_id", "skeleton_id", "skid", "pt_root_id")
"""Names of columns of ids, in lower case."""
UNNAMED = "Unnamed: 0"
"""The name that pandas gives to a first column without a name."""


@dataclass(frozen=True, eq=False)
class Neurons:
    """The neurons of a network by id, and the table that describes them."""

    ids: Ids
    """The id of each neuron, ``[neurons]``."""
    table: "DataFrame | None" = None
    """One row per neuron, or None."""
    notes: tuple[str, ...] = ()
    """Sentences that say which columns were taken."""

    def __len__(self) -> int:
        """The number of neurons."""
        return len(self.ids)

    def select(self, *ids: Any, **columns: Any) -> Tensor:
        """The ascending indices of the neurons with these `ids`, or with these values in all `columns`.

        A value of a column may be a list of alternatives, or a text with ``*`` for any characters.

        Raises:
            ValueError: if an id or a column does not exist, or no neuron is selected.

        >>> import pandas
        >>> neurons = Neurons(np.array([7, 8, 9]), pandas.DataFrame({"kind": ["PN", "KC", "KC"]}))
        >>> neurons.select(9, 7), neurons.select(kind="K*")
        (tensor([0, 2]), tensor([1, 2]))
        """
        chosen = np.zeros(len(self), bool)
        if ids:
            is_text = self.ids.dtype == object
            places: dict[Any, int] = {id_: place for place, id_ in enumerate(self.ids.tolist())}
            for id_ in ids:
                place = places.get(str(id_) if is_text else _integer(id_))
                if place is None:
                    raise ValueError(f"{id_!r} is no id of a neuron; ids are {self.ids[0]!r} and similar")
                chosen[place] = True
        if columns:
            chosen |= np.logical_and.reduce([self._matches(*item) for item in columns.items()])
        if not chosen.any():
            choice = ", ".join(f"{name}={value}" for name, value in columns.items())
            raise ValueError(f"no neuron is selected{f' by {choice}' if choice else ''}")
        return torch.from_numpy(np.flatnonzero(chosen))

    def _matches(self, name: str, value: Any) -> Ids:
        """Whether each neuron has `value` in column `name`.

        Raises:
            ValueError: if the column or a neuron with the value does not exist.
        """
        if self.table is None or name not in self.table.columns:
            names = "no table" if self.table is None else ", ".join(map(str, self.table.columns))
            raise ValueError(f"{name!r} is no column of the table of neurons, which has {names}")
        texts = self.table[name].astype(str)
        is_match = np.zeros(len(self), bool)
        for each in value if isinstance(value, list | tuple) else [value]:
            pattern = str(each).replace("[", "[[]").replace("?", "[?]")
            matches = texts.map(lambda text, pattern=pattern: fnmatch.fnmatchcase(text, pattern)).to_numpy(
                bool
            )
            if not matches.any():
                common = ", ".join(texts.value_counts().index[:8])
                raise ValueError(f"no neuron has {name}={each}; frequent values are {common}")
            is_match |= matches
        return is_match


def as_ids(frame: "DataFrame", label: str, column: str | None) -> tuple[Ids, str]:
    """The ids of a table of neurons, and a description of their column.

    Raises:
        ValueError: if there is no such column, or an id occurs twice.
    """
    from pandas import Index, RangeIndex

    by_name = {str(name).strip().lower(): name for name in reversed([*frame.columns])}
    names = [by_name[name] for name in (*NAMES, UNNAMED.lower(), "") if name in by_name]
    if column is not None and column not in frame.columns:
        raise ValueError(f"{label}: column {column!r} is missing; name one of {_list(frame)} as id=")
    if column is None and not names:
        if isinstance(frame.index, RangeIndex):
            raise ValueError(f"{label}: a column of ids is missing; name one of {_list(frame)} as id=")
        ids, description = read_ids(frame.index.to_series(), label, "index"), "the index"
    else:
        name = names[0] if column is None else column
        ids, description = read_ids(frame[name], label, name), f"column {name!r}"
    is_repeated = Index(ids).duplicated(keep="last")
    if is_repeated.any():
        row = int(np.argmax(is_repeated))
        raise ValueError(f"{label}: id {ids[row]} of row {row + 1} occurs in several rows")
    return ids, description


def read_ids(values: "Series", label: str, name: Any) -> Ids:
    """The ids in a column: int64, or texts as objects.

    Raises:
        ValueError: if an id is missing, or a number that is no integer of 64 bits.
    """
    missing = values.isna().to_numpy()
    if missing.any():
        raise ValueError(f"{label}, column {name!r}, row {int(np.argmax(missing)) + 1}: the id is missing")
    from pandas.api.types import is_integer_dtype

    numbers: Ids = values.to_numpy(np.int64) if is_integer_dtype(values.dtype) else values.to_numpy()
    if numbers.dtype.kind in "iu":
        return numbers.astype(np.int64, copy=False)
    if numbers.dtype.kind == "f":
        wrong = (numbers % 1 != 0) | (abs(numbers) > 2.0**53)
        if wrong.any():
            row = int(np.argmax(wrong))
            raise ValueError(
                f"{label}, column {name!r}, row {row + 1}: {numbers[row]!r} is no exact id; read the column "
                "as integers or text"
            )
        return numbers.astype(np.int64)
    texts: Ids = values.astype(str).to_numpy(object)
    return texts


def _integer(id_: Any) -> int | None:
    """The integer that `id_` is or reads as; None if it is none."""
    try:
        return int(id_)
    except ValueError:
        return None


def _list(frame: "DataFrame") -> str:
    """The names of the columns."""
    return ", ".join(map(str, frame.columns))
