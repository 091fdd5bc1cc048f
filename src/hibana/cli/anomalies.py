"""The commands ``train --task anomaly``, and ``predict`` and ``convert`` for its runs."""

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hibana.cli.common import Failure, Refusal, progress, refuse_errors
from hibana.cli.tables import csv_line

if TYPE_CHECKING:
    from hibana.train import Learned, Scored

OPTIONS = ("task", "data", "columns", "label", "encoding", "seed")
"""Settings that the task reads."""


def train_anomalies(
    options: dict[str, Any],
    refused: dict[str, Any],
    out: Path | None,
    false_alarms: str | None,
    *,
    overwrite: bool,
) -> None:
    """Learns what is usual in the series, and prints the threshold and the alarms on held-out steps.

    Args:
        options: settings that the user passed, by name.
        refused: other options of the command that the task does not read; None if they are not passed.
        out: folder of the run.
        false_alarms: the requested rate.
        overwrite: replace the run in the folder.
    """
    from hibana.train import AnomalySettings, fit_anomalies
    from hibana.train.checkpoint import RUNS
    from hibana.train.run_folder import claim

    passed = {name: value for name, value in options.items() if value is not None}
    unread = [
        *(passed.keys() - set(OPTIONS)),
        *(name for name, value in refused.items() if value is not None),
    ]
    if unread:
        name = min(unread).replace("_", "-")
        raise Refusal(f"--{name} has no effect with --task anomaly")
    if "data" not in passed:
        raise Refusal("--task anomaly needs --data: a table of one long series, or a folder of such tables")
    if false_alarms is not None:
        passed["false_alarms"] = false_alarms
    start = time.perf_counter()
    with refuse_errors():
        settings = AnomalySettings(**passed)
        with progress(f"learning {settings.data}"):
            run = fit_anomalies(settings)
        folder = claim(out or RUNS / f"{Path(settings.data).stem}-{settings.seed}", overwrite=overwrite)
    with folder:
        path = run.save(folder)
    for note in run.notes:
        print(note)
    share = f"{run.rate:.2g} per step, {run.rate * run.held_out:.1f} expected"
    rows = [
        ("columns", ", ".join(run.columns)),
        ("learned", f"{run.steps:,} steps"),
        ("held out", f"{run.held_out:,} steps: {run.alarms} alarms ({share})"),
        ("threshold", f"{run.detector.threshold:.3f}"),
        ("time", f"{time.perf_counter() - start:.1f} s"),
        ("checkpoint", str(path)),
    ]
    for name, text in rows:
        print(f"{name:<11} {text}")


def opened(checkpoint: Path) -> "Learned | None":
    """Returns the run at `checkpoint` if it is one of ``--task anomaly``, else None."""
    with refuse_errors():
        from hibana.train import Learned

        return Learned.load(checkpoint)


def predict_anomalies(
    run: "Learned", checkpoint: Path, inputs: Path | None, output_format: str, *, stream: bool, adapt: bool
) -> None:
    """Prints the alarms in the series at `inputs`, or of the series on standard input, and draws a figure.

    The figure is written beside the checkpoint.

    Args:
        run: what was learned.
        checkpoint: its folder or checkpoint.
        inputs: a table or a folder of tables.
        output_format: ``table``, ``csv`` or ``json``.
        stream: read steps from standard input: one line of numbers per step.
        adapt: keep learning.
    """
    if stream:
        _stream(run, output_format, adapt=adapt)
        return
    if inputs is None:
        raise Refusal(f"predict needs a file: hibana predict {checkpoint} SERIES.csv, or --stream")
    with progress(f"reading {inputs}"), refuse_errors():
        from hibana.train import find_anomalies

        results = find_anomalies(run, inputs, adapt=adapt)
    rows = [row for result in results for row in result.rows()]
    if output_format == "json":
        print(json.dumps(rows, ensure_ascii=False, indent=1))
    elif output_format == "csv":
        names = ["file", "time", "score", *run.columns]
        print("".join(csv_line(list(map(str, line))) for line in (names, *map(dict.values, rows))), end="")
    else:
        for row in rows:
            values = ", ".join(f"{name} {row[name]:g}" for name in run.columns)
            file = f"{row['file']}  " if len(results) > 1 else ""
            print(f"{file}{row['time']}  score {row['score']:.2f}  {values}")
        steps = sum(len(result.scores) for result in results)
        print(f"{len(rows)} alarms in {steps:,} steps, threshold {run.detector.threshold:.2f}")
    folder = checkpoint if checkpoint.is_dir() else checkpoint.parent
    for result in results:
        path = folder / f"{Path(result.recording.name).stem}-alarms.png"
        _draw(run, result, path)
        print(path, file=sys.stderr)


def write_detector(run: "Learned", target: Path) -> None:
    """Writes the detector as C to `target`, which must end in ``.c``, and prints its bytes."""
    from hibana.network import detector_to_c

    if target.suffix != ".c":
        raise ValueError(f"target of a detector of anomalies must end in .c, got {target}")
    program = detector_to_c(run.detector, name=target.stem)
    program.write(target)
    print(f"{program.constant_bytes:,} bytes of constants, {program.changing_bytes:,} of variables")
    print(f"{target}  with {target.with_suffix('.h')}")


def _draw(run: "Learned", result: "Scored", path: Path) -> None:
    """Draws series, scores and alarms to `path`."""
    with progress("drawing"):
        from hibana import plot

        recording = result.recording
        figure = plot.anomalies(
            recording.values,
            result.scores,
            result.alarms,
            threshold=run.detector.threshold,
            names=recording.columns,
            times=recording.times,
        )
        try:
            figure.savefig(path)
        except OSError as error:
            raise Failure(f"{path} can't be written: {error.strerror or error}") from error


def _stream(run: "Learned", output_format: str, *, adapt: bool) -> None:
    """Prints the score of each line of standard input, and whether it is an alarm."""
    skipped = [0]
    if output_format == "csv":
        sys.stdout.write(csv_line(["step", "score", "alarm"]))
    for step, (score, alarm) in enumerate(run.detector.stream(_lines(run, skipped), learn=adapt), start=1):
        if output_format == "json":
            print(json.dumps({"step": step, "score": round(score, 3), "alarm": alarm}), flush=True)
        elif output_format == "csv":
            sys.stdout.write(csv_line([str(step), f"{score:.3f}", str(int(alarm))]))
            sys.stdout.flush()
        else:
            print(f"{step}  score {score:.2f}{'  ALARM' if alarm else ''}", flush=True)
    if skipped[0]:
        raise Failure(f"{skipped[0]} lines could not be read")


def _lines(run: "Learned", skipped: list[int]) -> Iterator[list[float]]:
    """The numbers of each line of standard input; counts and reports lines that it skips."""
    for number, line in enumerate(sys.stdin, start=1):
        try:
            values = [float(word) for word in line.replace(",", " ").split()]
            if len(values) != len(run.columns) or not all(abs(value) < 1e38 for value in values):
                raise ValueError(f"it must be {len(run.columns)} finite numbers: {', '.join(run.columns)}")  # noqa: TRY301
        except ValueError as error:
            print(f"hibana predict: line {number} is skipped: {error}", file=sys.stderr)
            skipped[0] += 1
            continue
        yield values
