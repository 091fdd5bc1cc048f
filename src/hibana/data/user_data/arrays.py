"""Arrays of numbers: inputs and labels in ``.npz`` or ``.npy`` files, or in memory."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from hibana.data.user_data.base import Inputs, UserData
from hibana.data.user_data.samples import (
    Parts,
    RawSamples,
    Scale,
    add_validation,
    check_size,
    fit_scale,
    reading,
)
from hibana.data.user_data.target import texts

NAMES = (
    *(("inputs", "labels"), ("x", "y"), ("X", "y"), ("data", "target")),
    *(("images", "labels"), ("data", "labels")),
)
"""Names of inputs and labels in a file."""
PARTS = ("_train", "_val", "_test")
"""Suffixes of the names for the parts of a split."""
CHANNELS = (1, 3, 4)
"""Numbers of channels of pictures."""

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class ArrayInputs(Inputs):
    """Inputs of one shape. Numbers are scaled per feature or jointly; bytes have no `scale`."""

    shape: tuple[int, ...]
    scale: Scale | None

    def tensor(self, values: Array) -> Tensor:
        """Scaled numbers as ``float32``; arrays without a scale, such as bytes, unchanged."""
        if self.scale is None:
            return torch.from_numpy(np.ascontiguousarray(values))
        return self.scale(torch.from_numpy(values.astype(np.float64)))

    def difference_from_training(self, values: Array) -> str:
        """A clause on another type or range than in training; empty if there is no difference."""
        if values.shape[1:] != self.shape:
            expected = ", ".join(map(str, self.shape))
            raise ValueError(f"inputs must have the shape [N, {expected}], got {values.shape}")
        if self.scale is None:
            return "" if values.dtype == np.uint8 else f"it is {values.dtype}; the training data are bytes"
        names = [f"feature {index}" for index in range(1, 1 + len(self.scale.low))]
        numbers = torch.from_numpy(values.astype(np.float64))
        return self.scale.difference_from_training(numbers, names if len(names) > 1 else ["it"])


@final
class Arrays(UserData):
    """Arrays: inputs and labels in an ``.npz`` file, a folder of ``.npy`` files, or memory.

    In a file their names are ``inputs`` and ``labels``, ``x`` and ``y``, ``data`` and ``target``, or
    ``x_train``, ``y_train``, ``x_test``, ``y_test`` (and ``x_val``, ``y_val``). Inputs ``[N, F]`` are scaled
    to mean 0 and deviation 1 per feature; pictures and other shapes to [0, 1] jointly; bytes are divided by
    255. Pictures whose channels come last, ``[N, H, W, 3]``, become ``[N, 3, H, W]``.

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

    def read(self, source: Any) -> RawSamples:
        """The samples in `source`, ``[N, ...]``, with channels before height and width."""
        training_shape = None if self._description is None else self._description.inputs.shape
        arrays = read_arrays(source)
        if self.labels is not None:
            arrays["labels"] = np.asarray(self.labels)
        inputs, labels, parts = inputs_and_labels(arrays, self.label)
        if 0 in inputs.shape[1:]:
            raise ValueError(f"inputs must have at least one number a sample, got the shape {inputs.shape}")
        inputs = inputs.astype(np.float32) if inputs.dtype == np.bool_ else inputs
        _check_finite(inputs)
        shape = "x".join(map(str, inputs.shape[1:]))
        may_be_channels = [size in CHANNELS for size in inputs.shape]
        is_channels_last = inputs.ndim == 4 and may_be_channels[3] and not may_be_channels[1]
        if is_channels_last and inputs.shape[1:] != training_shape:
            inputs = np.moveaxis(inputs, -1, 1)
            shape += f", turned to {'x'.join(map(str, inputs.shape[1:]))}"
        elif inputs.ndim == 3 and not _is_picture(inputs):
            shape += " without a time axis (--kind sequences if they are series)"
        label_texts = None if labels is None else texts(labels.tolist())
        names = [f"sample {number}" for number in range(1, len(inputs) + 1)]
        summary = f"{len(inputs):,} arrays of {shape}"
        return RawSamples(inputs, label_texts, names, summary, parts, self.label or "class")

    def learn(self, raw: RawSamples, training: Sequence[int]) -> Inputs:
        """The shape of the inputs, and a scale of the training samples; bytes need no scale."""
        values = raw.values
        if values.dtype == np.uint8:
            return ArrayInputs(values.shape[1:], None)
        part = torch.from_numpy(values[list(training)].astype(np.float64))
        is_flat = part.ndim == 2
        scale = fit_scale(part, unit=self.unit or not is_flat, joint=not is_flat)
        return ArrayInputs(values.shape[1:], scale)


def read_arrays(source: Any) -> dict[str, Array]:
    """The arrays in an ``.npz`` file, a folder of ``.npy`` files, or memory, by name.

    The array of a single ``.npy`` file, and data in memory, are called ``inputs``. Raises ValueError if a
    file can't be read, or contains other objects than arrays of numbers.
    """
    if not isinstance(source, str | Path):
        return {"inputs": np.asarray(source)}
    path = Path(source)
    if path.is_dir():
        arrays = {file.stem: read_arrays(file)["inputs"] for file in sorted(path.glob("*.npy"))}
        if not arrays:
            raise ValueError(f"folder {path} must hold .npy files, it has none")
        return arrays
    with reading(f"inputs in {path}"):
        loaded = load_numpy(path)
        return {"inputs": loaded} if isinstance(loaded, np.ndarray) else loaded


