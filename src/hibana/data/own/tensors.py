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
from hibana.data.own.parts import Parts, with_validation

__all__ = ["ArrayInputs", "Arrays", "are_pictures", "are_spikes", "contents", "inputs_in", "pair"]

PAIRS = (
    *(("inputs", "labels"), ("x", "y"), ("X", "y"), ("data", "target")),
    *(("images", "labels"), ("data", "labels")),
)
"""Names of inputs and labels in a file."""
PARTS = ("_train", "_val", "_test")
CHANNELS = (1, 3, 4)
"""Numbers of channels of pictures."""

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class ArrayInputs(Inputs):
    """Inputs of one shape, scaled per feature, or all values together; bytes are divided by 255."""

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
        if _is_channels_last(inputs.shape) and inputs.shape[1:] != self.shape:
            inputs = np.moveaxis(inputs, -1, 1)
        return Raw(_checked(inputs), None if labels is None else listed(labels.tolist()), _names(inputs))

    def tensor(self, values: Array) -> Tensor:
        if self.scale is None:
            return torch.from_numpy(np.ascontiguousarray(values))
        numbers = torch.from_numpy(values.astype(np.float64))
        joint = len(self.scale.shift) == 1
        return self.scale(numbers[..., None])[..., 0] if joint else self.scale(numbers)

    def unlike(self, values: Array) -> str:
        if values.shape[1:] != self.shape:
            expected = ", ".join(map(str, self.shape))
            raise ValueError(f"inputs must have the shape [N, {expected}], got {values.shape}")
        if self.scale is None:
            return "" if values.dtype == np.uint8 else f"it is {values.dtype}; the training data are bytes"
        if values.dtype == np.uint8 and len(self.scale.low) == 1 and self.scale.high[0] <= 1:
            return "it is bytes; the training data are not"
        names = [f"feature {index}" for index in range(1, 1 + len(self.scale.low))]
        numbers = torch.from_numpy(values.astype(np.float64))
        return self.scale.unlike(numbers, names if len(names) > 1 else ["it"])


@final
class Arrays(Own):
    """Arrays: inputs and labels in an ``.npz`` file, a folder of ``.npy`` files, in memory, or a dataset.

    In a file their names are ``inputs`` and ``labels``, ``x`` and ``y``, ``data`` and ``target``, or
    ``x_train``, ``y_train``, ``x_test``, ``y_test`` (and ``x_val``, ``y_val``); the last column of a single
    ``.npy``, ``[N, F + 1]``, is the label. Inputs ``[N, F]`` are scaled to mean 0 and deviation 1 per
    feature; pictures and others to [0, 1] together; bytes are divided by 255. Pictures whose channels come
    last, ``[N, H, W, 3]``, become ``[N, 3, H, W]``.

    Args:
        source: a file, a folder, the inputs, ``[N, ...]``, or a map-style dataset of ``(x, y)``.
        labels: ``[N]``, for inputs in memory.
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
        if len(found) > 1:
            inputs, labels, parts = pair(found, self.label)
        elif self.label is not None:
            raise ValueError(
                f"label is the name of an array in a file of several; of a single one the last column is "
                f"the label: leave it out, got {self.label!r}"
            )
        else:
            (values,) = found.values()
            if values.ndim != 2 or values.shape[1] < 2:
                raise ValueError(
                    f"a single array must be [N, F + 1] with the label last, got {values.shape}; give "
                    f"labels in an .npz file, or beside it in a folder"
                )
            inputs, labels, parts = values[:, :-1], values[:, -1], None
        inputs = _checked(inputs)
        shown = "x".join(map(str, inputs.shape[1:]))
        if _is_channels_last(inputs.shape):
            inputs = np.moveaxis(inputs, -1, 1)
            shown += f", turned to {'x'.join(map(str, inputs.shape[1:]))}"
        elif inputs.ndim == 3 and not _is_picture(inputs):
            shown += " without a time axis (--kind sequences if they are series)"
        summary = f"{len(inputs):,} arrays of {shown}"
        return Raw(inputs, listed(labels.tolist()), _names(inputs), summary, parts, self.label or "class")

    def learn(self, raw: Raw, training: Sequence[int]) -> Inputs:
        values = raw.values
        if values.dtype == np.uint8:
            return ArrayInputs(values.shape[1:], None)
        part = torch.from_numpy(values[list(training)].astype(np.float64))
        flat = part.ndim == 2
        learned = scale.learned_from(part, unit=self.unit or not flat, joint=not flat)
        return ArrayInputs(values.shape[1:], learned)


def are_pictures(source: Any) -> bool:
    """Whether the inputs in a file or folder, or in memory, are pictures, by shape and type.

    Bytes ``[N, H, W]`` that are not all 0 and 1, or numbers ``[N, C, H, W]`` or ``[N, H, W, C]`` of 1, 3 or 4
    channels.
    """
    return any(map(_is_picture, inputs_in(source)))


def _is_picture(values: Array) -> bool:
    if values.ndim == 3:
        return values.dtype == np.uint8 and not are_spikes(values)
    return values.ndim == 4 and (values.shape[1] in CHANNELS or values.shape[-1] in CHANNELS)


def inputs_in(source: Any) -> list[Array]:
    """The arrays of inputs in an ``.npz`` file or folder, or in memory; none of files that can't be read."""
    if not isinstance(source, str | Path):
        return [np.asarray(gathered(source)[0] if is_dataset(source) else source)]
    try:
        found = {} if Path(source).suffix == ".npy" else contents(source)
    except ValueError:  # reported when the data are read
        return []
    return [found[x + part] for x, _ in PAIRS for part in ("", PARTS[0]) if x + part in found]


