"""Standard input as steps of a network's input: lines of numbers, lines of events, or raw sound."""

import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from hibana.cli.common import Failure, Refusal
from hibana.data.user_data import ArrayInputs, EventInputs, SequenceInputs
from hibana.data.user_data.sound import HOP, WINDOW, SoundInputs, band_energies, levels
from hibana.nn import encode

if TYPE_CHECKING:
    from hibana.train import Network

__all__ = ["Steps", "steps_of"]

MOST_EMPTY = 10_000
"""Consecutive windows without an event; a longer gap is treated as a mistake in the times."""
RATE = 16_000
"""Default samples per second of sound."""
_SLOWEST, _FASTEST = 2_000, 768_000
_EVENT = ("t", "x", "y", "p")
_UNIT = 0.01
"""Tolerance of values in [0, 1], for rounding."""


def steps_of(model: "Network", window: float | None, rate: int | None) -> "Steps":
    """Reader of the steps of `model`.

    Args:
        model: a trained network.
        window: milliseconds of a window of events, whose times are then microseconds; by default the window
            of the training, in the unit of time of its recordings.
        rate: samples per second of sound; 16,000 by default.

    Raises:
        Refusal: if standard input can't hold steps of the network, or an option does not apply to it.
    """
    inputs = None if model.description is None else model.description.inputs
    shape, settings = tuple(model.hyper["shape"]), model.settings
    if isinstance(inputs, SoundInputs):
        if window is not None:
            raise Refusal(f"--window is of events of a camera; {settings.title} has none")
        return _Sound(model, inputs, RATE if rate is None else rate)
    if rate is not None:
        raise Refusal(f"--rate is of sound; {settings.title} is {settings.what}")
    if settings.coding in ("latency", "population"):
        raise Refusal(
            f"--stream needs an input at each step, and {settings.coding} coding spreads one over all steps"
        )
    if isinstance(inputs, EventInputs):
        width = inputs.duration / inputs.steps if window is None else window * 1000
        return _Windows(model, shape, width, counts=inputs.bins == "counts")
    if window is not None:
        if inputs is not None or len(shape) != 3 or shape[0] > 2 or not settings.is_sequential:
            raise Refusal(f"--window is of events of a camera; {settings.title} has none")
        return _Windows(model, shape, window * 1000)
    if inputs is not None and not isinstance(inputs, ArrayInputs | SequenceInputs):
        raise Refusal(f"--stream reads numbers or events; {settings.title} is {settings.what}")
    return _Numbers(model, shape, inputs)


class Steps(ABC):
    """Turns pieces of standard input into steps of currents or spikes, ``[1, ...]``.

    :meth:`read` raises a ValueError for a piece that is left out, and then changes nothing.
    """

    piece = "a line"

    def __init__(self, model: "Network") -> None:
        self.coding, self.threshold = model.settings.coding, model.settings.delta_threshold
        self.dtype = next((weights.dtype for weights in model.parameters()), torch.float32)
        self.reference: Tensor | None = None
        """The signal as delta coding has transmitted it so far."""

    def pieces(self, source: IO[bytes]) -> Iterable[bytes]:
        """Pieces of `source`, each as soon as it arrives."""
        return source

    def is_end(self, piece: bytes) -> bool:
        """Whether `piece` ends a sequence."""
        return not piece.strip()

    @abstractmethod
    def read(self, piece: bytes) -> list[Tensor]:
        """The steps that are complete with `piece`."""

    def end(self) -> list[Tensor]:
        """The remaining steps of a sequence that ends; the next piece begins another."""
        self.reference = None
        return []

    def coded(self, values: Tensor) -> Tensor:
        """One step of values in the network's coding."""
        values = values.to(self.dtype)[None]
        if not bool(values.isfinite().all()):
            raise ValueError("must hold finite numbers")
        if self.coding == "delta":
            reference = values if self.reference is None else self.reference
            spikes = encode.delta(torch.stack([reference, values]), self.threshold)[1]
            self.reference = reference + self.threshold * (spikes[:, 0] - spikes[:, 1])
            return spikes
        return values if self.coding == "none" else encode.named(self.coding)(values, 1)[0]