def load_numpy(path: Path) -> Array | dict[str, Array]:
    """The array in an ``.npy`` file, or the arrays in an ``.npz`` file by name."""
    with path.open("rb") as file:
        try:
            loaded = np.load(file, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                return loaded
            check_size(path, sum(member.file_size for member in loaded.zip.infolist()))
            return dict(loaded)
        except ValueError as error:
            if "pickle" in str(error):  # NumPy suggests to load pickled objects, which would execute code
                raise ValueError("it is not a NumPy file of numbers") from error
            raise


def read_numbers(path: Path) -> Tensor:
    """The numbers in a ``.npy`` file, as ``float32``.

    Raises ValueError if the file can't be read, or a number is not finite.
    """
    arrays = read_arrays(path)
    if list(arrays) != ["inputs"] or arrays["inputs"].dtype.kind not in "biuf":
        raise ValueError(f"inputs in {path} must be one array of numbers; it has {', '.join(arrays)}")
    with np.errstate(over="ignore"):  # too large numbers become infinite, which _check_finite refuses
        numbers = arrays["inputs"].astype(np.float32)
    _check_finite(numbers)
    return torch.from_numpy(numbers)


def inputs_and_labels(
    arrays: dict[str, Array], label: str | None
) -> tuple[Array, Array | None, Parts | None]:
    """Inputs, labels and the split among the arrays of a file; without a split, ``None``.

    A single array are the inputs, without labels.

    Args:
        arrays: the arrays by name.
        label: name of the labels; one of :data:`NAMES` if ``None``.

    Raises:
        ValueError: if they have other names, or their lengths differ.
    """
    if len(arrays) == 1:
        return next(iter(arrays.values())), None, None
    for x, y in [(x, label) for x, _ in NAMES] if label else NAMES:
        if x in arrays and y in arrays:
            return *_checked(arrays[x], arrays[y]), None
        present = [part for part in PARTS if x + part in arrays and y + part in arrays]
        if PARTS[0] in present and x + PARTS[2] in arrays:
            inputs, labels = (np.concatenate([arrays[name + part] for part in present]) for name in (x, y))
            ends = np.cumsum([len(arrays[x + part]) if part in present else 0 for part in PARTS]).tolist()
            parts = list(range(ends[0])), list(range(ends[0], ends[1])), list(range(ends[1], ends[2]))
            return *_checked(inputs, labels), add_validation(parts)
    names = "; ".join(f"{x} and {y}" for x, y in NAMES)
    raise ValueError(f"arrays must be called {names}; got {', '.join(arrays)}")


def _checked(inputs: Array, labels: Array) -> tuple[Array, Array]:
    """`inputs`, and `labels` as ``[N]``, after a check of their shapes."""
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1 or inputs.ndim < 2 or len(inputs) != len(labels):
        raise ValueError(f"inputs must be [N, ...] and labels [N], got {inputs.shape} and {labels.shape}")
    return inputs, labels


def _check_finite(values: Array) -> None:
    """Raises a ValueError that names the sample and position of the first value that is not finite."""
    if values.dtype.kind not in "iuf":
        raise ValueError(f"inputs must be numbers, got {values.dtype}")
    is_invalid = ~np.isfinite(values)
    if is_invalid.any():
        sample, *position = np.argwhere(is_invalid)[0].tolist()
        raise ValueError(f"inputs must be finite numbers, sample {sample + 1} is not, at {position}")


def input_arrays(source: Any) -> list[Array]:
    """The arrays of inputs in an ``.npz`` file, a folder, or memory; an empty list for an unreadable file."""
    if not isinstance(source, str | Path):
        return [np.asarray(source)]
    try:
        arrays = {} if Path(source).suffix == ".npy" else read_arrays(source)
    except ValueError:  # reported when the data are read
        return []
    return [arrays[x + part] for x, _ in NAMES for part in ("", PARTS[0]) if x + part in arrays]


def are_pictures(source: Any) -> bool:
    """Whether the inputs in a file or folder, or in memory, are pictures, by shape and type.

    Pictures are bytes ``[N, H, W]`` that are not all 0 and 1, or numbers ``[N, C, H, W]`` or ``[N, H, W, C]``
    with 1, 3 or 4 channels.
    """
    return any(map(_is_picture, input_arrays(source)))


def are_series(source: Any) -> bool:
    """Whether the inputs in a file or folder, or in memory, are series: numbers ``[N, T, F]``.

    Bytes are pictures, unless all are 0 and 1.
    """
    return any(x.ndim == 3 and (x.dtype != np.uint8 or are_spikes(x)) for x in input_arrays(source))


def are_spikes(*arrays: Array) -> bool:
    """Whether all values are 0 or 1, and some are 1."""
    return all(((x == 0) | (x == 1)).all() for x in arrays) and any(x.any() for x in arrays)


def _is_picture(values: Array) -> bool:
    """Whether the inputs `values` have the shape and type of pictures; see :func:`are_pictures`."""
    if values.ndim == 3:
        return values.dtype == np.uint8 and not are_spikes(values)
    return values.ndim == 4 and (values.shape[1] in CHANNELS or values.shape[-1] in CHANNELS)
