"""Data sets, as Lightning data modules whose splits are fixed and stated.

A data module gives batches of ``(input, label)``, the batch first; how an input becomes a sequence over
time is not decided here. A data set is a subclass of :class:`DataSet` with an entry in :data:`DATA_SETS`.

Importing this room needs Lightning (``pip install hibana[train]``).
"""

from abc import abstractmethod
from typing import Any, ClassVar, final

import lightning
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

__all__ = ["DATA_SETS", "DataSet", "Digits", "load"]

Split = tuple[Tensor, Tensor]
"""Inputs ``[N, ...]`` and labels ``[N]``."""


class DataSet(lightning.LightningDataModule):
    """A data set in memory, in three fixed splits.

    A subclass says the `shape` of one input and the number of `classes`, and gives :meth:`splits`.

    Args:
        batch_size: samples in a training batch, at least 1.
    """

    shape: ClassVar[tuple[int, ...]]
    classes: ClassVar[int]

    def __init__(self, batch_size: int = 64) -> None:
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size!r}")
        self.batch_size = batch_size
        self.training: Split
        self.validation: Split
        self.test: Split

    @abstractmethod
    def splits(self) -> tuple[Split, Split, Split]:
        """Training, validation and test."""

    def augment(self, inputs: Tensor) -> Tensor:
        """What a training batch is turned into, at random; by default what it was."""
        return inputs

    def setup(self, stage: str | None = None) -> None:
        if not hasattr(self, "test"):
            self.training, self.validation, self.test = self.splits()

    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return DataLoader(TensorDataset(*self.training), self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return DataLoader(TensorDataset(*self.validation), batch_size=512)

    def test_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return DataLoader(TensorDataset(*self.test), batch_size=512)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        if self.trainer is None or not self.trainer.training:
            return batch
        inputs, labels = batch
        return self.augment(inputs), labels


@final
class Digits(DataSet):
    """Handwritten digits, 8x8 pixels in [0, 1], embedded in scikit-learn: nothing is downloaded.

    The test set is the last 360 of the 1,797 samples in the data set's own order, written by other people
    than the rest; validation is the 137 before them, training the first 1,300. A training batch is shifted
    by at most one pixel each way, each image by its own.

    Source: Alpaydin & Kaynak (1998), *Optical recognition of handwritten digits*, UCI Machine Learning
    Repository.

    >>> digits = Digits()
    >>> digits.setup()
    >>> [len(labels) for _, labels in (digits.training, digits.validation, digits.test)]
    [1300, 137, 360]
    """

    shape = (8, 8)
    classes = 10

    def splits(self) -> tuple[Split, Split, Split]:
        from sklearn.datasets import load_digits

        images, labels = load_digits(return_X_y=True)
        inputs = torch.as_tensor(images, dtype=torch.float32).reshape(-1, *self.shape) / 16
        targets = torch.as_tensor(labels, dtype=torch.int64)
        parts = (slice(0, -497), slice(-497, -360), slice(-360, None))
        training, validation, test = ((inputs[part], targets[part]) for part in parts)
        return training, validation, test

    def augment(self, inputs: Tensor) -> Tensor:
        return _shifted(inputs, pixels=1)


def _shifted(images: Tensor, pixels: int) -> Tensor:
    """Each of `images`, ``[N, height, width]``, moved by up to `pixels` each way, zeros from outside."""
    count, height, width = images.shape
    padded = torch.nn.functional.pad(images, (pixels,) * 4)
    down, right = torch.randint(0, 2 * pixels + 1, (2, count, 1, 1), device=images.device)
    rows = down + torch.arange(height, device=images.device)[:, None]  # [N, height, 1]
    columns = right + torch.arange(width, device=images.device)  # [N, 1, width]
    return padded[torch.arange(count, device=images.device)[:, None, None], rows, columns]


DATA_SETS: dict[str, type[DataSet]] = {"digits": Digits}


def load(name: str, batch_size: int = 64) -> DataSet:
    """The data set called `name`; its files are read when it is set up.

    Raises:
        ValueError: if there is none of that name; the message lists them all.
    """
    if name not in DATA_SETS:
        raise ValueError(f"data must be one of {', '.join(DATA_SETS)}; got {name!r}")
    return DATA_SETS[name](batch_size)
