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
from hibana.data.user_data.arrays import are_spikes, input_arrays, inputs_and_labels, read_arrays
from hibana.data.user_data.base import Inputs, UserData
from hibana.data.user_data.folders import labelled_files
from hibana.data.user_data.samples import RawSamples, Scale, fit_scale, span
from hibana.data.user_data.table import TIMES, check_column, is_row_number, numbers_of, numeric, usual_label
from hibana.data.user_data.table_files import read_table, read_ts
from hibana.data.user_data.target import column_texts, texts

SUFFIXES = (".csv", ".tsv", ".parquet", ".txt")
TRAIN_TS, TEST_TS = "_TRAIN.ts", "_TEST.ts"
"""Suffixes of a ``.ts`` file of training samples, and of the file of test samples next to it."""
LENGTH_VERBS = {"stretch": "stretched", "pad": "cut or padded", "mask": "cut, or padded and masked,"}
LENGTHS = tuple(LENGTH_VERBS)
SCALES = ("all", "each")
SMALLEST_DEVIATION = 1e-6
"""Deviation of a series, relative to that of all, below which it counts as constant."""
"""How sequences get one length: linear interpolation; or cutting and padding with zeros, which count as steps
(``pad``) or do not (``mask``)."""

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class SequenceInputs(Inputs):
    """The features of a sequence, their fill values and scale, and the length of all inputs."""

    sequential = True
    features: tuple[str, ...]
    fill: tuple[float, ...]
    scale: Scale
    steps: int
    lengths: str
    group: str | None
    encoding: str = ""
    """Encoding of text files; detected if empty."""
    scaled_by: str = "all"
    """Whether ``each`` series is also scaled by its own mean and deviation."""

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override] # a property instead of a field
        """The number of features."""
        return (len(self.features),)

    def tensor(self, values: list[Array]) -> Tensor:
        """The sequences at one length, ``[N, steps, F]``, filled and scaled."""
        sequences = map(self.scaled, values)
        if self.lengths == "stretch":
            return torch.stack([stretch(frames, self.steps) for frames in sequences])
        missing = ((frames[: self.steps], max(0, self.steps - len(frames))) for frames in sequences)
        return torch.stack([functional.pad(frames, (0, 0, 0, count)) for frames, count in missing])

    def scaled(self, frames: Array) -> Tensor:
        """Frames ``[..., F]`` after filling missing values (NaN) and scaling."""
        scaled = self.scale(torch.from_numpy(self._filled(frames)))
        if self.scaled_by == "all":
            return scaled
        deviation, mean = torch.std_mean(scaled, 0, correction=0)
        return (scaled - mean) / deviation.clamp(min=SMALLEST_DEVIATION)

    def _filled(self, frames: Array) -> Array:
        """Frames ``[..., F]`` with the fill values in place of NaN."""
        return np.where(np.isnan(frames), np.array(self.fill), frames)

    def step_counts(self, values: list[Array]) -> Tensor | None:
        """The number of steps of each sequence before padding, ``[N]``; ``None`` unless masked."""
        if self.lengths != "mask":
            return None
        steps = [min(len(frames), self.steps) for frames in values]
        return torch.tensor(steps, dtype=torch.int64, device="cpu")

    def difference_from_training(self, values: list[Array]) -> str:
        """A clause on a feature with another range than in training; empty if there is none."""
        for frames in values:
            if frames.shape[1] != len(self.features):
                raise ValueError(f"sequences must have {len(self.features)} features, got {frames.shape[1]}")
        if self.scaled_by == "each":
            return ""
        numbers = torch.from_numpy(self._filled(np.concatenate(values)))
        return self.scale.difference_from_training(numbers, [f"feature {name!r}" for name in self.features])


