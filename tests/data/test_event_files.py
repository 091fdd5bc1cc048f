"""Recordings as Prophesee writes them, and what becomes of events: filtered, cut, moved and mixed."""

import io
import re

import numpy as np
import pytest

from data import prophesee_files as files
from hibana import data
from hibana.data import user_data
from hibana.data.user_data.event_files import read_events


def read(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    return read_events(path)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("evt2.raw", files.evt2),
        ("evt3.raw", files.evt3),
        ("plain3.raw", lambda events: files.evt3(events, vectors=False)),
        (
            "both.RAW",
            lambda events: files.evt3(events).replace(b"% evt 3.0", b"% format EVT3;height=720;width=1280"),
        ),
        ("windows.raw", lambda events: files.evt2(events).replace(b"\n% ", b"\r\n% ", 2)),
        ("old.dat", files.dat),
    ],
)
def test_what_was_written_is_read(tmp_path, name, written, seed):
    events = files.drawn(seed=seed)
    assert np.array_equal(read(tmp_path, name, written(events)), events)


def test_small_sensors_of_the_first_version_are_read(tmp_path):
    events = files.drawn(width=304, height=240)
    assert np.array_equal(
        read(tmp_path, "old.dat", files.dat(events, version=1, width=304, height=240)), events
    )


@pytest.mark.parametrize(
    ("name", "written", "period"),
    [("a.raw", files.evt2, 1 << 34), ("a.raw", files.evt3, 1 << 24), ("a.dat", files.dat, 1 << 32)],
)
def test_times_go_on_where_a_counter_begins_again(tmp_path, name, written, period):
    events = np.array([[period - 70, 1, 2, 0], [period - 3, 3, 2, 1], [period + 5, 4, 4, 1]], np.float64)
    assert np.array_equal(read(tmp_path, name, written(events)), events)


def test_a_file_without_an_end_of_its_header_is_read(tmp_path):
    events = files.drawn(400)
    assert np.array_equal(read(tmp_path, "a.raw", files.evt2(events, end="")), events)


EVENTS = files.drawn(40)
RAW2, RAW3, DAT = files.evt2(EVENTS), files.evt3(EVENTS), files.dat(EVENTS)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.raw", b"", "it has no header of lines that begin with %"),
        ("a.raw", b"\x00" * 64, "it has no header of lines that begin with %"),
        ("a.raw", b"% evt 3.0" + b"x" * 99, "its header does not end"),
        ("a.raw", RAW2.replace(b"evt 2.0", b"day 2.0"), "its header names no format, % evt 2.0 or 3.0"),
        ("a.raw", RAW2.replace(b"evt 2.0", b"evt 2.1"), "it is in EVT 2.1, and EVT 2.0 and 3.0 are read"),
        (
            "a.raw",
            RAW2.replace(b"evt 2.0", b"format EVT21;x"),
            "it is in EVT 21, and EVT 2.0 and 3.0 are read",
        ),
        ("a.raw", RAW2[:-3], "it was cut short, its last word has 1 of 4 bytes"),
        ("a.raw", RAW3[:-1], "it was cut short, its last word has 1 of 2 bytes"),
        ("a.raw", files.evt2(EVENTS[:0]), "there is none"),
        ("a.raw", files.evt3(EVENTS[:0]), "there is none"),
        ("a.raw", files.header("evt 3.0"), "there is none"),
        ("a.dat", DAT[:-3], "it was cut short, its last event has 5 of 8 bytes"),
        ("a.dat", DAT[: DAT.index(b"\x0c\x08") + 1], "it was cut short, it ends in its header"),
        ("a.dat", DAT.replace(b"\x0c\x08", b"\x0e\x08"), "it holds events of type 14 and 8 bytes"),
        ("a.dat", DAT.replace(b"\x0c\x08", b"\x0c\x09"), "it holds events of type 12 and 9 bytes"),
        ("a.dat", b"t,x,y,p\n1,2,3,0\n", "it has no header of lines that begin with %"),
        ("a.dat", files.dat(EVENTS[:0]), "there is none"),
    ],
)
def test_a_damaged_file_gets_a_sentence(tmp_path, name, content, words):
    with pytest.raises(ValueError, match=re.escape(words)) as refusal:
        read(tmp_path, name, content)
    sentence = str(refusal.value)
    assert sentence.startswith(f"recording {tmp_path / name} must hold events t, x, y, p: ")
    assert "\n" not in sentence