class _Text(Steps):
    """Lines of numbers, separated by commas, semicolons, tabs or spaces, after a header or without one.

    Args:
        model: a trained network.
        names: names of the columns; empty if they have none.
        count: numbers in a line without a header.
    """

    def __init__(self, model: "Network", names: Sequence[str], count: int) -> None:
        super().__init__(model)
        self.names, self.count = list(names), count
        self.header: list[str] | None = None
        self.is_first = True

    def row(self, line: bytes) -> Any:
        """The numbers of a line, NaN for a missing value; ``None`` for a header."""
        try:
            text = line.decode().strip().removeprefix("\ufeff")
        except UnicodeDecodeError:
            raise ValueError("must be UTF-8 text") from None
        separator = next((each for each in ",;\t" if each in text), None)
        cells = [cell.strip().strip('"') for cell in text.split(separator)]
        is_first, self.is_first = self.is_first, False
        if is_first and self.names and not any(map(_is_number, cells)):
            if missing := [name for name in self.names if name not in cells]:
                names = ", ".join(self.names)
                raise Refusal(f"the header must name {names}; {missing[0]!r} is not in {text[:80]!r}")
            self.header = cells
            return None
        count = self.count if self.header is None else len(self.header)
        if len(cells) != count:
            raise ValueError(f"must hold {count} numbers, got {len(cells)}")
        if self.header is not None:
            cells = [cells[self.header.index(name)] for name in self.names]
        for cell in cells:
            if cell and not _is_number(cell):
                raise ValueError(f"must hold numbers, got {cell[:40]!r}")
        return np.array([float(cell or "nan") for cell in cells])


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


class _Numbers(_Text):
    """Each line of numbers is a step."""

    def __init__(
        self, model: "Network", shape: tuple[int, ...], inputs: ArrayInputs | SequenceInputs | None
    ) -> None:
        names = inputs.features if isinstance(inputs, SequenceInputs) else ()
        super().__init__(model, names, len(names) or math.prod(shape))
        self.inputs, self.shape = inputs, shape
        self.is_unit = inputs is None and model.settings.data_set.unit

    def read(self, piece: bytes) -> list[Tensor]:
        row = self.row(piece)
        return [] if row is None else [self.coded(self._scaled(row))]

    def _scaled(self, row: Any) -> Tensor:
        """A row with the scale of the training."""
        if isinstance(self.inputs, SequenceInputs):
            return self.inputs.scaled(row)
        if not np.isfinite(row).all():
            raise ValueError("must hold finite numbers")
        row = row.reshape(self.shape)
        if self.inputs is None:
            if self.is_unit and not (row.min() >= -_UNIT and row.max() <= 1 + _UNIT):
                raise ValueError(f"must hold numbers in [0, 1], got {row.min():g} to {row.max():g}")
            return torch.from_numpy(row)
        if self.inputs.scale is not None:
            return self.inputs.tensor(row[None])[0]
        if not ((row >= 0) & (row <= 255) & (row == np.floor(row))).all():
            raise ValueError("must hold bytes, whole numbers from 0 to 255")
        return torch.from_numpy(row) / 255


