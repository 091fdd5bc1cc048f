"""Recordings of events ``(t, x, y, polarity)`` in folders by class, as spikes or counts in time bins."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from hibana.data.base import machine_memory
from hibana.data.user_data.arrays import load_numpy
from hibana.data.user_data.base import Inputs, UserData
from hibana.data.user_data.folders import labelled_files
from hibana.data.user_data.samples import MEMORY_SHARE, RawSamples, check_size, reading

Array = np.ndarray[Any, Any]

BINS = ("spikes", "counts")
"""A bin is 1 if it has at least one event, or holds their number."""
NAMES = {"t": ("t", "ts", "time", "timestamp"), "x": ("x",), "y": ("y",), "p": ("p", "pol", "polarity", "on")}
"""Usual names of the columns of a recording."""
MOST_SIDE = 2048
"""Maximum pixels of a sensor's side that is not an argument; the largest event cameras have 1,280."""
AT_ONCE = 512
"""Samples of a batch of evaluation, which are numbers of four bytes."""


@dataclass(frozen=True)
class EventInputs(Inputs):
    """The sensor's size, the duration of an input in the file's unit of time, and the bins of an input."""

    sequential = True
    height: int
    width: int
    polarities: int
    duration: float
    steps: int
    bins: str

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override] # a property instead of a field
        """The shape of one bin."""
        return (self.polarities, self.height, self.width)

    def tensor(self, values: Sequence[Any]) -> Tensor:
        """The recordings in bins, ``[N, steps, polarities, height, width]``, boolean or ``float32``.

        Raises ValueError if they and a copy, which the split makes, do not fit in the memory.
        """
        dtype = torch.bool if self.bins == "spikes" else torch.float32
        size = self.steps * math.prod(self.shape)
        needed = size * (2 * len(values) * dtype.itemsize + 4 * min(len(values), AT_ONCE))
        if needed > (most := MEMORY_SHARE * machine_memory()):
            raise ValueError(
                f"recordings in bins must fit in {most / 1e9:.1f} GB, {MEMORY_SHARE:.0%} of the memory; "
                f"{len(values):,} recordings of {self.steps} bins of {self.height}x{self.width} pixels and "
                f"{self.polarities} polarities take {needed / 1e9:.1f} GB: use fewer bins (--steps), or a "
                f"part of the sensor (--size)"
            )
        inputs = torch.zeros((len(values), self.steps, *self.shape), dtype=dtype, device="cpu")
        for bins, events in zip(inputs.flatten(1), values, strict=True):
            index = self._bin_indices(events)
            if dtype == torch.bool:
                bins[index] = True
            else:
                bins.scatter_add_(0, index, torch.ones_like(index, dtype=dtype))
        return inputs

    def _bin_indices(self, events: Any) -> Tensor:
        """The index of the bin of each event of a recording that is within the input; ``int64``."""
        t, x, y, p = events.T
        step = np.floor((t - t.min()) / self.duration * self.steps).astype(np.int64)
        step = np.where(t - t.min() == self.duration, self.steps - 1, step)
        is_inside = (step < self.steps) & (x < self.width) & (y < self.height) & (p < self.polarities)
        index = ((step * self.polarities + p) * self.height + y) * self.width + x
        return torch.from_numpy(index[is_inside].astype(np.int64))

    def difference_from_training(self, values: Sequence[Any]) -> str:
        """A clause on the first recording of another length than in training; empty if there is none."""
        for events in values:
            t, x, y, _ = events.T
            if x.max() >= self.width or y.max() >= self.height:
                place, sensor = (int(x.max()), int(y.max())), f"{self.height}x{self.width}"
                raise ValueError(f"recordings must be of a sensor of {sensor}, got an event at {place}")
            length = float(t.max() - t.min())
            if not self.duration / 20 < length < self.duration * 20:
                return f"it lasts {length:g}; the network was trained for recordings of {self.duration:g}"
        return ""


