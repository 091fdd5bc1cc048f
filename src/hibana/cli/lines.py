"""Lines of text as the steps of a network's input: rows of numbers, or events in windows of time."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from hibana.cli.saying import Refusal
from hibana.data.own import ArrayInputs, EventInputs, SequenceInputs
from hibana.data.own.denoise import Filter
from hibana.nn import encode

if TYPE_CHECKING:
    from hibana.train import Network

__all__ = ["Steps", "steps_of"]

MOST_EMPTY = 10_000
"""Windows without an event, one after the other; a longer gap is taken for a mistake in the times."""
_EVENT = ("t", "x", "y", "p")
_UNIT = 0.01
"""How far values in [0, 1] may lie outside, as rounding leaves them."""


def steps_of(model: "Network", window: float | None) -> "Steps":
    """What reads the steps of `model` from lines.

    Args:
        model: a trained network.
        window: milliseconds of a window of events, whose times then are microseconds; of a network trained
            on recordings the window that these were cut into, in their unit of time, if ``None``.

    Raises:
        Refusal: if no line can be a step of the network.
    """
    inputs = None if model.description is None else model.description.inputs
    shape, coding = tuple(model.hyper["shape"]), model.settings.coding
    if coding in ("latency", "population"):
        raise Refusal(f"--stream needs an input at each step, and {coding} coding spreads one over all steps")
    if isinstance(inputs, EventInputs):
        if inputs.split_by == "number":
            raise Refusal(
                "--stream needs bins of time, and bins of equally many events need whole recordings"
            )
        width = inputs.duration / inputs.steps if window is None else window * 1000
        return _Windows(model, shape, width, counts=inputs.bins == "counts", denoise=inputs.denoise)
    if window is not None:
        if inputs is not None or len(shape) != 3 or shape[0] > 2 or not model.settings.is_sequential:
            raise Refusal(f"--window is of events of a camera; {model.settings.title} has none")
        return _Windows(model, shape, window * 1000, counts=False)
    if inputs is not None and not isinstance(inputs, ArrayInputs | SequenceInputs):
        raise Refusal(f"--stream reads numbers or events; {model.settings.title} is {model.settings.what}")
    return _Numbers(model, shape, inputs)


class Steps(ABC):
    """Lines to steps of currents or spikes, ``[1, ...]``.

    A line that is refused, by a ValueError, leaves everything as it was.
    """

    def __init__(self, model: "Network") -> None:
        self.coding, self.threshold = model.settings.coding, model.settings.delta_threshold
        self.dtype = next((weights.dtype for weights in model.parameters()), torch.float32)
        self.reference: Tensor | None = None
        """What delta coding has said of the signal so far."""

    @abstractmethod
    def read(self, text: str) -> list[Tensor]:
        """The steps that `text`, a line, completes."""

    def end(self) -> list[Tensor]:
        """The steps that are left where a sequence ends; the next line begins another."""
        self.reference = None
        return []

    def coded(self, values: Tensor) -> Tensor:
        """One step of values, as the network is shown them."""
        values = values.to(self.dtype)[None]
        if not bool(values.isfinite().all()):
            raise ValueError("must hold finite numbers")
        if self.coding == "delta":
            reference = values if self.reference is None else self.reference
            spikes = encode.delta(torch.stack([reference, values]), self.threshold)[1]
            self.reference = reference + self.threshold * (spikes[:, 0] - spikes[:, 1])
            return spikes
        return values if self.coding == "none" else encode.named(self.coding)(values, 1)[0]


class _Numbers(Steps):
    """A line of numbers is a step."""

    def __init__(
        self, model: "Network", shape: tuple[int, ...], inputs: ArrayInputs | SequenceInputs | None
    ) -> None:
        super().__init__(model)
        self.inputs, self.shape = inputs, shape
        self.in_unit = inputs is None and model.settings.data_set.unit
        self.rows = _Rows(inputs.features if isinstance(inputs, SequenceInputs) else (), shape)

    def read(self, text: str) -> list[Tensor]:
        row = self.rows.read(text)
        return [] if row is None else [self.coded(self._scaled(row))]

    def _scaled(self, row: Any) -> Tensor:
        """A row as the network was shown such rows in training."""
        if isinstance(self.inputs, SequenceInputs):
            if self.inputs.missing == "refuse" and np.isnan(row).any():
                raise ValueError("must have no missing values")
            return self.inputs.scaled(row)
        if not np.isfinite(row).all():
            raise ValueError("must hold finite numbers")
        row = row.reshape(self.shape)
        if self.inputs is None:
            if self.in_unit and not (row.min() >= -_UNIT and row.max() <= 1 + _UNIT):
                raise ValueError(f"must hold numbers in [0, 1], got {row.min():g} to {row.max():g}")
            return torch.from_numpy(row)
        if self.inputs.scale is not None:
            return self.inputs.tensor(row[None])[0]
        if not ((row >= 0) & (row <= 255) & (row == np.floor(row))).all():
            raise ValueError("must hold bytes, whole numbers from 0 to 255")
        return torch.from_numpy(row) / 255


class _Windows(Steps):
    """Lines are events `t x y p` in order of time; a step is what fell into a window.

    The first window of a sequence begins at its first event, as recordings do in training; events that the
    filter of noise leaves out are none.
    """

    def __init__(
        self,
        model: "Network",
        shape: tuple[int, ...],
        width: float,
        *,
        counts: bool,
        denoise: float = 0.0,
    ) -> None:
        super().__init__(model)
        if not (math.isfinite(width) and width > 0):
            raise Refusal(f"--window must be positive and finite, got {width / 1000:g}")
        self.width, self.counts, self.shape = width, counts, shape
        self.rows = _Rows(_EVENT, (4,))
        self.begun: float | None = None
        self.index = 0
        """Of the window that events now fall into."""
        self.window = np.zeros(shape)
        self.denoise = denoise
        self.filter = Filter(shape[1], shape[2], denoise)

    def read(self, text: str) -> list[Tensor]:
        row = self.rows.read(text)
        if row is None:
            return []
        t, *place = row.tolist()
        column, line, polarity = (self._place(*each) for each in zip(_EVENT[1:], place, strict=True))
        if not math.isfinite(t):
            raise ValueError(f"must have a finite time, got {t:g}")
        if self.denoise and not self.filter.keeps(t, column, line):
            return []
        begun = t if self.begun is None else self.begun
        windows = (t - begun) / self.width
        if windows < self.index:
            raise ValueError(f"must come in order of time, got t = {t:.15g} after its window had ended")
        if windows - self.index > MOST_EMPTY:
            raise ValueError(
                f"must come within {MOST_EMPTY:,} windows of the last event, got t = {t:.15g}, "
                f"{windows - self.index:.4g} windows later; is it in the right unit?"
            )
        self.begun = begun
        steps: list[Tensor] = []
        while self.index < math.floor(windows):
            steps += self._next()
        place_of = polarity, line, column
        self.window[place_of] = self.window[place_of] + 1 if self.counts else 1
        return steps

    def end(self) -> list[Tensor]:
        steps = [] if self.begun is None else self._next()
        self.begun, self.index = None, 0
        self.filter = Filter(self.shape[1], self.shape[2], self.denoise)
        super().end()
        return steps

    def _next(self) -> list[Tensor]:
        """The window that has ended; another begins."""
        ended, self.window, self.index = self.window, np.zeros(self.shape), self.index + 1
        return [self.coded(torch.from_numpy(ended))]

    def _place(self, name: str, value: float) -> int:
        """A column, row or polarity, if it is one of the sensor's; some write -1 for off."""
        if name == "p" and math.isfinite(value):
            value = float(value > 0)
        size = self.shape["pyx".index(name)]
        if not (value.is_integer() and 0 <= value < size):
            raise ValueError(f"must have {name} in [0, {size}), got {value:g}")
        return int(value)