class _Windows(_Text):
    """Lines are events `t x y p` in order of time; a step holds the events of one window of time.

    The first window of a sequence begins at its first event, as in training.
    """

    def __init__(
        self,
        model: "Network",
        shape: tuple[int, ...],
        width: float,
        *,
        counts: bool = False,
    ) -> None:
        super().__init__(model, _EVENT, 4)
        if not (math.isfinite(width) and width > 0):
            raise Refusal(f"--window must be positive and finite, got {width / 1000:g}")
        self.width, self.counts, self.shape = width, counts, shape
        self._reset()

    def _reset(self) -> None:
        self.start: float | None = None
        self.index = 0  # of the current window
        self.window = np.zeros(self.shape)

    def read(self, piece: bytes) -> list[Tensor]:
        row = self.row(piece)
        if row is None:
            return []
        t, *place = row.tolist()
        x, y, polarity = (self._place(*each) for each in zip(_EVENT[1:], place, strict=True))
        if not math.isfinite(t):
            raise ValueError(f"must have a finite time, got {t:g}")
        start = t if self.start is None else self.start
        windows = (t - start) / self.width
        if windows < self.index:
            raise ValueError(f"must come in order of time, got t = {t:.15g} after its window had ended")
        if windows - self.index > MOST_EMPTY:
            raise ValueError(
                f"must come within {MOST_EMPTY:,} windows of the last event, got t = {t:.15g}, "
                f"{windows - self.index:.4g} windows later; is it in the right unit?"
            )
        self.start = start
        steps = [self._next() for _ in range(math.floor(windows) - self.index)]
        self.window[polarity, y, x] = self.window[polarity, y, x] + 1 if self.counts else 1
        return steps

    def end(self) -> list[Tensor]:
        steps = [] if self.start is None else [self._next()]
        self._reset()
        return steps + super().end()

    def _next(self) -> Tensor:
        """The step of the current window, which ends."""
        ended, self.window, self.index = self.window, np.zeros(self.shape), self.index + 1
        return self.coded(torch.from_numpy(ended))

    def _place(self, name: str, value: float) -> int:
        """A valid column, row or polarity; negative polarities, which some cameras write, are 0."""
        if name == "p" and math.isfinite(value):
            value = float(value > 0)
        size = self.shape["pyx".index(name)]
        if not (value.is_integer() and 0 <= value < size):
            raise ValueError(f"must have {name} in [0, {size}), got {value:g}")
        return int(value)


class _Sound(Steps):
    """Signed 16-bit samples, little-endian, of one channel; a step is a frame, every 10 ms.

    Levels are in decibels below the loudest band of the last frames, as many as the network was trained on;
    those of a file are below the loudest band of the whole file.
    """

    piece = "a frame"

    def __init__(self, model: "Network", inputs: SoundInputs, rate: int) -> None:
        super().__init__(model)
        if not _SLOWEST <= rate <= _FASTEST:
            raise Refusal(f"--rate must lie from {_SLOWEST:,} to {_FASTEST:,} samples a second, got {rate}")
        if inputs.highest > rate / 2:
            raise Refusal(
                f"--rate must be at least {2 * inputs.highest:,.0f}: {model.settings.title} was trained "
                f"on sound to {inputs.highest:,.0f} Hz, got {rate:,}"
            )
        self.inputs, self.rate = inputs, rate
        self.length, self.hop = round(WINDOW * rate), round(HOP * rate)
        self.waiting: Any = np.empty(0)  # samples from the start of the next frame
        self.loudest: deque[float] = deque(maxlen=inputs.steps)

    def pieces(self, source: IO[bytes]) -> Iterator[bytes]:
        while piece := source.read(2 * self.hop):
            yield piece

    def is_end(self, piece: bytes) -> bool:
        return False

    def read(self, piece: bytes) -> list[Tensor]:
        if len(piece) % 2:
            raise Failure("standard input must hold samples of two bytes, and ends within one")
        self.waiting = np.concatenate([self.waiting, np.frombuffer(piece, "<i2") / 32_768])
        steps = []
        while len(self.waiting) >= self.length:
            energies = band_energies(self.waiting[: self.length], self.rate, self.inputs.highest)
            self.waiting = self.waiting[self.hop :]
            self.loudest.append(float(energies.max()))
            steps.append(self.coded(self.inputs.scaled(levels(energies, max(self.loudest))[0])))
        return steps
