"""Files of events, by their endings: what they hold, and whether they name their columns.

Nothing here knows in what order columns without names are, or whether events make sense.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from hibana.data.own import columns as order
from hibana.data.own import prophesee

__all__ = ["OF_SUFFIX", "is_headed"]


def is_headed(path: Path) -> bool:
    """Whether the first line of a text file names the four columns of a recording, and no others.

    In the line below, place and polarity must be whole numbers: ``x``, ``y`` and ``p`` name other things too.
    """
    try:
        with path.open(encoding="utf-8-sig", errors="replace") as file:
            first, second = (_cells(file.readline(1 << 10)) for _ in range(2))
    except OSError:  # whoever reads the file next says so
        return False
    names = [name.lower() for name in first]
    if not len(names) == len(second) == 4 or not all(
        set(called) & set(names) for called in order.NAMES.values()
    ):
        return False
    of_time = next(place for place, name in enumerate(names) if name in order.NAMES["t"])
    return all(_is_whole(cell) for place, cell in enumerate(second) if place != of_time)


def _is_whole(cell: str) -> bool:
    try:
        return float(cell).is_integer()
    except ValueError:
        return False


def _cells(line: str) -> list[str]:
    """What stands between commas, semicolons, tabs and spaces; a remark's sign is left out."""
    return line.lstrip("#% ").replace(",", " ").replace(";", " ").replace('"', " ").split()


Read = tuple["np.ndarray[Any, Any]", bool]
"""Events, and whether their columns are named, and so t, x, y and p."""


def _of_npy(path: Path) -> Read:
    if path.suffix.lower() == ".npz":
        with path.open("rb") as file, np.load(file, allow_pickle=False) as loaded:
            return _stacked(loaded, loaded.files)
    loaded = np.load(path, allow_pickle=False)
    if loaded.dtype.names is None:
        return np.asarray(loaded, np.float64), False
    return _stacked(loaded, loaded.dtype.names)


def _stacked(columns: Any, names: Iterable[str]) -> Read:
    return np.stack([columns[name][()].astype(np.float64) for name in order.named(names)], axis=1), True


def _of_text(path: Path) -> Read:
    lines = path.read_text(encoding="utf-8-sig").splitlines()
    first = _cells(lines[0]) if lines else []
    header = any(character.isalpha() for character in "".join(first).replace("e", ""))
    rows = [line.replace(",", " ").replace(";", " ") for line in lines[header:]]
    read = np.loadtxt(rows, dtype=np.float64, ndmin=2)
    if not header or (lines[0].startswith(("#", "%")) and not is_headed(path)):
        return read, False
    places = [first.index(name) for name in order.named(first)]
    return read[:, places], True


def _of_hdf5(path: Path) -> Read:
    import h5py

    with h5py.File(path) as file:
        groups = [file, *(file[name] for name in ("events", "CD/events") if name in file)]
        for group in groups:
            if isinstance(group, h5py.Dataset):
                if group.dtype.names is None:
                    return np.asarray(group[()], np.float64), False
                return _stacked(group[()], group.dtype.names)
            if {"x", "y"} <= {name.lower() for name in group}:
                return _stacked(group, group)
        raise ValueError(f"there are only {', '.join(file)}")


def _of_aedat4(path: Path) -> Read:
    import aedat  # noqa: F401 - said as missing, as tonic would not
    import tonic

    read = tonic.io.read_aedat4(str(path))
    return _stacked(read, read.dtype.names)


def _of_raw(path: Path) -> Read:
    return prophesee.raw(path), True


def _of_dat(path: Path) -> Read:
    return prophesee.dat(path), True


OF_SUFFIX = {
    **dict.fromkeys((".npy", ".npz"), _of_npy),
    **dict.fromkeys((".txt", ".csv"), _of_text),
    **dict.fromkeys((".h5", ".hdf5"), _of_hdf5),
    ".aedat4": _of_aedat4,
    ".raw": _of_raw,
    ".dat": _of_dat,
}
"""What reads a file, by what its name ends in."""
