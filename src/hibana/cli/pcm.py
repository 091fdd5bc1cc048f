"""Raw sound as the steps of a network's input: what a microphone's program writes to a pipe."""

from collections import deque
from collections.abc import Iterator
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from hibana.cli.lines import Steps
from hibana.cli.saying import Refusal
from hibana.data.own.sound import HOP, WINDOW, SoundInputs, band_energies, levels

if TYPE_CHECKING:
    from hibana.train import Network

__all__ = ["RATE", "Samples"]

RATE = 16_000
"""Samples in a second where nobody says."""
_SLOWEST, _FASTEST = 2_000, 768_000


class Samples(Steps):
    """Signed 16-bit samples, little-endian, of one channel; a step is a frame, every 10 ms.

    Levels are in decibels below the loudest band of the last frames, as many as the network was trained on,
    where those of a file are below the loudest of all of it.

    Args:
        model: a network that was trained on sound.
        inputs: how its inputs are made.
        rate: samples in a second.

    Raises:
        Refusal: if the rate is none, or too low for the bands that the network knows.
    """

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
        self.waiting: Any = np.empty(0)
        """Samples from the next frame's first on."""
        self.loudest: deque[float] = deque(maxlen=inputs.steps)

    def pieces(self, source: IO[bytes]) -> Iterator[bytes]:
        """What comes, a frame's new samples at a time."""
        while piece := source.read(2 * self.hop):
            yield piece

    def take(self, piece: bytes) -> list[Tensor]:
        """The frames that are complete with `piece`, of whole samples.

        Raises:
            ValueError: if a sample is cut.
        """
        if len(piece) % 2:
            raise ValueError("must hold samples of two bytes, and ends within one")
        new = np.frombuffer(piece, "<i2") / 32_768
        self.waiting = np.concatenate([self.waiting, new])
        steps = []
        while len(self.waiting) >= self.length:
            energies = band_energies(self.waiting[: self.length], self.rate, self.inputs.highest)
            self.waiting = self.waiting[self.hop :]
            self.loudest.append(float(energies.max()))
            steps.append(self.coded(self.inputs.scaled(levels(energies, max(self.loudest))[0])))
        return steps

    def read(self, text: str) -> list[Tensor]:
        raise TypeError("samples are bytes, no text")
