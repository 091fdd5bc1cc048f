"""Map-style datasets of ``(x, y)``: of torch, or any that has a length and gives its samples by number."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from hibana.data.own.target import text_of

__all__ = ["gathered", "is_dataset"]

LABELS = ("label", "labels", "target", "class", "y")
"""What the column of labels is called, where samples are given by the names of columns."""


def is_dataset(source: Any) -> bool:
    """Whether `source` is a dataset of samples, and not a file, numbers, or a list of them."""
    numbers = isinstance(source, str | Path | Tensor | np.ndarray | list | tuple) or hasattr(source, "dtypes")
    return not numbers and (
        isinstance(source, IterableDataset | DataLoader)
        or (hasattr(source, "__getitem__") and hasattr(source, "__len__"))
    )


def gathered(source: Any) -> tuple[list["np.ndarray[Any, Any]"], list[str]]:
    """The inputs of all samples, and their labels as they are written.

    Raises:
        ValueError: if `source` gives no samples by number, or they are no pairs.
    """
    kind = type(source).__name__
    if isinstance(source, IterableDataset | DataLoader | Mapping):
        hint = {"DataLoader": "; give its dataset"}.get(kind, "")
        hint = "; give one of its parts" if isinstance(source, Mapping) else hint
        raise ValueError(  # noqa: TRY004 - as of all samples that can't be read
            f"samples must be a map-style dataset of (x, y), got {kind}{hint}"
        )
    names = _columns(source)
    inputs, labels = [], []
    for index in range(len(source)):
        sample = source[index]
        pair: Sequence[Any] = [sample[name] for name in names] if names else sample
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
    """The names of the inputs and of the labels, where samples have names; as in Hugging Face's datasets."""
    names = getattr(source, "column_names", None)
    if names is None:
        return []
    if len(names) != 2:
        raise ValueError(f"samples must have two columns, inputs and labels; got {', '.join(names)}")
    label = next((name for known in LABELS for name in names if name.lower() == known), names[1])
    return [*(name for name in names if name != label), label]
