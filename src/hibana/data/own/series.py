"""Sequences of variable length: a folder of tables by class, a long table, arrays, or ``.ts`` files."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from hibana.data.own import scale, series_arrays, ts
from hibana.data.own.base import Inputs, Own, Raw, listed
from hibana.data.own.datasets import is_dataset
from hibana.data.own.folders import by_class, readable
from hibana.data.own.opening import read_table
from hibana.data.own.table import TIMES, is_row_number, named_label, numbers_of, numeric
from hibana.data.own.tensors import are_spikes

__all__ = ["LENGTHS", "SequenceInputs", "Sequences"]

SUFFIXES = (".csv", ".tsv", ".parquet", ".txt")
TRAIN_TS = "_TRAIN.ts"
"""Suffix of a ``.ts`` file next to which lies a ``_TEST.ts`` file."""
LENGTHS = ("stretch", "pad", "mask")
"""How sequences get one length: linear interpolation; or cutting and padding with zeros, which count as steps
(``pad``) or do not (``mask``)."""
HOW = {"stretch": "stretched", "pad": "cut or padded", "mask": "cut, or padded and masked,"}

Frames = list["np.ndarray[Any, Any]"]
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

    def read(self, source: Any, label: str | None = None) -> Raw:
        raw, _ = _read(source, self.group, label, self.features, self.encoding)
        _check(raw)
        return raw

    def tensor(self, values: Frames) -> Tensor:
        return torch.stack([self._resized(frames) for frames in values])

    def scaled(self, frames: "np.ndarray[Any, Any]") -> Tensor:
        """Frames ``[..., F]`` after filling missing values (NaN) and scaling."""
        return self.scale(torch.from_numpy(np.where(np.isnan(frames), np.array(self.fill), frames)))

    def _resized(self, frames: "np.ndarray[Any, Any]") -> Tensor:
        """A sequence ``[frames, F]`` as ``[steps, F]``, scaled."""
        scaled = self.scaled(frames)
        if self.lengths != "stretch":
            return functional.pad(scaled[: self.steps], (0, 0, 0, max(0, self.steps - len(scaled))))
        if len(scaled) == 1:
            return scaled.expand(self.steps, -1)
        return functional.interpolate(scaled.T[None], size=self.steps, mode="linear", align_corners=True)[0].T

    def own_steps(self, values: Frames) -> Tensor | None:
        if self.lengths != "mask":
            return None
        steps = [min(len(frames), self.steps) for frames in values]
        return torch.tensor(steps, dtype=torch.int64, device="cpu")

    def unlike(self, values: Frames) -> str:
        for frames in values:
            if frames.shape[1] != len(self.features):
                raise ValueError(f"sequences must have {len(self.features)} features, got {frames.shape[1]}")
        joined = np.concatenate(values)
        if self.missing == "refuse" and np.isnan(joined).any():
            raise ValueError("sequences must have no missing values")
        filled = torch.from_numpy(np.where(np.isnan(joined), np.array(self.fill), joined))
        return self.scale.unlike(filled, [f"feature {name!r}" for name in self.features])


class Sequences(Own):
    """Time series of variable length, ``[frames, F]`` each.

    A folder of tables by class, ``class/name.csv``, one row per frame; a long table, whose column `group`
    says which sequence a row belongs to, and whose label is the same in all rows of a sequence; a ``.ts``
    file of aeon and sktime (next to ``NAME_TRAIN.ts``, ``NAME_TEST.ts`` is the test part), or a folder with
    one such pair; arrays ``[N, T, F]`` or ``[N, T]`` in an ``.npz`` file, with ``lengths`` if they are
    padded; or arrays in memory. Columns that hold the time or number the rows of a long table are left out;
    rows are sorted by time if there is such a column.

    Args:
        source: a folder, a file, a list of arrays ``[frames, F]``, or a map-style dataset of ``(x, y)``.
        labels: one per sequence, for arrays in memory.
        group: the column of a long table that says which sequence a row belongs to.
        lengths: ``stretch``: interpolated to `steps`; ``pad``: cut at `steps`, and padded with zeros;
            ``mask``: the same, and steps after a sequence's end do not count.
        steps: the length of all inputs; 64 if ``None``, for spike trains their own.
        options: see :class:`Own`.

    >>> samples = Sequences([np.ones([n, 2]) * n for n in range(4, 24)], labels=["a", "b"] * 10, steps=8)
    >>> samples.setup()
    >>> samples.training[0][0].shape
    torch.Size([8, 2])
    """

    kind = "sequences"
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
            if self.given_test is None and test_file != self.source and test_file.exists():
                self.given_test = test_file

    def read(self, source: Any) -> Raw:
        described = None if self.description is None else self.description.inputs
        assert described is None or isinstance(described, SequenceInputs)
        if self.labels is not None:
            raw, self._features = _in_memory(source), ()
            raw.labels = listed(list(self.labels))
        else:
            label = self.label or (None if self.description is None else self.description.target.name)
            features = () if described is None else described.features
            raw, self._features = _read(source, self.group, label, features, self.encoding)
        _check(raw)
        self._features = self._features or tuple(str(k) for k in range(1, 1 + raw.values[0].shape[1]))
        raw, note = self._without_gaps(raw)
        lengths = [len(frames) for frames in raw.values]
        in_arrays = not isinstance(source, str | Path) or series_arrays.is_array(source)
        if described is not None:
            self.steps, self.lengths = described.steps, described.lengths
        elif in_arrays and are_spikes(*raw.values):
            self.steps = max(lengths) if self._default_steps else self.steps
            self._spikes, self.lengths = True, "mask" if self.lengths == "mask" else "pad"
        spread = f"{min(lengths)} to {max(lengths)}" if min(lengths) < max(lengths) else f"{lengths[0]}"
        count = len(self._features)
        raw.summary = (
            f"{len(lengths):,} {'trains of spikes, 0 and 1,' if self._spikes else 'sequences'} of {count} "
            f"{'feature' if count == 1 else 'features'}, {spread} steps, {HOW[self.lengths]} to "
            f"{self.steps}{note}"
        )
        if self.labels is None and series_arrays.is_array(source):
            raw.summary += " (--kind arrays if they have no time axis)"
        return raw

    def _without_gaps(self, raw: Raw) -> tuple[Raw, str]:
        """`raw` with missing values handled as `missing` says, and a note on them."""
        gaps = [bool(np.isnan(frames).any()) for frames in raw.values]
        if not any(gaps):
            return raw, ""
        if self.missing == "refuse":
            raise ValueError(f"sequences must have no missing values, {raw.names[gaps.index(True)]} has")
        if self.missing == "drop":
            complete = [index for index, gap in enumerate(gaps) if not gap]
            return raw.only(complete), f", {sum(gaps)} sequences with missing values left out"
        return raw, f", {np.isnan(np.concatenate(raw.values)).mean():.1%} missing, filled with the median"

    def learn(self, raw: Raw, training: Sequence[int]) -> Inputs:
        part = np.concatenate([raw.values[index] for index in training])
        lengths = [len(raw.values[index]) for index in training]
        self.shortest, self.longest = min(lengths), max(lengths)
        present = [column[~np.isnan(column)] for column in part.T]
        fill = np.array([np.median(column) if len(column) else 0.0 for column in present])
        learned = scale.learned_from(torch.from_numpy(np.where(np.isnan(part), fill, part)), unit=False)
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


def _in_memory(source: Any) -> Raw:
    return _as_frames(Raw(list(source), None, [f"sequence {number}" for number in range(1, len(source) + 1)]))


def _as_frames(raw: Raw) -> Raw:
    """`raw` with values ``[frames, F]`` in double precision."""
    frames = [np.asarray(each, np.float64) for each in raw.values]
    raw.values = [each[:, None] if each.ndim == 1 else each for each in frames]
    return raw


def _read(
    source: Any, group: str | None, label: str | None, features: Features, encoding: str | None
) -> tuple[Raw, Features]:
    """Sequences, and the names of their features: `features`, or all columns of numbers if that is empty."""
    if is_dataset(source) or series_arrays.is_array(source):
        return _as_frames(series_arrays.read(source, label)), features
    if not isinstance(source, str | Path):
        return _in_memory(source), features
    path = Path(source)
    if path.suffix == ".ts":
        values, labels = ts.read(path)
        return Raw(values, labels, [f"sequence {number}" for number in range(1, len(values) + 1)]), features
    if group is not None and path.is_file():
        return _grouped(path, group, label, features, encoding)
    files = by_class(path, SUFFIXES, "sequences")
    values, how = [], list[str]()
    for file in files.files:
        table, notes = read_table(file, encoding)
        table, order = _in_time(table)
        how += (each for each in (*notes, *order) if each not in how)
        features = features or _columns(table, ())
        values.append(_frames(table, features, file.name))
    return Raw(values, files.labels, files.names, parts=files.parts, how=how), features


def _grouped(
    path: Path, group: str, label: str | None, features: Features, encoding: str | None
) -> tuple[Raw, Features]:
    """The sequences of a long table."""
    table, how = read_table(path, encoding)
    names = [str(name) for name in table.columns]
    for argument, name in (("group", group), ("label", label)):
        if name is not None and name not in names and not (argument == "label" and features):
            raise ValueError(f"{argument} must be a column of {path.name}: {', '.join(names)}; got {name!r}")
    if not label:  # of the columns that are constant within sequences, one with a usual name, or the last
        others = [name for name in names if name != group and name not in features]
        constant = [
            name for name in others if int(table.groupby(group)[name].nunique(dropna=False).max()) == 1
        ]
        label = named_label(constant) or (constant[-1] if constant else "")
    if features and label not in names:
        label = ""
    if not features:
        numbering = [name for name in names if name not in (group, label) and _counts_rows(table, name)]
        features = _columns(table, (group, label, *numbering))
        shown = ", ".join(f"`{name}`" for name in numbering)
        how += [f"left out as they number the rows: {shown}"] if numbering else []
    labels: list[str] = []
    values, sequences = [], []
    for value, rows in table.groupby(group, sort=False):
        sequences.append(f"{group} {value}")
        rows, order = _in_time(rows)
        how = [*how, *(each for each in order if each not in how)]
        values.append(_frames(rows, features, sequences[-1]))
        written = set(listed(rows[label].tolist()) or ()) if label else {""}
        if len(written) != 1:
            raise ValueError(
                f"label {label!r} must be the same in all rows of a sequence, {sequences[-1]} has "
                f"{', '.join(sorted(written)[:3])}"
            )
        labels += written
    return Raw(values, labels if label else None, sequences, label=label or "class", how=how), features


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


def _frames(table: Any, features: Features, where: str) -> "np.ndarray[Any, Any]":
    unknown = [name for name in features if name not in table.columns]
    if unknown:
        raise ValueError(f"{where} must have the columns {', '.join(features)}; it has no {unknown[0]!r}")
    try:
        return np.stack([numbers_of(name, table[name]) for name in features], axis=1)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _check(raw: Raw) -> None:
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
