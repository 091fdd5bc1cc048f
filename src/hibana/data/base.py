"""Base class of all data sets: three fixed splits, whose batches do not depend on the number of processes."""

import os
from abc import abstractmethod
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from hibana.runtime.extras import explain_import_error

Samples = Dataset[tuple[Tensor, ...]]
"""A split: ``(input, label)`` by index."""


class DataSet:
    """A data set with a training, a validation and a test split.

    A subclass implements :meth:`splits` and defines `shape` (of one step of an input), `classes`,
    `sequential` (inputs are ``[T, *shape]`` rather than ``shape``), and the default augmentation, coding and
    number of steps of :class:`hibana.train.Settings`.

    The order of the training samples depends on `seed` and the epoch alone, so a run that resumes from a
    checkpoint sees the same batches. Several processes share the samples of each step, which are the same for
    any number of processes.

    Args:
        batch_size: samples per batch, summed over all processes; at least 1.
        seed: seed of the order of the training samples.
        workers: number of loading processes, for data sets that are not in memory.
    """

    shape: tuple[int, ...]
    classes: int
    sequential: bool = False
    augmentation: str = "none"
    coding: str = ""
    """Default coding of the inputs; if empty, ``none`` for sequential data and ``constant`` for others."""
    usual_steps: int = 8
    """Default number of steps."""
    unit: bool = False
    """Whether inputs lie in [0, 1]."""
    evaluated_at_once: int = 512
    """Samples per batch of validation and test."""
    processes: int = 1
    """Number of processes that share the samples of each step."""
    rank: int = 0
    """Index of this process among them."""

    def __init__(self, batch_size: int = 64, *, seed: int = 0, workers: int = 0) -> None:
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"batch_size must be an integer of at least 1, got {batch_size!r}")
        self.batch_size, self.seed, self.workers = batch_size, seed, workers
        self.training: Samples
        self.validation: Samples
        self.test: Samples

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the classes; by default their indices."""
        return tuple(str(index) for index in range(self.classes))

    @abstractmethod
    def splits(self) -> tuple[Samples, Samples, Samples]:
        """The training, validation and test split."""

    def prepare_data(self) -> None:
        """Downloads missing files; called by one process per machine."""

    def setup(self) -> None:
        """Sets `training`, `validation` and `test`, unless they are already set."""
        if not hasattr(self, "test"):
            with explain_import_error(f"hibana.data.{type(self).__name__}"):
                self.training, self.validation, self.test = self.splits()

    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Batches of this process's training samples, in the random order of the seed and the epoch."""
        return self._loader(self.training, self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Batches of this process's validation samples in their order."""
        return self._loader(self.validation, self.evaluated_at_once, shuffle=False)

    def test_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Batches of this process's test samples in their order."""
        return self._loader(self.test, self.evaluated_at_once, shuffle=False)

    def _loader(self, samples: Samples, batch_size: int, *, shuffle: bool) -> DataLoader[tuple[Tensor, ...]]:
        """Batches of this process's share of `samples`; `batch_size` counts the samples of all processes."""
        processes, rank = self.processes, self.rank
        sampler: Iterable[int]
        if shuffle:
            sampler = DistributedSampler(samples, processes, rank, seed=self.seed)
        else:  # over all processes each sample occurs once; DistributedSampler would repeat some
            sampler = range(rank, len(samples), processes)  # type: ignore[arg-type]  # splits have a length
        return DataLoader(
            samples,
            max(1, batch_size // processes),
            sampler=sampler,
            generator=torch.Generator().manual_seed(self.seed),  # keeps the global generator unchanged
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
            collate_fn=_identity if isinstance(samples, InMemory) else None,
        )


def stretch(sequence: Tensor, steps: int) -> Tensor:
    """`sequence`, ``[T, F]``, interpolated linearly to ``[steps, F]``; a single step is repeated."""
    if len(sequence) == 1:
        return sequence.expand(steps, -1)
    return functional.interpolate(sequence.T[None], size=steps, mode="linear", align_corners=True)[0].T


def machine_memory() -> int:
    """Bytes of this machine's physical memory, or ``1 << 62`` if the system does not report them."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 1 << 62


def _identity(batch: Any) -> Any:
    """Returns `batch`: the samples in memory are already indexed one batch at a time."""
    return batch


class InMemory(Dataset[tuple[Tensor, ...]]):
    """Inputs ``[N, ...]`` and labels ``[N]`` in memory, indexed one batch at a time.

    Byte inputs become ``float32`` in [0, 1] when they are indexed, boolean inputs become 0 and 1.

    Args:
        inputs: ``[N, ...]``.
        labels: ``[N]``.
        lengths: length of each sequence before padding, ``[N]``, for inputs ``[N, T, ...]``; the third item
            of each batch. ``None``: no sequence is padded.
    """

    def __init__(self, inputs: Tensor, labels: Tensor, lengths: Tensor | None = None) -> None:
        for name, values in (("labels", labels), ("lengths", lengths)):
            if values is not None and len(inputs) != len(values):
                raise ValueError(f"{name} must be one for each of {len(inputs)} inputs, got {len(values)}")
        self.inputs, self.labels, self.lengths = inputs, labels, lengths

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        """The input, the label and the length, if there are lengths, of one sample."""
        return tuple(batch[0] for batch in self.__getitems__([index]))

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, ...]:
        """One batch: the inputs, labels and lengths, if there are lengths, of the samples with `indices`."""
        rows = torch.as_tensor(indices, dtype=torch.int64, device="cpu")
        inputs = self.inputs[rows]
        if inputs.dtype == torch.uint8:
            inputs = inputs.float() / 255
        elif inputs.dtype == torch.bool:
            inputs = inputs.float()
        lengths = () if self.lengths is None else (self.lengths[rows],)
        return inputs, self.labels[rows], *lengths

    def check_finite(self, part: str) -> None:
        """Checks all inputs and labels of this `part` of the data, such as ``training``.

        Spikes would hide NaN: a comparison with it is false, so a neuron with a NaN current never spikes
        again, and the network's output stays finite.

        Raises:
            ValueError: naming part, sample and column of the first value that is not finite.
        """
        for name, tensor in (("inputs", self.inputs), ("labels", self.labels)):
            is_finite = tensor.isfinite()
            if not bool(is_finite.all()):
                sample, *position = ((~is_finite).nonzero()[0] + 1).tolist()
                column = f", column {position[-1]}" if position else ""
                place = f"sample {sample} of the {part} part has {tensor[~is_finite][0].item()}{column}"
                raise ValueError(f"{name} must be finite numbers, {place}, counted from 1")
