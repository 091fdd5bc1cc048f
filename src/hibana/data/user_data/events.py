"""Recordings of events ``(t, x, y, polarity)`` in folders by class, as spikes or counts in time bins."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from hibana.data.user_data.base import Inputs, UserData
from hibana.data.user_data.event_files import MOST_SIDE, SUFFIXES, check_columns, is_headed, read_events
from hibana.data.user_data.folders import labelled_files
from hibana.data.user_data.samples import Raw

__all__ = ["BINS", "EventInputs", "Events"]

BINS = ("spikes", "counts")
"""A bin is 1 if it has at least one event, or holds their number."""


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

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override] # a frozen dataclass has no attribute for it
        """The shape of one bin."""
        return (self.polarities, self.height, self.width)

    def tensor(self, values: Sequence[Any]) -> Tensor:
        dtype = torch.bool if self.bins == "spikes" else torch.float32
        binned = torch.empty((len(values), self.steps, *self.shape), dtype=dtype, device="cpu")
        for place, events in zip(binned, values, strict=True):
            place.copy_(self._binned(events))
        return binned

    def _binned(self, events: Any) -> Tensor:
        """One recording, ``[steps, polarities, height, width]``, without events after `duration`."""
        t, x, y, p = events.T
        step = np.floor((t - t.min()) / self.duration * self.steps).astype(np.int64)
        step = np.where(t - t.min() == self.duration, self.steps - 1, step)
        kept = (step < self.steps) & (x < self.width) & (y < self.height) & (p < self.polarities)
        place = (((step * self.polarities + p) * self.height + y) * self.width + x)[kept].astype(np.int64)
        counted = torch.from_numpy(np.bincount(place, minlength=self.steps * math.prod(self.shape)))
        shaped = counted.reshape(self.steps, *self.shape)
        return shaped > 0 if self.bins == "spikes" else shaped.float()

    def difference_from_training(self, values: Sequence[Any]) -> str:
        for events in values:
            t, x, y, _ = events.T
            if x.max() >= self.width or y.max() >= self.height:
                raise ValueError(
                    f"recordings must be of a sensor of {self.height}x{self.width}, "
                    f"got an event at ({int(x.max())}, {int(y.max())})"
                )
            length = float(t.max() - t.min())
            if not self.duration / 20 < length < self.duration * 20:
                return f"it lasts {length:g}; the network was trained for recordings of {self.duration:g}"
        return ""


@final
class Events(UserData):
    """Recordings of an event camera: ``class/name`` as ``.raw``, ``.dat``, ``.aedat4``, ``.npy``, ``.h5``.

    Columns without names in the file are t, x, y and p, unless `columns` gives another order.

    Each recording starts at its first event and lasts as long as nine tenths of the training part do; this
    time is cut into `steps` bins of equal width. The sensor is as large as the largest coordinate.

    Args:
        source: the folder.
        bins: ``spikes``: 1 if a bin has at least one event; ``counts``: their number.
        size: height and width of the sensor, or one number for both; the largest coordinates if ``None``.
        columns: order of columns without names, such as ``xytp``; ``txyp`` if ``None``.
        options: see :class:`UserData`; `steps` is the number of bins.
    """

    kind = "events"
    inputs = EventInputs
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
        self.columns = "" if columns is None else check_columns(columns)

    def read(self, source: Any) -> Raw:
        raw = labelled_files(Path(source), SUFFIXES, "recordings")
        first = raw.values[0]
        raw.values = [read_events(path, self.option("columns")) for path in raw.values]
        raw.summary = f"{len(raw.values):,} recordings, {sum(map(len, raw.values)):,} events"
        if first.suffix.lower() == ".csv" and is_headed(first):
            raw.summary += " by the names of their columns (--kind sequences if they are none)"
        return raw

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
        raw.summary += f" on {height}x{width} pixels, {self.steps} bins of {duration / self.steps:.4g}"
        return EventInputs(height, width, min(last, 2), duration, self.steps, self.bins, self.columns)
