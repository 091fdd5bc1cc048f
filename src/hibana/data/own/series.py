"""Sequences of unequal length: a folder of tables by class, a long table, or ``.ts`` files."""

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
from hibana.data.own.opening import opened
from hibana.data.own.table import TIMES, _is_number, _numbers, named_label
from hibana.data.own.tensors import are_spikes

__all__ = ["LENGTHS", "SequenceInputs", "Sequences"]

SUFFIXES = (".csv", ".tsv", ".parquet", ".txt")
TRAIN_TS = "_TRAIN.ts"
"""Ends the name of a ``.ts`` file beside which lies one to test with."""
LENGTHS = ("stretch", "pad", "mask")
"""How sequences come to one length: stretched linearly; or cut, and filled with zeros after their end, which
count as steps (``pad``) or do not (``mask``)."""

HOW = {"stretch": "stretched", "pad": "cut or padded", "mask": "cut, or padded and masked,"}
"""What is said of it."""

Frames = list["np.ndarray[Any, Any]"]


@dataclass(frozen=True)
class SequenceInputs(Inputs):
    """The features of a sequence, what fills the missing ones, their scale, and the length that all get."""

    sequential = True
    features: tuple[str, ...]
    fill: tuple[float, ...]
    scale: scale.Scale
    steps: int
    lengths: str
    missing: str
    group: str | None

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override] # a frozen dataclass has no attribute for it
        """The features."""
        return (len(self.features),)

    def read(self, source: Any, label: str | None = None) -> Raw:
        raw, _ = _read(source, self.group, label, self.features)
        _check(raw)
        return raw

    def tensor(self, values: Frames) -> Tensor:
        return torch.stack([self._of_one_length(frames) for frames in values])

    def scaled(self, frames: "np.ndarray[Any, Any]") -> Tensor:
        """Frames ``[..., F]`` on the scale that was trained on; NaN is a missing value, which is filled."""
        return self.scale(torch.from_numpy(np.where(np.isnan(frames), np.array(self.fill), frames)))

    def _of_one_length(self, frames: "np.ndarray[Any, Any]") -> Tensor:
        """A sequence ``[frames, F]`` as ``[steps, F]``, scaled."""
        if frames.shape[1] != len(self.features):
            raise ValueError(f"sequences must have {len(self.features)} features, got {frames.shape[1]}")
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
        names = [f"feature {name!r}" for name in self.features]
        for frames in values:
            if frames.shape[1] != len(names):
                raise ValueError(f"sequences must have {len(names)} features, got {frames.shape[1]}")
        if self.missing == "refuse" and any(np.isnan(frames).any() for frames in values):
            raise ValueError("sequences must have no missing values")
        joined = np.concatenate(values)
        return self.scale.unlike(
            torch.from_numpy(np.where(np.isnan(joined), np.array(self.fill), joined)), names
        )


