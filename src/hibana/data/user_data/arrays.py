"""Arrays of numbers: inputs and labels in ``.npz`` or ``.npy`` files, or in memory."""

import tokenize
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from hibana.data.user_data import scale
from hibana.data.user_data.base import Inputs, UserData
from hibana.data.user_data.samples import Parts, Raw, with_validation
from hibana.data.user_data.target import texts

__all__ = ["UNREADABLE", "ArrayInputs", "Arrays", "are_pictures", "are_series", "are_spikes", "contents"]
__all__ += ["input_arrays", "pair", "read_numbers"]

NAMES = (
    *(("inputs", "labels"), ("x", "y"), ("X", "y"), ("data", "target")),
    *(("images", "labels"), ("data", "labels")),
)
"""Names of inputs and labels in a file."""
PARTS = ("_train", "_val", "_test")
CHANNELS = (1, 3, 4)
"""Numbers of channels of pictures."""
UNREADABLE = (
    *(OSError, EOFError, MemoryError, OverflowError, RuntimeError, SyntaxError, TypeError, KeyError),
    *(tokenize.TokenError, zipfile.BadZipFile, zlib.error),
)
"""Exceptions of NumPy for damaged files, next to ``ValueError``; a ``RuntimeError`` asks for a password."""

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class ArrayInputs(Inputs):
    """Inputs of one shape, scaled per feature, or all values together; bytes are divided by 255."""

    shape: tuple[int, ...]
    scale: scale.Scale | None

    def tensor(self, values: Array) -> Tensor:
        if self.scale is None:
            return torch.from_numpy(np.ascontiguousarray(values))
        numbers = torch.from_numpy(values.astype(np.float64))
        joint = len(self.scale.shift) == 1
        return self.scale(numbers[..., None])[..., 0] if joint else self.scale(numbers)

    def difference_from_training(self, values: Array) -> str:
        if values.shape[1:] != self.shape:
            expected = ", ".join(map(str, self.shape))
            raise ValueError(f"inputs must have the shape [N, {expected}], got {values.shape}")
        if self.scale is None:
            return "" if values.dtype == np.uint8 else f"it is {values.dtype}; the training data are bytes"
        if values.dtype == np.uint8 and len(self.scale.low) == 1 and self.scale.high[0] <= 1:
            return "it is bytes; the training data are not"
        names = [f"feature {index}" for index in range(1, 1 + len(self.scale.low))]
        numbers = torch.from_numpy(values.astype(np.float64))
        return self.scale.difference_from_training(numbers, names if len(names) > 1 else ["it"])


