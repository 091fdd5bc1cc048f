"""Refuses NaN and infinity in inputs and labels.

Spikes would hide them: a comparison with NaN is false, so a neuron with a NaN current never spikes again, and
its output stays finite.
"""

from typing import Any

import torch
from torch import Tensor

from hibana import data

__all__ = ["check", "check_batch"]


def check(samples: data.DataSet) -> None:
    """Checks the parts that are held in memory.

    Raises:
        ValueError: naming part, sample and column of the first value that is not finite.
    """
    for part in ("training", "validation", "test"):
        split = getattr(samples, part)
        if isinstance(split, data.InMemory):
            _check((split.inputs, split.labels), split, part)


def check_batch(batch: tuple[Tensor, ...], split: Any, part: str) -> None:
    """Checks a batch of a `split` that is not held in memory.

    Raises:
        ValueError: see :func:`check`.
    """
    if not isinstance(split, data.InMemory):
        _check(batch, split, part)


def _check(tensors: tuple[Tensor, ...], split: Any, part: str) -> None:
    """Raises for the first sample of `split` with a value that is not finite, if `tensors` have one."""
    if all(bool(tensor.isfinite().all()) for tensor in tensors if tensor.is_floating_point()):
        return
    for number in range(0 if split is None else len(split)):
        for name, value in zip(("inputs", "labels"), split[number], strict=False):
            tensor = torch.as_tensor(value, dtype=torch.float64, device="cpu")
            if bool(tensor.isfinite().all()):
                continue
            place = (~tensor.isfinite()).nonzero()[0].tolist()
            column = f", column {place[-1] + 1}" if place else ""
            if len(place) > 1:
                column = f" at {[each + 1 for each in place[:-1]]}{column}"
            raise ValueError(
                f"{name} must be finite numbers, sample {number + 1} of the {part} part has "
                f"{tensor[tuple(place)].item()}{column}, counted from 1; "
                f"leave that sample out, or put a number there"
            )
    raise ValueError(f"inputs and labels must be finite numbers, {part} has others in a batch")
