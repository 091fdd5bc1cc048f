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
from hibana.data.user_data.event_files import SUFFIXES, has_event_header, read_events
from hibana.data.user_data.folders import labelled_files
from hibana.data.user_data.samples import RawSamples

BINS = ("spikes", "counts")
"""A bin is 1 if it has at least one event, or holds their number."""


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
        """The recordings in bins, ``[N, steps, polarities, height, width]``, boolean or ``float32``."""
        dtype = torch.bool if self.bins == "spikes" else torch.float32
        inputs = torch.empty((len(values), self.steps, *self.shape), dtype=dtype, device="cpu")
        for bins, events in zip(inputs, values, strict=True):
            bins.copy_(self._binned(events))
        return inputs

    def _binned(self, events: Any) -> Tensor:
        """One recording, ``[steps, polarities, height, width]``, without events after `duration`."""
        t, x, y, p = events.T
        step = np.floor((t - t.min()) / self.duration * self.steps).astype(np.int64)
        step = np.where(t - t.min() == self.duration, self.steps - 1, step)
        is_inside = (step < self.steps) & (x < self.width) & (y < self.height) & (p < self.polarities)
        index = ((step * self.polarities + p) * self.height + y) * self.width + x
        size = self.steps * math.prod(self.shape)
        counts = torch.from_numpy(np.bincount(index[is_inside].astype(np.int64), minlength=size))
        counts = counts.reshape(self.steps, *self.shape)
        return counts > 0 if self.bins == "spikes" else counts.float()

    def difference_from_training(self, values: Sequence[Any]) -> str:
        """A clause on the first recording of another length than in training; empty if there is none."""
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
    """Recordings of an event camera: ``class/name`` as ``.aedat4``, ``.npy``, ``.npz``, ``.h5`` or text.

    Each input starts at the first event of its recording, and lasts as long as the ninth of ten training
    recordings, sorted by duration. This time is cut into `steps` bins of equal width. The sensor is as large
    as the largest coordinates.

    Args:
        source: the folder.
        bins: ``spikes``: 1 if a bin has at least one event; ``counts``: the number of events.
        size: height and width of the sensor, or one number for both; the largest coordinates if ``None``.
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
        # columns 1, 2 and 3 of the events are x, y and the polarity
        width, height, polarities = (
            int(max(events[:, k].max() for events in raw.values)) + 1 for k in (1, 2, 3)
        )
        height, width = self.size or (height, width)
        raw.summary += f" on {height}x{width} pixels, {self.steps} bins of {duration / self.steps:.4g}"
        return EventInputs(height, width, min(polarities, 2), duration, self.steps, self.bins)
