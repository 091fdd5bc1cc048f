"""Map-style datasets of ``(x, y)``: torch's, or any with a length and access by number."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from hibana.data.own.target import text_of

__all__ = ["gathered", "is_dataset"]

LABELS = ("label", "labels", "target", "class", "y")
"""Usual names of the column of labels."""


def is_dataset(source: Any) -> bool:
    """Whether `source` is a dataset of samples, and not a file, an array, or a list."""
    others = isinstance(source, str | Path | Tensor | np.ndarray | list | tuple) or hasattr(source, "dtypes")
    indexed = hasattr(source, "__getitem__") and hasattr(source, "__len__")
    return not others and (indexed or isinstance(source, IterableDataset | DataLoader))


def gathered(source: Any) -> tuple[list["np.ndarray[Any, Any]"], list[str]]:
    """The inputs of all samples, and their labels as text.

    Raises:
        ValueError: if `source` does not give samples by number, or they are no pairs.
    """
    kind = type(source).__name__
    if isinstance(source, IterableDataset | DataLoader | Mapping):
        hint = "; give one of its parts" if isinstance(source, Mapping) else ""
        hint = "; give its dataset" if isinstance(source, DataLoader) else hint
        raise ValueError(  # noqa: TRY004 - as for all samples that can't be read
            f"samples must be a map-style dataset of (x, y), got {kind}{hint}"
        )
    names = _columns(source)
    inputs, labels = [], []
    for index in range(len(source)):
        sample = source[index]
        pair = [sample[name] for name in names] if names else sample
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise ValueError(f"samples must be pairs (x, y), sample {index + 1} of {kind} is none")
        label = np.asarray(pair[1])
        if label.size != 1:
            raise ValueError(
                f"labels must be one for each sample, sample {index + 1} of {kind} has {label.size}; several "
                f"labels of a sample (multi-label) are not learned yet"
            )
        inputs.append(np.asarray(pair[0]))
        labels.append(text_of(label.item()))
    return inputs, labels


def _columns(source: Any) -> list[str]:
    """The columns of inputs and of labels in Hugging Face's datasets, whose samples are dictionaries."""
    names = getattr(source, "column_names", None)
    if names is None:
        return []
    if len(names) != 2:
        raise ValueError(f"samples must have two columns, inputs and labels; got {', '.join(names)}")
    label = next((name for usual in LABELS for name in names if name.lower() == usual), names[1])
    return [*(name for name in names if name != label), label]
