"""Reads time steps of a network's input from standard input: numbers, events of a camera, or sound."""

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
from hibana.data.user_data.table_files import number
from hibana.nn import encode

if TYPE_CHECKING:
    from hibana.train import Network


MAX_EMPTY_WINDOWS = 10_000
"""Consecutive windows without an event; a longer gap is treated as a mistake in the times."""
_TOLERANCE = 0.01
"""Distance from [0, 1] that values may have because of rounding."""


def step_reader(model: "Network", window: float | None, rate: int | None) -> "StepReader":
    """Returns a reader for the kind of input that `model` was trained on.

    Args:
        model: a trained network.
        window: length of a time step in milliseconds for events whose times are microseconds; ``None``: the
            length in training, in the time unit of its recordings.
        rate: number of samples of sound per second; ``None``: 16,000.

    Raises:
        Refusal: if the network's input can't be read step by step.
    """
    inputs = None if model.description is None else model.description.inputs
    shape, settings = tuple(model.hyper["shape"]), model.settings
    is_sensor = inputs is None and settings.is_sequential and len(shape) == 3 and shape[0] <= 2
    if isinstance(inputs, SoundInputs):
        return _SoundReader(model, inputs, 16_000 if rate is None else rate)
    if settings.coding in ("latency", "population"):
        raise Refusal(
            f"--stream needs input at each step; {settings.coding} coding spreads each over all steps"
        )
    if isinstance(inputs, EventInputs):
        width = inputs.duration / inputs.steps if window is None else window * 1000
        return _EventReader(model, shape, width, counts=inputs.bins == "counts")
    if is_sensor and window is not None:
        return _EventReader(model, shape, window * 1000)
    if isinstance(inputs, SequenceInputs) and inputs.scaled_by == "each":
        raise Refusal("--stream needs a scale of each step; --scale each needs the whole sequence")
    if inputs is not None and not isinstance(inputs, ArrayInputs | SequenceInputs):
        raise Refusal(f"--stream reads numbers or events; {settings.title} is {settings.data_kind}")
    return _NumberReader(model, shape, inputs)


class StepReader(ABC):
    """Converts pieces of standard input, such as lines, to time steps of currents or spikes, ``[1, ...]``.

    Attributes:
        piece: description of a piece, for messages.
        use: use of the command ``predict`` in :data:`hibana.cli.options.USES`.
        reference: last value that delta coding transmitted.
    """

    piece = "a line"
    use = "--stream"

    def __init__(self, model: "Network") -> None:
        self.coding, self.threshold = model.settings.coding, model.settings.delta_threshold
        self.dtype = next((weights.dtype for weights in model.parameters()), torch.float32)
        self.reference: Tensor | None = None
        """The signal as delta coding has transmitted it so far."""

    def pieces(self, source: IO[bytes]) -> Iterable[bytes]:
        """Yields the pieces of `source` as soon as they arrive."""
        return source

    def is_end(self, piece: bytes) -> bool:
        """Whether `piece` ends a sequence."""
        return not piece.strip()

    @abstractmethod
    def read(self, piece: bytes) -> list[Tensor]:
        """Returns the time steps that are complete after `piece`.

        Raises ValueError if the piece can't be read; the reader is then unchanged, and the piece is skipped.
        """

    def end(self) -> list[Tensor]:
        """Returns the remaining time steps of the sequence; the next piece starts another sequence."""
        self.reference = None
        return []

    def encode(self, values: Tensor) -> Tensor:
        """Returns the `values` of one time step in the network's coding, ``[1, ...]``."""
        values = values.to(self.dtype)[None]
        if not bool(values.isfinite().all()):
            raise ValueError("must hold finite numbers")
        if self.coding == "delta":
            reference = values if self.reference is None else self.reference
            spikes = encode.delta(torch.stack([reference, values]), self.threshold)[1]
            self.reference = reference + self.threshold * (spikes[:, 0] - spikes[:, 1])
            return spikes
        return values if self.coding == "none" else encode.named(self.coding)(values, 1)[0]


class _LineReader(StepReader):
    """Parses lines of numbers separated by commas, semicolons, tabs or spaces, with or without a header.

    Args:
        model: a trained network.
        names: names of the columns that the network reads; empty if they have no names.
        count: number of columns of lines without a header.
    """

    def __init__(self, model: "Network", names: Sequence[str], count: int) -> None:
        super().__init__(model)
        self.names, self.count = list(names), count
        self.header: list[str] | None = None
        self.is_first_line = True

    def parse(self, line: bytes) -> Any:
        """Returns the numbers in a line, NaN for a missing value; ``None`` for a header."""
        try:
            text = line.decode().strip().removeprefix("\ufeff")
        except UnicodeDecodeError:
            raise ValueError("must be UTF-8 text") from None
        separator = next((char for char in ",;\t" if char in text), None)
        cells = [cell.strip().strip('"') for cell in text.split(separator)]
        is_first_line, self.is_first_line = self.is_first_line, False
        if is_first_line and self.names and all(math.isnan(number(cell)) for cell in cells):
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
        try:
            return np.array([float(cell or "nan") for cell in cells])
        except ValueError as error:
            raise ValueError(f"must hold numbers: {str(error)[:80]}") from None


