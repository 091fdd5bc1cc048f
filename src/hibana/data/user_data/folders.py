"""Files in folders by class or by part, and lists of files with a label each."""

import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hibana.data.user_data.samples import Parts, Raw, with_validation
from hibana.data.user_data.table_files import decode, read_table
from hibana.data.user_data.target import column_texts

__all__ = ["TEST", "TRAINING", "first_listed", "labelled_files", "lists", "readable", "visible"]

TRAINING, VALIDATION, TEST = ("train", "training"), ("val", "valid", "validation"), ("test", "testing")
LISTS = (".csv", ".tsv", ".txt")
"""Suffixes of tables that may list files."""
LISTED = 1 << 12
"""Bytes at the start of a table in which a list names its first file."""


def labelled_files(folder: Path, suffixes: tuple[str, ...], what: str) -> Raw:
    """The files in `folder`: ``class/name``, ``train/class/name`` next to ``test/class/name``, or ``name``.

    If `folder` is a list of files, or contains one, the files and labels are those of the list. A single file
    is returned without a label. The values of the result are paths.

    Raises:
        ValueError: if there are none, or `folder` is a file of another kind.
    """
    if first_listed(folder) is not None:
        return _listed(folder, suffixes, what)
    if folder.is_file():
        if folder.suffix.lower() not in suffixes:
            raise ValueError(f"{what} must be files of type {', '.join(suffixes)}; got {folder}")
        return Raw([folder], None, [folder.name])
    if not folder.is_dir():
        raise ValueError(f"{what} must be a file or a folder of files; there is no {folder}")
    below = {each.name.lower(): each for each in visible(folder) if each.is_dir()}
    parts = [
        next((below[name] for name in names if name in below), None) for names in (TRAINING, VALIDATION, TEST)
    ]
    if parts[0] is not None and parts[2] is not None:
        present = [None if part is None else labelled_files(part, suffixes, what) for part in parts]
        return _joined(folder, present)
    if len(listing := lists(folder)) == 1:
        return _listed(listing[0], suffixes, what)
    if direct := _files(folder, suffixes):
        return Raw(direct, None, [path.name for path in direct])
    files = [path for name in sorted(below) for path in _files(below[name], suffixes)]
    if not files:
        raise ValueError(f"{what} must lie in {folder}, as class/name{suffixes[0]}; there are none")
    return Raw(files, [path.parent.name for path in files], [str(path.relative_to(folder)) for path in files])


@contextmanager
def readable(source: Any) -> Iterator[None]:
    """Within it, an ``OSError`` becomes a ``ValueError`` that names the file or folder and the reason."""
    try:
        yield
    except OSError as error:
        at = source if error.filename is None else error.filename
        raise ValueError(f"data at {at} can't be read: {error.strerror or error}") from error


def visible(folder: Path) -> list[Path]:
    """The entries of a folder by name, without hidden ones."""
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def lists(folder: Path) -> list[Path]:
    """The lists of files in `folder`."""
    return [path for path in visible(folder) if first_listed(path) is not None]


def first_listed(path: Path) -> Path | None:
    """First path in a ``filename,label`` table, with or without a header, or ``None`` for other files.

    File names are relative to the table's folder.
    """
    if path.suffix.lower() not in LISTS or not path.is_file():
        return None
    with path.open("rb") as file:
        lines = file.read(LISTED).splitlines()[:2]
    try:
        text, _ = decode(b"\n".join(lines))
    except ValueError:
        return None
    rows = [line.replace(";", ",").replace("\t", ",").split(",") for line in text.splitlines()]
    cells = [cell.strip(" \"'") for row in rows if len(row) <= 2 for cell in row]
    return next((path.parent / cell for cell in cells if _is_file(path.parent, cell)), None)


def _is_file(folder: Path, name: object) -> bool:
    try:
        return Path(str(name)).suffix != "" and (folder / str(name)).is_file()
    except (OSError, ValueError):  # the text can't be a file name
        return False


def _listed(path: Path, suffixes: tuple[str, ...], what: str) -> Raw:
    """The files and labels in a list.

    Raises:
        ValueError: naming a row whose file does not exist or has another type.
    """
    table, _ = read_table(path)
    rows = [column_texts(table[name]) for name in table.columns]
    if any(_is_file(path.parent, name) for name in table.columns):  # no header
        rows = [[name, *column] for name, column in zip(table.columns, rows, strict=True)]
    is_second = not _is_file(path.parent, rows[0][0])
    names, labels = rows[is_second], rows[not is_second] if len(rows) == 2 else None
    for number, name in enumerate(names, start=1):
        if not _is_file(path.parent, name) or Path(name).suffix.lower() not in suffixes:
            raise ValueError(f"{what} must lie beside {path}; row {number} names {name!r}, which is none")
    return Raw([path.parent / name for name in names], labels, names)


def _files(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    paths = [path for path in visible(folder) if path.suffix.lower() in suffixes]
    return [path for path in paths if stat.S_ISREG(path.stat().st_mode)]  # a broken link raises


def _joined(folder: Path, parts: list[Raw | None]) -> Raw:
    """The files of the training, validation and test folders."""
    files: list[Path] = []
    labels: list[str] = []
    indices: Parts = ([], [], [])
    for part, each in zip(indices, parts, strict=True):
        if each is not None:
            if each.labels is None:
                raise ValueError(f"files in the parts of {folder} must lie in folders by class")
            part += range(len(files), len(files) + len(each.values))
            files += each.values
            labels += each.labels
    names = [str(path.relative_to(folder)) for path in files]
    return Raw(files, labels, names, parts=with_validation(indices))
