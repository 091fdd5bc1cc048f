"""``hibana train --task anomaly`` and its predictions: files, thresholds, labels, and errors."""

import csv
import io
import json
import math

import pytest
import torch

pytest.importorskip("lightning", reason="the extra train is not installed")
pytest.importorskip("pandas", reason="the extra train is not installed")

import hibana as hb
from hibana import train
from hibana.cli import main

STEPS = 6000


def write_series(path, *, seed=0, change=None, steps=STEPS, date="2026-01-{day:02} {hour:02}:{minute:02}"):
    """A table with a column of dates, five minutes apart, and two of numbers; `change` edits the rows."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(steps, 2, generator=generator).tolist()
    rows = [["when", "heat", "flow"]]
    for i, (a, b) in enumerate(noise):
        minutes = 5 * i
        when = date.format(day=1 + minutes // 1440, hour=minutes // 60 % 24, minute=minutes % 60)
        rows.append([when, f"{20 + math.sin(i / 20) + 0.1 * a:.4f}", f"{3 + 0.1 * b:.4f}"])
    if change:
        change(rows)
    path.write_text("\n".join(",".join(row) for row in rows) + "\n")
    return path


def with_anomalies(rows):
    for row in rows[3001:3041]:
        row[1] = "24"
    rows[5001][2] = "9"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A folder with a run of two columns, and a file with a shift at step 3000 and a jump at 5000."""
    folder = tmp_path_factory.mktemp("anomalies")
    write_series(folder / "normal.csv")
    write_series(folder / "new.csv", seed=1, change=with_anomalies)
    command = ["train", "--data", str(folder / "normal.csv"), "--task", "anomaly", "--false-alarms", "1/week"]
    assert main([*command, "--out", str(folder / "run")]) == 0
    return folder


def test_alarms_are_printed_with_their_times_and_drawn(run, capsys):
    assert main(["predict", str(run / "run"), str(run / "new.csv")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any("2026-01-11 10:0" in line for line in lines)
    assert any("2026-01-18 08:40" in line and "flow 9" in line for line in lines)
    assert lines[-1].endswith(f"threshold {train.Learned.load(run / 'run').detector.threshold:.2f}")
    assert (run / "run" / "new-alarms.png").stat().st_size > 10_000


@pytest.mark.parametrize("adapt", [[], ["--adapt"]])
def test_csv_and_json_hold_the_same_alarms(run, capsys, adapt):
    assert main(["predict", str(run / "run" / "checkpoint.ckpt"), str(run / "new.csv"), "--csv", *adapt]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert main(["predict", str(run / "run"), str(run / "new.csv"), "--json", *adapt]) == 0
    assert [{k: str(v) for k, v in row.items()} for row in json.loads(capsys.readouterr().out)] == rows
    assert rows[0].keys() == {"file", "time", "score", "heat", "flow"}
    assert "2026-01-18 08:40" in [row["time"] for row in rows]


def test_a_stream_gives_the_alarms_of_the_file(run, capsys, monkeypatch):
    rows = [line.split(",")[1:] for line in (run / "new.csv").read_text().splitlines()[1:]]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(" ".join(row) for row in rows)))
    assert main(["predict", str(run / "run"), "--stream", "--csv"]) == 0
    lines = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    (found,) = train.find_anomalies(train.Learned.load(run / "run"), run / "new.csv")
    assert [int(line["step"]) - 1 for line in lines if line["alarm"] == "1"] == found.alarms
    monkeypatch.setattr("sys.stdin", io.StringIO("1 2\n1 two\n3\n"))
    assert main(["predict", str(run / "run"), "--stream"]) == 1
    errors = capsys.readouterr().err
    assert "line 2 is skipped" in errors
    assert "2 lines could not be read" in errors


def test_the_run_is_listed_and_converted_to_c(run, capsys):
    assert main(["runs", str(run)]) == 0
    assert "task anomaly" in capsys.readouterr().out
    assert main(["convert", str(run / "run"), str(run / "watch.c")]) == 0
    assert "bytes of constants" in capsys.readouterr().out
    assert "watch_alarm" in (run / "watch.h").read_text()
    assert main(["convert", str(run / "run"), str(run / "watch.onnx")]) == 2
    assert "must end in .c" in capsys.readouterr().err


def test_the_requested_rate_per_time_is_that_of_the_steps():
    settings = train.AnomalySettings("", false_alarms="2/week")
    assert settings.rate(300.0) == pytest.approx(2 * 300 / (7 * 86400))
    assert train.AnomalySettings("", false_alarms="1/5000").rate(None) == 1 / 5000
    assert train.AnomalySettings("", false_alarms="2e-4").rate(None) == 2e-4


def test_labelled_anomalies_are_not_learned(tmp_path):
    def label(rows):
        rows[0].append("state")
        for i, row in enumerate(rows[1:]):
            is_anomaly = 2000 <= i < 3000
            row[2] = str(float(row[2]) + 6 * is_anomaly * (i % 2))
            row.append("broken" if is_anomaly else "normal")

    path = str(write_series(tmp_path / "labelled.csv", change=label))
    options = {"columns": "flow"}
    with_labels = train.fit_anomalies(train.AnomalySettings(path, label="state", **options))
    without = train.fit_anomalies(train.AnomalySettings(path, **options))
    assert with_labels.steps == without.steps - 1000
    deviations = [float(run.detector.moments[0, 3].sqrt()) for run in (with_labels, without)]
    assert deviations[0] == pytest.approx(0.1, rel=0.1)
    assert deviations[1] > 0.5


def test_a_folder_of_recordings_is_learned_together(tmp_path):
    for number in range(3):
        write_series(tmp_path / f"{number}.csv", seed=number, steps=2000)
    learned = train.fit_anomalies(train.AnomalySettings(str(tmp_path)))
    assert (learned.steps, learned.held_out) == (4500, 1500)
    assert [len(result.scores) for result in train.find_anomalies(learned, tmp_path)] == [2000] * 3


def test_missing_values_are_filled_and_reported(tmp_path):
    def remove(rows):
        rows[10][1] = rows[11][1] = ""

    learned = train.fit_anomalies(train.AnomalySettings(str(write_series(tmp_path / "a.csv", change=remove))))
    assert learned.notes == ["a.csv: 2 missing values replaced by the value before"]


def swapped(rows):
    rows[100], rows[101] = rows[101], rows[100]


def repeated(rows):
    rows[101][0] = rows[100][0]


def constant(rows):
    for row in rows[1:]:
        row[1] = "5"


def text_only(rows):
    for row in rows:
        del row[1:]


def all_broken(rows):
    rows[0].append("state")
    for row in rows[1:]:
        row.append("1")


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (swapped, {}, "'when' must be in the order of time, row 101 .* is before row 100"),
        (repeated, {}, "'when' must be in the order of time, row 101 .* is equal to row 100"),
        (constant, {}, "column 'heat' must change, it is always 5"),
        (text_only, {}, "series must have columns of numbers, got when"),
        (all_broken, {"label": "state"}, "data must contain normal steps, and 'state' marks each"),
        (None, {"columns": "heat, cold"}, "there is no 'cold'"),
        (None, {"false_alarms": "often"}, "false_alarms must be at most one in ten steps"),
        (None, {"false_alarms": "1/2"}, "false_alarms must be at most one in ten steps"),
    ],
)
def test_errors_name_what_to_change(change, options, message, tmp_path):
    path = write_series(tmp_path / "series.csv", change=change)
    with pytest.raises(ValueError, match=message):
        train.fit_anomalies(train.AnomalySettings(str(path), **options))


