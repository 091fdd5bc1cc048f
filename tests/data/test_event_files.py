"""Folders of recordings, events on standard input, and descriptions of earlier versions."""

import io

import numpy as np
import pytest

from hibana import data
from hibana.data import user_data
from hibana.data.user_data.events import read_events


def folder(tmp_path, count=12):
    """Writes recordings of blocks that move right or left, with events of noise, in one folder per class."""
    random = np.random.default_rng(0)
    for label, direction in (("left", -1), ("right", 1)):
        (tmp_path / "moves" / label).mkdir(parents=True)
        for number in range(count):
            t = np.repeat(np.arange(0, 100_000, 5_000), 8)
            x = (6 + direction * t // 20_000 + np.tile([0, 0, 1, 1, 0, 1, 0, 1], len(t) // 8)).astype(float)
            y = 5 + np.tile([0, 1, 0, 1, 1, 0, 0, 1], len(t) // 8)
            block = np.stack([t, x, y, random.integers(0, 2, len(t))], axis=1)
            noise = random.integers(0, [100_000, 13, 13, 2], (60, 4))
            events = np.concatenate([block, noise]).astype(float)
            events = events[np.argsort(events[:, 0], kind="stable")]
            np.save(tmp_path / "moves" / label / f"{number}.npy", events)
    return tmp_path / "moves"


def test_events_of_a_stream_and_of_a_file_are_classified_alike(tmp_path, monkeypatch, capsys):
    pytest.importorskip("lightning", reason="the extra train is not installed")
    from hibana import train
    from hibana.cli import main

    source = folder(tmp_path)
    monkeypatch.chdir(tmp_path)
    options = ["--layers", "8", "--steps", "5", "--epochs", "1"]
    assert main(["train", "--data", str(source), *options, "--out", "run"]) == 0
    events = read_events(source / "right" / "3.npy")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(_lines(events))))
    capsys.readouterr()
    assert main(["predict", "run", "--stream", "--csv"]) == 0
    streamed = capsys.readouterr().out.splitlines()
    answers = train.predict(train.load("run"), source / "right" / "3.npy")
    probabilities = [float(probability) for probability in streamed[-1].split(",")[-2:]]
    assert probabilities == pytest.approx(answers.probabilities[0], abs=1e-3)


def test_descriptions_with_removed_options_are_read_unless_the_options_matter(tmp_path):
    dataset = data.Events(folder(tmp_path), steps=5)
    dataset.setup()
    plain = dataset.description.to_plain()
    earlier = {
        **plain,
        "inputs": {**plain["inputs"], "split_by": "time", "denoise": 0.0, "columns": "", "missing": "median"},
    }
    assert user_data.description_from_plain(earlier) == dataset.description
    for name, value in (
        ("split_by", "number"),
        ("denoise", 5000.0),
        ("columns", "xytp"),
        ("missing", "drop"),
    ):
        with pytest.raises(ValueError, match="must have the entries"):
            user_data.description_from_plain({**earlier, "inputs": {**earlier["inputs"], name: value}})


def _lines(events):
    return "".join(f"{t:.0f} {x:.0f} {y:.0f} {p:.0f}\n" for t, x, y, p in events.tolist()).encode()
