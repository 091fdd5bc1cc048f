"""Readers of event files by suffix, and the names and order of the four columns of events."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from hibana.data.own import prophesee

__all__ = ["MOST_SIDE", "OF_SUFFIX", "check_columns", "is_headed", "ordered"]

NAMES = {"t": ("t", "ts", "time", "timestamp"), "x": ("x",), "y": ("y",), "p": ("p", "pol", "polarity", "on")}
"""Usual names of the columns of a recording."""
MOST_SIDE = 2048
"""Pixels of a sensor's side, at most; the largest event cameras have 1,280."""

Read = tuple["np.ndarray[Any, Any]", bool]
"""Events ``[N, 4]``, and whether the file names their columns; then they are t, x, y and p."""


def check_columns(columns: str) -> str:
    """`columns`, an order of the letters t, x, y and p.

    Raises:
        ValueError: if it is none.
    """
    if sorted(columns) != sorted("txyp"):
        raise ValueError(
            f"event_columns must be an order of t, x, y and p, such as xytp; got {columns[:20]!r}"
        )
    return columns


def ordered(events: "np.ndarray[Any, Any]", columns: str) -> "np.ndarray[Any, Any]":
    """`events` without column names as t, x, y, p; their order is `columns`, or ``txyp`` if that is empty.

    Raises:
        ValueError: if `columns` is empty and the values are no t, x, y, p: times that do not decrease, whole
            numbers below 2,048, and polarities of -1, 0 and 1.
    """
    if columns:
        return events[:, [columns.index(letter) for letter in "txyp"]]
    time, place, polarity = events[:, 0], events[:, 1:3], events[:, 3]
    places = ((place >= 0) & (place < MOST_SIDE) & (place == np.floor(place))).all()
    if not (places and (np.diff(time) >= 0).all() and np.isin(polarity, (-1, 0, 1)).all()):
        raise ValueError(
            "its columns have no names, and their values are not t x y p; give their order, such as "
            "--event-columns xytp, or name them in the file"
        )
    return events


def is_headed(path: Path) -> bool:
    """Whether the first line of a text file names the four columns of a recording, and no others."""
    try:
        with path.open(encoding="utf-8-sig", errors="replace") as file:
            names = [name.lower() for name in _cells(file.readline(1 << 10))]
    except OSError:  # reported when the file is read
        return False
    return len(names) == 4 and all(set(usual) & set(names) for usual in NAMES.values())


def _cells(line: str) -> list[str]:
    """The cells of a line, without the sign of a comment."""
    return line.lstrip("#% ").replace(",", " ").replace(";", " ").replace('"', " ").split()


def _named(columns: Iterable[str]) -> list[str]:
    """The columns of t, x, y and p, in this order.

    Raises:
        ValueError: if one is missing.
    """
    names = {str(name).lower(): name for name in columns}
    missing = [letter for letter, usual in NAMES.items() if not set(usual) & set(names)]
    if missing:
        raise ValueError(f"there is no {missing[0]!r} among {', '.join(names)}")
    return [next(names[name] for name in usual if name in names) for usual in NAMES.values()]


def _stacked(columns: Any, names: Iterable[str]) -> Read:
    return np.stack([columns[name][()].astype(np.float64) for name in _named(names)], axis=1), True


def _of_npy(path: Path) -> Read:
    with path.open("rb") as file:
        loaded = np.load(file, allow_pickle=False)
        if not isinstance(loaded, np.ndarray):
            return _stacked(loaded, loaded.files)
    return (
        (np.asarray(loaded, np.float64), False)
        if loaded.dtype.names is None
        else _stacked(loaded, loaded.dtype.names)
    )


def _of_text(path: Path) -> Read:
    lines = path.read_text(encoding="utf-8-sig").splitlines()
    first = _cells(lines[0]) if lines else []
    header = any(character.isalpha() for character in "".join(first).replace("e", ""))
    rows = [line.replace(",", " ").replace(";", " ") for line in lines[header:]]
    events = np.loadtxt(rows, dtype=np.float64, ndmin=2)
    if not header or (lines[0].startswith(("#", "%")) and not is_headed(path)):
        return events, False
    return events[:, [first.index(name) for name in _named(first)]], True


def _of_hdf5(path: Path) -> Read:
    import h5py

    with h5py.File(path) as file:
        for group in (file, *(file[name] for name in ("events", "CD/events") if name in file)):
            if isinstance(group, h5py.Dataset):
                names = group.dtype.names
                return _stacked(group[()], names) if names else (np.asarray(group[()], np.float64), False)
            if {"x", "y"} <= {name.lower() for name in group}:
                return _stacked(group, group)
        raise ValueError(f"there are only {', '.join(file)}")


def _of_aedat4(path: Path) -> Read:
    import aedat  # noqa: F401 - tonic does not name it if it is missing
    import tonic

    events = tonic.io.read_aedat4(str(path))
    return _stacked(events, events.dtype.names)


OF_SUFFIX: dict[str, Callable[[Path], Read]] = {
    **dict.fromkeys((".npy", ".npz"), _of_npy),
    **dict.fromkeys((".txt", ".csv"), _of_text),
    **dict.fromkeys((".h5", ".hdf5"), _of_hdf5),
    ".aedat4": _of_aedat4,
    ".raw": lambda path: (prophesee.raw(path), True),
    ".dat": lambda path: (prophesee.dat(path), True),
}
"""The reader of a file, by its suffix."""
