"""Reader of the ``.ts`` files of aeon and sktime: header lines ``@name value``, then one sequence per line.

``:`` separates the dimensions of a sequence and its label, which is last; ``,`` separates values; ``?`` is a
missing value.

Source: the description of the format in aeon's documentation (*The .ts file format*).
"""

from pathlib import Path
from typing import Any

import numpy as np

from hibana.data.user_data.table_files import decode


def read_ts(path: Path) -> tuple[list["np.ndarray[Any, Any]"], list[str] | None]:
    """The sequences in a file, ``[frames, dimensions]`` each, and their labels, or ``None`` without labels.

    Raises ValueError if the file can't be read; the message names the line.
    """
    try:
        text, _ = decode(path.read_bytes())
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"sequences {path} can't be read: {reason}") from error
    header: dict[str, str] = {}
    values, labels = [], []
    is_labelled = False
    for number, line in enumerate(map(str.strip, text.splitlines()), start=1):
        if not line or line.startswith("#"):
            continue
        if "@data" not in header:
            name, _, value = line.partition(" ")
            if not name.startswith("@"):
                raise ValueError(f"sequences {path} must be a .ts file; line {number} is before @data")
            header[name.lower()] = value.strip()
            if name.lower() == "@timestamps" and value.strip().lower() == "true":
                raise ValueError(f"sequences {path} must be without timestamps, which are not read")
            has_label = [header.get(key, "").lower() for key in ("@classlabel", "@targetlabel")]
            is_labelled = any(value.startswith("true") for value in has_label)
            continue
        dimensions = line.split(":")
        if is_labelled:
            labels.append(dimensions.pop().strip())
        values.append(_frames(dimensions, f"{path.name}, line {number}"))
    if not values:
        raise ValueError(f"sequences {path} must be a .ts file with lines after @data")
    return values, labels if is_labelled else None


def _frames(dimensions: list[str], place: str) -> "np.ndarray[Any, Any]":
    """A sequence, ``[frames, dimensions]``, from one text per dimension; `place` is its line in messages."""
    try:
        numbers = [[float(cell.replace("?", "nan")) for cell in text.split(",")] for text in dimensions]
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error
    lengths = sorted({len(dimension) for dimension in numbers})
    if len(lengths) != 1:
        raise ValueError(f"{place}: dimensions must be of one length, got {', '.join(map(str, lengths))}")
    return np.array(numbers).T
