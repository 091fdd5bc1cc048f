"""Recordings of events in files of many formats, as arrays ``[events, 4]`` of time, column, row, polarity."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from hibana.data.user_data import prophesee
from hibana.data.user_data.arrays import UNREADABLE

__all__ = ["MOST_SIDE", "SUFFIXES", "check_columns", "is_headed", "read_events"]

NAMES = {"t": ("t", "ts", "time", "timestamp"), "x": ("x",), "y": ("y",), "p": ("p", "pol", "polarity", "on")}
"""Usual names of the columns of a recording."""
MOST_SIDE = 2048
"""Pixels of a sensor's side, at most; the largest event cameras have 1,280."""

Array = np.ndarray[Any, Any]


def read_events(path: Path, columns: str = "") -> Array:
    """The events in a file, ``[events, 4]``: time, column, row, polarity 0 or 1; in order of time.

    Args:
        path: of the file.
        columns: order of columns without names; ``txyp`` if empty.

    Raises:
        ValueError: if it can't be read as events.
        ModuleNotFoundError: if the library for its format is not installed.
    """
    try:
        content = _READERS[path.suffix.lower()](path)
        names = content.dtype.names if isinstance(content, np.ndarray) else list(content)
        if names:
            events = np.stack([content[name].astype(np.float64) for name in _named(names)], axis=1)
        else:
            events = np.asarray(content, np.float64)
        if events.ndim != 2 or events.shape[1] != 4 or len(events) == 0:
            raise ValueError(f"it has the shape {events.shape}")  # noqa: TRY301 - completed below
        events = events if names else _ordered(events, columns)
    except ValueError as error:
        raise ValueError(f"recording {path} must hold events t, x, y, p: {error}") from error
    except UNREADABLE as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"recording {path} can't be read: {reason}") from error
    wrong = ~np.isfinite(events) | (np.arange(4) > 0) & (events < 0)
    wrong[:, 3] = ~np.isfinite(events[:, 3])
    events[:, 3] = events[:, 3] > 0  # some files write -1 for off
    if wrong.any():
        row, column = (int(axis[0]) for axis in np.nonzero(wrong))
        raise ValueError(
            f"recording {path}: event {row + 1} has {events[row, column]} as its {'txyp'[column]}"
        )
    in_order: Array = events[np.argsort(events[:, 0], kind="stable")]
    return in_order


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


def is_headed(path: Path) -> bool:
    """Whether the first line of a text file names the four columns of a recording, and no others."""
    try:
        with path.open(encoding="utf-8-sig", errors="replace") as file:
            names = [name.lower() for name in _cells(file.readline(1 << 10))]
    except OSError:  # reported when the file is read
        return False
    return len(names) == 4 and all(set(usual) & set(names) for usual in NAMES.values())


def _ordered(events: Array, columns: str) -> Array:
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


def _cells(line: str) -> list[str]:
    """The cells of a line, without the sign of a comment."""
    return line.lstrip("#% ").replace(",", " ").replace(";", " ").replace('"', " ").split()


def _of_npy(path: Path) -> Any:
    with path.open("rb") as file:
        loaded = np.load(file, allow_pickle=False)
        return loaded if isinstance(loaded, np.ndarray) else dict(loaded)


def _of_text(path: Path) -> Any:
    lines = path.read_text(encoding="utf-8-sig").splitlines()
    names = _cells(lines[0]) if lines else []
    header = any(character.isalpha() for character in "".join(names).replace("e", ""))
    rows = [line.replace(",", " ").replace(";", " ") for line in lines[header:]]
    events = np.loadtxt(rows, dtype=np.float64, ndmin=2)
    is_remark = lines[0].startswith(("#", "%")) and not is_headed(path) if lines else False
    return dict(zip(names, events.T, strict=False)) if header and not is_remark else events


def _of_hdf5(path: Path) -> Any:
    import h5py

    with h5py.File(path) as file:
        for group in (file, *(file[name] for name in ("events", "CD/events") if name in file)):
            if isinstance(group, h5py.Dataset):
                return group[()]
            if {"x", "y"} <= {name.lower() for name in group}:
                return {name: group[name][()] for name in _named(group)}
        raise ValueError(f"there are only {', '.join(file)}")


def _of_aedat4(path: Path) -> Any:
    import aedat  # noqa: F401 - tonic does not name it if it is missing
    import tonic

    return tonic.io.read_aedat4(str(path))


_READERS: dict[str, Callable[[Path], Any]] = {
    **dict.fromkeys((".npy", ".npz"), _of_npy),
    **dict.fromkeys((".txt", ".csv"), _of_text),
    **dict.fromkeys((".h5", ".hdf5"), _of_hdf5),
    ".aedat4": _of_aedat4,
    ".raw": prophesee.raw,
    ".dat": prophesee.dat,
}
"""Functions that return columns by name, or an array of columns without names."""
SUFFIXES = tuple(_READERS)
