"""Recordings of events ``(t, x, y, polarity)`` in folders by class, as spikes or counts in time bins."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from hibana.data import arrays
from hibana.data.base import memory
from hibana.data.own import columns as order
from hibana.data.own.base import Inputs, Own, Raw
from hibana.data.own.denoise import supported
from hibana.data.own.event_files import OF_SUFFIX, is_headed
from hibana.data.own.folders import Found, by_class

__all__ = ["BINS", "SPLITS", "SUFFIXES", "EventInputs", "Events", "check_denoise", "recording"]

SUFFIXES = tuple(OF_SUFFIX)
BINS = ("spikes", "counts")
"""What a bin holds: 1 where at least one event fell into it, or how many did."""
SPLITS = ("time", "number")
"""What bins have alike: their length in time, or the number of their events."""
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
    split_by: str = "time"
    denoise: float = 0.0
    """How long before an event one of its neighbours must have had one, in the file's unit; 0 keeps all."""

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override] # a frozen dataclass has no attribute for it
        """Of one bin."""
        return (self.polarities, self.height, self.width)

    def read(self, source: Any, label: str | None = None) -> Raw:
        found = by_class(Path(source), SUFFIXES, "recordings")
        return Raw(_recordings(found, self.columns, self.denoise)[0], found.labels, found.names)

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
        """One recording, ``[steps, polarities, height, width]``; what is after `duration` is left out."""
        t, x, y, p = events.T
        if self.split_by == "number":
            step = np.arange(len(t)) * self.steps // len(t)
        else:
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
            if self.split_by == "time" and not self.duration / 20 < length < self.duration * 20:
                return f"it lasts {length:g}; what was trained on is taken to last {self.duration:g}"
        return ""


@final
class Events(Own):
    """Recordings of an event camera: ``class/name`` as ``.raw``, ``.dat``, ``.aedat4``, ``.npy``, ``.h5``.

    Columns are as the file names them; where it does not, their order is the one that their values allow, in
    all files together: times grow, a polarity has two values, places are whole numbers below 2,048.

    Each begins at its first event and lasts as long as nine tenths of the training part do; that time is cut
    into `steps` bins of equal width. Split by number, each recording is cut whole, into bins of equally many
    events. The sensor is as large as the largest coordinate says.

    Args:
        source: the folder.
        bins: ``spikes``: 1 where at least one event fell; ``counts``: how many.
        size: height and width of the sensor, or one for both; as seen if ``None``.
        columns: order of the columns that files do not name, such as ``xytp``; as their values say if
            ``None``.
        split_by: ``time``: bins of equal width; ``number``: of equally many events.
        denoise: leave out events that none of the eight pixels around had one at most so long before, in the
            file's unit of time (:func:`hibana.data.own.denoise.supported`); 0 keeps all.
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
        split_by: str = "time",
        denoise: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__(source, **options)
        if bins not in BINS:
            raise ValueError(f"bins must be one of {', '.join(BINS)}; got {bins!r}")
        if split_by not in SPLITS:
            raise ValueError(f"split_by must be one of {', '.join(SPLITS)}; got {split_by!r}")
        self.bins, self.split_by, self.denoise = bins, split_by, check_denoise(denoise)
        self.size = (size, size) if isinstance(size, int) else size
        self.columns = "" if columns is None else order.check(columns)

    def read(self, source: Any) -> Raw:
        found = by_class(Path(source), SUFFIXES, "recordings")
        values, used, left_out = _recordings(found, self.columns, self.denoise)
        if self.columns and not used:
            raise ValueError(f"event_columns is of files that do not name them; those of {self.called} do")
        summary = f"{len(values):,} recordings, {sum(map(len, values)):,} events"
        if found.files[0].suffix.lower() == ".csv" and is_headed(found.files[0]):
            summary += " by the names of their columns (--kind sequences if they are none)"
        elif used:
            guess = "" if self.columns else ", as their values say (--event-columns if not)"
            summary += f" with the columns {' '.join(used)}{guess}"
        if self.denoise:
            summary += f", {left_out / (left_out + sum(map(len, values))):.1%} left out as noise"
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
        each = f"bins of {duration / self.steps:.4g}" if self.split_by == "time" else "bins of equally many"
        raw.summary += f" on {height}x{width} pixels, {self.steps} {each}"
        shape, how = (height, width, min(last, 2)), (self.steps, self.bins, self.columns)
        return EventInputs(*shape, duration, *how, self.split_by, self.denoise)


def check_denoise(denoise: float) -> float:
    """`denoise`, if it is a time.

    Raises:
        ValueError: if it is none.
    """
    if not (math.isfinite(denoise) and denoise >= 0):
        raise ValueError(f"denoise must be a time, finite and at least 0, got {denoise!r}")
    return float(denoise)


def _recordings(
    found: Found, columns: str, denoise: float = 0.0
) -> tuple[list["np.ndarray[Any, Any]"], str, int]:
    """The events in each file, as :func:`recording` gives them, and the order of columns without names.

    That is `columns`, or if empty the one that the values allow; empty if all files name theirs. The last is
    how many events were left out as noise.
    """
    read = [_read(path) for path in found.files]
    unnamed = [events for events, named in read if not named]
    used = (columns or order.order(unnamed)) if unnamed else ""
    places = [used.index(letter) for letter in "txyp"] if used else []
    whole = [
        _checked(path, events if named else events[:, places])
        for path, (events, named) in zip(found.files, read, strict=True)
    ]
    if not denoise:
        return whole, used, 0
    kept = [events[supported(events, denoise)] for events in whole]
    for path, events in zip(found.files, kept, strict=True):
        if not len(events):
            raise ValueError(f"recording {path}: denoise {denoise:g} leaves none of its events")
    return kept, used, sum(map(len, whole)) - sum(map(len, kept))


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
        events, named = OF_SUFFIX[path.suffix.lower()](path)
    except (*arrays.UNREADABLE, KeyError) as error:
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