class _NumberReader(_LineReader):
    """Reads one time step per line of numbers.

    Args:
        model: a trained network.
        shape: shape of one step of one input.
        inputs: the scaling of the user's training data; ``None`` for a data set by name.
    """

    def __init__(
        self, model: "Network", shape: tuple[int, ...], inputs: ArrayInputs | SequenceInputs | None
    ) -> None:
        names = inputs.features if isinstance(inputs, SequenceInputs) else ()
        super().__init__(model, names, len(names) or math.prod(shape))
        self.inputs, self.shape = inputs, shape
        self.is_unit = inputs is None and model.settings.data_set.unit

    def read(self, piece: bytes) -> list[Tensor]:
        """Returns the encoded time step of a line of numbers; no step for a header."""
        row = self.parse(piece)
        if row is None:
            return []
        if isinstance(self.inputs, SequenceInputs):
            return [self.encode(self.inputs.scaled(row))]
        row = row.reshape(self.shape)
        if self.is_unit and not (row.min() >= -_TOLERANCE and row.max() <= 1 + _TOLERANCE):
            raise ValueError(f"must hold numbers in [0, 1], got {row.min():g} to {row.max():g}")
        values = torch.from_numpy(row) if self.inputs is None else self.inputs.tensor(row[None])[0]
        is_bytes = self.inputs is not None and self.inputs.scale is None
        return [self.encode(values / 255 if is_bytes else values)]


class _EventReader(_LineReader):
    """Reads events ``t x y p`` in order of time; a time step contains the events of one window of time.

    The first window of a sequence starts at its first event, as in training.

    Args:
        model: a trained network.
        shape: ``(polarities, height, width)``.
        width: length of a window, in the unit of the events' times.
        counts: whether a bin is the number of its events, instead of 1.
    """

    use = "--stream of events"

    def __init__(
        self, model: "Network", shape: tuple[int, ...], width: float, *, counts: bool = False
    ) -> None:
        super().__init__(model, "txyp", 4)
        if not (math.isfinite(width) and width > 0):
            raise Refusal(f"--window must be positive and finite, got {width / 1000:g}")
        self.width, self.counts, self.shape = width, counts, shape
        self._reset()

    def _reset(self) -> None:
        """Begins a new sequence, with an empty window."""
        self.start: float | None = None
        self.index = 0  # number of the current window
        self.window = np.zeros(self.shape)

    def read(self, piece: bytes) -> list[Tensor]:
        """Returns the windows that ended before the event in `piece`; raises ValueError for a wrong event."""
        row = self.parse(piece)
        if row is None:
            return []
        if not np.isfinite(row).all():
            raise ValueError("must hold finite numbers")
        t, x, y, polarity = row.tolist()
        place = np.array([polarity > 0, y, x])  # a polarity of -1, as in some files, becomes 0
        if not ((place == np.floor(place)) & (place >= 0) & (place < self.shape)).all():
            raise ValueError(f"must lie on {self.shape[1]}x{self.shape[2]} pixels, got x = {x:g}, y = {y:g}")
        start = t if self.start is None else self.start
        windows = (t - start) / self.width
        if not 0 <= windows - self.index <= MAX_EMPTY_WINDOWS:
            raise ValueError(
                f"must come in order of time, and within {MAX_EMPTY_WINDOWS:,} windows of the last event, "
                f"got t = {t:.15g}; is it in the right unit?"
            )
        self.start = start
        steps = [self._finish_window() for _ in range(math.floor(windows) - self.index)]
        index = tuple(place.astype(int))
        self.window[index] = self.window[index] + 1 if self.counts else 1
        return steps

    def end(self) -> list[Tensor]:
        """Returns the last, unfinished window of the sequence."""
        steps = [] if self.start is None else [self._finish_window()]
        self._reset()
        return steps + super().end()

    def _finish_window(self) -> Tensor:
        """Returns the time step of the current window, and starts the next window."""
        step = self.encode(torch.from_numpy(self.window))
        self.window = np.zeros(self.shape)
        self.index += 1
        return step


class _SoundReader(StepReader):
    """Reads sound of one channel, signed 16-bit integers, little-endian; a time step is 10 ms.

    Levels are in decibels relative to the loudest band of the last frames, as many frames as in training. For
    files, training uses the loudest band of the entire file instead.

    Args:
        model: a trained network.
        inputs: the conversion of the training data's sound to inputs.
        rate: samples per second.
    """

    piece = "a frame"
    use = "--stream of sound"

    def __init__(self, model: "Network", inputs: SoundInputs, rate: int) -> None:
        super().__init__(model)
        if inputs.highest > rate / 2:
            raise Refusal(
                f"--rate must be at least {2 * inputs.highest:,.0f}: {model.settings.title} was trained "
                f"on sound to {inputs.highest:,.0f} Hz, got {rate:,}"
            )
        self.inputs, self.rate = inputs, rate
        self.length, self.hop = round(WINDOW * rate), round(HOP * rate)
        self.buffer: Any = np.empty(0)  # samples from the start of the next frame
        self.loudest: deque[float] = deque(maxlen=inputs.steps)

    def pieces(self, source: IO[bytes]) -> Iterator[bytes]:
        """Yields `source` in pieces of one hop: two bytes a sample."""
        while piece := source.read(2 * self.hop):
            yield piece

    def is_end(self, piece: bytes) -> bool:
        """Returns False: sound is one sequence, without blank lines."""
        return False

    def read(self, piece: bytes) -> list[Tensor]:
        """Returns the time steps of the frames that are complete after the samples in `piece`."""
        if len(piece) % 2:
            raise Failure("standard input must hold samples of two bytes, and ends in the middle of one")
        self.buffer = np.concatenate([self.buffer, np.frombuffer(piece, "<i2") / 32_768])
        steps = []
        while len(self.buffer) >= self.length:
            energies = band_energies(self.buffer[: self.length], self.rate, self.inputs.highest)
            self.buffer = self.buffer[self.hop :]
            self.loudest.append(float(energies.max()))
            steps.append(self.encode(self.inputs.scaled(levels(energies, max(self.loudest))[0])))
        return steps
