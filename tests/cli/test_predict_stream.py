"""``hibana predict --stream``: an answer for each step on standard input, and lines that can't be read."""

import csv
import io
import json
import subprocess
import sys
from collections import deque

import numpy as np
import pytest
import torch

pytest.importorskip("lightning", reason="the extra train is not installed")
pytest.importorskip("pandas", reason="the extra train is not installed")

from hibana import train
from hibana.cli import main
from hibana.cli import stream as cli_stream
from hibana.cli.input_steps import MAX_EMPTY_WINDOWS

SMALL = {"layers": "16", "epochs": 1, "batch_size": 8, "patience": 0}


def waves(count=40, steps=12):
    """Slow and fast waves, ``[N, T, 2]``."""
    time = np.arange(steps) * np.where(np.arange(count) % 2, 0.2, 0.9)[:, None]
    return np.stack([np.sin(time), np.cos(time)], axis=2)


def recordings(folder, count=20):
    """Events in microseconds on 6 rows and 5 columns, by class."""
    random = np.random.default_rng(0)
    for number in range(count):
        (folder / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        t = np.concatenate([[0], np.sort(random.integers(0, 40_000, 198)), [40_000]])
        x, y = (random.integers(0, side, 200) for side in (5, 6))
        x[0], y[0] = 4, 5
        events = np.stack([t, x, y, random.integers(0, 2, 200)], 1)
        path = folder / "ab"[number % 2] / f"{number}.csv"
        np.savetxt(path, events, "%d", header="t,x,y,p", comments="", delimiter=",")
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Networks for padded sequences, changes, recordings and digits, each trained for one epoch."""
    folder = tmp_path_factory.mktemp("runs")
    np.savez(folder / "waves.npz", x=waves(), y=np.array(["slow", "fast"])[np.arange(40) % 2])
    series = {"data": str(folder / "waves.npz"), "lengths": "pad", "steps": 12}
    for name, settings in {
        "waves": series,
        "changes": {**series, "coding": "delta"},
        "events": {
            "data": str(recordings(folder / "mine")),
            "kind": "events",
            "steps": 4,
            "layers": "3c3-16",
        },
        "digits": {"data": "digits", "steps": 5},
        "spikes": {"data": "digits", "steps": 5, "coding": "latency"},
    }.items():
        train.fit(train.Settings(**{**SMALL, **settings}), folder / name)
    return folder


@pytest.fixture
def stream(runs, monkeypatch, capsys):
    """A function that runs the command on lines; returns status, output lines, and standard error."""

    def run(name, lines, *options):
        text = lines if isinstance(lines, bytes) else "".join(f"{line}\n" for line in lines).encode()
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text)))
        status = main(["predict", str(runs / name), "--stream", *options])
        out, err = capsys.readouterr()
        return status, out.splitlines(), err

    return run


def csv_lines(frames):
    return [",".join(map(repr, frame)) for frame in frames.tolist()]


def probabilities(model, currents):
    """The probabilities after each step of `currents` ``[T, 1, ...]``, of all outputs up to that step."""
    with torch.no_grad():
        outputs = model.net(currents)
        return torch.cat([model.objective.scores(outputs[: t + 1]) for t in range(len(outputs))]).softmax(1)


def json_probabilities(lines):
    return torch.tensor([[*json.loads(line)["probabilities"].values()] for line in lines])


@pytest.mark.parametrize("name", ["waves", "changes"])
def test_an_answer_equals_the_networks_for_all_steps_so_far(runs, stream, name):
    model, frames = train.load(runs / name), waves()[3]
    status, lines, err = stream(name, [*csv_lines(frames), "", *csv_lines(frames)], "--json")
    assert status == 0
    assert [json.loads(line)["step"] for line in lines] == [*range(1, 13)] * 2
    inputs = model.description.inputs.tensor([frames])
    expected = probabilities(model, model.encode(inputs))
    assert torch.allclose(json_probabilities(lines[:12]), expected, atol=1e-5)
    assert lines[12:] == lines[:12]  # an empty line resets the network
    (answer,) = train.predict(model, [frames]).answers
    assert json.loads(lines[11])["class"] == answer
    assert "24 steps; from a line to its answer median" in err
    assert err.count("99th percentile") == 2


def test_only_the_last_steps_count_up_to_the_number_in_training(runs, stream):
    model, frames = train.load(runs / "waves"), waves(2, 40)[0]
    _, lines, _ = stream("waves", csv_lines(frames), "--json")
    with torch.no_grad():
        outputs = model.net(model.description.inputs.scaled(frames)[:, None])
    for step in (12, 13, 24, 25, 40):
        expected = model.objective.scores(outputs[max(0, step - 12) : step]).softmax(1)
        assert torch.allclose(json_probabilities(lines[step - 1 : step]), expected, atol=1e-5)


def test_lines_may_be_formatted_in_several_ways(stream):
    frames = waves()[0]
    _, lines, _ = stream("waves", csv_lines(frames))
    assert lines[0].split()[0] == "1"
    assert {line.split()[1] for line in lines} <= {"slow", "fast"}
    _, rows, _ = stream("waves", csv_lines(frames), "--csv")
    header, *rows = csv.reader(rows)
    assert header == ["step", "class", "fast", "slow"]
    for line, row in zip(lines, rows, strict=True):
        assert line.split()[:2] == row[:2]
        assert abs(float(row[2]) + float(row[3]) - 1) < 1e-5
    for text_lines in (
        [line.replace(",", " ") for line in csv_lines(frames)],
        [line.replace(",", "; ") for line in csv_lines(frames)],
    ):
        assert stream("waves", text_lines)[:2] == (0, lines)


def test_a_header_names_the_columns(runs, monkeypatch, capsys, tmp_path):
    (tmp_path / "mine").mkdir()
    for number in range(20):
        folder = tmp_path / "mine" / "ab"[number % 2]
        folder.mkdir(exist_ok=True)
        np.savetxt(
            folder / f"{number}.csv", waves(20)[number], delimiter=",", header="left,right", comments=""
        )
    settings = train.Settings(data=str(tmp_path / "mine"), **SMALL)
    train.fit(settings, tmp_path / "run")
    frames, lines = waves()[0], {}
    for header, columns in (("left,right", [0, 1]), ("note,right,left", [0, 1, 0]), ("left,up", [0, 1])):
        text = "\n".join([header, *csv_lines(frames[:, columns])])
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
        status = main(["predict", str(tmp_path / "run"), "--stream"])
        lines[header], err = capsys.readouterr()
    assert lines["left,right"] == lines["note,right,left"]
    assert status == 2
    assert "the header must name left, right; 'right' is not in 'left,up'" in err


BAD = {
    "1,2,3": "must hold 2 numbers, got 3",
    "1,two": "must hold numbers: could not convert string to float: 'two'",
    "1,inf": "must hold finite numbers",
    "1,1e300": "must hold finite numbers",
}


def test_an_invalid_line_is_named_and_skipped(stream):
    good = csv_lines(waves()[0])
    _, expected, _ = stream("waves", good)
    mixed = [line for pair in zip(good, [*BAD] * 3, strict=True) for line in pair]
    status, lines, err = stream("waves", [*mixed, *good[len(mixed) // 2 :]])
    assert (status, lines) == (1, expected)
    for number, line in enumerate(mixed, start=1):
        message = f"hibana predict: line {number} is skipped: it {BAD.get(line, '')}"
        assert (message in err) == (line in BAD)
    assert err.rstrip().endswith(f"{len(mixed) // 2} of 24 lines could not be read")
    assert "Traceback" not in err
    status, lines, err = stream("waves", b"\xff\xfe\n" + "\n".join(good).encode())
    assert (status, lines) == (1, expected)


def test_a_missing_value_is_filled_as_in_training(runs, stream):
    model, frames = train.load(runs / "waves"), waves()[0]
    frames[2, 1] = frames[5, 0] = np.nan
    lines = [line.replace("nan", "") for line in csv_lines(frames)]
    status, lines, _ = stream("waves", lines, "--json")
    assert status == 0
    expected = probabilities(model, model.encode(model.description.inputs.tensor([frames])))
    assert torch.allclose(json_probabilities(lines), expected, atol=1e-5)


def event_lines(runs):
    return (runs / "mine" / "a" / "0.csv").read_text().splitlines()[1:]


def test_events_are_binned_as_in_training(runs, stream):
    model, lines = train.load(runs / "events"), event_lines(runs)[:-1]  # the last event begins a new window
    raw = model.description.read(runs / "mine" / "a" / "0.csv")
    events = model.description.inputs.tensor([raw.values[0][:-1]]).float()
    expected = probabilities(model, model.encode(events))
    later = [f"{int(t) + 10**9},{rest}" for t, rest in (line.split(",", 1) for line in lines)]
    for input_lines, *options in ((lines,), (later,), (["t,x,y,p", *lines],), (lines, "--window", "10")):
        status, answers, err = stream("events", input_lines, "--json", *options)
        assert status == 0
        assert torch.allclose(json_probabilities(answers), expected, atol=1e-5)
        assert "4 steps" in err
    _, answers, _ = stream("events", [*lines, "", *later], "--json")
    assert torch.allclose(json_probabilities(answers), torch.cat([expected, expected]), atol=1e-5)
    assert len(stream("events", lines, "--window", "4")[1]) == 10


def test_windows_without_events_are_steps(stream):
    assert len(stream("events", ["0 1 1 1", "35000 1 1 0"])[1]) == 4
    assert stream("events", [])[1:] == ([], "no steps\n")


def test_invalid_events_are_skipped(runs, stream):
    good = event_lines(runs)[:-1]
    _, expected, _ = stream("events", good)
    far = 10_000 * (MAX_EMPTY_WINDOWS + 10)
    bad = {
        f"{far},1,1,1": "must come in order of time, and within 10,000 windows of the last event, got t = ",
        "1e308,1,1,1": "must come in order of time, and within 10,000 windows of the last event, got t = 1e",
        "-5,1,1,1": "must come in order of time, and within 10,000 windows of the last event, got t = -5;",
        "nan,1,1,1": "must hold finite numbers",
        "0,5,1,1": "must lie on 6x5 pixels, got x = 5, y = 1",
        "0,1,-1,1": "must lie on 6x5 pixels, got x = 1, y = -1",
        "0,1,1.5,1": "must lie on 6x5 pixels, got x = 1, y = 1.5",
        "0,1,1": "must hold 4 numbers, got 3",
    }
    status, lines, err = stream("events", [good[0], *bad, *good[1:]])
    assert (status, lines) == (1, expected)
    for number, message in enumerate(bad.values(), start=2):
        assert f"line {number} is skipped: it {message}" in err


def test_each_line_is_a_step_for_constant_inputs(runs, stream):
    model, pixels = train.load(runs / "digits"), np.random.default_rng(0).random([5, 64])
    status, lines, _ = stream("digits", csv_lines(pixels), "--json")
    assert status == 0
    currents = torch.from_numpy(pixels).float().view(5, 1, 8, 8)
    assert torch.allclose(json_probabilities(lines), probabilities(model, currents), atol=1e-5)
    status, lines, err = stream("digits", [",".join(["2"] * 64)])
    assert (status, lines) == (1, [])
    assert "line 1 is skipped: it must hold numbers in [0, 1], got 2 to 2" in err


def test_networks_and_options_without_steps_are_refused(runs, stream, capsys):
    for name, options, message in (
        ("spikes", (), "latency coding spreads each over all steps"),
        ("events", ("--window", "0"), "--window must be positive and finite, got 0"),
        (
            "waves",
            ("--window", "5"),
            "--window has no effect on a stream for waves: it is for --stream of ev",
        ),
        (
            "events",
            ("--rate", "8000"),
            "--rate has no effect on a stream for mine: it is for --stream of sou",
        ),
        ("waves", ("--csv", "--json"), "--csv and --json are two formats"),
    ):
        status, lines, err = stream(name, ["1,2"], *options)
        assert (status, lines) == (2, [])
        assert message in err
    assert main(["predict", str(runs / "waves"), str(runs / "waves.npz"), "--stream"]) == 2
    assert "--stream reads standard input; leave" in capsys.readouterr().err


@pytest.mark.slow
def test_answers_are_not_buffered_and_a_closed_pipe_is_no_error(runs):
    command = [sys.executable, "-m", "hibana", "predict", str(runs / "waves"), "--stream"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, text=True, **pipes) as process:
        for step in (1, 2, 3):
            process.stdin.write("0.5,0.25\n")
            process.stdin.flush()
            assert process.stdout.readline().startswith(f"{step}  ")
        process.stdout.close()
        process.stdin.write("0.5,0.25\n" * 3)
        process.stdin.close()
        assert "steps; from a line" in (err := process.stderr.read())
        assert "Error" not in err
    assert process.returncode == 0


def test_durations_are_summarized_by_median_and_99th_percentile():
    durations = deque((number * 1e-6 for number in range(1, 11)), maxlen=cli_stream.MAX_DURATIONS)
    assert cli_stream._quantiles(durations) == "median 5 µs, 99th percentile 10 µs"
    durations.extend([0.25] * cli_stream.MAX_DURATIONS)
    assert cli_stream._quantiles(durations) == "median 250 ms, 99th percentile 250 ms"
