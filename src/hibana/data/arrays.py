"""Arrays of numbers in ``.npy`` and ``.npz`` files, read by NumPy, which executes nothing in them."""

import tokenize
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["UNREADABLE", "contents", "read"]

UNREADABLE = (
    *(OSError, EOFError, MemoryError, OverflowError, RuntimeError, SyntaxError, TypeError),
    *(tokenize.TokenError, zipfile.BadZipFile, zlib.error),
)
"""Exceptions of NumPy for damaged files, next to ``ValueError``; a ``RuntimeError`` asks for a password."""


def contents(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """The arrays in an ``.npz`` file or a folder of ``.npy`` files, by name; a single one is ``inputs``.

    Raises:
        ValueError: if a file can't be read, or holds other things than arrays of numbers.
    """
    if path.is_dir():
        arrays = {each.stem: contents(each)["inputs"] for each in sorted(path.glob("*.npy"))}
        if not arrays:
            raise ValueError(f"folder {path} must hold .npy files, it has none")
        return arrays
    try:
        with path.open("rb") as file:
            loaded = np.load(file, allow_pickle=False)
            return {"inputs": loaded} if isinstance(loaded, np.ndarray) else dict(loaded)
    except (*UNREADABLE, ValueError, KeyError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:200]
        if "Object arrays" in reason:
            reason = "it holds objects; pad series of unequal length to one, and store their `lengths`"
        elif "pickle" in reason:
            reason = "it is not a NumPy file of numbers"
        raise ValueError(f"inputs in {path} can't be read: {reason}") from error


def read(path: Path) -> Tensor:
    """The numbers in a ``.npy`` file, as ``float32``.

    Raises:
        ValueError: as of :func:`contents`, or if a number is not finite.
    """
    arrays = contents(path)
    if list(arrays) != ["inputs"] or arrays["inputs"].dtype.kind not in "biuf":
        raise ValueError(f"inputs in {path} must be one array of numbers, inputs; it has {', '.join(arrays)}")
    with np.errstate(over="ignore"):  # becomes infinite, which is refused below
        numbers = torch.from_numpy(arrays["inputs"].astype(np.float32))
    if not bool(numbers.isfinite().all()):
        raise ValueError(f"inputs must be finite numbers, {path} holds some that are not")
    return numbers
