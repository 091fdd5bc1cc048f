"""Arrays of numbers: inputs and labels in ``.npz`` or ``.npy`` files, or in memory."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from hibana.data import arrays
from hibana.data.own import scale
from hibana.data.own.base import Inputs, Own, Raw, listed
from hibana.data.own.datasets import gathered, is_dataset
from hibana.data.own.parts import Parts

__all__ = ["ArrayInputs", "Arrays", "are_pictures", "are_spikes", "beginnings", "contents", "pair"]

PAIRS = (
    ("inputs", "labels"),
    ("x", "y"),
    ("X", "y"),
    ("data", "target"),
    ("images", "labels"),
    ("data", "labels"),
)
"""What inputs and labels are called in a file."""
TRAINING, VALIDATION, TEST = "_train", "_val", "_test"
CHANNELS = (1, 3, 4)
"""Of pictures."""


@dataclass(frozen=True)
class ArrayInputs(Inputs):
    """Inputs of one shape: each feature on a scale of its own, or all values on one; bytes as they are."""

    shape: tuple[int, ...]
    scale: scale.Scale | None

    def read(self, source: Any, label: str | None = None) -> Raw:
        found = contents(source)
        if len(found) == 1:
            (values,) = found.values()
            flat = len(self.shape) == 1 and values.ndim == 2 and values.shape[1] == self.shape[0] + 1
            inputs, labels = (values[:, :-1], values[:, -1]) if flat else (values, None)
        else:
            inputs, labels, _ = pair(found, None)
        kept = None if labels is None else listed(labels.tolist())
        if _is_channels_last(inputs.shape) and inputs.shape[1:] != self.shape:
            inputs = np.moveaxis(inputs, -1, 1)
        return Raw(_checked(inputs), kept, [f"sample {row}" for row in range(1, len(inputs) + 1)])

    def tensor(self, values: "np.ndarray[Any, Any]") -> Tensor:
        if self.scale is None:
            return torch.from_numpy(np.ascontiguousarray(values))
        numbers = torch.from_numpy(values.astype(np.float64))
        if len(self.scale.shift) == 1:
            return self.scale(numbers[..., None])[..., 0]
        return self.scale(numbers)

    def unlike(self, values: "np.ndarray[Any, Any]") -> str:
        if values.shape[1:] != self.shape:
            wanted = ", ".join(map(str, self.shape))
            raise ValueError(f"inputs must have the shape [N, {wanted}], got {values.shape}")
        if self.scale is None:
            return "" if values.dtype == np.uint8 else f"it is {values.dtype}; what was trained on is bytes"
        if values.dtype == np.uint8 and len(self.scale.low) == 1 and self.scale.high[0] <= 1:
            return "it is bytes; what was trained on is not"
        names = [f"feature {index}" for index in range(1, 1 + len(self.scale.low))]
        return self.scale.unlike(
            torch.from_numpy(values.astype(np.float64)), names if len(names) > 1 else ["it"]
        )


@final
class Arrays(Own):
    """Arrays: inputs and labels in an ``.npz`` file, a folder of ``.npy`` files, in memory, or a dataset.

    In a file they are called ``inputs`` and ``labels``, ``x`` and ``y``, ``data`` and ``target``, or
    ``x_train``, ``y_train``, ``x_test``, ``y_test`` (and ``x_val``, ``y_val``); of a single
    ``.npy``, ``[N, F + 1]``, the label is the last. Inputs ``[N, F]`` are brought to mean 0 and deviation 1,
    feature by feature; pictures and others to [0, 1] all together; bytes are divided by 255. Pictures whose
    channels come last, ``[N, H, W, 3]``, are turned to ``[N, 3, H, W]``.

    Args:
        source: a file, a folder, the inputs, ``[N, ...]``, or a map-style dataset of ``(x, y)``.
        labels: ``[N]``, with inputs in memory.
        options: see :class:`Own`.

    >>> samples = Arrays(torch.rand(20, 4), labels=[0, 1] * 10)
    >>> samples.setup()
    >>> len(samples.training), samples.shape, samples.classes
    (14, (4,), 2)
    """

    kind = "arrays"

    def __init__(self, source: Any, labels: Any = None, **options: Any) -> None:
        super().__init__(source, **options)
        self.labels = labels

    def read(self, source: Any) -> Raw:
        if self.labels is not None:
            found = {"inputs": np.asarray(source), "labels": np.asarray(self.labels)}
        else:
            found = contents(source)
        if len(found) == 1:
            (values,) = found.values()
            if self.label is not None:
                raise ValueError(
                    f"label is the name of an array in a file of several; of a single one the last column is "
                    f"the label: leave it out, got {self.label!r}"
                )
            if values.ndim != 2 or values.shape[1] < 2:
                raise ValueError(
                    f"a single array must be [N, F + 1] with the label last, got {values.shape}; give "
                    f"labels in an .npz file, or beside it in a folder"
                )
            inputs, labels, parts = values[:, :-1], values[:, -1], None
        else:
            inputs, labels, parts = pair(found, self.label)
        inputs = _checked(inputs)
        names = [f"sample {row}" for row in range(1, len(inputs) + 1)]
        shown = "x".join(map(str, inputs.shape[1:]))
        if _is_channels_last(inputs.shape):
            inputs = np.moveaxis(inputs, -1, 1)
            shown += f", turned to {'x'.join(map(str, inputs.shape[1:]))}"
        elif inputs.ndim == 3 and not _is_picture(arrays.Start(inputs.shape, inputs.dtype, inputs)):
            shown += " without a time axis (--kind sequences if they are series)"
        return Raw(
            inputs,
            listed(labels.tolist()),
            names,
            f"{len(inputs):,} arrays of {shown}",
            parts,
            self.label or "class",
        )

    def learn(self, raw: Raw, training: Sequence[int]) -> Inputs:
        values = raw.values
        if values.dtype == np.uint8:
            return ArrayInputs(values.shape[1:], None)
        part = torch.from_numpy(values[list(training)].astype(np.float64))
        flat = part.ndim == 2
        learned = scale.learned_from(part, unit=self.unit or not flat, joint=not flat)
        return ArrayInputs(values.shape[1:], learned)


def are_pictures(source: Any) -> bool:
    """Whether the inputs in a file or folder, or in memory, are pictures, as their shape and type say.

    Bytes ``[N, H, W]`` that are not all 0 and 1, or numbers ``[N, C, H, W]`` or ``[N, H, W, C]`` of 1, 3 or 4
    channels. Of a file only the beginnings of its arrays are read; one that can't be read holds none.
    """
    return any(map(_is_picture, beginnings(source)))


def _is_picture(start: arrays.Start) -> bool:
    if len(start.shape) == 3:
        return start.dtype == np.uint8 and not are_spikes(start.values)
    return len(start.shape) == 4 and (start.shape[1] in CHANNELS or start.shape[-1] in CHANNELS)


def beginnings(source: Any) -> list[arrays.Start]:
    """How the inputs in a file or folder, or in memory, begin; none of what can't be read."""
    if not isinstance(source, str | Path):
        if is_dataset(source):
            source, _ = gathered(source)
        values = np.asarray(source)
        return [arrays.Start(values.shape, values.dtype, values.reshape(-1)[: arrays.FIRST])]
    found = arrays.starts(Path(source))
    return [found[x + end] for x, _ in PAIRS for end in ("", TRAINING) if x + end in found]


