"""Rejects NaN and infinity in inputs and labels.

Spikes would hide them: a comparison with NaN is false, so a neuron with a NaN current never spikes again, and
the network's output stays finite.
"""

from typing import Any

import torch
from torch import Tensor

from hibana import data

__all__ = ["check", "check_batch"]


def check(samples: data.DataSet) -> None:
    """Checks all samples that are held in memory.

    Raises:
        ValueError: naming part, sample and column of the first value that is not finite.
    """
    for part in ("training", "validation", "test"):
        split = getattr(samples, part)
        if isinstance(split, data.InMemory):
            _check((split.inputs, split.labels), split, part)


def check_batch(batch: tuple[Tensor, ...], split: Any, part: str, epoch: int) -> None:
    """Checks a batch of samples that are not held in memory.

    Args:
        batch: inputs and labels.
        split: the split that the batch is from; ``None`` if unknown.
        part: name of the split: training, validation or test.
        epoch: number of the epoch, for the message.

    Raises:
        FloatingPointError: naming epoch, part, sample and column of the first value that is not finite.
    """
    try:
        if not isinstance(split, data.InMemory):
            _check(batch, split, part)
    except ValueError as error:
        raise FloatingPointError(f"training stopped in epoch {epoch}: {error}") from error


def _check(tensors: tuple[Tensor, ...], split: Any, part: str) -> None:
    """Raises a ValueError that names the first bad sample of `split`, if `tensors` have a bad value."""
    if all(bool(tensor.isfinite().all()) for tensor in tensors if tensor.is_floating_point()):
        return
    for number in range(0 if split is None else len(split)):
        for name, value in zip(("inputs", "labels"), split[number], strict=False):
            tensor = torch.as_tensor(value, dtype=torch.float64, device="cpu")
            if bool(tensor.isfinite().all()):
                continue
            # position of the first bad value, counted from 1; [0] for a label, which is one number
            *axes, column = [i + 1 for i in (~tensor.isfinite()).nonzero()[0].tolist()] or [0]
            position = (f" at {axes}" if axes else "") + (f", column {column}" if column else "")
            raise ValueError(
                f"{name} must be finite numbers, sample {number + 1} of the {part} part has "
                f"{tensor[~tensor.isfinite()][0].item()}{position}, counted from 1; "
                f"leave that sample out, or put a number there"
            )
    raise ValueError(f"inputs and labels must be finite numbers, {part} has others in a batch")
