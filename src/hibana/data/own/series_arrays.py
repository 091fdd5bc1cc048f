"""Series in arrays: ``[N, T, F]``, or ``[N, T]`` where that is asked for, with lengths beside them."""

from pathlib import Path
from typing import Any

import numpy as np

from hibana.data.own.base import Raw, listed
from hibana.data.own.datasets import gathered, is_dataset
from hibana.data.own.tensors import are_spikes, beginnings, contents, pair

__all__ = ["are_series", "is_array", "read", "spike_steps"]

LENGTHS = "lengths"
"""What the steps of each series are called in a file; of parts ``lengths_train`` and so on."""


def is_array(source: Any) -> bool:
    """Whether `source` is a file of arrays, or a folder of them."""
    if not isinstance(source, str | Path):
        return False
    path = Path(source)
    return path.suffix.lower() in (".npz", ".npy") or (path.is_dir() and any(path.glob("*.npy")))


def are_series(source: Any) -> bool:
    """Whether the inputs in a file or folder, or in memory, are series: numbers ``[N, T, F]``.

    Bytes are pictures, unless all are 0 and 1. Of a file only the beginnings of its arrays are read.
    """
    return any(
        len(each.shape) == 3 and (each.dtype != np.uint8 or are_spikes(each.values))
        for each in beginnings(source)
    )


def spike_steps(source: Any) -> int | None:
    """The steps of the spike trains in a file, seen from the beginnings of its arrays; ``None`` of others."""
    found = beginnings(source)
    trains = bool(found) and all(len(each.shape) in (2, 3) and are_spikes(each.values) for each in found)
    return max(each.shape[1] for each in found) if trains else None


def read(source: Any, label: str | None) -> Raw:
    """The series in a file or folder of arrays, or in a dataset of samples, ``[T_i, F]`` each.

    Raises:
        ValueError: if they are no series, or the lengths are not those of them.
    """
    if is_dataset(source):
        frames, labels = gathered(source)
        return Raw(frames, labels, _names(len(frames)))
    found = contents(source)
    parts = known = lengths = None
    if any(name.startswith(LENGTHS) for name in found):
        inputs, lengths, parts = pair(found, LENGTHS)
        found = {name: values for name, values in found.items() if not name.startswith(LENGTHS)}
    if len(found) == 1:
        (inputs,) = found.values()
    else:
        inputs, labels_, parts = pair(found, label if label in found else None)
        known = listed(labels_.tolist())
    if inputs.ndim not in (2, 3):
        raise ValueError(f"series in arrays must be [N, T, F] or [N, T], got the shape {inputs.shape}")
    if not (np.issubdtype(inputs.dtype, np.number) or inputs.dtype == np.bool_):
        raise ValueError(f"series must be numbers, got {inputs.dtype}")
    frames = list(inputs)
    if lengths is not None:
        steps = inputs.shape[1]
        whole = np.issubdtype(lengths.dtype, np.number) and (lengths == np.floor(lengths)).all()
        if not whole or lengths.min() < 1 or lengths.max() > steps:
            raise ValueError(f"lengths must be whole numbers of 1 to {steps} steps, got {lengths}")
        frames = [each[: int(length)] for each, length in zip(frames, lengths, strict=True)]
    return Raw(frames, known, _names(len(frames)), parts=parts, label=label or "class")


def _names(count: int) -> list[str]:
    return [f"sequence {number}" for number in range(1, count + 1)]
