"""Inputs and labels that training refuses: NaN and infinity, which a spike would hide.

A comparison with NaN is false: a neuron whose current is NaN never spikes again, and its output stays finite.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from hibana import data

__all__ = ["check", "check_batch"]


def check(samples: data.DataSet) -> None:
    """Checks the splits that are held in memory.

    Raises:
        ValueError: naming part, sample and column of the first value that is not finite.
    """
    for part in ("training", "validation", "test"):
        split = getattr(samples, part)
        if isinstance(split, data.InMemory):
            held = [split.inputs, split.labels]
        elif isinstance(split, data.Ragged):
            held = [*split.sequences, split.labels]
        else:
            continue
        if not _are_finite(held):
            raise ValueError(_first(split, part))


def check_batch(batch: tuple[Tensor, ...], split: Any, part: str) -> None:
    """Checks a batch of a `split` that is not held in memory.

    Raises:
        ValueError: as :func:`check`.
    """
    if not isinstance(split, data.InMemory | data.Ragged) and not _are_finite(batch):
        found = "" if split is None else _first(split, part)
        raise ValueError(found or f"inputs and labels must be finite numbers, {part} has others in a batch")


def _are_finite(tensors: Iterable[Tensor]) -> bool:
    return all(bool(tensor.isfinite().all()) for tensor in tensors if tensor.is_floating_point())


def _first(split: Any, part: str) -> str:
    """Where the first value of `split` lies that is not finite, in a sentence; empty if there is none."""
    for number in range(len(split)):
        for name, value in zip(("inputs", "labels"), split[number], strict=False):
            tensor = (
                value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64, device="cpu")
            )
            if _are_finite([tensor]):
                continue
            place = (~tensor.isfinite()).nonzero()[0].tolist()
            column = f", column {place[-1] + 1}" if place else ""
            if len(place) > 1:
                column = f" at {[each + 1 for each in place[:-1]]}{column}"
            return (
                f"{name} must be finite numbers, sample {number + 1} of the {part} part has "
                f"{tensor[tuple(place)].item()}{column}, counted from 1; "
                f"leave that sample out, or put a number there"
            )
    return ""