class Sequences(UserData):
    """Time series of variable length, ``[frames, F]`` each.

    The source is one of the following. Columns that contain the time, or number the rows of a long table, are
    left out. Rows are sorted by time if there is such a column.

    - A folder of tables by class, ``class/name.csv``, with one row per frame.
    - A long table. Its column `group` names the sequence of each row. The label must be the same in all rows
      of a sequence.
    - A ``.ts`` file of aeon and sktime; ``NAME_TEST.ts`` next to ``NAME_TRAIN.ts`` is the test part.
    - Arrays ``[N, T, F]`` or ``[N, T]`` in an ``.npz`` file or a folder, with ``lengths`` if they are padded.
    - A list of arrays in memory.

    Args:
        source: a folder, a file, or a list of arrays ``[frames, F]``.
        labels: one per sequence, for arrays in memory.
        group: the column of a long table that names the sequence of each row.
        lengths: ``stretch``: interpolated to `steps`; ``pad``: cut at `steps`, and padded with zeros;
            ``mask``: like ``pad``, and steps after a sequence's end do not count.
        scale: ``all``: each feature has mean 0 and deviation 1 over the training part; ``each``: in each
            sequence.
        steps: length of all inputs; if ``None`` 64, or the longest sequence for spike trains.
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
    _features: tuple[str, ...] = ()
    has_spike_trains = False
    """Whether the source consists of arrays of 0 and 1; these are not scaled."""

    def __init__(
        self,
        source: Any,
        labels: Any = None,
        *,
        group: str | None = None,
        lengths: str = "stretch",
        scale: str = "all",
        steps: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(source, steps=self.usual_steps if steps is None else steps, **options)
        self._has_default_steps = steps is None
        if lengths not in LENGTHS:
            raise ValueError(f"lengths must be one of {', '.join(LENGTHS)}; got {lengths!r}")
        if scale not in SCALES:
            raise ValueError(f"scale must be one of {', '.join(SCALES)}; got {scale!r}")
        self.scaled_by = scale
        self.labels, self.group, self.lengths = labels, group, lengths
        if isinstance(self.source, Path) and self.source.name.endswith(TRAIN_TS) and self.test_source is None:
            test_file = self.source.with_name(self.source.name.replace(TRAIN_TS, TEST_TS))
            self.test_source = test_file if test_file.exists() else None

    def read(self, source: Any) -> RawSamples:
        """The sequences in `source`, ``[frames, F]`` each; also sets the length of spike trains."""
        raw = self._read(source)
        raw.values = [frames[:, None] if frames.ndim == 1 else frames for frames in raw.values]
        _check(raw)
        self._features = self._features or tuple(str(k) for k in range(1, 1 + raw.values[0].shape[1]))
        is_missing = np.isnan(np.concatenate(raw.values))
        missing = f", {is_missing.mean():.1%} missing, filled with the median" if is_missing.any() else ""
        steps = [len(frames) for frames in raw.values]
        if self._description is not None:
            self.steps, self.lengths = self.option("steps"), self.option("lengths")
        elif (not isinstance(source, str | Path) or _is_array(source)) and are_spikes(*raw.values):
            self.steps = max(steps) if self._has_default_steps else self.steps
            self.has_spike_trains, self.lengths = True, "mask" if self.lengths == "mask" else "pad"
        kind = "trains of spikes, 0 and 1," if self.has_spike_trains else "sequences"
        features = "1 feature" if len(self._features) == 1 else f"{len(self._features)} features"
        raw.summary = (
            f"{len(steps):,} {kind} of {features}, {span(min(steps), max(steps))} steps, "
            f"{LENGTH_VERBS[self.lengths]} to {self.steps}{missing}"
        )
        if self.labels is None and _is_array(source):
            raw.summary += " (--kind arrays if they have no time axis)"
        return raw

    def _read(self, source: Any) -> RawSamples:
        """The sequences in `source`; also sets the names of their features if they have names."""
        self._features = () if self._description is None else self.option("features")
        if self.labels is not None or not isinstance(source, str | Path):
            return _numbered(list(source), None if self.labels is None else texts(list(self.labels)))
        label = self.label or (None if self._description is None else self._description.target.name)
        if _is_array(source):
            return _read_array_series(source, label)
        path = Path(source)
        if path.suffix == ".ts":
            return _numbered(*read_ts(path))
        group = self.option("group") if path.is_file() else None
        raw = self._grouped(path, group, label) if group else labelled_files(path, SUFFIXES, "sequences")
        notes = dict.fromkeys(raw.notes)  # an ordered set
        for index, (name, rows) in enumerate(zip(raw.names, raw.values, strict=True)):
            table, parsing = (rows, []) if group else read_table(rows, self.option("encoding"))
            self._features = self._features or _feature_columns(table, ())
            raw.values[index], sorting = _frames(table, self._features, name)
            notes.update(dict.fromkeys((*parsing, *sorting)))
        raw.notes = list(notes)
        return raw

    def _grouped(self, path: Path, group: str, label: str | None) -> RawSamples:
        """The sequences of a long table, as one table each; also sets the names of their features.

        Args:
            path: file of the table.
            group: the column that names the sequence of each row.
            label: the label's column; if ``None``, a column that is constant within sequences.
        """
        table, notes = read_table(path, self.option("encoding"))
        names, features = list(table.columns), self._features
        for argument, name in (("group", group), ("label", None if features else label)):
            if name is not None:
                check_column(argument, name, names, path.name)
        sequences = table.groupby(group, sort=False)
        if not label:
            counts = sequences[[name for name in names if name != group]].nunique(dropna=False).max()
            constant = [str(name) for name in counts[counts == 1].index]
            label = usual_label(constant) or (constant[-1] if constant else "")
        if label in names and (counts := sequences[label].nunique(dropna=False)).max() > 1:
            raise ValueError(f"label {label!r} must be the same in all rows of {group} {counts.idxmax()}")
        if not features:
            numbers = _feature_columns(table, (group, label))
            numbering = [name for name in numbers if is_row_number(table[name])]
            self._features = _feature_columns(table, (group, label, *numbering))
            listed = ", ".join(f"`{name}`" for name in numbering)
            notes += [f"left out as they number the rows: {listed}"] if numbering else []
        values, tables = zip(*sequences, strict=True)
        labels = column_texts(sequences[label].first()) if label in names else None
        sequence_names = [f"{group} {value}" for value in values]
        return RawSamples(list(tables), labels, sequence_names, label=label or "class", notes=notes)

    def learn(self, raw: RawSamples, training: Sequence[int]) -> Inputs:
        """The fill values (medians) and the scale of the training frames; spike trains are not scaled."""
        frames = np.concatenate([raw.values[index] for index in training])  # [all training frames, F]
        lengths = [len(raw.values[index]) for index in training]
        self.shortest, self.longest = min(lengths), max(lengths)
        present = [column[~np.isnan(column)] for column in frames.T]
        fill = np.array([np.median(column) if len(column) else 0.0 for column in present])
        scale = fit_scale(torch.from_numpy(np.where(np.isnan(frames), fill, frames)), unit=False)
        if self.has_spike_trains:
            if self.scaled_by == "each":
                raise ValueError("scale must be all for trains of spikes, which are not scaled, got 'each'")
            zeros, ones = (0.0,) * frames.shape[1], (1.0,) * frames.shape[1]
            scale = Scale(zeros, ones, zeros, ones, clipped=False)  # shift 0, factor 1, range 0 to 1
        group, encoding = None if self.labels is not None else self.group, self.encoding or ""
        fills = tuple(fill.tolist())
        return SequenceInputs(
            self._features, fills, scale, self.steps, self.lengths, group, encoding, self.scaled_by
        )


def _is_array(source: Any) -> bool:
    """Whether `source` is the path of an ``.npz`` or ``.npy`` file, or of a folder of ``.npy`` files."""
    if not isinstance(source, str | Path):
        return False
    path = Path(source)
    return path.suffix.lower() in (".npz", ".npy") or (path.is_dir() and any(path.glob("*.npy")))


def default_steps(kind: str | None, source: Any) -> int | None:
    """The length of the spike trains in a file, if `kind` is ``sequences``; ``None`` for other data."""
    inputs = input_arrays(source) if kind == "sequences" else []
    are_trains = bool(inputs) and all(x.ndim in (2, 3) and are_spikes(x) for x in inputs)
    return max(x.shape[1] for x in inputs) if are_trains else None


def _numbered(sequences: Sequence[Any], labels: list[str] | None) -> RawSamples:
    """Samples from `sequences`, ``[frames, F]`` or ``[frames]``, with the names ``sequence 1`` and so on."""
    values = [np.asarray(sequence, np.float64) for sequence in sequences]
    return RawSamples(values, labels, [f"sequence {number}" for number in range(1, len(values) + 1)])


def _read_array_series(source: str | Path, label: str | None) -> RawSamples:
    """The series in a file or folder of arrays, cut to their lengths if there is an array of lengths.

    Args:
        source: a file, or a folder of ``.npy`` files. A single array has no labels.
        label: name of the array of labels; detected if ``None`` or missing.

    Raises:
        ValueError: if the inputs are not series, or the lengths do not fit.
    """
    arrays = read_arrays(source)
    lengths = None
    if any(name.startswith("lengths") for name in arrays):  # or lengths_train and so on
        # this function pairs inputs with any array of one value per sample: with the lengths here
        _, lengths, _ = inputs_and_labels(arrays, "lengths")
        arrays = {name: values for name, values in arrays.items() if not name.startswith("lengths")}
    inputs, classes, parts = inputs_and_labels(arrays, label if label in arrays else None)
    if inputs.ndim not in (2, 3) or inputs.dtype.kind not in "biuf":  # boolean, integer, unsigned, float
        raise ValueError(f"series must be numbers [N, T, F] or [N, T], got {inputs.dtype} {inputs.shape}")
    series = list(inputs)
    if lengths is not None:
        max_steps = inputs.shape[1]
        if not (np.isin(lengths, np.arange(1, max_steps + 1))).all():
            raise ValueError(f"lengths must be whole numbers of 1 to {max_steps} steps, got {lengths}")
        series = [frames[: int(length)] for frames, length in zip(series, lengths, strict=True)]
    raw = _numbered(series, None if classes is None else texts(classes.tolist()))
    raw.parts, raw.label = parts, label or "class"
    return raw


def _feature_columns(table: Any, excluded: Sequence[str]) -> tuple[str, ...]:
    """The numeric columns that do not contain the time and are not `excluded`."""
    columns = tuple(
        name
        for name, is_number in zip(table.columns, numeric(table), strict=True)
        if is_number and name not in excluded and name.lower() not in TIMES
    )
    if not columns:
        raise ValueError(f"sequences must have columns of numbers, got {', '.join(table.columns)}")
    return columns


def _frames(table: Any, features: tuple[str, ...], name: str) -> tuple[Array, list[str]]:
    """The numbers of a sequence, ``[frames, F]``, in the order of its time, and notes on that order.

    Rows are sorted by the first time column if its times are all present and different. `name` is the name of
    the sequence in messages.
    """
    unknown = [feature for feature in features if feature not in table.columns]
    if unknown:
        raise ValueError(f"{name} must have the columns {', '.join(features)}; it has no {unknown[0]!r}")
    notes = []
    is_time = numeric(table) & np.array([column.lower() in TIMES for column in table.columns])
    if is_time.any():
        column = table.columns[is_time.argmax()]
        times = table[column]
        if not times.is_monotonic_increasing and times.is_unique and not times.isna().any():
            table, notes = table.sort_values(column, kind="stable"), [f"rows put in the order of {column!r}"]
    try:
        return np.stack([numbers_of(feature, table[feature]) for feature in features], axis=1), notes
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _check(raw: RawSamples) -> None:
    """Raises a ValueError that names a sequence that is empty or has an infinite number."""
    for name, frames in zip(raw.names, raw.values, strict=True):
        if frames.ndim != 2 or frames.size == 0:
            raise ValueError(f"sequences must be [frames, features], {name} has the shape {frames.shape}")
        if np.isinf(frames).any():
            row, column = (np.argwhere(np.isinf(frames))[0] + 1).tolist()
            raise ValueError(f"sequences must be finite, {name} has inf in row {row}, column {column}")
