"""Files in folders by class, or by part and class."""

import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hibana.data.own.samples import Parts, Raw, with_validation

__all__ = ["TEST", "TRAINING", "labelled_files", "readable", "visible"]

TRAINING, VALIDATION, TEST = ("train", "training"), ("val", "valid", "validation"), ("test", "testing")


def labelled_files(folder: Path, suffixes: tuple[str, ...], what: str) -> Raw:
    """The files in `folder`: ``class/name``, ``train/class/name`` next to ``test/class/name``, or ``name``.

    A single file is returned without a label. The values of the result are paths.

    Raises:
        ValueError: if there are none, or `folder` is a file of another kind.
    """
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
