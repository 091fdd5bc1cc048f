"""Reads the tables of a wiring diagram from CSV, Parquet or Feather, only the columns in use."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hibana.data.user_data.samples import reading
from hibana.runtime.extras import explain_import_error
from hibana.spikes.sparse.table import find_columns

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = ["read_connectome_table"]

SEPARATORS = {".tsv": "\t", ".txt": r"\s+"}
"""Separators of columns by the ending of a text file; others have commas."""


def read_connectome_table(path: str | Path, columns: Mapping[str, Any] | None = None) -> "DataFrame":
    """The table in a file ``.csv``, ``.tsv`` or ``.txt`` (also ``.gz``), ``.parquet`` or ``.feather``.

    Args:
        path: the file.
        columns: the names of columns of connections where :func:`hibana.connect.from_table` does not
            recognize them; only columns with a role are read. None: all columns are read.

    Raises:
        ValueError: if the file can't be read as a table.
        ModuleNotFoundError: if pandas or pyarrow is not installed.
    """
    path = Path(path)
    with explain_import_error("reading a table"), reading(f"table {path}"):
        import pandas

        endings = [
            ending.lower() for ending in path.suffixes if ending.lower() not in (".gz", ".bz2", ".xz", ".zip")
        ]
        ending = endings[-1] if endings else ""
        if ending in (".parquet", ".pq", ".feather"):
            from pyarrow import dataset

            kind = "feather" if ending == ".feather" else "parquet"
            file = dataset.dataset(path, format=kind)
            names = file.schema.names
            used = None if columns is None else _used(names, columns)
            return file.to_table(columns=used).to_pandas()
        options: dict[str, Any] = {"sep": SEPARATORS.get(ending, ","), "low_memory": False}
        if options["sep"] == r"\s+":
            del options["low_memory"]
        names = [*pandas.read_csv(path, nrows=0, **options).columns]
        used = None if columns is None else _used(names, columns)
        return pandas.read_csv(path, usecols=used, keep_default_na=True, **options)


def _used(names: list[str], columns: Mapping[str, Any]) -> list[str] | None:
    """The columns of connections among `names`; None, which means all, if an end is missing."""
    columns_by_role = find_columns(names, columns)
    return (
        [*dict.fromkeys(columns_by_role.values())] if {"source", "target"} <= columns_by_role.keys() else None
    )
