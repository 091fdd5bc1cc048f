"""Recordings of events ``(t, x, y, polarity)`` in folders by class, as spikes or counts in time bins."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from hibana.data.base import memory
from hibana.data.own import columns as order
from hibana.data.own.base import Inputs, Own, Raw
from hibana.data.own.folders import Found, by_class

__all__ = ["BINS", "SUFFIXES", "EventInputs", "Events", "is_headed", "recording"]

SUFFIXES = (".npy", ".npz", ".aedat4", ".h5", ".hdf5", ".txt", ".csv")
BINS = ("spikes", "counts")
"""What a bin holds: 1 where at least one event fell into it, or how many did."""
SHARE, AT_ONCE = 0.5, 512
"""The most of the memory that binned recordings may take, with a copy of all and so many as floats."""


@dataclass(frozen=True)
class EventInputs(Inputs):
    """A sensor's size, how long a recording is in the file's unit of time, and into what bins it is cut."""

    sequential = True
    height: int
    width: int
    polarities: int
    duration: float
    steps: int
    bins: str
    columns: str = ""
    """The order of those that files do not name; as their values say if empty."""

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override] # a frozen dataclass has no attribute for it
        """Of one bin."""
        return (self.polarities, self.height, self.width)

    def read(self, source: Any, label: str | None = None) -> Raw:
        found = by_class(Path(source), SUFFIXES, "recordings")
        return Raw(_recordings(found, self.columns)[0], found.labels, found.names)

    def tensor(self, values: Sequence[Any]) -> Tensor:
        shape = (len(values), self.steps, *self.shape)
        dtype = torch.bool if self.bins == "spikes" else torch.float32
        each, at_once = math.prod(shape[1:]), min(len(values), AT_ONCE)
        wanted, most = each * (2 * len(values) * dtype.itemsize + 4 * at_once), SHARE * memory()
        if wanted > most:
            raise ValueError(
                f"recordings in bins must fit in {most / 1e9:.1f} GB, {SHARE:.0%} of the memory; "
                f"{len(values):,} recordings of {self.steps} bins of {self.height}x{self.width} pixels and "
                f"{self.polarities} polarities take {wanted / 1e9:.1f} GB: give fewer steps, or the size of "
                f"a part of the sensor"
            )
        made = torch.empty(shape, dtype=dtype, device="cpu")
        for place, events in zip(made, values, strict=True):
            place.copy_(self._binned(events))
        return made

    def _binned(self, events: Any) -> Tensor:
        """One recording, ``[steps, polarities, height, width]``; what lies after `duration` is left out."""
        t, x, y, p = events.T
        step = np.floor((t - t.min()) / self.duration * self.steps).astype(np.int64)
        step = np.where(t - t.min() == self.duration, self.steps - 1, step)
        kept = (step < self.steps) & (x < self.width) & (y < self.height) & (p < self.polarities)
        place = (((step * self.polarities + p) * self.height + y) * self.width + x)[kept].astype(np.int64)
        size = self.steps * self.polarities * self.height * self.width
        counted = torch.from_numpy(np.bincount(place, minlength=size))
        shaped = counted.reshape(self.steps, *self.shape)
        return shaped > 0 if self.bins == "spikes" else shaped.float()

    def unlike(self, values: Sequence[Any]) -> str:
        for events in values:
            t, x, y, _ = events.T
            if x.max() >= self.width or y.max() >= self.height:
                raise ValueError(
                    f"recordings must be of a sensor of {self.height}x{self.width}, "
                    f"got an event at ({int(x.max())}, {int(y.max())})"
                )
            length = float(t.max() - t.min())
            if not self.duration / 20 < length < self.duration * 20:
                return f"it lasts {length:g}; what was trained on is taken to last {self.duration:g}"
        return ""


@final
class Events(Own):
    """Recordings of an event camera: ``class/name`` as ``.npy``, ``.aedat4``, ``.h5`` or text.

    Columns are as the file names them; where it does not, their order is the one that their values allow, in
    all files together: times grow, a polarity has two values, places are whole numbers below 2,048.

    Each begins at its first event and lasts as long as nine tenths of the training part do; that time is cut
    into `steps` bins of equal width. The sensor is as large as the largest coordinate says.

    Args:
        source: the folder.
        bins: ``spikes``: 1 where at least one event fell; ``counts``: how many.
        size: height and width of the sensor, or one for both; as seen if ``None``.
        columns: order of the columns that files do not name, such as ``xytp``; as their values say if
            ``None``.
        options: see :class:`Own`; `steps` is the number of bins.
    """

    kind = "events"
    usual_steps = 25

    def __init__(
        self,
        source: Any,
        *,
        bins: str = "spikes",
        size: int | tuple[int, int] | None = None,
        columns: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(source, **options)
        if bins not in BINS:
            raise ValueError(f"bins must be one of {', '.join(BINS)}; got {bins!r}")
        self.bins = bins
        self.size = (size, size) if isinstance(size, int) else size
        self.columns = "" if columns is None else order.check(columns)

    def read(self, source: Any) -> Raw:
        found = by_class(Path(source), SUFFIXES, "recordings")
        values, used = _recordings(found, self.columns)
        if self.columns and not used:
            raise ValueError(f"event_columns is of files that do not name them; those of {self.called} do")
        summary = f"{len(values):,} recordings, {sum(map(len, values)):,} events"
        if found.files[0].suffix.lower() == ".csv" and is_headed(found.files[0]):
            summary += " by the names of their columns (--kind sequences if they are none)"
        elif used:
            guess = "" if self.columns else ", as their values say (--event-columns if not)"
            summary += f" with the columns {' '.join(used)}{guess}"
        self.columns = used
        return Raw(values, found.labels, found.names, summary, found.parts)

    def learn(self, raw: Raw, training: Sequence[int]) -> Inputs:
        lengths = sorted(float(np.ptp(raw.values[index][:, 0])) for index in training)
        duration = lengths[min(len(lengths) - 1, len(lengths) * 9 // 10)]
        if duration <= 0:
            raise ValueError("recordings must last, the events of these are all at one time")
        width, height, last = (int(max(events[:, k].max() for events in raw.values)) + 1 for k in (1, 2, 3))
        if self.size is not None:
            height, width = self.size
        elif max(height, width) > order.MOST_SIDE:
            used = f"; are the columns {self.columns}?" if self.columns else ""
            raise ValueError(
                f"recordings must be of a sensor of at most {order.MOST_SIDE:,} pixels a side, unless its "
                f"size is given; got events on {height}x{width}{used}"
            )
        raw.summary += f" on {height}x{width} pixels, {self.steps} bins of {duration / self.steps:.4g}"
        return EventInputs(height, width, min(last, 2), duration, self.steps, self.bins, self.columns)


def _recordings(found: Found, columns: str) -> tuple[list["np.ndarray[Any, Any]"], str]:
    """The events in each file, as :func:`recording` gives them, and the order of columns without names.

    That is `columns`, or if empty the one that the values allow; empty if all files name theirs.
    """
    read = [_read(path) for path in found.files]
    unnamed = [events for events, named in read if not named]
    used = (columns or order.order(unnamed)) if unnamed else ""
    places = [used.index(letter) for letter in "txyp"] if used else []
    return [
        _checked(path, events if named else events[:, places])
        for path, (events, named) in zip(found.files, read, strict=True)
    ], used


def recording(path: Path, columns: str = "") -> "np.ndarray[Any, Any]":
    """The events in a file, ``[events, 4]``: time, column, row, polarity 0 or 1; in order of time.

    Args:
        path: of the file.
        columns: their order, where the file does not name them; as their values say if empty.

    Raises:
        ValueError: if it can't be read as events.
        ModuleNotFoundError: if what reads its format is not installed.
    """
    return _recordings(Found([path], None, [path.name], None), columns)[0][0]


def _read(path: Path) -> tuple["np.ndarray[Any, Any]", bool]:
    """The events in a file, and whether it names their columns, which then are t, x, y and p."""
    try:
        events, named = _OF_SUFFIX[path.suffix.lower()](path)
    except (OSError, KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"recording {path} can't be read: {reason}") from error
    except ValueError as error:
        raise ValueError(f"recording {path} must hold events t, x, y, p: {error}") from error
    if events.ndim != 2 or events.shape[1] != 4 or len(events) == 0:
        raise ValueError(f"recording {path} must hold events t, x, y, p, got the shape {events.shape}")
    return events, named


def _checked(path: Path, events: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
    """Events t, x, y, p in order of time, if all are numbers, and those of places not below 0."""
    wrong = ~np.isfinite(events) | (np.arange(4) > 0) & (events < 0)
    events[:, 3] = events[:, 3] > 0  # some write -1 for off
    wrong[:, 3] = ~np.isfinite(events[:, 3])
    if wrong.any():
        row, column = (int(axis[0]) for axis in np.nonzero(wrong))
        raise ValueError(
            f"recording {path}: event {row + 1} has {events[row, column]} as its {'txyp'[column]}"
        )
    ordered: np.ndarray[Any, Any] = events[np.argsort(events[:, 0], kind="stable")]
    return ordered


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


_OF_SUFFIX = {
    **dict.fromkeys((".npy", ".npz"), _of_npy),
    **dict.fromkeys((".txt", ".csv"), _of_text),
    **dict.fromkeys((".h5", ".hdf5"), _of_hdf5),
    ".aedat4": _of_aedat4,
}
