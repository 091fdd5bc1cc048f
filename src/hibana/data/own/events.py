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
from hibana.data.own.base import Inputs, Own, Raw
from hibana.data.own.denoise import supported
from hibana.data.own.event_files import MOST_SIDE, OF_SUFFIX, check_columns, is_headed, ordered
from hibana.data.own.folders import by_class

__all__ = ["BINS", "SPLITS", "SUFFIXES", "EventInputs", "Events", "check_denoise", "recording"]

SUFFIXES = tuple(OF_SUFFIX)
BINS = ("spikes", "counts")
"""A bin is 1 if it has at least one event, or holds their number."""
SPLITS = ("time", "number")
"""Bins have the same length in time, or the same number of events."""


@dataclass(frozen=True)
class EventInputs(Inputs):
    """The sensor's size, the duration of a recording in the file's unit of time, and its bins."""

    sequential = True
    height: int
    width: int
    polarities: int
    duration: float
    steps: int
    bins: str
    columns: str = ""
    """The order of columns without names; ``txyp`` if empty."""
    split_by: str = "time"
    denoise: float = 0.0
    """The longest time since a neighbour's event, in the file's unit; 0 keeps all events."""

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override] # a frozen dataclass has no attribute for it
        """The shape of one bin."""
        return (self.polarities, self.height, self.width)

    def read(self, source: Any, label: str | None = None) -> Raw:
        found = by_class(Path(source), SUFFIXES, "recordings")
        values = [_denoised(path, recording(path, self.columns), self.denoise) for path in found.files]
        return Raw(values, found.labels, found.names)

    def tensor(self, values: Sequence[Any]) -> Tensor:
        dtype = torch.bool if self.bins == "spikes" else torch.float32
        binned = torch.empty((len(values), self.steps, *self.shape), dtype=dtype, device="cpu")
        for place, events in zip(binned, values, strict=True):
            place.copy_(self._binned(events))
        return binned

    def _binned(self, events: Any) -> Tensor:
        """One recording, ``[steps, polarities, height, width]``, without events after `duration`."""
        t, x, y, p = events.T
        if self.split_by == "number":
            step = np.arange(len(t)) * self.steps // len(t)
        else:
            step = np.floor((t - t.min()) / self.duration * self.steps).astype(np.int64)
            step = np.where(t - t.min() == self.duration, self.steps - 1, step)
        kept = (step < self.steps) & (x < self.width) & (y < self.height) & (p < self.polarities)
        place = (((step * self.polarities + p) * self.height + y) * self.width + x)[kept].astype(np.int64)
        counted = torch.from_numpy(np.bincount(place, minlength=self.steps * math.prod(self.shape)))
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
                return f"it lasts {length:g}; the network was trained for recordings of {self.duration:g}"
        return ""


@final
class Events(Own):
    """Recordings of an event camera: ``class/name`` as ``.raw``, ``.dat``, ``.aedat4``, ``.npy``, ``.h5``.

    Columns without names in the file are t, x, y and p, unless `columns` gives another order.

    Each recording starts at its first event and lasts as long as nine tenths of the training part do; this
    time is cut into `steps` bins of equal width. Split by number, all of a recording is cut into bins with
    equally many events. The sensor is as large as the largest coordinate.

    Args:
        source: the folder.
        bins: ``spikes``: 1 if a bin has at least one event; ``counts``: their number.
        size: height and width of the sensor, or one number for both; the largest coordinates if ``None``.
        columns: order of columns without names, such as ``xytp``; ``txyp`` if ``None``.
        split_by: ``time``: bins of equal width; ``number``: of equally many events.
        denoise: remove events if none of the eight neighbouring pixels had one at most this time before, in
            the file's unit of time (:class:`hibana.data.own.denoise.Filter`); 0 keeps all.
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
        self.columns = "" if columns is None else check_columns(columns)

    def read(self, source: Any) -> Raw:
        found = by_class(Path(source), SUFFIXES, "recordings")
        recorded = [recording(path, self.columns) for path in found.files]
        values = [
            _denoised(path, events, self.denoise) for path, events in zip(found.files, recorded, strict=True)
        ]
        count, kept = sum(map(len, recorded)), sum(map(len, values))
        summary = f"{len(values):,} recordings, {kept:,} events"
        if found.files[0].suffix.lower() == ".csv" and is_headed(found.files[0]):
            summary += " by the names of their columns (--kind sequences if they are none)"
        if self.denoise:
            summary += f", {(count - kept) / count:.1%} left out as noise"
        return Raw(values, found.labels, found.names, summary, found.parts)

    def learn(self, raw: Raw, training: Sequence[int]) -> Inputs:
        lengths = sorted(float(np.ptp(raw.values[index][:, 0])) for index in training)
        duration = lengths[min(len(lengths) - 1, len(lengths) * 9 // 10)]
        if duration <= 0:
            raise ValueError("recordings must have a duration, all events of these have the same time")
        width, height, last = (int(max(events[:, k].max() for events in raw.values)) + 1 for k in (1, 2, 3))
        if self.size is not None:
            height, width = self.size
        elif max(height, width) > MOST_SIDE:
            raise ValueError(
                f"recordings must have at most {MOST_SIDE:,} pixels a side, unless the size of the sensor is "
                f"given; got events on {height}x{width}"
            )
        each = f"bins of {duration / self.steps:.4g}" if self.split_by == "time" else "bins of equally many"
        raw.summary += f" on {height}x{width} pixels, {self.steps} {each}"
        shape, bins = (height, width, min(last, 2)), (self.steps, self.bins, self.columns)
        return EventInputs(*shape, duration, *bins, self.split_by, self.denoise)


def check_denoise(denoise: float) -> float:
    """`denoise`, if it is a time.

    Raises:
        ValueError: if it is none.
    """
    if not (math.isfinite(denoise) and denoise >= 0):
        raise ValueError(f"denoise must be a time, finite and at least 0, got {denoise!r}")
    return float(denoise)


def recording(path: Path, columns: str = "") -> "np.ndarray[Any, Any]":
    """The events in a file, ``[events, 4]``: time, column, row, polarity 0 or 1; in order of time.

    Args:
        path: of the file.
        columns: order of columns without names; ``txyp`` if empty.

    Raises:
        ValueError: if it can't be read as events.
        ModuleNotFoundError: if the library for its format is not installed.
    """
    try:
        events, has_names = OF_SUFFIX[path.suffix.lower()](path)
        if events.ndim != 2 or events.shape[1] != 4 or len(events) == 0:
            raise ValueError(f"it has the shape {events.shape}")  # noqa: TRY301 - completed below
        events = events if has_names else ordered(events, columns)
    except ValueError as error:
        raise ValueError(f"recording {path} must hold events t, x, y, p: {error}") from error
    except (*arrays.UNREADABLE, KeyError) as error:
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
    in_order: np.ndarray[Any, Any] = events[np.argsort(events[:, 0], kind="stable")]
    return in_order


def _denoised(path: Path, events: "np.ndarray[Any, Any]", denoise: float) -> "np.ndarray[Any, Any]":
    kept: np.ndarray[Any, Any] = events[supported(events, denoise)] if denoise else events
    if not len(kept):
        raise ValueError(f"recording {path}: denoise {denoise:g} leaves none of its events")
    return kept
