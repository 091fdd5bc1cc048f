"""Data of the user: the kind of a file or folder is detected by :func:`kind_of`, unless the user names it."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from hibana.data.user_data.arrays import ArrayInputs, Arrays, are_pictures, are_series
from hibana.data.user_data.base import (
    KINDS,
    MISSING,
    Description,
    UserData,
    description_from_plain,
    without_removed_options,
)
from hibana.data.user_data.event_files import SUFFIXES as RECORDINGS
from hibana.data.user_data.event_files import check_columns as check_event_columns
from hibana.data.user_data.event_files import is_headed
from hibana.data.user_data.events import BINS, EventInputs, Events
from hibana.data.user_data.folders import TEST, TRAINING, first_listed, lists, readable, visible
from hibana.data.user_data.pictures import SUFFIXES as PICTURES
from hibana.data.user_data.pictures import Images
from hibana.data.user_data.series import LENGTHS, TRAIN_TS, SequenceInputs, Sequences, is_array, spike_steps
from hibana.data.user_data.sound import SUFFIXES as SOUND
from hibana.data.user_data.sound import Sound
from hibana.data.user_data.table import Table
from hibana.data.user_data.table_files import check_encoding
from hibana.data.user_data.target import TASKS

__all__ = [
    "BINS",
    "KINDS",
    "LENGTHS",
    "MISSING",
    "TASKS",
    "ArrayInputs",
    "Arrays",
    "Description",
    "EventInputs",
    "Events",
    "Images",
    "UserData",
    "SequenceInputs",
    "Sequences",
    "Sound",
    "Table",
    "are_pictures",
    "check_encoding",
    "check_event_columns",
    "description_from_plain",
    "kind_of",
    "from_dataset",
    "default_steps",
    "without_removed_options",
]

_TABLES = (".csv", ".tsv", ".txt", ".data", ".parquet", ".pq")
_OTHERS = {
    **dict.fromkeys((".gz", ".zip", ".bz2", ".xz", ".7z", ".tar", ".tgz"), "is packed; unpack it first"),
    **dict.fromkeys((".xlsx", ".xls", ".ods"), "is a spreadsheet; save it as CSV"),
    **dict.fromkeys((".m4a", ".aac", ".wma"), "is sound that can't be read; save it as .flac, .ogg or .wav"),
    **dict.fromkeys(SOUND, "is one recording; give a folder, of recordings in folders by class"),
}
"""Files that are not read, and what to do with them."""


def kind_of(path: Path, *, grouped: bool = False) -> str:
    """The kind of the data at `path`, from file names, the types of arrays, and the columns of CSV by class.

    A folder is of the kind of most of its files; hidden files do not count.

    Args:
        path: a file or folder.
        grouped: whether a table's rows are the steps of sequences.

    Raises:
        ValueError: if there is nothing at `path`, or nothing of a known kind.
    """
    with readable(path):
        if path.is_file():
            return _kind_of_file(path, grouped)
        if not path.is_dir():
            raise ValueError(f"data must be a file or folder, there is no {path}")
        return _kind_of_folder(path)


def _kind_of_file(path: Path, grouped: bool) -> str:
    suffix = path.suffix.lower()
    if suffix == ".ts":
        return "sequences"
    if suffix in (".npz", ".npy"):
        return "sequences" if are_series(path) else "arrays"
    if suffix in _TABLES:
        listed = None if grouped else first_listed(path)
        return _kind_of_list(listed) if listed else "sequences" if grouped else "table"
    other = _OTHERS.get(suffix, f"ends in {suffix or 'nothing'}; name its kind (--kind)")
    raise ValueError(f"data must be one of a known kind, {path} {other}")


def _kind_of_folder(path: Path) -> str:
    entries, listing = visible(path), lists(path)
    below = [each for each in entries if each.is_dir()]
    parts = [each for each in below if each.name.lower() in (*TRAINING, *TEST)]
    in_parts = [each for part in parts for each in visible(part) if each.is_dir()]
    for folders in () if listing else (in_parts, below):
        if kinds := _kinds([each for folder in folders for each in visible(folder) if each.is_file()]):
            return max(kinds, key=kinds.__getitem__)
    pairs = [each for each in entries if each.name.endswith(TRAIN_TS)]
    for several, what in ((listing, "list of files"), (pairs, f"*{TRAIN_TS}")):
        if len(several) > 1:
            names = ", ".join(each.name for each in several[:5])
            raise ValueError(
                f"data must hold one {what}, {path} has {len(several)}; name one of them: {names}"
            )
    if listing and (listed := first_listed(listing[0])):
        return _kind_of_list(listed)
    if pairs:
        return "sequences"
    if any(each.suffix == ".npy" for each in entries):
        return "sequences" if are_series(path) else "arrays"
    raise ValueError(
        f"data must be files by class, such as {path}/CLASS/NAME.png, a list of files with a label each, "
        f"such as {path}/labels.csv, or inputs.npy and labels.npy; {path} holds none"
    )


def _kind_of_list(first: Path) -> str:
    """The kind of a list of files whose first is `first`."""
    kinds = _kinds([first])
    if not kinds:
        raise ValueError(f"data must be one of a known kind, a list names {first.name}, which is none")
    return next(iter(kinds))


def _kinds(files: list[Path]) -> Counter[str]:
    """How many of the `files` are of each kind; all tables are of the kind of the first."""
    kinds: Counter[str] = Counter()
    tables = None
    for each in files:
        suffix = each.suffix.lower()
        if suffix in (".csv", ".tsv", ".parquet"):
            tables = tables or ("events" if suffix == ".csv" and is_headed(each) else "sequences")
            kinds[tables] += 1
        for kind, suffixes in (("images", PICTURES), ("events", RECORDINGS), ("sound", SOUND)):
            kinds[kind] += suffix in suffixes and suffix != ".csv"
    return +kinds


def from_dataset(source: Any, **options: Any) -> UserData:
    """A map-style dataset of ``(x, y)``: :class:`Sequences` if its samples are series, else :class:`Arrays`.

    Raises:
        ValueError: if its samples are no pairs of an array and one label.
    """
    try:
        pairs = [(np.asarray(x), np.asarray(y).item()) for x, y in (source[k] for k in range(len(source)))]
    except (TypeError, ValueError, KeyError, NotImplementedError) as error:
        raise ValueError(
            f"samples must be a map-style dataset of pairs (x, y) with one label each, got "
            f"{type(source).__name__}; hb.data.Arrays and hb.data.Sequences take inputs and labels"
        ) from error
    inputs, labels = zip(*pairs, strict=True)
    if len({each.shape for each in inputs}) == 1 and not are_series(inputs):
        return Arrays(np.stack(inputs), labels=labels, **options)
    return Sequences(inputs, labels=labels, **options)


def default_steps(kind: str | None, source: Any) -> int | None:
    """The default number of steps if the data determine it: the length of spike trains."""
    return spike_steps(source) if kind == "sequences" and is_array(source) else None
