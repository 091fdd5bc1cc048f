"""Runs that learn what is usual in long series: a detector, and its threshold from held-out steps."""

import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from hibana.data.user_data.recording import Recording, read_recordings
from hibana.learn import AnomalyDetector
from hibana.runtime import files
from hibana.train import checkpoint
from hibana.train.checkpoint import EXPECTED, one_line
from hibana.train.run_folder import LAST, RESULT, RunFolder

HELD_OUT = 0.25
"""Share of each series, at its end, from which the threshold is determined."""
MIN_STEPS = 4 * 20 * 51
"""Normal steps of all series together: their last quarter has 20 silences of 50 steps."""
MIN_RECORDING = 512
"""Steps of each series: the first 128 have no score, and must not be held out."""
_UNITS = {"hour": 3600.0, "day": 86400.0, "week": 604800.0, "month": 2629800.0, "year": 31557600.0}


@dataclass(frozen=True)
class AnomalySettings:
    """Options of a run.

    Args:
        data: a table of one series, or a folder of such tables.
        columns: columns to watch, separated by commas. Default: all columns of numbers.
        label: a column that is 0, ``normal`` or empty in normal steps. Default: all steps count as normal.
        encoding: character encoding of text files. Default: detected.
        false_alarms: alarms on normal data: per time, such as ``1/week``, or a share of the steps, ``0.001``.
        seed: seed of the random neurons.
    """

    data: str
    columns: str | None = None
    label: str | None = None
    encoding: str | None = None
    false_alarms: str = "0.001"
    seed: int = 0
    task: str = "anomaly"

    def rate(self, seconds: float | None) -> float:
        """Returns the alarms per step, for steps of this duration; None if it is unknown.

        Raises:
            ValueError: if `false_alarms` is no rate below one in ten steps, or per time without dates.
        """
        text = self.false_alarms.strip()
        form = re.fullmatch(rf"([\d.]+(?:e-?\d+)?)(?:\s*/\s*({'|'.join(_UNITS)}|\d+))?", text)
        number, unit = form.groups() if form else ("", None)
        try:
            steps = (
                1.0 if unit is None else float(unit) if unit.isdecimal() else _UNITS[unit] / (seconds or 0)
            )
            rate = float(number) / steps
        except (ValueError, ZeroDivisionError):
            rate = 0.0
        if not 0 < rate <= 0.1:
            raise ValueError(
                f"false_alarms must be at most one in ten steps, such as 1/5000, 0.001 or, for series with a "
                f"column of dates, 1/week ({', '.join(_UNITS)}), got {self.false_alarms!r}"
            )
        return rate

    def read(self, source: Path, columns: tuple[str, ...] = ()) -> list[Recording]:
        """Returns the series at `source`; `columns` are those of the run."""
        names = tuple(name.strip() for name in self.columns.split(",")) if self.columns else columns
        return read_recordings(source, names, self.label, self.encoding)

    def write(self, path: Path) -> None:
        """Writes the options as YAML to `path`."""
        checkpoint.write_settings(asdict(self), path)


class Learned(NamedTuple):
    """The result of :func:`fit_anomalies`.

    Attributes:
        settings: options of the run.
        detector: the detector, with its threshold.
        columns: names of the columns.
        steps: number of learned steps.
        held_out: number of normal held-out steps.
        alarms: alarms among the held-out steps.
        rate: requested alarms per step.
        notes: how files were parsed.
    """

    settings: AnomalySettings
    detector: AnomalyDetector
    columns: tuple[str, ...]
    steps: int
    held_out: int
    alarms: int
    rate: float
    notes: list[str]

    def save(self, folder: RunFolder) -> Path:
        """Writes the run to `folder`; returns the path of the checkpoint."""
        folder.begin(self.settings)
        content = {
            "detector": self.detector.state_dict(),
            "threshold": self.detector.threshold,
            "options": asdict(self.settings),
            "columns": list(self.columns),
        }
        checkpoint.write(content, folder.path / LAST)
        result = {"measure": "alarms", "value": self.alarms / self.held_out, "linear": None}
        files.write(folder.path / RESULT, json.dumps(result).encode())
        return folder.path / LAST

    @classmethod
    def load(cls, path: Path) -> Self | None:
        """Returns the run in a folder or of a checkpoint; None if it is another kind of run.

        Raises:
            ValueError: if the checkpoint is damaged.
        """
        path = path / LAST if path.is_dir() else path
        if path.suffix != ".ckpt" or not path.is_file():
            return None
        content = checkpoint.read(path)
        if "detector" not in content:
            return None
        try:
            settings, columns = AnomalySettings(**content["options"]), tuple(content["columns"])
            detector = AnomalyDetector(
                len(columns), threshold=float(content["threshold"]), seed=int(settings.seed)
            )
            detector.load_state_dict(content["detector"])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"{EXPECTED}; {path} holds something else: {one_line(error)}") from error
        return cls(settings, detector, columns, 0, 0, 0, 0.0, [])