def are_spikes(*values: "np.ndarray[Any, Any]") -> bool:
    """Whether all values are 0 or 1, and some are 1."""
    return all(((each == 0) | (each == 1)).all() for each in values) and any(each.any() for each in values)


def _is_channels_last(shape: tuple[int, ...]) -> bool:
    return len(shape) == 4 and shape[1] not in CHANNELS and shape[-1] in CHANNELS


def contents(source: Any) -> dict[str, "np.ndarray[Any, Any]"]:
    """The arrays in a file or folder, or `source` itself, by name.

    Raises:
        ValueError: if it can't be read.
    """
    if isinstance(source, str | Path):
        return arrays.contents(Path(source))
    if not is_dataset(source):
        return {"inputs": np.asarray(source)}
    inputs, labels = gathered(source)
    shapes = sorted({each.shape for each in inputs})
    if len(shapes) != 1:
        raise ValueError(f"samples must be arrays of one shape, got {', '.join(map(str, shapes[:3]))}")
    return {"inputs": np.stack(inputs), "labels": np.array(labels)}


Arrays3 = tuple["np.ndarray[Any, Any]", "np.ndarray[Any, Any]", Parts | None]


def pair(found: dict[str, "np.ndarray[Any, Any]"], label: str | None) -> Arrays3:
    """Inputs, labels and, where the file gives them, parts, of the arrays in a file.

    Raises:
        ValueError: if they are called otherwise, or their lengths differ.
    """
    pairs = [(x, label) for x, _ in PAIRS] if label else PAIRS
    for inputs, labels in pairs:
        if inputs in found and labels in found:
            return _matched(found[inputs], found[labels], None)
        if f"{inputs}{TRAINING}" in found and f"{labels}{TRAINING}" in found and f"{inputs}{TEST}" in found:
            return _parted(found, inputs, labels)
    wanted = "; ".join(f"{x} and {y}" for x, y in PAIRS)
    raise ValueError(f"arrays must be called {wanted}; got {', '.join(found)}")


