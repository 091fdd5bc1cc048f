"""``hibana predict --stream``: steps from standard input, an answer a line, and lines that can't be read."""

import csv
import io
import json
import subprocess
import sys

import numpy as np
import pytest
import torch

pytest.importorskip("lightning", reason="the extra train is not installed")
pytest.importorskip("pandas", reason="the extra train is not installed")

from hibana import train
from hibana.cli import main
from hibana.cli.input_steps import MAX_EMPTY_WINDOWS

SMALL = {"layers": "16", "epochs": 1, "batch_size": 8, "patience": 0}


def waves(count=40, steps=12):
    """Slow and fast waves, ``[N, T, 2]``."""
    time = np.arange(steps) * np.where(np.arange(count) % 2, 0.2, 0.9)[:, None]
    return np.stack([np.sin(time), np.cos(time)], axis=2)


def recordings(folder, count=20):
    """Events in microseconds on 6 rows and 5 columns, by class."""
    drawn = np.random.default_rng(0)
    for number in range(count):
        (folder / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        t = np.concatenate([[0], np.sort(drawn.integers(0, 40_000, 198)), [40_000]])
        places = [drawn.integers(0, side, 200) for side in (5, 6)]
        places = [np.concatenate([[side - 1], place[1:]]) for side, place in zip((5, 6), places, strict=True)]
        events = np.stack([t, *places, drawn.integers(0, 2, 200)], 1)
        path = folder / "ab"[number % 2] / f"{number}.csv"
        np.savetxt(path, events, "%d", header="t,x,y,p", comments="", delimiter=",")
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Networks of padded sequences, of changes, of recordings and of digits, hardly trained."""
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
def streamed(runs, monkeypatch, capsys):
    """Runs the command on lines; returns its status, its lines, and what it says beside them."""

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
    """Of the outputs so far after each step of `currents`, ``[T, 1, ...]``."""
    with torch.no_grad():
        outputs = model.net(currents)
        return torch.cat([model.objective.scores(outputs[: t + 1]) for t in range(len(outputs))]).softmax(1)


def of_json(lines):
    return torch.tensor([[*json.loads(line)["probabilities"].values()] for line in lines])


@pytest.mark.parametrize("name", ["waves", "changes"])
def test_a_step_is_answered_as_the_network_answers_what_came_so_far(runs, streamed, name):
    model, frames = train.load(runs / name), waves()[3]
    status, lines, err = streamed(name, [*csv_lines(frames), "", *csv_lines(frames)], "--json")
    assert status == 0
    assert [json.loads(line)["step"] for line in lines] == [*range(1, 13)] * 2
    inputs = model.description.inputs.tensor([frames])
    wanted = probabilities(model, model.encode(inputs))
    assert torch.allclose(of_json(lines[:12]), wanted, atol=1e-5)
    assert lines[12:] == lines[:12]  # after the empty line it begins at rest
    (answer,) = train.predict(model, [frames]).answers
    assert json.loads(lines[11])["class"] == answer
    assert "24 steps; from a line to its answer median" in err
    assert err.count("99th percentile") == 2


def test_after_as_many_steps_as_were_trained_on_the_last_ones_count(runs, streamed):
    model, frames = train.load(runs / "waves"), waves(2, 40)[0]
    _, lines, _ = streamed("waves", csv_lines(frames), "--json")
    with torch.no_grad():
        outputs = model.net(model.description.inputs.scaled(frames)[:, None])
    for step in (12, 13, 24, 25, 40):
        wanted = model.objective.scores(outputs[max(0, step - 12) : step]).softmax(1)
        assert torch.allclose(of_json(lines[step - 1 : step]), wanted, atol=1e-5)


def test_forms_of_a_line(streamed):
    frames = waves()[0]
    _, lines, _ = streamed("waves", csv_lines(frames))
    assert lines[0].split()[0] == "1"
    assert {line.split()[1] for line in lines} <= {"slow", "fast"}
    _, rows, _ = streamed("waves", csv_lines(frames), "--csv")
    header, *rows = csv.reader(rows)
    assert header == ["step", "class", "fast", "slow"]
    for line, row in zip(lines, rows, strict=True):
        assert line.split()[:2] == row[:2]
        assert abs(float(row[2]) + float(row[3]) - 1) < 1e-5
    for form in (
        [line.replace(",", " ") for line in csv_lines(frames)],
        [line.replace(",", "; ") for line in csv_lines(frames)],
    ):
        assert streamed("waves", form)[:2] == (0, lines)


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


def test_a_line_that_cannot_be_read_is_named_and_changes_nothing(streamed):
    good = csv_lines(waves()[0])
    _, wanted, _ = streamed("waves", good)
    mixed = [line for pair in zip(good, [*BAD] * 3, strict=True) for line in pair]
    status, lines, err = streamed("waves", [*mixed, *good[len(mixed) // 2 :]])
    assert (status, lines) == (1, wanted)
    for number, line in enumerate(mixed, start=1):
        said = f"hibana predict: line {number} is skipped: it {BAD.get(line, '')}"
        assert (said in err) == (line in BAD)
    assert err.rstrip().endswith(f"{len(mixed) // 2} of 24 lines could not be read")
    assert "Traceback" not in err
    status, lines, err = streamed("waves", b"\xff\xfe\n" + "\n".join(good).encode())
    assert (status, lines) == (1, wanted)


def test_a_missing_value_is_filled_as_in_training(runs, streamed):
    model, frames = train.load(runs / "waves"), waves()[0]
    frames[2, 1] = frames[5, 0] = np.nan
    lines = [line.replace("nan", "") for line in csv_lines(frames)]
    status, lines, _ = streamed("waves", lines, "--json")
    assert status == 0
    wanted = probabilities(model, model.encode(model.description.inputs.tensor([frames])))
    assert torch.allclose(of_json(lines), wanted, atol=1e-5)


def event_lines(runs):
    return (runs / "mine" / "a" / "0.csv").read_text().splitlines()[1:]


def test_events_are_cut_into_windows_as_in_training(runs, streamed):
    model, lines = train.load(runs / "events"), event_lines(runs)[:-1]  # the last lies on the edge
    raw = model.description.read(runs / "mine" / "a" / "0.csv")
    wanted = probabilities(model, model.encode(model.description.inputs.tensor([raw.values[0][:-1]]).float()))
    later = [f"{int(t) + 10**9},{rest}" for t, rest in (line.split(",", 1) for line in lines)]
    for given, *options in ((lines,), (later,), (["t,x,y,p", *lines],), (lines, "--window", "10")):
        status, answers, err = streamed("events", given, "--json", *options)
        assert status == 0
        assert torch.allclose(of_json(answers), wanted, atol=1e-5)
        assert "4 steps" in err
    _, answers, _ = streamed("events", [*lines, "", *later], "--json")
    assert torch.allclose(of_json(answers), torch.cat([wanted, wanted]), atol=1e-5)
    assert len(streamed("events", lines, "--window", "4")[1]) == 10


def test_windows_without_an_event_are_steps_too(streamed):
    assert len(streamed("events", ["0 1 1 1", "35000 1 1 0"])[1]) == 4
    assert streamed("events", [])[1:] == ([], "no steps\n")


def test_events_that_cannot_be(runs, streamed):
    good = event_lines(runs)[:-1]
    _, wanted, _ = streamed("events", good)
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
    status, lines, err = streamed("events", [good[0], *bad, *good[1:]])
    assert (status, lines) == (1, wanted)
    for number, says in enumerate(bad.values(), start=2):
        assert f"line {number} is skipped: it {says}" in err


def test_still_inputs_are_shown_a_line_a_step(runs, streamed):
    model, pixels = train.load(runs / "digits"), np.random.default_rng(0).random([5, 64])
    status, lines, _ = streamed("digits", csv_lines(pixels), "--json")
    assert status == 0
    currents = torch.from_numpy(pixels).float().view(5, 1, 8, 8)
    assert torch.allclose(of_json(lines), probabilities(model, currents), atol=1e-5)
    status, lines, err = streamed("digits", [",".join(["2"] * 64)])
    assert (status, lines) == (1, [])
    assert "line 1 is skipped: it must hold numbers in [0, 1], got 2 to 2" in err


def test_what_gives_no_steps_is_refused(runs, streamed, capsys):
    for name, options, says in (
        ("spikes", (), "latency coding spreads each over all steps"),
        ("events", ("--window", "0"), "--window must be positive and finite, got 0"),
    ):
        status, lines, err = streamed(name, ["1,2"], *options)
        assert (status, lines) == (2, [])
        assert says in err
    assert main(["predict", str(runs / "waves"), str(runs / "waves.npz"), "--stream"]) == 2
    assert "--stream reads standard input; leave" in capsys.readouterr().err


@pytest.mark.slow
def test_an_answer_comes_before_the_next_line_and_an_end_of_reading_is_no_error(runs):
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