def test_short_and_missing_data_are_refused(tmp_path):
    with pytest.raises(ValueError, match="there is no"):
        train.fit_anomalies(train.AnomalySettings(str(tmp_path / "none.csv")))
    with pytest.raises(ValueError, match="data must be tables"):
        train.fit_anomalies(train.AnomalySettings(str(tmp_path)))
    path = write_series(tmp_path / "short.csv", steps=1000)
    with pytest.raises(ValueError, match="at least 4,080 normal steps"):
        train.fit_anomalies(train.AnomalySettings(str(path)))


def test_rates_per_time_need_dates(tmp_path):
    path = write_series(tmp_path / "series.csv", date="step")
    with pytest.raises(ValueError, match="for series with a column of dates"):
        train.fit_anomalies(train.AnomalySettings(str(path), false_alarms="1/week"))


def test_options_without_effect_are_refused(run, capsys):
    data = str(run / "normal.csv")
    assert main(["train", "--data", data, "--task", "anomaly", "--epochs", "3"]) == 2
    assert "--epochs has no effect with --task anomaly" in capsys.readouterr().err
    assert main(["train", "--task", "anomaly"]) == 2
    assert "needs --data" in capsys.readouterr().err
    assert main(["predict", str(run / "run")]) == 2
    assert "needs a file" in capsys.readouterr().err
    assert main(["predict", str(run / "run"), data, "--window", "3"]) == 2
    assert main(["train", "--data", "digits", "--false-alarms", "1/week", "--epochs", "1"]) == 2
    assert "--false-alarms has no effect" in capsys.readouterr().err


def test_other_columns_are_refused(run, tmp_path, capsys):
    (tmp_path / "other.csv").write_text("when,heat\n2026-01-01,1\n2026-01-02,2\n")
    assert main(["predict", str(run / "run"), str(tmp_path / "other.csv")]) == 2
    assert "there is no 'flow'" in capsys.readouterr().err


def test_the_figure_keeps_the_peaks_of_long_series():
    series = torch.zeros(50_000, 1)
    series[31_234] = 7
    figure = hb.plot.anomalies(series, series[:, 0], [31_234], threshold=1.0, names=["heat"])
    above, score = figure.axes
    assert max(above.lines[0].get_ydata()) == 7
    assert len(above.lines[0].get_ydata()) < 5000
    assert above.get_ylabel() == "heat"
    assert above.lines[1].get_xdata()[0] == 31_234
    assert score.get_ylabel() == "Score"
