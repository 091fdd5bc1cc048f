"""The ``.ts`` files of aeon and sktime: lines of ``@names``, then a sequence a line, a label at its end.

Dimensions are separated by ``:``, values by ``,``; a missing value is ``?``.

Source: the description of the format in aeon's documentation (*The .ts file format*).
"""

from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["read"]


def read(path: Path) -> tuple[list["np.ndarray[Any, Any]"], list[str] | None]:
    """The sequences in a file, ``[frames, dimensions]`` each, and their labels, if it says that it has some.

    Raises:
        ValueError: if it can't be read, naming the line.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"sequences {path} can't be read: {error}") from error
    said: dict[str, str] = {}
    values, labels = [], []
    begun = False
    for number, line in enumerate(lines, start=1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        if not begun:
            name, _, rest = text.partition(" ")
            begun = name.lower() == "@data"
            said[name.lower()] = rest.strip().lower()
            if not name.startswith("@"):
                raise ValueError(f"sequences {path} must be a .ts file; line {number} is before @data")
            if name.lower() == "@timestamps" and said["@timestamps"] == "true":
                raise ValueError(f"sequences {path} must be without timestamps, which are not read")
            continue
        dimensions = text.split(":")
        if _is_labelled(said):
            labels.append(dimensions.pop().strip())
        values.append(_frames(dimensions, f"{path.name}, line {number}"))
    if not values:
        raise ValueError(f"sequences {path} must be a .ts file with lines after @data")
    return values, labels if _is_labelled(said) else None


def _is_labelled(said: dict[str, str]) -> bool:
    return any(said.get(name, "false").startswith("true") for name in ("@classlabel", "@targetlabel"))


def _frames(dimensions: list[str], where: str) -> "np.ndarray[Any, Any]":
    try:
        read = [
            [np.nan if cell.strip() in ("?", "NaN") else float(cell) for cell in each.split(",")]
            for each in dimensions
        ]
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    lengths = sorted({len(each) for each in read})
    if len(lengths) != 1:
        raise ValueError(f"{where}: dimensions must be of one length, got {', '.join(map(str, lengths))}")
    return np.array(read).T
