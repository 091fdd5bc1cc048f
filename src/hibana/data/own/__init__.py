"""Data of one's own: what a file or folder is, is seen from it (:func:`kind_of`), and can be said instead."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from hibana.data.own import plain
from hibana.data.own.base import MISSING, Description, Inputs, Own, Raw
from hibana.data.own.columns import check as check_event_columns
from hibana.data.own.datasets import gathered
from hibana.data.own.dates import DATES
from hibana.data.own.event_files import is_headed
from hibana.data.own.events import BINS, SPLITS, EventInputs, Events, check_denoise
from hibana.data.own.events import SUFFIXES as RECORDINGS
from hibana.data.own.folders import TEST, TRAINING, first_listed, lists, readable, shown
from hibana.data.own.pictures import SUFFIXES as PICTURES
from hibana.data.own.pictures import ImageInputs, Images
from hibana.data.own.series import LENGTHS, TRAIN_TS, SequenceInputs, Sequences
from hibana.data.own.series_arrays import are_series, is_array, spike_steps
from hibana.data.own.sound import SUFFIXES as SOUND
from hibana.data.own.sound import Sound, SoundInputs
from hibana.data.own.table import Table, TableInputs
from hibana.data.own.target import TASKS, Target
from hibana.data.own.tensors import ArrayInputs, Arrays, are_pictures

__all__ = [
    "BINS",
    "DATES",
    "KINDS",
    "LENGTHS",
    "MISSING",
    "SPLITS",
    "TASKS",
    "ArrayInputs",
    "Arrays",
    "Description",
    "EventInputs",
    "Events",
    "Images",
    "Own",
    "Raw",
    "SequenceInputs",
    "Sequences",
    "Sound",
    "Table",
    "are_pictures",
    "check_denoise",
    "check_event_columns",
    "described",
    "kind_of",
    "of_samples",
    "usual_steps",
]

KINDS: dict[str, type[Own]] = {
    "table": Table,
    "images": Images,
    "arrays": Arrays,
    "sequences": Sequences,
    "events": Events,
    "sound": Sound,
}
_INPUTS: dict[str, type[Inputs]] = {
    "table": TableInputs,
    "images": ImageInputs,
    "arrays": ArrayInputs,
    "sequences": SequenceInputs,
    "events": EventInputs,
    "sound": SoundInputs,
}
_TABLES = (".csv", ".tsv", ".txt", ".data", ".parquet", ".pq")
_OTHERS = {
    **dict.fromkeys((".gz", ".zip", ".bz2", ".xz", ".7z", ".tar", ".tgz"), "is packed; unpack it first"),
    **dict.fromkeys((".xlsx", ".xls", ".ods"), "is a spreadsheet; save it as CSV"),
    **dict.fromkeys((".m4a", ".aac", ".wma"), "is sound that can't be read; save it as .flac, .ogg or .wav"),
    **dict.fromkeys(SOUND, "is one recording; give a folder, of recordings in folders by class"),
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
        ValueError: if there is nothing, nothing of a kind that is known, or what can't be read.
    """
    with readable(path):
        return _kind_of(path, grouped)


def _kind_of(path: Path, grouped: bool) -> str:
    suffix = path.suffix.lower()
    if path.is_file():
        if suffix == ".ts":
            return "sequences"
        if suffix in (".npz", ".npy"):
            return "sequences" if are_series(path) else "arrays"
        if suffix in _TABLES:
            named = None if grouped else first_listed(path)
            return _most([named], path) if named else "sequences" if grouped else "table"
        other = _OTHERS.get(suffix, f"ends in {suffix or 'nothing'}; say which: kind")
        raise ValueError(f"data must be one of a known kind, {path} {other}")
    if not path.is_dir():
        raise ValueError(f"data must be a file or folder, there is no {path}")
    below = [each for each in shown(path) if each.is_dir()]
    parts = [each for each in below if each.name.lower() in (*TRAINING, *TEST)]
    listing = lists(path)
    for inside in ([each for part in parts for each in shown(part) if each.is_dir()], below):
        files = [each for folder in inside for each in shown(folder) if each.is_file()]
        if not listing and _kinds(files):
            return _most(files, path)
    pairs = [each.name for each in shown(path) if each.name.endswith(TRAIN_TS)]
    for several, kind in (([each.name for each in listing], "list of files"), (pairs, f"*{TRAIN_TS}")):
        if len(several) > 1:
            raise ValueError(
                f"data must hold one {kind}, {path} has {len(several)}; name one of them: "
                f"{', '.join(several[:5])}"
            )
    if listing:
        named = first_listed(listing[0])
        assert named is not None
        return _most([named], path)
    if pairs:
        return "sequences"
    direct = [each for each in shown(path) if each.is_file()]
    if any(each.suffix == ".npy" for each in direct):
        return "sequences" if are_series(path) else "arrays"
    raise ValueError(
        f"data must be files by class, such as {path}/CLASS/NAME.png, a list of files with a label each, "
        f"such as {path}/labels.csv, or inputs.npy and labels.npy; {path} holds none"
    )


def _most(files: list[Path], path: Path) -> str:
    """The kind of most of the `files`, those of `path`."""
    kinds = _kinds(files)
    if not kinds:
        raise ValueError(f"data must be one of a known kind, {path} names {files[0].name}, which is none")
    return max(kinds, key=kinds.__getitem__)


def of_samples(source: Any, **options: Any) -> Own:
    """A map-style dataset of ``(x, y)`` as data of one's own: series as they are in files, else arrays.

    Raises:
        ValueError: if it gives no samples by number, or they are no pairs.
    """
    inputs, labels = gathered(source)
    shapes = {each.shape for each in inputs}
    if len(shapes) == 1 and not are_series(inputs):
        return Arrays(np.stack(inputs), labels=labels, **options)
    return Sequences(inputs, labels=labels, **options)


def usual_steps(kind: str | None, source: Any) -> int | None:
    """For how many steps data of this `kind` are shown, where they decide that: those of spike trains."""
    return spike_steps(source) if kind == "sequences" and is_array(source) else None


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
        elif ends in SOUND:
            kinds["sound"] += 1
    return kinds
