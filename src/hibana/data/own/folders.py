"""Folders of files by class, and of parts by name; and lists of files with a label each."""

import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from hibana.data.own.opening import opened
from hibana.data.own.parts import Parts
from hibana.data.own.target import text_of

__all__ = ["Found", "by_class", "first_listed", "lists", "readable", "shown"]

TRAINING, VALIDATION, TEST = ("train", "training"), ("val", "valid", "validation"), ("test", "testing")
LISTS = (".csv", ".tsv", ".txt")
"""Endings of tables that may list files."""
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

    Where `folder` is a list of files, or holds one, the files and labels are those of the list.

    Raises:
        ValueError: if there are none, or a class of the test part is not in the training part.
    """
    if first_listed(folder) is not None:
        return _listed(folder, suffixes, what)
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
    if len(listing := lists(folder)) == 1:
        return _listed(listing[0], suffixes, what)
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


@contextmanager
def readable(source: Any) -> Iterator[None]:
    """Says of an entry in `source` that the operating system does not let us read which it is, and why.

    Raises:
        ValueError: in the place of an ``OSError``.
    """
    try:
        yield
    except OSError as error:
        at = source if error.filename is None else error.filename
        raise ValueError(f"data at {at} can't be read: {error.strerror or error}") from error


def shown(folder: Path) -> list[Path]:
    """What lies in a folder, in order of its names, less what is hidden, as systems and editors leave it."""
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def lists(folder: Path) -> list[Path]:
    """The lists of files in `folder`."""
    return [path for path in shown(folder) if first_listed(path) is not None]


def first_listed(path: Path) -> Path | None:
    """The first file that a table of a name and a label in each line names; ``None`` of other files.

    Names are relative to the table's folder. The first two lines are looked at, of which one may be a header.
    """
    if path.suffix.lower() not in LISTS or not path.is_file():
        return None
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        rows = [re.split(r"[,;\t]", file.readline(1 << 12).strip()) for _ in range(2)]
    cells = [cell.strip(" \"'") for row in rows if len(row) <= 2 for cell in row]
    return next((path.parent / cell for cell in cells if _names_file(path.parent, cell)), None)


def _names_file(folder: Path, name: str) -> bool:
    try:
        return Path(name).suffix != "" and (folder / name).is_file()
    except (OSError, ValueError):  # a text that can't be a file's name
        return False


def _listed(path: Path, suffixes: tuple[str, ...], what: str) -> Found:
    """The files and labels in a list.

    Raises:
        ValueError: naming the row whose file is not there or no file of this kind, or that has no label.
    """
    table, _ = opened(path)
    rows = table.astype(object).where(table.notna(), "").to_numpy().tolist()
    if any(_names_file(path.parent, name) for name in table.columns):  # no header
        rows.insert(0, list(table.columns))
    place = next(k for k, cell in enumerate(rows[0]) if _names_file(path.parent, str(cell)))
    names = [str(row[place]).strip() for row in rows]
    labels = [text_of(row[1 - place]) for row in rows] if len(rows[0]) == 2 else None
    for number, name in enumerate(names, start=1):
        if not _names_file(path.parent, name) or Path(name).suffix.lower() not in suffixes:
            raise ValueError(f"{what} must lie beside {path}; row {number} names {name!r}, which is none")
    if labels and "" in labels:
        raise ValueError(f"labels must be in each row of {path}, row {labels.index('') + 1} has none")
    return Found([path.parent / name for name in names], labels, names, None)


def _files(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    found = [path for path in shown(folder) if path.suffix.lower() in suffixes]
    return [path for path in found if stat.S_ISREG(path.stat().st_mode)]  # a broken link raises


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
