"""Layouts of users' files, and the error messages about files that can't be read."""

import os
import re
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("lightning", reason="the extra train is not installed")
pytest.importorskip("pandas", reason="the extra train is not installed")

import pandas
from PIL import Image

from data.test_user_data import read
from hibana import train
from hibana.cli import main
from hibana.data import user_data

SMALL = ["--layers", "16", "--epochs", "2", "--batch-size", "8"]


def error_line(capsys, *arguments):
    """The line of the error message with which `hibana train` refuses `arguments`."""
    assert main(["train", *map(str, arguments), *SMALL]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    return err


@pytest.mark.parametrize("shape", [(20, 0), (20, 0, 3), (20, 4, 0)])
def test_arrays_of_empty_samples_are_refused(tmp_path, capsys, shape):
    np.savez(tmp_path / "none.npz", x=np.zeros(shape), y=np.arange(20) % 2)
    line = error_line(capsys, "--data", tmp_path / "none.npz", "--kind", "arrays")
    assert f"inputs must have at least one number a sample, got the shape {shape}" in line


def by_class(folder):
    for number in range(20):
        (folder / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        np.savetxt(folder / "ab"[number % 2] / f"{number}.csv", np.ones([5, 2]) * number, delimiter=",")
    return folder


@pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege on Windows")
def test_a_file_that_cannot_be_inspected_is_named(tmp_path, capsys):
    folder = by_class(tmp_path / "mine")
    (folder / "a" / "long.csv").symlink_to("x" * 300)
    line = error_line(capsys, "--data", folder)
    assert f"File name too long: '{folder / 'a' / 'long.csv'}'" in line


@pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege on Windows")
def test_a_broken_link_among_files_raises_an_error_that_names_it(tmp_path, capsys):
    folder = by_class(tmp_path / "mine")
    (folder / "a" / "gone.csv").symlink_to("nowhere.csv")
    assert re.search("No such file or directory: '.*gone.csv'", error_line(capsys, "--data", folder))


@pytest.mark.parametrize("ending", ["npy", "npz"])
@pytest.mark.parametrize("size", [0, 100])
def test_a_damaged_recording_or_array_is_named(tmp_path, capsys, ending, size):
    events = np.stack([np.arange(50), *[np.arange(50) % 2] * 3], 1)
    for number in range(20):
        path = tmp_path / "mine" / "ab"[number % 2] / f"{number}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, events)
    np.savez(path.with_name("broken.npz"), x=events, y=events[:, 3])
    broken = path.with_name("broken.npz").rename(path.with_name(f"broken.{ending}"))
    broken.write_bytes((path if ending == "npy" else broken).read_bytes()[:size])
    for source in (tmp_path / "mine", broken):
        assert broken.name in error_line(capsys, "--data", source)


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="this system has no user ids")
def test_an_unreadable_folder_is_named(capsys):
    with tempfile.TemporaryDirectory() as parent:
        Path(parent).chmod(0o755)
        folder = by_class(Path(parent) / "mine")
        (folder / "a").chmod(0)
        user = os.geteuid()
        try:
            os.seteuid(user or 65534)  # root could read the folder
            for kind in ([], ["--kind", "sequences"]):
                line = error_line(capsys, "--data", folder, *kind)
                assert f"Permission denied: '{folder / 'a'}" in line
        finally:
            os.seteuid(user)
            (folder / "a").chmod(0o755)


def test_numbers_of_a_table_are_filled_and_checked_in_each_column(tmp_path):
    rows = [f"{k % 9},{k % 3 if k % 4 else ''},,{'xy'[k % 2]},{k % 2}" for k in range(40)]
    (tmp_path / "gaps.csv").write_text("\n".join(["a,b,empty,c,label", *rows]))
    data = read(tmp_path / "gaps.csv")
    columns = {column.name: column for column in data.description.inputs.columns}
    assert list(columns) == ["a", "b", "c"]
    assert columns["b"].fill == 1.0
    assert columns["c"].categories == ("x", "y")
    frame = pandas.read_csv(tmp_path / "gaps.csv")
    for broken, message in (
        (frame.assign(b=[np.inf] + [1.0] * 39), "column 'b' must be finite numbers, row 1 has inf"),
        (frame.assign(a=["no", *["1"] * 39]), "column 'a' must be finite numbers, row 1 has 'no'"),
    ):
        with pytest.raises(ValueError, match=message):
            data.description.inputs.tensor(data.description.read(broken).values)


def events(folder, columns, *, side=34, length=3000, count=20, **fixed):
    """Writes recordings as arrays whose unnamed columns are in the order of `columns`."""
    random = np.random.default_rng(0)
    for number in range(count):
        (folder / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        values = {
            "t": np.sort(random.integers(0, length, 300)),
            "x": random.integers(0, side, 300),
            "y": random.integers(0, side + 6, 300),
            "p": random.integers(0, 2, 300),
        } | fixed
        array = np.stack([values[name] for name in columns], 1)
        np.save(folder / "ab"[number % 2] / f"{number}.npy", array)
    return folder


@pytest.mark.parametrize("columns", ["xytp", "xypt", "ptxy"])
@pytest.mark.parametrize("length", [1000, 400_000])
def test_unnamed_columns_of_events_in_another_order_than_txyp_are_refused(tmp_path, capsys, columns, length):
    assert "on 40x34 pixels" in read(events(tmp_path / "plain", "txyp", length=length), steps=5).summary
    folder = events(tmp_path / "mine", columns, length=length)
    assert "values are not t x y p; name the columns in the file" in error_line(capsys, "--data", folder)


def test_a_sensor_larger_than_any_is_refused(tmp_path, capsys):
    x = np.full(300, 2047)
    assert "pixels" in read(events(tmp_path / "large", "txyp", x=x), steps=2).summary
    folder = events(tmp_path / "mine", "txyp", x=x + 1)
    assert "values are not t x y p; name the columns in the file" in error_line(capsys, "--data", folder)


def test_descriptions_with_unknown_fields_are_refused(tmp_path):
    line = read(events(tmp_path / "mine", "txyp"), steps=2).description.to_plain()
    with pytest.raises(ValueError, match="must have the entries"):
        user_data.description_from_plain({**line, "inputs": {**line["inputs"], "sequential": True}})


def ts_file(path, count):
    lines = [f"{k},{k + 1},{k}:{'ab'[k % 2]}" for k in range(count)]
    path.write_text("@classLabel true a b\n@data\n" + "\n".join(lines) + "\n")


def test_a_train_ts_file_uses_the_test_ts_file_next_to_it(tmp_path):
    for part, count in (("TRAIN", 20), ("TEST", 7)):
        ts_file(tmp_path / f"Gait_{part}.ts", count)
    settings = train.Settings(data=str(tmp_path / "Gait_TRAIN.ts"))
    assert settings.kind == "sequences"
    data = settings.samples()
    data.setup()
    assert data.summary.startswith("Gait_TRAIN.ts: 20 sequences")
    assert len(data.test) == 7


def test_a_table_may_list_pictures_and_sequences_with_their_labels(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    for folder in ("images", "series"):
        (tmp_path / folder / "files").mkdir(parents=True)
    rows = []
    for number in range(24):
        pixels = random.integers(0, 60, [8, 8]) + 190 * (number % 2)
        Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "images" / "files" / f"{number}.png")
        np.savetxt(tmp_path / "series" / "files" / f"{number}.csv", np.ones([5, 2]) * number, delimiter=",")
        rows.append((number, "ab"[number % 2]))
    for folder, extension in (("images", "png"), ("series", "csv")):
        for header in ("filename,label\n", ""):
            text = header + "".join(f"files/{number}.{extension},{label}\n" for number, label in rows)
            (tmp_path / folder / "labels.csv").write_text(text)
            for source in (tmp_path / folder, tmp_path / folder / "labels.csv"):
                data = read(source)
                assert data.names == ("a", "b")
                assert sum(map(len, (data.training, data.validation, data.test))) == 24
                assert data.kind == ("images" if folder == "images" else "sequences")
    assert main(["train", "--data", "images/labels.csv", "--out", "run", "--steps", "4", *SMALL]) == 0
    (tmp_path / "images" / "new.csv").write_text("filename\nfiles/3.png\nfiles/4.png\n")
    capsys.readouterr()
    assert main(["predict", "run", "images/new.csv", "--csv"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(",")[0] for line in lines] == ["sample", "files/3.png", "files/4.png"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("filename,label\n1.png,a\n9.png,b\n", "row 2 names '9.png', which is none"),
        ("filename,label\n1.png,a\nnotes.md,b\n", "row 2 names 'notes.md', which is none"),
        ("filename,label\nnotes.md,a\n", "names notes.md, which is none"),
    ],
)
def test_a_list_with_missing_or_unsupported_files_is_refused(tmp_path, capsys, text, message):
    Image.fromarray(np.zeros([4, 4], np.uint8)).save(tmp_path / "1.png")
    (tmp_path / "notes.md").write_text("notes")
    (tmp_path / "list.csv").write_text(text)
    assert message in error_line(capsys, "--data", tmp_path / "list.csv")


def test_a_table_with_names_of_files_among_other_columns_stays_a_table(tmp_path):
    Image.fromarray(np.zeros([4, 4], np.uint8)).save(tmp_path / "1.png")
    (tmp_path / "table.csv").write_text("filename,size,label\n" + "1.png,3,a\n1.png,4,b\n" * 10)
    assert user_data.kind_of(tmp_path / "table.csv") == "table"