@final
class Arrays(UserData):
    """Arrays: inputs and labels in an ``.npz`` file, a folder of ``.npy`` files, or memory.

    In a file their names are ``inputs`` and ``labels``, ``x`` and ``y``, ``data`` and ``target``, or
    ``x_train``, ``y_train``, ``x_test``, ``y_test`` (and ``x_val``, ``y_val``); the last column of a single
    ``.npy``, ``[N, F + 1]``, is the label. Inputs ``[N, F]`` are scaled to mean 0 and deviation 1 per
    feature; pictures and others to [0, 1] together; bytes are divided by 255. Pictures whose channels come
    last, ``[N, H, W, 3]``, become ``[N, 3, H, W]``.

    Args:
        source: a file, a folder, or the inputs, ``[N, ...]``.
        labels: ``[N]``, for inputs in memory.
        options: see :class:`UserData`.

    >>> samples = Arrays(torch.rand(20, 4), labels=[0, 1] * 10)
    >>> samples.setup()
    >>> len(samples.training), samples.shape, samples.classes
    (14, (4,), 2)
    """

    kind = "arrays"
    inputs = ArrayInputs

    def __init__(self, source: Any, labels: Any = None, **options: Any) -> None:
        super().__init__(source, **options)
        self.labels = labels

    def read(self, source: Any) -> Raw:
        trained = None if self._description is None else self._description.inputs.shape
        inputs, labels, parts = self._arrays(source, trained)
        if 0 in inputs.shape[1:]:
            raise ValueError(f"inputs must have at least one number a sample, got the shape {inputs.shape}")
        inputs = inputs.astype(np.float32) if inputs.dtype == np.bool_ else inputs
        _check_finite(inputs)
        shown = "x".join(map(str, inputs.shape[1:]))
        if _is_channels_last(inputs.shape) and inputs.shape[1:] != trained:
            inputs = np.moveaxis(inputs, -1, 1)
            shown += f", turned to {'x'.join(map(str, inputs.shape[1:]))}"
        elif inputs.ndim == 3 and not _is_picture(inputs):
            shown += " without a time axis (--kind sequences if they are series)"
        written = None if labels is None else texts(labels.tolist())
        names = [f"sample {number}" for number in range(1, len(inputs) + 1)]
        return Raw(inputs, written, names, f"{len(inputs):,} arrays of {shown}", parts, self.label or "class")

    def _arrays(
        self, source: Any, trained: tuple[int, ...] | None
    ) -> tuple[Array, Array | None, Parts | None]:
        """Inputs, labels and the split; `trained` is the shape of the training inputs."""
        arrays = contents(source)
        if self.labels is not None:
            arrays["labels"] = np.asarray(self.labels)
        if len(arrays) > 1:
            return pair(arrays, self.label)
        (values,) = arrays.values()
        if trained is not None and (len(trained) != 1 or values.shape[1:] != (trained[0] + 1,)):
            return values, None, None
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
        return values[:, :-1], values[:, -1], None

    def learn(self, raw: Raw, training: Sequence[int]) -> Inputs:
        values = raw.values
        if values.dtype == np.uint8:
            return ArrayInputs(values.shape[1:], None)
        part = torch.from_numpy(values[list(training)].astype(np.float64))
        flat = part.ndim == 2
        return ArrayInputs(
            values.shape[1:], scale.fit_scale(part, unit=self.unit or not flat, joint=not flat)
        )


def contents(source: Any) -> dict[str, Array]:
    """The arrays in an ``.npz`` file, folder of ``.npy`` files or memory; one alone is ``inputs``.

    Raises:
        ValueError: if a file can't be read, or holds other things than arrays of numbers.
    """
    if not isinstance(source, str | Path):
        return {"inputs": np.asarray(source)}
    path = Path(source)
    if path.is_dir():
        arrays = {each.stem: contents(each)["inputs"] for each in sorted(path.glob("*.npy"))}
        if not arrays:
            raise ValueError(f"folder {path} must hold .npy files, it has none")
        return arrays
    try:
        with path.open("rb") as file:
            loaded = np.load(file, allow_pickle=False)
            return {"inputs": loaded} if isinstance(loaded, np.ndarray) else dict(loaded)
    except (*UNREADABLE, ValueError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:200]
        if "Object arrays" in reason:
            reason = "it holds objects; pad series of unequal length to one, and store their `lengths`"
        elif "pickle" in reason:
            reason = "it is not a NumPy file of numbers"
        raise ValueError(f"inputs in {path} can't be read: {reason}") from error


def read_numbers(path: Path) -> Tensor:
    """The numbers in a ``.npy`` file, as ``float32``.

    Raises:
        ValueError: as :func:`contents`, or if a number is not finite.
    """
    arrays = contents(path)
    if list(arrays) != ["inputs"] or arrays["inputs"].dtype.kind not in "biuf":
        raise ValueError(f"inputs in {path} must be one array of numbers; it has {', '.join(arrays)}")
    with np.errstate(over="ignore"):  # becomes infinite, which is refused below
        numbers = arrays["inputs"].astype(np.float32)
    _check_finite(numbers)
    return torch.from_numpy(numbers)


