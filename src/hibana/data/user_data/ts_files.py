"""The ``.ts`` files of aeon and sktime: lines of ``@names``, then one sequence per line, its label last.

Dimensions are separated by ``:``, values by ``,``; a missing value is ``?``.

Source: the description of the format in aeon's documentation (*The .ts file format*).
"""

from pathlib import Path
from typing import Any

import numpy as np

from hibana.data.user_data.table_files import decode

__all__ = ["read_ts"]


def read_ts(path: Path) -> tuple[list["np.ndarray[Any, Any]"], list[str] | None]:
    """The sequences in a file, ``[frames, dimensions]`` each, and their labels, if it has some.

    Raises:
        ValueError: if the file can't be read, naming the line.
    """
    try:
        text, _ = decode(path.read_bytes())
    except OSError as error:
        raise ValueError(f"sequences {path} can't be read: {error.strerror or error}") from error
    except ValueError as error:
        raise ValueError(f"sequences {path} can't be read: {error}") from error
    header: dict[str, str] = {}
    values, labels = [], []
    for number, line in enumerate(text.splitlines(), start=1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        if "@data" not in header:
            name, _, rest = line.partition(" ")
            if not name.startswith("@"):
                raise ValueError(f"sequences {path} must be a .ts file; line {number} is before @data")
            header[name.lower()] = rest.strip()
            if name.lower() == "@timestamps" and rest.strip().lower() == "true":
                raise ValueError(f"sequences {path} must be without timestamps, which are not read")
            continue
        dimensions = line.split(":")
        if _is_labelled(header):
            labels.append(_label(dimensions.pop().strip(), header, f"{path.name}, line {number}"))
        values.append(_frames(dimensions, f"{path.name}, line {number}"))
    if not values:
        raise ValueError(f"sequences {path} must be a .ts file with lines after @data")
    return values, labels if _is_labelled(header) else None


def _is_labelled(header: dict[str, str]) -> bool:
    return any(header.get(name, "").lower().startswith("true") for name in ("@classlabel", "@targetlabel"))


def _label(label: str, header: dict[str, str], where: str) -> str:
    """`label`, if ``@classLabel`` lists it or lists no classes."""
    classes = header.get("@classlabel", "").split()[1:]
    if classes and label not in classes:
        raise ValueError(
            f"{where}: label {label!r} must be one of those that @classLabel lists: {', '.join(classes[:20])}"
        )
    return label


def _frames(dimensions: list[str], where: str) -> "np.ndarray[Any, Any]":
    try:
        numbers = [
            [np.nan if cell.strip() in ("?", "NaN") else float(cell) for cell in each.split(",")]
            for each in dimensions
        ]
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    lengths = sorted({len(each) for each in numbers})
    if len(lengths) != 1:
        raise ValueError(f"{where}: dimensions must be of one length, got {', '.join(map(str, lengths))}")
    return np.array(numbers).T
