"""Samples of unequal length in a batch: padded, with their lengths."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.data import Dataset

from hibana.nn import lengths as padding

__all__ = ["Ragged", "padded"]


def padded(samples: Sequence[tuple[Tensor, Tensor | int]]) -> tuple[Tensor, Tensor, Tensor]:
    """A batch of ``(sequence [T_i, ...], label)``: inputs ``[N, T, ...]``, labels and lengths, ``[N]`` each.

    For ``DataLoader(..., collate_fn=padded)``. Inputs have their first axis the batch, as in all data sets;
    ``inputs.transpose(0, 1)`` and the lengths are what losses and `activity` take.

    >>> inputs, labels, lengths = padded([(torch.ones(2, 3), 1), (torch.ones(4, 3), 0)])
    >>> inputs.shape, labels.tolist(), lengths.tolist()
    (torch.Size([2, 4, 3]), [1, 0], [2, 4])
    """
    inputs, lengths = padding.pad([sequence for sequence, _ in samples])
    labels = torch.tensor([int(label) for _, label in samples], dtype=torch.int64, device="cpu")
    return inputs.transpose(0, 1), labels, lengths


class Ragged(Dataset[tuple[Tensor, ...]]):
    """Sequences ``[T_i, ...]`` and labels ``[N]`` as a split, in batches as :func:`padded` makes them."""

    def __init__(self, sequences: Sequence[Tensor], labels: Tensor) -> None:
        if len(sequences) != len(labels):
            raise ValueError(f"labels must be one for each of {len(sequences)} sequences, got {len(labels)}")
        self.sequences, self.labels = list(sequences), labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.sequences[index], self.labels[index]
