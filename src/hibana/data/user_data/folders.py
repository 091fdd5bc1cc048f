"""Files in folders by class or by part, and tables that list files with a label each."""

import stat
from pathlib import Path

from hibana.data.user_data.samples import Parts, RawSamples, add_validation
from hibana.data.user_data.table_files import decode, read_table
from hibana.data.user_data.target import column_texts

TRAINING, VALIDATION, TEST = ("train", "training"), ("val", "valid", "validation"), ("test", "testing")
LISTS = (".csv", ".tsv", ".txt")
"""Suffixes of tables that may list files."""
LIST_START = 1 << 12
"""Bytes at the start of a table that contain the first listed file."""


def labelled_files(folder: Path, suffixes: tuple[str, ...], kind: str) -> RawSamples:
    """The files in `folder`: ``class/name``, ``train/class/name`` next to ``test/class/name``, or ``name``.

    If `folder` is a ``filename,label`` table, or contains one, the files and labels are those of the table. A
    single file is returned without a label. The values of the result are paths.

    Args:
        folder: a folder, table, or file.
        suffixes: the suffixes of the files to return.
        kind: describes the files in messages, such as ``pictures``.

    Raises:
        ValueError: if there are no such files.
    """
    if first_listed_file(folder) is not None:
        return _listed_files(folder, suffixes, kind)
    if folder.is_file():
        if folder.suffix.lower() not in suffixes:
            raise ValueError(f"{kind} must be files of type {', '.join(suffixes)}; got {folder}")
        return RawSamples([folder], None, [folder.name])
    subfolders = {entry.name.lower(): entry for entry in visible_entries(folder) if entry.is_dir()}
    parts = [
        next((subfolders[name] for name in names if name in subfolders), None)
        for names in (TRAINING, VALIDATION, TEST)
    ]
    if parts[0] is not None and parts[2] is not None:
        return _join_parts(folder, [labelled_files(part, suffixes, kind) if part else None for part in parts])
    if len(tables := file_lists(folder)) == 1:
        return _listed_files(tables[0], suffixes, kind)
    if files := _files(folder, suffixes):
        return RawSamples(files, None, [path.name for path in files])
    files = [path for name in sorted(subfolders) for path in _files(subfolders[name], suffixes)]
    if not files:
        raise ValueError(f"{kind} must lie in {folder}, as class/name{suffixes[0]}; there are none")
    return RawSamples(
        files, [path.parent.name for path in files], [str(path.relative_to(folder)) for path in files]
    )


def visible_entries(folder: Path) -> list[Path]:
    """The entries of a folder in the order of their names, without hidden entries."""
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def file_lists(folder: Path) -> list[Path]:
    """The ``filename,label`` tables in `folder`."""
    return [path for path in visible_entries(folder) if first_listed_file(path) is not None]


def first_listed_file(path: Path) -> Path | None:
    """First path in a ``filename,label`` table, with or without a header, or ``None`` for other files.

    File names are relative to the table's folder.
    """
    if path.suffix.lower() not in LISTS or not path.is_file():
        return None
    with path.open("rb") as file:
        lines = file.read(LIST_START).splitlines()[:2]
    try:
        text, _ = decode(b"\n".join(lines))
    except ValueError:
        return None
    rows = [line.replace(";", ",").replace("\t", ",").split(",") for line in text.splitlines()]
    cells = [cell.strip(" \"'") for row in rows if len(row) <= 2 for cell in row]
    return next((path.parent / cell for cell in cells if _is_file(path.parent, cell)), None)


def _is_file(folder: Path, name: object) -> bool:
    """Whether `name` has a suffix and is a file in `folder`."""
    try:
        return Path(str(name)).suffix != "" and (folder / str(name)).is_file()
    except (OSError, ValueError):  # the text can't be a file name
        return False


def _listed_files(path: Path, suffixes: tuple[str, ...], kind: str) -> RawSamples:
    """The files and labels in the ``filename,label`` table `path`.

    Raises ValueError, naming a row whose file does not exist or has another suffix.
    """
    table, _ = read_table(path)
    columns = [column_texts(table[name]) for name in table.columns]
    if any(_is_file(path.parent, name) for name in table.columns):  # the first row is not a header
        columns = [[name, *column] for name, column in zip(table.columns, columns, strict=True)]
    is_second = not _is_file(path.parent, columns[0][0])
    names, labels = columns[is_second], columns[not is_second] if len(columns) == 2 else None
    for number, name in enumerate(names, start=1):
        if not _is_file(path.parent, name) or Path(name).suffix.lower() not in suffixes:
            raise ValueError(f"{kind} must lie beside {path}; row {number} names {name!r}, which is none")
    return RawSamples([path.parent / name for name in names], labels, names)


def _files(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """The regular files in `folder` with one of the `suffixes`; a broken link raises an OSError."""
    paths = [path for path in visible_entries(folder) if path.suffix.lower() in suffixes]
    return [path for path in paths if stat.S_ISREG(path.stat().st_mode)]


def _join_parts(folder: Path, parts: list[RawSamples | None]) -> RawSamples:
    """The files of the training, validation and test folders in `folder`; a part may be missing."""
    files: list[Path] = []
    labels: list[str] = []
    indices: Parts = ([], [], [])
    for part, samples in zip(indices, parts, strict=True):
        if samples is not None:
            if samples.labels is None:
                raise ValueError(f"files in the parts of {folder} must lie in folders by class")
            part += range(len(files), len(files) + len(samples.values))
            files += samples.values
            labels += samples.labels
    names = [str(path.relative_to(folder)) for path in files]
    return RawSamples(files, labels, names, parts=add_validation(indices))
