"""Folders of files by class, and of parts by name."""

from pathlib import Path
from typing import NamedTuple

from hibana.data.own.parts import Parts

__all__ = ["Found", "by_class", "shown"]

TRAINING, VALIDATION, TEST = ("train", "training"), ("val", "valid", "validation"), ("test", "testing")
EACH = 10
"""Every how manieth of the training files validates, where others are given to test with alone."""


class Found(NamedTuple):
    """Files, in order of class and name, with their classes, if they lie in folders, and given parts."""

    files: list[Path]
    labels: list[str] | None
    names: list[str]
    parts: Parts | None


def by_class(folder: Path, suffixes: tuple[str, ...], what: str) -> Found:
    """The files in `folder`: ``class/name``, ``train/class/name`` beside ``test/class/name``, or ``name``.

    Raises:
        ValueError: if there are none, or a class of the test part is not in the training part.
    """
    if folder.is_file() and folder.suffix.lower() in suffixes:
        return Found([folder], None, [folder.name], None)
    if not folder.is_dir():
        raise ValueError(f"{what} must lie in a folder, {folder} is none")
    below = {each.name.lower(): each for each in shown(folder) if each.is_dir()}
    given = [
        next((below[name] for name in names if name in below), None) for names in (TRAINING, VALIDATION, TEST)
    ]
    if given[0] is not None and given[2] is not None:
        found = [None if part is None else by_class(part, suffixes, what) for part in given]
        return _joined(folder, found)
    direct = _files(folder, suffixes)
    if direct:
        return Found(direct, None, [path.name for path in direct], None)
    files, labels = [], []
    for name in sorted(below):
        inside = _files(below[name], suffixes)
        files += inside
        labels += [below[name].name] * len(inside)
    if not files:
        raise ValueError(f"{what} must lie in {folder}, as class/name{suffixes[0]}; there are none")
    return Found(files, labels, [str(path.relative_to(folder)) for path in files], None)


def shown(folder: Path) -> list[Path]:
    """What lies in a folder, in order of its names, less what is hidden, as systems and editors leave it."""
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _files(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    return sorted(path for path in shown(folder) if path.is_file() and path.suffix.lower() in suffixes)


def _joined(folder: Path, found: list[Found | None]) -> Found:
    files: list[Path] = []
    labels: list[str] = []
    parts: Parts = ([], [], [])
    for part, each in zip(parts, found, strict=True):
        if each is None:
            continue
        if each.labels is None:
            raise ValueError(f"files in the parts of {folder} must lie in folders by class")
        part += range(len(files), len(files) + len(each.files))
        files += each.files
        labels += each.labels
    if not parts[1]:
        held = parts[0][EACH - 1 :: EACH] or parts[0][-1:]
        parts[1].extend(held)
        parts[0][:] = [index for index in parts[0] if index not in set(held)]
    return Found(files, labels, [str(path.relative_to(folder)) for path in files], parts)