@final
class Events(UserData):
    """Recordings of an event camera: ``class/name`` as ``.aedat4``, ``.npy``, ``.npz``, ``.h5`` or text.

    Each input starts at the first event of its recording, and is at least as long as nine of ten training
    recordings. This time is cut into `steps` bins of equal width. The sensor is as large as the largest
    coordinates.

    Args:
        source: the folder.
        bins: ``spikes``: 1 if a bin has at least one event; ``counts``: the number of events.
        size: height and width of the sensor, or one number for both; the largest coordinates, which must be
            below 2,048, if ``None``. Events outside of it are left out.
        options: see :class:`UserData`; `steps` is the number of bins.
    """

    kind = "events"
    inputs = EventInputs
    usual_steps = 25

    def __init__(
        self, source: Any, *, bins: str = "spikes", size: int | tuple[int, int] | None = None, **options: Any
    ) -> None:
        super().__init__(source, **options)
        if bins not in BINS:
            raise ValueError(f"bins must be one of {', '.join(BINS)}; got {bins!r}")
        self.bins = bins
        self.size = (size, size) if isinstance(size, int) else size

    def read(self, source: Any) -> RawSamples:
        """The events of each recording in the folder `source`."""
        raw = labelled_files(Path(source), SUFFIXES, "recordings")
        first = raw.values[0]
        raw.values = [read_events(path) for path in raw.values]
        raw.summary = f"{len(raw.values):,} recordings, {sum(map(len, raw.values)):,} events"
        if first.suffix.lower() == ".csv" and has_event_header(first):
            raw.summary += " by the names of their columns (--kind sequences if they are none)"
        return raw

    def learn(self, raw: RawSamples, training: Sequence[int]) -> Inputs:
        """The size of the sensor, and the duration of nine of ten training recordings."""
        lengths = sorted(float(np.ptp(raw.values[index][:, 0])) for index in training)
        duration = lengths[min(len(lengths) - 1, len(lengths) * 9 // 10)]
        if duration <= 0:
            raise ValueError("recordings must have a duration, all events of these have the same time")
        if self.size is None:
            self._check_sensor(raw)
        # columns 1, 2 and 3 of the events are x, y and the polarity
        width, height, polarities = (
            int(max(events[:, k].max() for events in raw.values)) + 1 for k in (1, 2, 3)
        )
        height, width = self.size or (height, width)
        raw.summary += f" on {height}x{width} pixels, {self.steps} bins of {duration / self.steps:.4g}"
        return EventInputs(height, width, min(polarities, 2), duration, self.steps, self.bins)

    def _check_sensor(self, raw: RawSamples) -> None:
        """Raises a ValueError that names a recording with an event beyond the largest sensors."""
        for name, events in zip(raw.names, raw.values, strict=True):
            x, y = events[:, 1:3].max(axis=0)
            if max(x, y) >= MOST_SIDE:
                raise ValueError(
                    f"recording {name} of {self.source_name} has an event at {max(x, y):.0f} pixels; sensors "
                    f"have at most {MOST_SIDE:,} on a side unless their size is named (--size), which leaves "
                    f"events outside of it out"
                )


def read_events(path: Path) -> Array:
    """The events in a file, ``[events, 4]``: time, column, row, polarity 0 or 1; in order of time.

    Raises:
        ValueError: if the file can't be read as events.
        ModuleNotFoundError: if the library for its format is not installed.
    """
    with reading(f"recording {path} of events t, x, y, p"):
        content = _READERS[path.suffix.lower()](path)
        names = content.dtype.names if isinstance(content, np.ndarray) else list(content)
        if names:
            events = np.stack([content[name].astype(np.float64) for name in _event_columns(names)], axis=1)
        else:
            events = np.asarray(content, np.float64)
        if events.ndim != 2 or events.shape[1] != 4 or len(events) == 0:
            raise ValueError(f"it has the shape {events.shape}")
        if not names and not _are_txyp(events):
            raise ValueError(
                "its columns have no names, and their values are not t x y p; name the columns in the file, "
                "such as x,y,t,p in the first line of a text file"
            )
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
                check_size(path, group.nbytes)
                return group[()]
            if {"x", "y"} <= {name.lower() for name in group}:
                names = _event_columns(group)
                check_size(path, sum(group[name].nbytes for name in names))
                return {name: group[name][()] for name in names}
        raise ValueError(f"there are only {', '.join(file)}")


def _read_aedat4(path: Path) -> Any:
    """The structured array of events in an AEDAT4 file."""
    import aedat  # noqa: F401 - without it tonic's error does not name the package
    import tonic

    return tonic.io.read_aedat4(str(path))


_READERS: dict[str, Callable[[Path], Any]] = {
    **dict.fromkeys((".npy", ".npz"), load_numpy),
    **dict.fromkeys((".txt", ".csv"), _read_text),
    **dict.fromkeys((".h5", ".hdf5"), _read_hdf5),
    ".aedat4": _read_aedat4,
}
"""Functions that return columns by name, or an array of columns without names."""
SUFFIXES = tuple(_READERS)