def pair(arrays: dict[str, Array], label: str | None) -> tuple[Array, Array, Parts | None]:
    """Inputs, labels and the split, if there is one, of the arrays in a file.

    Raises:
        ValueError: if they have other names, or their lengths differ.
    """
    for x, y in [(x, label) for x, _ in NAMES] if label else NAMES:
        if x in arrays and y in arrays:
            return *_matched(arrays[x], arrays[y]), None
        present = [part for part in PARTS if x + part in arrays and y + part in arrays]
        if PARTS[0] in present and x + PARTS[2] in arrays:
            inputs, labels = (np.concatenate([arrays[name + part] for part in present]) for name in (x, y))
            ends = np.cumsum([len(arrays[x + part]) if part in present else 0 for part in PARTS]).tolist()
            parts = list(range(ends[0])), list(range(ends[0], ends[1])), list(range(ends[1], ends[2]))
            return *_matched(inputs, labels), with_validation(parts)
    names = "; ".join(f"{x} and {y}" for x, y in NAMES)
    raise ValueError(f"arrays must be called {names}; got {', '.join(arrays)}")


def _matched(inputs: Array, labels: Array) -> tuple[Array, Array]:
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1 or inputs.ndim < 2 or len(inputs) != len(labels):
        several = labels.ndim == 2 and len(labels) == len(inputs)
        raise ValueError(
            f"inputs must be [N, ...] and labels must be [N], got {inputs.shape} and {labels.shape}"
            + ("; several labels of a sample (multi-label) are not learned yet" if several else "")
        )
    return inputs, labels


def _check_finite(values: Array) -> None:
    """Refuse other values than finite numbers.

    Raises:
        ValueError: naming the sample and the place of the first.
    """
    if values.dtype.kind not in "iuf":
        raise ValueError(f"inputs must be numbers, got {values.dtype}")
    if not np.isfinite(values).all():
        row, *place = (int(axis[0]) for axis in np.nonzero(~np.isfinite(values)))
        raise ValueError(
            f"inputs must be finite numbers, sample {row + 1} has {values[(row, *place)]} at {place or [0]}"
        )


def input_arrays(source: Any) -> list[Array]:
    """The arrays of inputs in an ``.npz`` file or folder, or in memory; none of files that can't be read."""
    if not isinstance(source, str | Path):
        return [np.asarray(source)]
    try:
        arrays = {} if Path(source).suffix == ".npy" else contents(source)
    except ValueError:  # reported when the data are read
        return []
    return [arrays[x + part] for x, _ in NAMES for part in ("", PARTS[0]) if x + part in arrays]


def are_pictures(source: Any) -> bool:
    """Whether the inputs in a file or folder, or in memory, are pictures, by shape and type.

    Bytes ``[N, H, W]`` that are not all 0 and 1, or numbers ``[N, C, H, W]`` or ``[N, H, W, C]`` of 1, 3 or 4
    channels.
    """
    return any(map(_is_picture, input_arrays(source)))


def are_series(source: Any) -> bool:
    """Whether the inputs in a file or folder, or in memory, are series: numbers ``[N, T, F]``.

    Bytes are pictures, unless all are 0 and 1.
    """
    return any(
        each.ndim == 3 and (each.dtype != np.uint8 or are_spikes(each)) for each in input_arrays(source)
    )


def are_spikes(*values: Array) -> bool:
    """Whether all values are 0 or 1, and some are 1."""
    return all(((each == 0) | (each == 1)).all() for each in values) and any(each.any() for each in values)


def _is_picture(values: Array) -> bool:
    if values.ndim == 3:
        return values.dtype == np.uint8 and not are_spikes(values)
    return values.ndim == 4 and (values.shape[1] in CHANNELS or values.shape[-1] in CHANNELS)


def _is_channels_last(shape: tuple[int, ...]) -> bool:
    return len(shape) == 4 and shape[1] not in CHANNELS and shape[-1] in CHANNELS
