"""What a data set is: three fixed splits, in batches that do not depend on how many processes share them."""

import os
from abc import abstractmethod
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, DistributedSampler, Sampler

from hibana.runtime.extras import explain_import_error

__all__ = ["DataSet", "InMemory", "Samples", "check_steps", "machine_memory", "stretch"]

Samples = Dataset[tuple[Tensor, ...]]
"""A split: ``(input, label)`` by index."""


class DataSet:
    """A data set in three fixed splits, of which tuning sees two.

    A subclass says what one input is (`shape` of one step, number of `classes`, and whether it is
    `sequential`: ``[T, *shape]`` rather than ``shape``), what its training batches bear (`augmentation`, as
    :func:`hibana.train.augment.augment_batch` knows it), how it is shown unless that is asked for otherwise
    (`coding`, for `usual_steps`), and gives :meth:`splits`.

    The order of the training samples follows from `seed` and the epoch alone, so a run that goes on from a
    checkpoint sees what it would have seen; and the samples of one step are the same however many processes
    share them.

    Args:
        batch_size: samples in a batch, over all processes together; at least 1.
        seed: of the order of the training samples.
        workers: processes that load, for data sets that are not in memory.
    """

    shape: tuple[int, ...]
    classes: int
    sequential: bool = False
    augmentation: str = "none"
    coding: str = ""
    """How inputs are shown; "" is as currents: ``constant``, or ``none`` of what has a time axis."""
    usual_steps: int = 8
    unit: bool = False
    """Whether inputs lie in [0, 1]."""
    evaluated_at_once: int = 512
    """Samples in a batch of validation and test."""
    processes: int = 1
    """How many share the samples of each step."""
    rank: int = 0
    """Which of them this is."""

    def __init__(self, batch_size: int = 64, *, seed: int = 0, workers: int = 0) -> None:
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"batch_size must be an integer of at least 1, got {batch_size!r}")
        self.batch_size = batch_size
        self.seed = seed
        self.workers = workers
        self.training: Samples
        self.validation: Samples
        self.test: Samples

    @property
    def names(self) -> tuple[str, ...]:
        """What the classes are called; their numbers unless the data say otherwise."""
        return tuple(str(index) for index in range(self.classes))

    @abstractmethod
    def splits(self) -> tuple[Samples, Samples, Samples]:
        """Training, validation and test."""

    def prepare_data(self) -> None:
        """Fetches what is not there yet; one process of a machine calls it."""

    def setup(self) -> None:
        """Makes the splits, unless they are there."""
        if not hasattr(self, "test"):
            with explain_import_error(f"hibana.data.{type(self).__name__}"):
                self.training, self.validation, self.test = self.splits()

    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return self._loader(self.training, self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return self._loader(self.validation, self.evaluated_at_once, shuffle=False)

    def test_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return self._loader(self.test, self.evaluated_at_once, shuffle=False)

    def _loader(self, samples: Samples, batch: int, *, shuffle: bool) -> DataLoader[tuple[Tensor, ...]]:
        processes, rank = self.processes, self.rank
        if batch % processes and shuffle:
            raise ValueError(f"batch_size must be a multiple of the {processes} processes, got {batch}")
        sampler: Sampler[int]
        if shuffle:
            sampler = DistributedSampler(samples, processes, rank, seed=self.seed)
        else:
            sampler = _Share(len(samples), processes, rank)  # type: ignore[arg-type]  # all splits have a length
        return DataLoader(
            samples,
            max(1, batch // processes),
            sampler=sampler,
            generator=torch.Generator().manual_seed(
                self.seed
            ),  # or each epoch would draw from the global one
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
            collate_fn=_as_is if isinstance(samples, InMemory) else None,
        )


def check_steps(steps: int, least: int) -> int:
    """`steps`, if it is an integer of at least `least`.

    Raises:
        ValueError: if it is not.
    """
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < least:
        raise ValueError(f"steps must be an integer of at least {least}, got {steps!r}")
    return steps


def stretch(sequence: Tensor, steps: int) -> Tensor:
    """`sequence`, ``[T, F]``, interpolated linearly to ``[steps, F]``; a single step is repeated."""
    if len(sequence) == 1:
        return sequence.expand(steps, -1)
    return functional.interpolate(sequence.T[None], size=steps, mode="linear", align_corners=True)[0].T


def machine_memory() -> int:
    """Bytes of this machine's memory, used or not; where it does not say, more than any has.

    Systems that give out more than they have end a process that fills it, and whoever else is in the way.
    """
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 1 << 62


class _Share(Sampler[int]):
    """Every sample once, over all processes together; torch's own repeats some to make the shares equal."""

    def __init__(self, count: int, processes: int, rank: int) -> None:
        self.indices = range(rank, count, processes)

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices)

    def __len__(self) -> int:
        return len(self.indices)


def _as_is(batch: Any) -> Any:
    return batch


class InMemory(Dataset[tuple[Tensor, ...]]):
    """Inputs ``[N, ...]`` and labels ``[N]``, gathered a batch at a time.

    Byte inputs are stored as they are and given as ``float32`` in [0, 1], truth values as 0 and 1. The
    tensors are attributes: `inputs`, `labels`, and `lengths`, ``None`` where there are none.

    Args:
        inputs: ``[N, ...]``.
        labels: ``[N]``.
        lengths: of sequences ``[N, T, ...]`` that are padded to T, ``[N]``; given with each batch.
    """

    def __init__(self, inputs: Tensor, labels: Tensor, lengths: Tensor | None = None) -> None:
        for name, values in (("labels", labels), ("lengths", lengths)):
            if values is not None and len(inputs) != len(values):
                raise ValueError(f"{name} must be one for each of {len(inputs)} inputs, got {len(values)}")
        self.inputs, self.labels, self.lengths = inputs, labels, lengths

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        return tuple(each[0] for each in self.__getitems__([index]))

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, ...]:
        chosen = torch.as_tensor(indices, dtype=torch.int64, device="cpu")
        inputs = self.inputs[chosen]
        if inputs.dtype == torch.uint8:
            inputs = inputs.float() / 255
        elif inputs.dtype == torch.bool:
            inputs = inputs.float()
        lengths = () if self.lengths is None else (self.lengths[chosen],)
        return inputs, self.labels[chosen], *lengths
