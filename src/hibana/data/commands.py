"""Speech Commands: a second of sound each, as bands of frequency over time."""

import math
import wave
from pathlib import Path
from typing import final

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from hibana.data.base import DataSet, Samples

__all__ = ["SpeechCommands"]

RATE = 16_000
"""Samples of sound in a second."""
BANDS, WINDOW = 40, 400
"""Bands of frequency, and samples under a window: 25 ms."""


@final
class SpeechCommands(DataSet):
    """Speech Commands: 35 spoken words, as 40 bands of frequency (log mel) over `steps` steps.

    Training, validation and test are those of the lists ``validation_list.txt`` and ``testing_list.txt`` that
    come with the recordings, what is in neither being for training. A recording is a second at 16 kHz,
    shorter ones with silence after their end; each is standardised by its own mean and deviation.

    Args:
        batch_size: samples in a batch, over all processes together.
        root: the folder that holds the folders of the words and the two lists.
        steps: length in time, at least 2; a step is ``1/steps`` of a second.
        workers: processes that read.

    Raises:
        FileNotFoundError: on :meth:`setup`, if there are no lists or no recordings.

    Source: Warden (2018), *Speech commands: a dataset for limited-vocabulary speech recognition*.
    """

    shape = (BANDS,)
    classes = 35
    sequential = True

    def __init__(
        self,
        batch_size: int = 64,
        *,
        root: str | Path,
        steps: int = 100,
        seed: int = 0,
        workers: int = 0,
    ) -> None:
        super().__init__(batch_size, seed=seed, workers=workers)
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 2:
            raise ValueError(f"steps must be an integer of at least 2, got {steps!r}")
        self.root, self.steps = Path(root).expanduser(), steps

    def splits(self) -> tuple[Samples, Samples, Samples]:
        lists = [self.root / f"{name}_list.txt" for name in ("validation", "testing")]
        words = sorted(path.name for path in self.root.glob("[!_.]*") if path.is_dir())
        if not all(path.is_file() for path in lists) or len(words) != self.classes:
            raise FileNotFoundError(
                f"root must hold validation_list.txt, testing_list.txt and the folders of {self.classes} "
                f"words of Speech Commands, version 2; {self.root} holds {len(words)} folders"
            )
        held = [path.read_text(encoding="utf-8").split() for path in lists]
        known = {name for names in held for name in names}
        every = sorted(str(path.relative_to(self.root).as_posix()) for path in self.root.glob("[!_.]*/*.wav"))
        parts = [[name for name in every if name not in known], *held]
        training, validation, test = (_Recordings(self.root, part, words, self.steps) for part in parts)
        return training, validation, test


class _Recordings(Dataset[tuple[Tensor, ...]]):
    """``(bands [steps, 40], label)`` by index, computed when asked for."""

    def __init__(self, root: Path, names: list[str], words: list[str], steps: int) -> None:
        self.root, self.names, self.words, self.steps = root, names, words, steps

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        name = self.names[index]
        label = torch.tensor(self.words.index(name.partition("/")[0]), dtype=torch.int64, device="cpu")
        return _bands(_sound(self.root / name), self.steps), label


def _sound(path: Path) -> Tensor:
    """A second of sound in [-1, 1]."""
    try:
        with wave.open(str(path)) as file:
            form = file.getnchannels(), file.getsampwidth(), file.getframerate()
            if form != (1, 2, RATE):
                raise ValueError(f"{path} must be one channel of 16 bits at {RATE} Hz, got {form}")
            frames, declared = file.readframes(RATE), min(file.getnframes(), RATE)
    except (EOFError, wave.Error) as error:
        raise ValueError(f"{path} is not a whole WAV file: {error or 'it ends early'}") from error
    if len(frames) < 2 * declared:
        raise ValueError(
            f"{path} is not a whole WAV file: its header declares {declared} samples, it has "
            f"{len(frames) // 2}"
        )
    sound = torch.zeros(RATE, dtype=torch.float32, device="cpu")
    values = np.frombuffer(frames, "<i2").astype(np.float32) / 32768
    sound[: len(values)] = torch.from_numpy(values)
    return sound


def _bands(sound: Tensor, steps: int) -> Tensor:
    """``[steps, 40]``: the logarithm of the energy in each band, standardised."""
    size = 512
    window = torch.hann_window(WINDOW, device="cpu")
    starts = torch.linspace(0, RATE - 1, steps, dtype=torch.float32, device="cpu").long()
    padded = torch.nn.functional.pad(sound, (WINDOW // 2, WINDOW))
    cut = (
        padded[starts[:, None] + torch.arange(WINDOW, dtype=torch.int64, device="cpu")] * window
    )  # [steps, 400]
    energy = torch.fft.rfft(cut, size).abs().square() @ _filters(size).T
    logarithm = (energy + 1e-6).log()
    bands: Tensor = (logarithm - logarithm.mean()) / logarithm.std().clamp(min=1e-3)
    return bands


def _filters(size: int) -> Tensor:
    """Triangles that overlap by half, evenly on the mel scale: ``[bands, size/2 + 1]``.

    Source: Stevens, Volkmann & Newman (1937) for the scale, ``2595 log10(1 + f/700)``.
    """
    most = 2595 * math.log10(1 + RATE / 2 / 700)
    edges = 700 * (10 ** (torch.linspace(0, most, BANDS + 2, dtype=torch.float32, device="cpu") / 2595) - 1)
    heard = torch.linspace(0, RATE / 2, size // 2 + 1, dtype=torch.float32, device="cpu")
    rising = (heard - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - heard) / (edges[2:] - edges[1:-1])[:, None]
    return torch.minimum(rising, falling).clamp(min=0)