class _Rows:
    """Rows of numbers from lines, separated by commas, semicolons, tabs or spaces, with or without a header.

    Args:
        names: of the numbers; none if they have none.
        shape: of a row without names.
    """

    def __init__(self, names: Sequence[str], shape: tuple[int, ...]) -> None:
        self.names, self.shape = list(names), (len(names),) if names else shape
        self.header: list[str] | None = None
        self.begun = False

    def read(self, text: str) -> Any:
        """The row, flat, NaN where a value is missing; ``None`` of a header."""
        text = text.strip().removeprefix("\ufeff")
        cells, first = _cells(text), not self.begun
        self.begun = True
        if first and self.names and not any(map(_is_number, cells)):
            if missing := [name for name in self.names if name not in cells]:
                raise Refusal(
                    f"the header must name {', '.join(self.names)}; {missing[0]!r} is not in {text[:80]!r}"
                )
            self.header = cells
            return None
        wanted = math.prod(self.shape) if self.header is None else len(self.header)
        if len(cells) != wanted:
            raise ValueError(f"must hold {wanted} numbers, got {len(cells)}")
        if self.header is not None:
            cells = [cells[self.header.index(name)] for name in self.names]
        return np.array([_number(cell) for cell in cells])


def _cells(text: str) -> list[str]:
    """What stands between commas, semicolons, tabs or spaces, the first of these that there are."""
    separator = next((each for each in ",;\t" if each in text), None)
    return [cell.strip().strip('"') for cell in text.split(separator)]


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _number(cell: str) -> float:
    """A number, NaN of an empty cell."""
    if cell and not _is_number(cell):
        raise ValueError(f"must hold numbers, got {cell[:40]!r}")
    return float(cell or "nan")
