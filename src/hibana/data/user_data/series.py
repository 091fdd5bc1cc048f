"""Sequences of variable length: a folder of tables by class, a long table, arrays, or ``.ts`` files."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from hibana.data.base import stretch
from hibana.data.user_data import scale, ts_files
from hibana.data.user_data.arrays import are_spikes, contents, input_arrays, pair
from hibana.data.user_data.base import Inputs, UserData
from hibana.data.user_data.folders import labelled_files, readable
from hibana.data.user_data.samples import Raw, span
from hibana.data.user_data.table import TIMES, is_row_number, named_label, numbers_of, numeric
from hibana.data.user_data.table_files import read_table
from hibana.data.user_data.target import column_texts, texts

__all__ = ["LENGTHS", "SequenceInputs", "Sequences", "is_array", "spike_steps"]

SUFFIXES = (".csv", ".tsv", ".parquet", ".txt")
TRAIN_TS = "_TRAIN.ts"
"""Suffix of a ``.ts`` file next to which lies a ``_TEST.ts`` file."""
LENGTHS = ("stretch", "pad", "mask")
"""How sequences get one length: linear interpolation; or cutting and padding with zeros, which count as steps
(``pad``) or do not (``mask``)."""
HOW = {"stretch": "stretched", "pad": "cut or padded", "mask": "cut, or padded and masked,"}
_LENGTHS = "lengths"
"""Name of the array of lengths in a file; of parts ``lengths_train`` and so on."""

Array = np.ndarray[Any, Any]
Features = tuple[str, ...]


@dataclass(frozen=True)
class SequenceInputs(Inputs):
    """The features of a sequence, their fill values and scale, and the length of all inputs."""

    sequential = True
    features: Features
    fill: tuple[float, ...]
    scale: scale.Scale
    steps: int
    lengths: str
    missing: str
    group: str | None
    encoding: str = ""
    """Of text files; detected if empty."""

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override] # a frozen dataclass has no attribute for it
        """The number of features."""
        return (len(self.features),)

    def tensor(self, values: list[Array]) -> Tensor:
        return torch.stack([self._resized(frames) for frames in values])

    def scaled(self, frames: Array) -> Tensor:
        """Frames ``[..., F]`` after filling missing values (NaN) and scaling."""
        return self.scale(torch.from_numpy(self._filled(frames)))

    def _filled(self, frames: Array) -> Array:
        return np.where(np.isnan(frames), np.array(self.fill), frames)

    def _resized(self, frames: Array) -> Tensor:
        """A sequence ``[frames, F]`` as ``[steps, F]``, scaled."""
        scaled = self.scaled(frames)
        if self.lengths != "stretch":
            return functional.pad(scaled[: self.steps], (0, 0, 0, max(0, self.steps - len(scaled))))
        return stretch(scaled, self.steps)

    def step_counts(self, values: list[Array]) -> Tensor | None:
        if self.lengths != "mask":
            return None
        steps = [min(len(frames), self.steps) for frames in values]
        return torch.tensor(steps, dtype=torch.int64, device="cpu")

    def difference_from_training(self, values: list[Array]) -> str:
        for frames in values:
            if frames.shape[1] != len(self.features):
                raise ValueError(f"sequences must have {len(self.features)} features, got {frames.shape[1]}")
        filled = torch.from_numpy(self._filled(np.concatenate(values)))
        return self.scale.difference_from_training(filled, [f"feature {name!r}" for name in self.features])


class Sequences(UserData):
    """Time series of variable length, ``[frames, F]`` each.

    A folder of tables by class, ``class/name.csv``, one row per frame; a long table, whose column `group`
    says which sequence a row belongs to, and whose label is the same in all rows of a sequence; a ``.ts``
    file of aeon and sktime (next to ``NAME_TRAIN.ts``, ``NAME_TEST.ts`` is the test part), or a folder with
    one such pair; arrays ``[N, T, F]`` or ``[N, T]`` in an ``.npz`` file, with ``lengths`` if they are
    padded; or arrays in memory. Columns that hold the time or number the rows of a long table are left out;
    rows are sorted by time if there is such a column.

    Args:
        source: a folder, a file, or a list of arrays ``[frames, F]``.
        labels: one per sequence, for arrays in memory.
        group: the column of a long table that says which sequence a row belongs to.
        lengths: ``stretch``: interpolated to `steps`; ``pad``: cut at `steps`, and padded with zeros;
            ``mask``: the same, and steps after a sequence's end do not count.
        steps: the length of all inputs; 64 if ``None``, for spike trains their own.
        options: see :class:`UserData`.

    >>> samples = Sequences([np.ones([n, 2]) * n for n in range(4, 24)], labels=["a", "b"] * 10, steps=8)
    >>> samples.setup()
    >>> samples.training[0][0].shape
    torch.Size([8, 2])
    """

    kind = "sequences"
    inputs: ClassVar[type[Inputs]] = SequenceInputs
    usual_steps = 64
    shortest: int
    longest: int
    """Frames of the shortest and of the longest training sequence before resizing."""
    _features: Features = ()
    _spikes = False

    def __init__(
        self,
        source: Any,
        labels: Any = None,
        *,
        group: str | None = None,
        lengths: str = "stretch",
        steps: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(source, steps=self.usual_steps if steps is None else steps, **options)
        self._default_steps = steps is None
        if lengths not in LENGTHS:
            raise ValueError(f"lengths must be one of {', '.join(LENGTHS)}; got {lengths!r}")
        self.labels, self.group, self.lengths = labels, group, lengths
        if isinstance(self.source, Path):
            with readable(self.source):
                pairs = sorted(self.source.glob(f"*{TRAIN_TS}"))
            self.source = pairs[0] if len(pairs) == 1 else self.source
            test_file = self.source.with_name(self.source.name.replace(TRAIN_TS, "_TEST.ts"))
            if self.test_source is None and test_file != self.source and test_file.exists():
                self.test_source = test_file

    def read(self, source: Any) -> Raw:
        raw = self._read(source)
        raw.values = [each[:, None] if each.ndim == 1 else each for each in raw.values]
        _check(raw)
        self._features = self._features or tuple(str(k) for k in range(1, 1 + raw.values[0].shape[1]))
        missing = ""
        if np.isnan(joined := np.concatenate(raw.values)).any():
            columns = [np.isnan(frames).any(axis=0) for frames in raw.values]
            raw.gaps = [self._features[each.argmax()] if each.any() else "" for each in columns]
            filled = self.option("missing") == "median"
            missing = f", {np.isnan(joined).mean():.1%} missing, filled with the median" if filled else ""
        steps = [len(frames) for frames in raw.values]
        in_arrays = not isinstance(source, str | Path) or is_array(source)
        if self._description is not None:
            self.steps, self.lengths = self.option("steps"), self.option("lengths")
        elif in_arrays and are_spikes(*raw.values):
            self.steps = max(steps) if self._default_steps else self.steps
            self._spikes, self.lengths = True, "mask" if self.lengths == "mask" else "pad"
        count = len(self._features)
        raw.summary = (
            f"{len(steps):,} {'trains of spikes, 0 and 1,' if self._spikes else 'sequences'} of {count} "
            f"{'feature' if count == 1 else 'features'}, {span(min(steps), max(steps))} steps, "
            f"{HOW[self.lengths]} to {self.steps}{missing}"
        )
        if self.labels is None and is_array(source):
            raw.summary += " (--kind arrays if they have no time axis)"
        return raw

    def _read(self, source: Any) -> Raw:
        """The sequences in `source`; sets the names of their features if they have names."""
        described = None if self._description is None else self._description
        self._features = () if described is None else self.option("features")
        if self.labels is not None or not isinstance(source, str | Path):
            written = None if self.labels is None else texts(list(self.labels))
            return _numbered(list(source), written)
        label = self.label or (None if described is None else described.target.name)
        if is_array(source):
            return _in_arrays(source, label)
        path = Path(source)
        if path.suffix == ".ts":
            return _numbered(*ts_files.read_ts(path))
        if self.option("group") is not None and path.is_file():
            return self._grouped(path, self.option("group"), label)
        raw = labelled_files(path, SUFFIXES, "sequences")
        notes = dict[str, None]()
        frames = []
        for file in raw.values:
            table, parsed = read_table(file, self.option("encoding"))
            table, order = _in_time(table)
            notes.update(dict.fromkeys((*parsed, *order)))
            self._features = self._features or _columns(table, ())
            frames.append(_frames(table, self._features, file.name))
        raw.values, raw.notes = frames, list(notes)
        return raw

    def _grouped(self, path: Path, group: str, label: str | None) -> Raw:
        """The sequences of a long table."""
        table, notes = read_table(path, self.option("encoding"))
        names, features = list(table.columns), self._features
        for argument, name in (("group", group), ("label", None if features else label)):
            if name is not None and name not in names:
                raise ValueError(
                    f"{argument} must be a column of {path.name}: {', '.join(names)}; got {name!r}"
                )
        sequences = table.groupby(group, sort=False)
        if not label:  # of the columns that are constant within sequences, one with a usual name, or the last
            most = sequences[[name for name in names if name != group]].nunique(dropna=False).max()
            constant = [str(name) for name in most[most == 1].index]
            label = named_label(constant) or (constant[-1] if constant else "")
        if not features:
            numbering = [name for name in names if name not in (group, label) and _counts_rows(table, name)]
            self._features = features = _columns(table, (group, label, *numbering))
            shown = ", ".join(f"`{name}`" for name in numbering)
            notes += [f"left out as they number the rows: {shown}"] if numbering else []
        raw = Raw([], [] if label in names else None, [], label=label or "class")
        for value, unsorted in sequences:
            where = f"{group} {value}"
            rows, order = _in_time(unsorted)
            notes += (each for each in order if each not in notes)
            raw.names.append(where)
            raw.values.append(_frames(rows, features, where))
            if raw.labels is None:
                continue
            written = sorted(set(column_texts(rows[label])))
            if len(written) != 1:
                raise ValueError(
                    f"label {label!r} must be the same in all rows of a sequence, {where} has "
                    f"{', '.join(written[:3])}"
                )
            raw.labels += written
        raw.notes = notes
        return raw

    def learn(self, raw: Raw, training: Sequence[int]) -> Inputs:
        part = np.concatenate([raw.values[index] for index in training])
        lengths = [len(raw.values[index]) for index in training]
        self.shortest, self.longest = min(lengths), max(lengths)
        present = [column[~np.isnan(column)] for column in part.T]
        fill = np.array([np.median(column) if len(column) else 0.0 for column in present])
        learned = scale.fit_scale(torch.from_numpy(np.where(np.isnan(part), fill, part)), unit=False)
        if self._spikes:
            zeros, ones = (0.0,) * part.shape[1], (1.0,) * part.shape[1]
            learned = scale.Scale(zeros, ones, zeros, ones, clipped=False)
        return SequenceInputs(
            features=self._features,
            fill=tuple(fill.tolist()),
            scale=learned,
            steps=self.steps,
            lengths=self.lengths,
            missing=self.missing,
            group=None if self.labels is not None else self.group,
            encoding=self.encoding or "",
        )


def is_array(source: Any) -> bool:
    """Whether `source` is a file of arrays, or a folder of them."""
    if not isinstance(source, str | Path):
        return False
    path = Path(source)
    return path.suffix.lower() in (".npz", ".npy") or (path.is_dir() and any(path.glob("*.npy")))


def spike_steps(source: Any) -> int | None:
    """The steps of the spike trains in a file; ``None`` for other files."""
    inputs = input_arrays(source)
    trains = bool(inputs) and all(each.ndim in (2, 3) and are_spikes(each) for each in inputs)
    return max(each.shape[1] for each in inputs) if trains else None


def _numbered(frames: Sequence[Any], labels: list[str] | None) -> Raw:
    values = [np.asarray(each, np.float64) for each in frames]
    return Raw(values, labels, [f"sequence {number}" for number in range(1, len(values) + 1)])


def _in_arrays(source: str | Path, label: str | None) -> Raw:
    """The series in a file or folder of arrays.

    Raises:
        ValueError: if they are no series, or their lengths do not fit.
    """
    arrays = contents(source)
    parts = labels = lengths = None
    if any(name.startswith(_LENGTHS) for name in arrays):
        inputs, lengths, parts = pair(arrays, _LENGTHS)
        arrays = {name: values for name, values in arrays.items() if not name.startswith(_LENGTHS)}
    if len(arrays) == 1:
        (inputs,) = arrays.values()
    else:
        inputs, classes, parts = pair(arrays, label if label in arrays else None)
        labels = texts(classes.tolist())
    if inputs.ndim not in (2, 3) or inputs.dtype.kind not in "biuf":
        raise ValueError(
            f"series in arrays must be numbers [N, T, F] or [N, T], got {inputs.dtype} {inputs.shape}"
        )
    frames = list(inputs)
    if lengths is not None:
        steps = inputs.shape[1]
        if not (np.isin(lengths, np.arange(1, steps + 1))).all():
            raise ValueError(f"lengths must be whole numbers of 1 to {steps} steps, got {lengths}")
        frames = [each[: int(length)] for each, length in zip(frames, lengths, strict=True)]
    raw = _numbered(frames, labels)
    raw.parts, raw.label = parts, label or "class"
    return raw


def _counts_rows(table: Any, name: str) -> bool:
    return bool(numeric(table[[name]])[0]) and name.lower() not in TIMES and is_row_number(table[name])


def _in_time(table: Any) -> tuple[Any, list[str]]:
    """The rows of a sequence sorted by its time column, if it has one without repeated times; and notes."""
    for name, is_number in zip(table.columns, numeric(table), strict=True):
        if is_number and name.lower() in TIMES:
            times = table[name]
            if times.is_monotonic_increasing or not times.is_unique or times.isna().any():
                return table, []
            return table.sort_values(name, kind="stable"), [f"rows put in the order of {name!r}"]
    return table, []


def _columns(table: Any, without: Sequence[str]) -> Features:
    columns = tuple(
        name
        for name, is_number in zip(table.columns, numeric(table), strict=True)
        if is_number and name not in without and name.lower() not in TIMES
    )
    if not columns:
        raise ValueError(f"sequences must have columns of numbers, got {', '.join(table.columns)}")
    return columns


def _frames(table: Any, features: Features, where: str) -> Array:
    """The numbers of a sequence, ``[frames, F]``; `where` names it in messages."""
    unknown = [name for name in features if name not in table.columns]
    if unknown:
        raise ValueError(f"{where} must have the columns {', '.join(features)}; it has no {unknown[0]!r}")
    try:
        return np.stack([numbers_of(name, table[name]) for name in features], axis=1)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _check(raw: Raw) -> None:
    """Refuse sequences that are empty, infinite, or have different features."""
    for name, frames in zip(raw.names, raw.values, strict=True):
        if frames.ndim != 2 or frames.size == 0:
            raise ValueError(f"sequences must be [frames, features], {name} has the shape {frames.shape}")
        if frames.shape[1] != raw.values[0].shape[1]:
            raise ValueError(
                f"sequences must have the same features, {name} has {frames.shape[1]}, "
                f"{raw.names[0]} {raw.values[0].shape[1]}"
            )
        if np.isinf(frames).any():
            row, column = (int(axis[0]) for axis in np.nonzero(np.isinf(frames)))
            raise ValueError(
                f"sequences must be finite, {name} has inf in row {row + 1}, column {column + 1}"
            )