def fit_anomalies(settings: AnomalySettings) -> Learned:
    """Learns what is usual in the first three quarters of each series, and the threshold on the rest.

    Steps that are labelled as anomalies are not learned.

    Raises:
        ValueError: if a series can't be read, has a column that never changes, the series have too few normal
            steps, or the rate of false alarms is none.
    """
    recordings = settings.read(Path(settings.data).expanduser())
    first = recordings[0]
    detector = AnomalyDetector(len(first.columns), seed=settings.seed)
    rate = settings.rate(first.seconds)
    normal = sum(int(recording.is_normal.sum()) for recording in recordings)
    if normal == 0:
        raise ValueError(
            f"data must contain normal steps, and {settings.label!r} marks each step of {settings.data} as "
            "an anomaly: normal steps are 0, 'normal' or empty"
        )
    if normal < MIN_STEPS:
        raise ValueError(
            f"data must have at least {MIN_STEPS:,} normal steps, {settings.data} has {normal:,}"
        )
    short = [recording.name for recording in recordings if len(recording.values) < MIN_RECORDING]
    if short:
        raise ValueError(f"each series must have at least {MIN_RECORDING} steps, {short[0]} has fewer")
    learned = 0
    values = torch.cat([recording.values for recording in recordings])
    for name, column in zip(first.columns, values.T, strict=True):
        if bool((column == column[0]).all()):
            raise ValueError(
                f"column {name!r} must change, it is always {float(column[0]):g}: a detector learns nothing "
                "from it; leave it out by columns"
            )
    for recording in recordings:
        detector.reset()
        end = _held_out(recording)
        for part in _runs(recording.is_normal[:end]):
            is_normal = bool(recording.is_normal[part.start])
            detector(recording.values[part], learn=is_normal)
            learned += (part.stop - part.start) * is_normal
    scores = torch.cat(
        [_normal_scores(detector, recording)[_held_out(recording) :] for recording in recordings]
    )
    scores = scores[scores > -torch.inf]
    detector.calibrate(scores, rate)
    detector.reset()
    alarms = len(detector.alarms(scores))
    detector.reset()
    notes = [f"{recording.name}: {note}" for recording in recordings for note in recording.notes]
    return Learned(settings, detector, first.columns, learned, len(scores), alarms, rate, notes)


def _held_out(recording: Recording) -> int:
    """The first held-out step."""
    return round(len(recording.values) * (1 - HELD_OUT))


def _runs(labels: Tensor) -> Iterator[slice]:
    """Slices of consecutive equal labels."""
    ends = [*((labels[1:] != labels[:-1]).nonzero().flatten() + 1).tolist(), len(labels)]
    start = 0
    for end in ends:
        yield slice(start, end)
        start = end


def _normal_scores(detector: AnomalyDetector, recording: Recording) -> Tensor:
    """Returns the scores of a series without learning; -inf for steps that are not labelled normal."""
    detector.reset()
    scores: Tensor = detector(recording.values, learn=False)
    return scores.masked_fill(~recording.is_normal, -torch.inf)


class Scored(NamedTuple):
    """The scores of a series, and the steps that are alarms."""

    recording: Recording
    scores: Tensor
    alarms: list[int]

    def rows(self) -> list[dict[str, Any]]:
        """Returns the file, time, score and values of each alarm."""
        return [
            {
                "file": self.recording.name,
                "time": self.recording.times[step],
                "score": round(float(self.scores[step]), 3),
                **dict(zip(self.recording.columns, self.recording.values[step].tolist(), strict=True)),
            }
            for step in self.alarms
        ]


def find_anomalies(run: Learned, source: Path, *, adapt: bool = False) -> list[Scored]:
    """Returns scores and alarms of each series at `source`; learns on the way if `adapt`."""
    results = []
    settings = AnomalySettings("", encoding=run.settings.encoding)
    for recording in settings.read(source, run.columns):
        run.detector.reset()
        scores = run.detector(recording.values, learn=adapt)
        results.append(Scored(recording, scores, run.detector.alarms(scores)))
    return results
