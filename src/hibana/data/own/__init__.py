"""Data of one's own: what a file or folder is, is seen from it (:func:`kind_of`), and can be said instead."""

from collections import Counter
from pathlib import Path
from typing import Any

from hibana.data.own import plain
from hibana.data.own.base import MISSING, Description, Inputs, Own, Raw
from hibana.data.own.events import BINS, EventInputs, Events, is_headed
from hibana.data.own.events import SUFFIXES as RECORDINGS
from hibana.data.own.folders import TEST, TRAINING, shown
from hibana.data.own.pictures import SUFFIXES as PICTURES
from hibana.data.own.pictures import ImageInputs, Images
from hibana.data.own.series import LENGTHS, SequenceInputs, Sequences
from hibana.data.own.table import Table, TableInputs
from hibana.data.own.target import TASKS, Target
from hibana.data.own.tensors import ArrayInputs, Arrays, are_pictures

__all__ = [
    "BINS",
    "KINDS",
    "LENGTHS",
    "MISSING",
    "TASKS",
    "Arrays",
    "Description",
    "Events",
    "Images",
    "Own",
    "Raw",
    "Sequences",
    "Table",
    "are_pictures",
    "described",
    "kind_of",
]

KINDS: dict[str, type[Own]] = {
    "table": Table,
    "images": Images,
    "arrays": Arrays,
    "sequences": Sequences,
    "events": Events,
}
_INPUTS: dict[str, type[Inputs]] = {
    "table": TableInputs,
    "images": ImageInputs,
    "arrays": ArrayInputs,
    "sequences": SequenceInputs,
    "events": EventInputs,
}
_TABLES = (".csv", ".tsv", ".txt", ".data", ".parquet", ".pq")
_OTHERS = {
    **dict.fromkeys((".gz", ".zip", ".bz2", ".xz", ".7z", ".tar", ".tgz"), "is packed; unpack it first"),
    **dict.fromkeys((".xlsx", ".xls", ".ods"), "is a spreadsheet; save it as CSV"),
}
"""What is known, and not read."""


def described(given: Any) -> Description:
    """The description whose :meth:`Description.said` is `given`.

    Raises:
        ValueError: if it is none.
    """
    if (
        not isinstance(given, dict)
        or set(given) != {"kind", "inputs", "target"}
        or given["kind"] not in KINDS
    ):
        raise ValueError("a description must have a kind, inputs and a target")
    inputs = plain.made(_INPUTS[given["kind"]], given["inputs"])
    target = plain.made(Target, given["target"])
    if len(target.counts) != len(target.classes) or not all(0 < side < 1 << 24 for side in inputs.shape):
        raise ValueError("a description must have a count for each class, and a shape")
    return Description(given["kind"], inputs, target)


def kind_of(path: Path, *, grouped: bool = False) -> str:
    """What kind of data lies at `path`, by the names of its files, and of the columns of a CSV by class.

    Of files of several kinds it is that of most of them; of files and folders that are hidden, no kind.

    Args:
        path: a file or folder.
        grouped: whether a table's rows are the steps of sequences.

    Raises:
        ValueError: if there is nothing, or nothing of a kind that is known.
    """
    suffix = path.suffix.lower()
    if path.is_file():
        if suffix == ".ts":
            return "sequences"
        if suffix in (".npz", ".npy"):
            return "arrays"
        if suffix in _TABLES:
            return "sequences" if grouped else "table"
        other = _OTHERS.get(suffix, f"ends in {suffix or 'nothing'}; say which: kind")
        raise ValueError(f"data must be one of a known kind, {path} {other}")
    if not path.is_dir():
        raise ValueError(f"data must be a file or folder, there is no {path}")
    below = [each for each in shown(path) if each.is_dir()]
    parts = [each for each in below if each.name.lower() in (*TRAINING, *TEST)]
    for inside in ([each for part in parts for each in shown(part) if each.is_dir()], below):
        if kinds := _kinds([each for folder in inside for each in shown(folder) if each.is_file()]):
            return max(kinds, key=kinds.__getitem__)
    if any(each.suffix == ".npy" for each in path.iterdir()):
        return "arrays"
    raise ValueError(
        f"data must be files by class, such as {path}/CLASS/NAME.png, or inputs.npy and labels.npy; "
        f"{path} holds neither"
    )


def _kinds(files: list[Path]) -> Counter[str]:
    """How many of the `files` are of each kind; those by class in CSV are as the first of them."""
    kinds: Counter[str] = Counter()
    tables = None
    for each in files:
        ends = each.suffix.lower()
        if ends in PICTURES:
            kinds["images"] += 1
        elif ends in (".csv", ".tsv", ".parquet"):
            tables = tables or ("events" if ends == ".csv" and is_headed(each) else "sequences")
            kinds[tables] += 1
        elif ends in RECORDINGS:
            kinds["events"] += 1
    return kinds
