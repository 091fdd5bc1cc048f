"""Data of the user: the kind of a file or folder is detected by :func:`kind_of`, unless the user names it."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hibana.data.user_data import events, folders, pictures, sound
from hibana.data.user_data.arrays import ArrayInputs, Arrays, are_pictures, are_series
from hibana.data.user_data.base import KINDS, Description, UserData, description_from_plain
from hibana.data.user_data.base import without_removed_options as without_removed_options
from hibana.data.user_data.events import BINS, EventInputs, Events
from hibana.data.user_data.pictures import Images
from hibana.data.user_data.series import LENGTHS, SCALES, SequenceInputs, Sequences, default_steps
from hibana.data.user_data.sound import Sound
from hibana.data.user_data.table import Table
from hibana.data.user_data.target import TASKS

__all__ = ["BINS", "KINDS", "LENGTHS", "SCALES", "TASKS", "ArrayInputs", "Arrays", "Description"]
__all__ += ["EventInputs", "Events", "Images", "SequenceInputs", "Sequences", "Sound", "Table", "UserData"]
__all__ += ["are_pictures", "default_steps", "description_from_plain", "from_dataset"]
__all__ += ["kind_of", "without_removed_options"]

_KIND_OF_SUFFIX = {
    **dict.fromkeys((".csv", ".tsv", ".parquet"), "sequences"),
    **dict.fromkeys(pictures.SUFFIXES, "images"),
    **dict.fromkeys(set(events.SUFFIXES) - {".csv"}, "events"),
    **dict.fromkeys(sound.SUFFIXES, "sound"),
}
"""Kind of the files in folders by class; CSV files whose header names events are events."""
_TABLES = (".csv", ".tsv", ".txt", ".data", ".parquet", ".pq")


def kind_of(path: Path, *, grouped: bool = False) -> str:
    """The kind of the data at `path`, from file names, the types of arrays, and the columns of CSV files.

    A folder has the kind of most of its files; hidden files do not count.

    Args:
        path: a file or folder.
        grouped: whether a table's rows are the steps of sequences.

    Raises:
        ValueError: if `path` does not exist, or its kind is unknown.
    """
    if path.is_dir():
        return _kind_of_folder(path)
    if not path.is_file():
        raise ValueError(f"data must be a file or folder, there is no {path}")
    suffix = path.suffix.lower()
    if suffix in (".npz", ".npy"):
        return "sequences" if are_series(path) else "arrays"
    if suffix == ".ts" or (grouped and suffix in _TABLES):
        return "sequences"
    if suffix in _TABLES:
        return _kind_of_list(path) or "table"
    raise ValueError(f"data must be a folder or a table, or --kind must name their kind; got {path}")


def _kind_of_folder(path: Path) -> str:
    """The kind of samples in a folder: of its files by class, of the files it lists, or of its arrays."""
    entries, tables = folders.visible_entries(path), folders.file_lists(path)
    classes = [entry for entry in entries if entry.is_dir()]
    parts = [folder for folder in classes if folder.name.lower() in (*folders.TRAINING, *folders.TEST)]
    in_parts = [entry for part in parts for entry in folders.visible_entries(part) if entry.is_dir()]
    for class_folders in () if tables else (in_parts, classes):
        files = (file for folder in class_folders for file in folders.visible_entries(folder))
        if kinds := Counter(kind for file in files if file.is_file() and (kind := _kind_of_sample(file))):
            return max(kinds, key=kinds.__getitem__)
    if len(tables) > 1:
        names = ", ".join(table.name for table in tables[:5])
        raise ValueError(f"data must be one list of files, {path} has {len(tables)}: {names}")
    if tables and (kind := _kind_of_list(tables[0])):
        return kind
    if any(entry.suffix == ".npy" for entry in entries):
        return "sequences" if are_series(path) else "arrays"
    raise ValueError(
        f"data must be files by class, such as {path}/CLASS/NAME.png, a list of files with a label each, "
        f"such as {path}/labels.csv, or inputs.npy and labels.npy; {path} holds none"
    )


def _kind_of_list(table: Path) -> str | None:
    """The kind of the files that a ``filename,label`` table lists; ``None`` for other tables."""
    file = folders.first_listed_file(table)
    if file is not None and _kind_of_sample(file) is None:
        raise ValueError(f"data must be one of a known kind, a list names {file.name}, which is none")
    return None if file is None else _kind_of_sample(file)


def _kind_of_sample(file: Path) -> str | None:
    """The kind of data that consist of files such as `file`."""
    suffix = file.suffix.lower()
    return "events" if suffix == ".csv" and events.has_event_header(file) else _KIND_OF_SUFFIX.get(suffix)


def from_dataset(dataset: Any, **options: Any) -> UserData:
    """The samples of a map-style dataset of ``(x, y)``.

    Returns:
        :class:`Sequences` if the samples are series or of different shapes, else :class:`Arrays`.

    Raises:
        TypeError: if `dataset` is a table of pandas, or its samples are dictionaries.
        ValueError: if the samples are not pairs of an array and one label.
    """
    if hasattr(dataset, "columns"):
        raise TypeError("samples must be a data set, got a DataFrame: pass hb.data.Table(frame, label=...)")
    is_indexed = hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")
    if is_indexed and not isinstance(dataset, Mapping) and len(dataset) and isinstance(dataset[0], Mapping):
        raise TypeError(
            f"samples must be pairs (x, y), got dictionaries with the keys {', '.join(dataset[0])}"
        )
    try:
        samples = (dataset[index] for index in range(len(dataset)))
        pairs = [(np.asarray(x), np.asarray(y).item()) for x, y in samples]
    except (TypeError, ValueError, KeyError, NotImplementedError) as error:
        raise ValueError(
            f"samples must be a map-style dataset of pairs (x, y) with one label each, got "
            f"{type(dataset).__name__}; hb.data.Arrays and hb.data.Sequences take inputs and labels"
        ) from error
    inputs, labels = zip(*pairs, strict=True)
    if len({x.shape for x in inputs}) == 1 and not are_series(inputs):
        return Arrays(np.stack(inputs), labels=labels, **options)
    return Sequences(inputs, labels=labels, **options)