class Sequences(Own):
    """Time series of unequal length, ``[frames, F]`` each.

    A folder of tables by class, ``class/name.csv``, a row a frame; a long table, whose column `group` says
    which rows are of one sequence, and whose label is the same in all of them; a ``.ts`` file of aeon and
    sktime (beside ``NAME_TRAIN.ts``, ``NAME_TEST.ts`` is what is tested with), or a folder that holds one
    pair of them; arrays ``[N, T, F]`` or ``[N, T]`` in an ``.npz`` file, with
    ``lengths`` beside them where they are padded; or arrays in memory. Columns
    that say the time are left out; rows are put in its order where it says one, and taken in theirs else.

    Args:
        source: a folder, a file, a list of arrays ``[frames, F]``, or a map-style dataset of ``(x, y)``.
        labels: one for each, with arrays in memory.
        group: the column of a long table that says which sequence a row is of.
        lengths: ``stretch``: interpolated to `steps`; ``pad``: cut at `steps`, and zeros after the end;
            ``mask``: the same, where batches say how long each is, and what follows its end does not count.
        steps: the length in time that all get; 64 if ``None``, of spike trains their own.
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
    """Steps of the shortest and of the longest training series, as they were read."""
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
        self._of_any_length = steps is None
        if lengths not in LENGTHS:
            raise ValueError(f"lengths must be one of {', '.join(LENGTHS)}; got {lengths!r}")
        self.labels, self.group, self.lengths = labels, group, lengths
        if isinstance(self.source, Path):
            with readable(self.source):
                pairs = sorted(self.source.glob(f"*{TRAIN_TS}"))  # of a folder that holds one
            self.source = pairs[0] if len(pairs) == 1 else self.source
            test_file = self.source.with_name(self.source.name.replace(TRAIN_TS, "_TEST.ts"))
            if self.given_test is None and test_file != self.source and test_file.exists():
                self.given_test = test_file

    def read(self, source: Any) -> Raw:
        if self.labels is not None:
            raw = _in_memory(source)
            raw.labels = listed(list(self.labels))
            self._features: tuple[str, ...] = ()
        else:
            self._check_columns(source)
            learned = None if self.description is None else self.description.target.name
            raw, self._features = _read(source, self.group, self.label or learned, self._known_features())
        _check(raw)
        self._features = self._features or tuple(str(k) for k in range(1, 1 + raw.values[0].shape[1]))
        gaps = [bool(np.isnan(frames).any()) for frames in raw.values]
        if any(gaps) and self.missing == "refuse":
            raise ValueError(f"sequences must have no missing values, {raw.names[gaps.index(True)]} has")
        summary = ""
        if any(gaps) and self.missing == "drop":
            kept = [index for index, gap in enumerate(gaps) if not gap]
            raw = raw.only(kept)
            summary = f", {sum(gaps)} sequences with missing values left out"
        elif any(gaps):
            share = np.isnan(np.concatenate(raw.values)).mean()
            summary = f", {share:.1%} missing, filled with the median"
        lengths = [len(frames) for frames in raw.values]
        known = None if self.description is None else self.description.inputs
        if isinstance(known, SequenceInputs):
            self.steps, self.lengths = known.steps, known.lengths
        elif self._in_arrays(source) and are_spikes(*raw.values):
            self.steps = max(lengths) if self._of_any_length else self.steps
            self._spikes, self.lengths = True, "mask" if self.lengths == "mask" else "pad"
        spread = f"{min(lengths)} to {max(lengths)}" if min(lengths) < max(lengths) else f"{lengths[0]}"
        how = HOW[self.lengths]
        count = len(self._features)
        raw.summary = (
            f"{len(lengths):,} {'trains of spikes, 0 and 1,' if self._spikes else 'sequences'} of {count} "
            f"{'feature' if count == 1 else 'features'}, {spread} steps, {how} to {self.steps}{summary}"
        )
        if self.labels is None and series_arrays.is_array(source):
            raw.summary += " (--kind arrays if they have no time axis)"
        return raw

    def _in_arrays(self, source: Any) -> bool:
        """Whether the numbers lie in arrays, as spike trains do, and not in text."""
        return not isinstance(source, str | Path) or series_arrays.is_array(source)

    def _check_columns(self, source: Any) -> None:
        """Refuses a column to be named where classes and sequences are told apart otherwise."""
        named = [name for name in ("label", "group") if getattr(self, name) is not None]
        if (
            named
            and not _is_long(source, self.group)
            and not (series_arrays.is_array(source) and self.group is None)
        ):
            raise ValueError(
                f"{named[0]} is a column of a long table, a file in which `group` says which rows are of one "
                f"sequence; leave it out: {self.called} has them one by one, with their classes"
            )

    def _known_features(self) -> tuple[str, ...]:
        known = None if self.description is None else self.description.inputs
        return known.features if isinstance(known, SequenceInputs) else ()

    def learn(self, raw: Raw, training: Sequence[int]) -> Inputs:
        part = np.concatenate([raw.values[index] for index in training])
        lengths = [len(raw.values[index]) for index in training]
        self.shortest, self.longest = min(lengths), max(lengths)
        known = [column[~np.isnan(column)] for column in part.T]
        fill = np.array([np.median(column) if len(column) else 0.0 for column in known])
        whole = torch.from_numpy(np.where(np.isnan(part), fill, part))
        learned = scale.learned_from(whole, unit=False)
        if self._spikes:
            zeros, ones = (0.0,) * part.shape[1], (1.0,) * part.shape[1]
            learned = scale.Scale(zeros, ones, zeros, ones, clipped=False)
        given = self.labels is not None
        group = None if given else self.group
        return SequenceInputs(
            *(self._features, tuple(fill.tolist()), learned, self.steps, self.lengths, self.missing, group)
        )


def _in_memory(source: Any) -> Raw:
    names = [f"sequence {number}" for number in range(1, len(source) + 1)]
    return _as_frames(Raw(list(source), None, names))


def _as_frames(raw: Raw) -> Raw:
    """`raw`, whose values are as ``[frames, F]`` in double precision."""
    frames = [np.asarray(each, np.float64) for each in raw.values]
    raw.values = [each[:, None] if each.ndim == 1 else each for each in frames]
    return raw


def _is_long(source: Any, group: str | None) -> bool:
    """Whether `source` is one table of many sequences."""
    path = Path(source) if isinstance(source, str | Path) else None
    return path is not None and path.suffix != ".ts" and path.is_file() and group is not None


def _read(
    source: Any, group: str | None, label: str | None, features: tuple[str, ...]
) -> tuple[Raw, tuple[str, ...]]:
    """Sequences, and the names of their features: `features`, unless there are none yet."""
    if is_dataset(source) or series_arrays.is_array(source):
        return _as_frames(series_arrays.read(source, label)), features
    if not isinstance(source, str | Path):
        return _in_memory(source), features
    path = Path(source)
    if path.suffix == ".ts":
        values, labels = ts.read(path)
        return Raw(values, labels, [f"sequence {number}" for number in range(1, len(values) + 1)]), features
    if group is not None and _is_long(path, group):
        return _grouped(path, group, label, features)
    found = by_class(path, SUFFIXES, "sequences")
    values, how = [], list[str]()
    for file in found.files:
        table, of_file = opened(file)
        table, order = _in_time(table)
        how += (each for each in (*of_file, *order) if each not in how)
        features = features or _columns(table, ())
        values.append(_frames(table, features, file.name))
    return Raw(values, found.labels, found.names, parts=found.parts, how=how), features


def _grouped(
    path: Path, group: str, label: str | None, features: tuple[str, ...]
) -> tuple[Raw, tuple[str, ...]]:
    """The sequences of a long table."""
    table, how = opened(path)
    names = [str(name) for name in table.columns]
    for argument, name in (("group", group), ("label", label)):
        if name is not None and name not in names and not (argument == "label" and features):
            raise ValueError(f"{argument} must be a column of {path.name}: {', '.join(names)}; got {name!r}")
    chosen = label or ""
    if not chosen:  # the last one that is the same in all rows of a sequence, one that is called so first
        others = [name for name in names if name != group and name not in features]
        alike = [name for name in others if int(table.groupby(group)[name].nunique(dropna=False).max()) == 1]
        chosen = named_label(alike) or (alike[-1] if alike else "")
    if features and chosen not in names:
        chosen = ""  # samples to name, which have no label
    features = features or _columns(table, (group, chosen))
    labels: list[str] = []
    values, known = [], []
    for value, rows in table.groupby(group, sort=False):
        known.append(f"{group} {value}")
        rows, order = _in_time(rows)
        how = [*how, *(each for each in order if each not in how)]
        values.append(_frames(rows, features, known[-1]))
        written = set(listed(rows[chosen].tolist()) or ()) if chosen else {""}
        if len(written) != 1:
            raise ValueError(
                f"label {chosen!r} must be the same in all rows of a sequence, {known[-1]} has "
                f"{', '.join(sorted(written)[:3])}"
            )
        labels += written
    return Raw(values, labels if chosen else None, known, label=chosen or "class", how=how), features


def _in_time(table: Any) -> tuple[Any, list[str]]:
    """The rows of a sequence, in the order of the numbers in a column that says their time; and what to say.

    Left as they are where no time is before the one above, or one stands twice.
    """
    for name in table.columns:
        if name.lower() in TIMES and _is_number(table[name]):
            times = table[name]
            if times.is_monotonic_increasing or not times.is_unique or times.isna().any():
                return table, []
            return table.sort_values(name, kind="stable"), [f"rows put in the order of {name!r}"]
    return table, []


def _columns(table: Any, without: Sequence[str]) -> tuple[str, ...]:
    kept = [
        name
        for name in table.columns
        if name not in without and name.lower() not in TIMES and _is_number(table[name])
    ]
    if not kept:
        raise ValueError(f"sequences must have columns of numbers, got {', '.join(table.columns)}")
    return tuple(kept)


def _frames(table: Any, features: Sequence[str], where: str) -> "np.ndarray[Any, Any]":
    unknown = [name for name in features if name not in table.columns]
    if unknown:
        raise ValueError(f"{where} must have the columns {', '.join(features)}; it has no {unknown[0]!r}")
    try:
        return np.stack([_numbers(name, table[name]) for name in features], axis=1)
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