def _parted(found: dict[str, "np.ndarray[Any, Any]"], inputs: str, labels: str) -> Arrays3:
    kept: list[list[Any]] = [[], []]
    parts: Parts = ([], [], [])
    count = 0
    for end, part in zip((TRAINING, VALIDATION, TEST), parts, strict=True):
        if inputs + end not in found or labels + end not in found:
            continue
        x, y = found[inputs + end], found[labels + end]
        part += range(count, count + len(x))
        count += len(x)
        kept[0].append(x)
        kept[1].append(y)
    if not parts[1]:
        parts[1].extend(parts[0][9::10] or parts[0][-1:])
        parts[0][:] = [index for index in parts[0] if index not in set(parts[1])]
    return _matched(np.concatenate(kept[0]), np.concatenate(kept[1]), parts)


def _matched(inputs: "np.ndarray[Any, Any]", labels: "np.ndarray[Any, Any]", parts: Parts | None) -> Arrays3:
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim == 2 and len(labels) == len(inputs):
        raise ValueError(
            f"labels must be [N], got {labels.shape}; several labels of a sample (multi-label) are not "
            f"learned yet"
        )
    if labels.ndim != 1 or inputs.ndim < 2 or len(inputs) != len(labels):
        raise ValueError(
            f"inputs must be [N, ...] and labels [N], got shapes {inputs.shape} and {labels.shape}"
        )
    return inputs, labels, parts


def _checked(values: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
    """`values`, if each is a finite number.

    Raises:
        ValueError: naming the sample and the place of the first that is not.
    """
    if 0 in values.shape[1:]:
        raise ValueError(f"inputs must have at least one number a sample, got the shape {values.shape}")
    if values.dtype == np.bool_:
        return values.astype(np.float32)
    if not (np.issubdtype(values.dtype, np.integer) or np.issubdtype(values.dtype, np.floating)):
        raise ValueError(f"inputs must be numbers, got {values.dtype}")
    if np.issubdtype(values.dtype, np.floating) and not np.isfinite(values).all():
        row, *place = (int(axis[0]) for axis in np.nonzero(~np.isfinite(values)))
        raise ValueError(
            f"inputs must be finite numbers, sample {row + 1} has {values[(row, *place)]} at {place or [0]}"
        )
    return values
