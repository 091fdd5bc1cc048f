"""Readers of recordings of events: files as arrays ``[events, 4]`` of time, column, row and polarity."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

NAMES = {"t": ("t", "ts", "time", "timestamp"), "x": ("x",), "y": ("y",), "p": ("p", "pol", "polarity", "on")}
"""Usual names of the columns of a recording."""
MOST_SIDE = 2048
"""Maximum pixels of a sensor's side; the largest event cameras have 1,280."""

Array = np.ndarray[Any, Any]


def read_events(path: Path) -> Array:
    """The events in a file, ``[events, 4]``: time, column, row, polarity 0 or 1; in order of time.

    Raises:
        ValueError: if the file can't be read as events.
        ModuleNotFoundError: if the library for its format is not installed.
    """
    try:
        content = _READERS[path.suffix.lower()](path)
        names = content.dtype.names if isinstance(content, np.ndarray) else list(content)
        if names:
            events = np.stack([content[name].astype(np.float64) for name in _event_columns(names)], axis=1)
        else:
            events = np.asarray(content, np.float64)
        if events.ndim != 2 or events.shape[1] != 4 or len(events) == 0:
            raise ValueError(f"it has the shape {events.shape}")  # noqa: TRY301 - completed below
        if not names and not _are_txyp(events):
            raise ValueError(  # noqa: TRY301 - completed below
                "its columns have no names, and their values are not t x y p; name the columns in the file, "
                "such as x,y,t,p in the first line of a text file"
            )
    except ImportError:
        raise
    except Exception as error:  # the readers raise many types for damaged files
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"recording {path} must hold events t, x, y, p: {reason}") from error
    is_invalid = ~np.isfinite(events)
    is_invalid[:, 1:3] |= events[:, 1:3] < 0
    if is_invalid.any():
        row, column = np.argwhere(is_invalid)[0].tolist()
        raise ValueError(
            f"recording {path}: event {row + 1} has {events[row, column]} as its {'txyp'[column]}"
        )
    events[:, 3] = events[:, 3] > 0  # some files write -1 for off
    in_order: Array = events[np.argsort(events[:, 0], kind="stable")]
    return in_order


def has_event_header(path: Path) -> bool:
    """Whether the first line of a text file names the four columns of a recording, and no others."""
    try:
        with path.open(encoding="utf-8-sig", errors="replace") as file:
            names = _cells(file.readline(1 << 10))
        return len(_event_columns(names)) == len(names)
    except (OSError, ValueError):  # an OSError is reported when the file is read
        return False


def _are_txyp(events: Array) -> bool:
    """Whether the columns may be t, x, y, p: non-decreasing times, pixels, polarities -1, 0 and 1."""
    time, place, polarity = events[:, 0], events[:, 1:3], events[:, 3]
    are_pixels = ((place >= 0) & (place < MOST_SIDE) & (place == np.floor(place))).all()
    return bool(are_pixels and (np.diff(time) >= 0).all() and np.isin(polarity, (-1, 0, 1)).all())


def _event_columns(columns: Iterable[str]) -> list[str]:
    """The names of the columns of t, x, y and p, in this order; raises ValueError if one is missing."""
    names = {str(name).lower(): name for name in columns}
    present = {letter: [name for name in usual if name in names] for letter, usual in NAMES.items()}
    if missing := [letter for letter in present if not present[letter]]:
        raise ValueError(f"there is no {missing[0]!r} among {', '.join(names)}")
    return [names[usual[0]] for usual in present.values()]


def _cells(line: str) -> list[str]:
    """The cells of a line, without the mark of a comment before them."""
    return line.lstrip("#% ").replace(",", " ").replace(";", " ").replace('"', " ").split()


def _read_npy(path: Path) -> Any:
    """The array in an ``.npy`` file, or the arrays in an ``.npz`` file by name."""
    with path.open("rb") as file:
        loaded = np.load(file, allow_pickle=False)
        return loaded if isinstance(loaded, np.ndarray) else dict(loaded)


def _read_text(path: Path) -> Any:
    """The columns by name if the first line names them, else an array ``[events, columns]``."""
    lines = path.read_text(encoding="utf-8-sig").splitlines() or [""]
    names = _cells(lines[0])
    has_words = any(character.isalpha() for character in "".join(names).replace("e", ""))
    rows = [line.replace(",", " ").replace(";", " ") for line in lines[has_words:]]
    events = np.loadtxt(rows, dtype=np.float64, ndmin=2)
    is_comment = lines[0].startswith(("#", "%")) and not has_event_header(path)
    return dict(zip(names, events.T, strict=False)) if has_words and not is_comment else events


def _read_hdf5(path: Path) -> Any:
    """The columns t, x, y and p by name, or the array of events, in an HDF5 file."""
    import h5py

    with h5py.File(path) as file:
        for group in (file, *(file[name] for name in ("events", "CD/events") if name in file)):
            if isinstance(group, h5py.Dataset):
                return group[()]
            if {"x", "y"} <= {name.lower() for name in group}:
                return {name: group[name][()] for name in _event_columns(group)}
        raise ValueError(f"there are only {', '.join(file)}")


def _read_aedat4(path: Path) -> Any:
    """The structured array of events in an AEDAT4 file."""
    import aedat  # noqa: F401 - without it tonic's error does not name the package
    import tonic

    return tonic.io.read_aedat4(str(path))


_READERS: dict[str, Callable[[Path], Any]] = {
    **dict.fromkeys((".npy", ".npz"), _read_npy),
    **dict.fromkeys((".txt", ".csv"), _read_text),
    **dict.fromkeys((".h5", ".hdf5"), _read_hdf5),
    ".aedat4": _read_aedat4,
}
"""Functions that return columns by name, or an array of columns without names."""
SUFFIXES = tuple(_READERS)
