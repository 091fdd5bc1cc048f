"""Recordings of events ``(t, x, y, polarity)`` in folders by class, as spikes or counts in time bins."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from hibana.data.own.base import Inputs, Own, Raw
from hibana.data.own.folders import by_class

__all__ = ["BINS", "SUFFIXES", "EventInputs", "Events", "is_headed", "recording"]

SUFFIXES = (".npy", ".npz", ".aedat4", ".h5", ".hdf5", ".txt", ".csv")
BINS = ("spikes", "counts")
"""What a bin holds: 1 where at least one event fell into it, or how many did."""
NAMES = {"t": ("t", "ts", "time", "timestamp"), "x": ("x",), "y": ("y",), "p": ("p", "pol", "polarity", "on")}
"""What the columns of a recording are called."""


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

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override] # a frozen dataclass has no attribute for it
        """Of one bin."""
        return (self.polarities, self.height, self.width)

    def read(self, source: Any, label: str | None = None) -> Raw:
        found = by_class(Path(source), SUFFIXES, "recordings")
        return Raw([recording(path) for path in found.files], found.labels, found.names)

    def tensor(self, values: Sequence[Any]) -> Tensor:
        return torch.stack([self._binned(events) for events in values])

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

    The columns of text are as its first line names them, or ``t x y p``.

    Each begins at its first event and lasts as long as nine tenths of the training part do; that time is cut
    into `steps` bins of equal width. The sensor is as large as the largest coordinate says.

    Args:
        source: the folder.
        bins: ``spikes``: 1 where at least one event fell; ``counts``: how many.
        size: height and width of the sensor, or one for both; as seen if ``None``.
        options: see :class:`Own`; `steps` is the number of bins.
    """

    kind = "events"
    usual_steps = 25

    def __init__(
        self, source: Any, *, bins: str = "spikes", size: int | tuple[int, int] | None = None, **options: Any
    ) -> None:
        super().__init__(source, **options)
        if bins not in BINS:
            raise ValueError(f"bins must be one of {', '.join(BINS)}; got {bins!r}")
        self.bins = bins
        self.size = (size, size) if isinstance(size, int) else size

    def read(self, source: Any) -> Raw:
        found = by_class(Path(source), SUFFIXES, "recordings")
        values = [recording(path) for path in found.files]
        told = f"{len(values):,} recordings, {sum(map(len, values)):,} events"
        if found.files[0].suffix.lower() == ".csv" and is_headed(found.files[0]):
            told += " by the names of their columns (--kind sequences if they are none)"
        return Raw(values, found.labels, found.names, told, found.parts)

    def learn(self, raw: Raw, training: Sequence[int]) -> Inputs:
        lengths = sorted(float(np.ptp(raw.values[index][:, 0])) for index in training)
        duration = lengths[min(len(lengths) - 1, len(lengths) * 9 // 10)]
        if duration <= 0:
            raise ValueError("recordings must last, the events of these are all at one time")
        width, height, last = (int(max(events[:, k].max() for events in raw.values)) + 1 for k in (1, 2, 3))
        if self.size is not None:
            height, width = self.size
        raw.told += f" on {height}x{width} pixels, {self.steps} bins of {duration / self.steps:.4g}"
        return EventInputs(height, width, min(last, 2), duration, self.steps, self.bins)


def recording(path: Path) -> "np.ndarray[Any, Any]":
    """The events in a file, ``[events, 4]``: time, column, row, polarity 0 or 1; in order of time.

    Raises:
        ValueError: if it can't be read as events.
        ModuleNotFoundError: if what reads its format is not installed.
    """
    try:
        events = _OF_SUFFIX[path.suffix.lower()](path)
    except (OSError, KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"recording {path} can't be read: {reason}") from error
    except ValueError as error:
        raise ValueError(f"recording {path} must hold events t, x, y, p: {error}") from error
    if events.ndim != 2 or events.shape[1] != 4 or len(events) == 0:
        raise ValueError(f"recording {path} must hold events t, x, y, p, got the shape {events.shape}")
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
    if not len(names) == len(second) == 4 or not all(set(called) & set(names) for called in NAMES.values()):
        return False
    of_time = next(place for place, name in enumerate(names) if name in NAMES["t"])
    return all(_is_whole(cell) for place, cell in enumerate(second) if place != of_time)


def _is_whole(cell: str) -> bool:
    try:
        return float(cell).is_integer()
    except ValueError:
        return False


def _cells(line: str) -> list[str]:
    """What stands between commas, semicolons, tabs and spaces; a remark's sign is left out."""
    return line.lstrip("#% ").replace(",", " ").replace(";", " ").replace('"', " ").split()


def _joined(columns: Any) -> list[str]:
    """What the four columns of something that has them by name are called."""
    names = {str(name).lower(): name for name in columns}
    kept = []
    for wanted, called in NAMES.items():
        found = [names[name] for name in called if name in names]
        if not found:
            raise ValueError(f"there is no {wanted!r} among {', '.join(names)}")
        kept.append(found[0])
    return kept


def _of_npy(path: Path) -> "np.ndarray[Any, Any]":
    if path.suffix.lower() == ".npz":
        with path.open("rb") as file, np.load(file, allow_pickle=False) as loaded:
            return np.stack([loaded[name].astype(np.float64) for name in _joined(loaded.files)], axis=1)
    loaded = np.load(path, allow_pickle=False)
    if loaded.dtype.names is None:
        return np.asarray(loaded, np.float64)
    return np.stack([loaded[name].astype(np.float64) for name in _joined(loaded.dtype.names)], axis=1)


def _of_text(path: Path) -> "np.ndarray[Any, Any]":
    lines = path.read_text(encoding="utf-8-sig").splitlines()
    first = _cells(lines[0]) if lines else []
    header = any(character.isalpha() for character in "".join(first).replace("e", ""))
    rows = [line.replace(",", " ").replace(";", " ") for line in lines[header:]]
    read = np.loadtxt(rows, dtype=np.float64, ndmin=2)
    if not header or (lines[0].startswith(("#", "%")) and not is_headed(path)):
        return read
    places = [first.index(name) for name in _joined(first)]
    return read[:, places]


def _of_hdf5(path: Path) -> "np.ndarray[Any, Any]":
    import h5py

    with h5py.File(path) as file:
        groups = [file, *(file[name] for name in ("events", "CD/events") if name in file)]
        for group in groups:
            if isinstance(group, h5py.Dataset):
                if group.dtype.names is None:
                    return np.asarray(group[()], np.float64)
                read = group[()]
                return np.stack(
                    [read[name].astype(np.float64) for name in _joined(group.dtype.names)], axis=1
                )
            if {"x", "y"} <= {name.lower() for name in group}:
                return np.stack([group[name][()].astype(np.float64) for name in _joined(group)], axis=1)
        raise ValueError(f"there are only {', '.join(file)}")


def _of_aedat4(path: Path) -> "np.ndarray[Any, Any]":
    import aedat  # noqa: F401 - said as missing, as tonic would not
    import tonic

    read = tonic.io.read_aedat4(str(path))
    return np.stack([read[name].astype(np.float64) for name in _joined(read.dtype.names)], axis=1)


_OF_SUFFIX = {
    **dict.fromkeys((".npy", ".npz"), _of_npy),
    **dict.fromkeys((".txt", ".csv"), _of_text),
    **dict.fromkeys((".h5", ".hdf5"), _of_hdf5),
    ".aedat4": _of_aedat4,
}