def test_noise_in_a_file_is_read_or_refused_and_nothing_else(tmp_path):
    random, refused = np.random.default_rng(0), 0
    for number in range(150):
        content = bytearray((RAW2, RAW3, DAT)[number % 3])
        for place in random.integers(0, len(content), 3).tolist():
            content[place] = random.integers(0, 256)
        name = "a.dat" if number % 3 == 2 else "a.raw"
        (tmp_path / name).write_bytes(content)
        events = or_sentence(tmp_path / name)
        if isinstance(events, str):
            assert events.startswith(f"recording {tmp_path / name} must hold events")
            refused += 1
        else:
            assert events.shape[1] == 4
            assert (events >= 0).all()
    assert 5 < refused < 145


def or_sentence(path):
    """The events in a file, or what it is refused with."""
    try:
        return read_events(path)
    except ValueError as error:
        return str(error)


def folder(tmp_path, count=12, ending="npy"):
    """Recordings of blocks that move right or left, among events of noise, by class."""
    random = np.random.default_rng(0)
    for label, way in (("left", -1), ("right", 1)):
        (tmp_path / "moves" / label).mkdir(parents=True)
        for number in range(count):
            t = np.repeat(np.arange(0, 100_000, 5_000), 8)
            x = (6 + way * t // 20_000 + np.tile([0, 0, 1, 1, 0, 1, 0, 1], len(t) // 8)).astype(float)
            y = 5 + np.tile([0, 1, 0, 1, 1, 0, 0, 1], len(t) // 8)
            block = np.stack([t, x, y, random.integers(0, 2, len(t))], axis=1)
            noise = random.integers(0, [100_000, 13, 13, 2], (60, 4))
            events = np.concatenate([block, noise]).astype(float)
            events = events[np.argsort(events[:, 0], kind="stable")]
            path = tmp_path / "moves" / label / f"{number}.{ending}"
            if ending == "npy":
                np.save(path, events)
            else:
                path.write_bytes({"raw": files.evt3, "dat": files.dat}[ending](events))
    return tmp_path / "moves"


@pytest.mark.parametrize("ending", ["raw", "dat"])
def test_folders_of_such_files_are_events(tmp_path, ending):
    source = folder(tmp_path, ending=ending)
    assert user_data.kind_of(source) == "events"
    made = data.Events(source, steps=5)
    made.setup()
    assert made.summary.startswith("moves: 24 recordings, 5,280 events on 13x13 pixels, 5 bins of")


def test_events_of_a_stream_are_answered_as_those_of_a_file(tmp_path, monkeypatch, capsys):
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
    chances = [float(each) for each in streamed[-1].split(",")[-2:]]
    assert chances == pytest.approx(answers.probabilities[0], abs=1e-3)


def test_descriptions_with_removed_options_are_read_unless_the_options_matter(tmp_path):
    made = data.Events(folder(tmp_path), steps=5)
    made.setup()
    said = made.description.to_plain()
    earlier = {**said, "inputs": {**said["inputs"], "split_by": "time", "denoise": 0.0}}
    assert user_data.description_from_plain(earlier) == made.description
    for name, value in (("split_by", "number"), ("denoise", 5000.0)):
        with pytest.raises(ValueError, match="must have the entries"):
            user_data.description_from_plain({**earlier, "inputs": {**earlier["inputs"], name: value}})


def _lines(events):
    return "".join(f"{t:.0f} {x:.0f} {y:.0f} {p:.0f}\n" for t, x, y, p in events.tolist()).encode()