def are_spikes(*values: Array) -> bool:
    """Whether all values are 0 or 1, and some are 1."""
    return all(((each == 0) | (each == 1)).all() for each in values) and any(each.any() for each in values)


def _is_channels_last(shape: tuple[int, ...]) -> bool:
    return len(shape) == 4 and shape[1] not in CHANNELS and shape[-1] in CHANNELS


def contents(source: Any) -> dict[str, Array]:
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


def pair(found: dict[str, Array], label: str | None) -> tuple[Array, Array, Parts | None]:
    """Inputs, labels and the given split, if any, of the arrays in a file.

    Raises:
        ValueError: if they have other names, or their lengths differ.
    """
    for x, y in [(x, label) for x, _ in PAIRS] if label else PAIRS:
        if x in found and y in found:
            return *_matched(found[x], found[y]), None
        given = [part for part in PARTS if x + part in found and y + part in found]
        if PARTS[0] in given and x + PARTS[2] in found:
            inputs, labels = (np.concatenate([found[name + part] for part in given]) for name in (x, y))
            ends = np.cumsum([len(found[x + part]) if part in given else 0 for part in PARTS]).tolist()
            parts = list(range(ends[0])), list(range(ends[0], ends[1])), list(range(ends[1], ends[2]))
            return *_matched(inputs, labels), with_validation(parts)
    names = "; ".join(f"{x} and {y}" for x, y in PAIRS)
    raise ValueError(f"arrays must be called {names}; got {', '.join(found)}")


def _matched(inputs: Array, labels: Array) -> tuple[Array, Array]:
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
    return inputs, labels


def _checked(values: Array) -> Array:
    """`values`, if they are finite numbers.

    Raises:
        ValueError: naming the sample and the place of the first that is not.
    """
    if 0 in values.shape[1:]:
        raise ValueError(f"inputs must have at least one number a sample, got the shape {values.shape}")
    if values.dtype == np.bool_:
        return values.astype(np.float32)
    if values.dtype.kind not in "iuf":
        raise ValueError(f"inputs must be numbers, got {values.dtype}")
    if not np.isfinite(values).all():
        row, *place = (int(axis[0]) for axis in np.nonzero(~np.isfinite(values)))
        raise ValueError(
            f"inputs must be finite numbers, sample {row + 1} has {values[(row, *place)]} at {place or [0]}"
        )
    return values


def _names(inputs: Array) -> list[str]:
    return [f"sample {row}" for row in range(1, len(inputs) + 1)]
