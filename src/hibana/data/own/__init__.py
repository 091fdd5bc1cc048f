"""Data of one's own: what a file or folder is, is seen from it (:func:`kind_of`), and can be said instead."""

from pathlib import Path
from typing import Any

from hibana.data.own import plain
from hibana.data.own.base import MISSING, Description, Inputs, Own, Raw
from hibana.data.own.events import BINS, EventInputs, Events, is_headed
from hibana.data.own.events import SUFFIXES as RECORDINGS
from hibana.data.own.folders import TEST, TRAINING
from hibana.data.own.pictures import SUFFIXES as PICTURES
from hibana.data.own.pictures import ImageInputs, Images
from hibana.data.own.series import LENGTHS, SequenceInputs, Sequences
from hibana.data.own.table import Table, TableInputs
from hibana.data.own.target import TASKS, Target
from hibana.data.own.tensors import ArrayInputs, Arrays

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
        raise ValueError(
            f"data must be one of a known kind, {path} ends in {suffix or 'nothing'}; say which: kind"
        )
    if not path.is_dir():
        raise ValueError(f"data must be a file or folder, there is no {path}")
    below = [each for each in path.iterdir() if each.is_dir()]
    parts = [each for each in below if each.name.lower() in (*TRAINING, *TEST)]
    for folder in [*parts, *below]:
        inside = [each for each in folder.iterdir() if each.is_dir()] if folder in parts else [folder]
        for each in (name for where in inside for name in where.iterdir() if name.is_file()):
            ends = each.suffix.lower()
            if ends in PICTURES:
                return "images"
            if ends in (".csv", ".tsv", ".parquet"):
                return "events" if ends == ".csv" and is_headed(each) else "sequences"
            if ends in RECORDINGS:
                return "events"
    if any(each.suffix == ".npy" for each in path.iterdir()):
        return "arrays"
    raise ValueError(
        f"data must be files by class, such as {path}/CLASS/NAME.png, or inputs.npy and labels.npy; "
        f"{path} holds neither"
    )
