"""Series in arrays: ``[N, T, F]``, or ``[N, T]`` if the kind is given, with optional lengths."""

from pathlib import Path
from typing import Any

import numpy as np

from hibana.data.own.base import Raw, listed
from hibana.data.own.datasets import gathered, is_dataset
from hibana.data.own.tensors import are_spikes, contents, inputs_in, pair

__all__ = ["are_series", "is_array", "read", "spike_steps"]

LENGTHS = "lengths"
"""Name of the lengths in a file; of parts ``lengths_train`` and so on."""


def is_array(source: Any) -> bool:
    """Whether `source` is a file of arrays, or a folder of them."""
    if not isinstance(source, str | Path):
        return False
    path = Path(source)
    return path.suffix.lower() in (".npz", ".npy") or (path.is_dir() and any(path.glob("*.npy")))


def are_series(source: Any) -> bool:
    """Whether the inputs in a file or folder, or in memory, are series: numbers ``[N, T, F]``.

    Bytes are pictures, unless all are 0 and 1.
    """
    return any(each.ndim == 3 and (each.dtype != np.uint8 or are_spikes(each)) for each in inputs_in(source))


def spike_steps(source: Any) -> int | None:
    """The steps of the spike trains in a file; ``None`` for other files."""
    inputs = inputs_in(source)
    trains = bool(inputs) and all(each.ndim in (2, 3) and are_spikes(each) for each in inputs)
    return max(each.shape[1] for each in inputs) if trains else None


def read(source: Any, label: str | None) -> Raw:
    """The series in a file or folder of arrays, or in a dataset of samples, ``[T_i, F]`` each.

    Raises:
        ValueError: if they are no series, or their lengths do not fit.
    """
    if is_dataset(source):
        frames, labels = gathered(source)
        return Raw(frames, labels, _names(frames))
    found = contents(source)
    parts = written = lengths = None
    if any(name.startswith(LENGTHS) for name in found):
        inputs, lengths, parts = pair(found, LENGTHS)
        found = {name: values for name, values in found.items() if not name.startswith(LENGTHS)}
    if len(found) == 1:
        (inputs,) = found.values()
    else:
        inputs, classes, parts = pair(found, label if label in found else None)
        written = listed(classes.tolist())
    if inputs.ndim not in (2, 3):
        raise ValueError(f"series in arrays must be [N, T, F] or [N, T], got the shape {inputs.shape}")
    if inputs.dtype.kind not in "biuf":
        raise ValueError(f"series must be numbers, got {inputs.dtype}")
    frames = list(inputs)
    if lengths is not None:
        steps = inputs.shape[1]
        if (
            lengths.dtype.kind not in "iuf"
            or not ((lengths >= 1) & (lengths <= steps) & (lengths % 1 == 0)).all()
        ):
            raise ValueError(f"lengths must be whole numbers of 1 to {steps} steps, got {lengths}")
        frames = [each[: int(length)] for each, length in zip(frames, lengths, strict=True)]
    return Raw(frames, written, _names(frames), parts=parts, label=label or "class")


def _names(frames: list[Any]) -> list[str]:
    return [f"sequence {number}" for number in range(1, len(frames) + 1)]
