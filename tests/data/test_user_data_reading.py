"""Row numbers, text encodings, truncated files, and the messages about files that can't be read."""

import numpy as np
import pytest

pytest.importorskip("lightning", reason="the extra train is not installed")
pytest.importorskip("pandas", reason="the extra train is not installed")

import pandas

from data.test_user_data import read
from hibana import data
from hibana.cli import main
from hibana.data.user_data.table_files import decode

SMALL = ["--layers", "16", "--epochs", "2", "--batch-size", "8", "--steps", "4"]
JAPANESE = "番号,長さ,重さ,判定\n" + "".join(
    f"{k + 1},{k % 7}.5,{k % 5},{('良品', '悪い')[k >= 20]}\n" for k in range(40)
)


def sorted_by_class(name, numbers):
    """Noise next to a column of `numbers`, sorted by class."""
    noise = np.random.default_rng(0).normal(size=(len(numbers), 2)).round(3)
    kinds = ["a"] * (len(numbers) // 2) + ["b"] * (len(numbers) // 2)
    return pandas.DataFrame({name: numbers, "x": noise[:, 0], "y1": noise[:, 1], "kind": kinds})


@pytest.mark.parametrize("name", ["番号", "number", "sample", "id"])
@pytest.mark.parametrize(
    "numbers",
    [
        np.arange(40),
        np.arange(1, 41.0),
        np.arange(40)[::-1],
        np.random.default_rng(0).permutation(40) + 1,
        np.arange(40) ** 2 + 842_000,
    ],
    ids=["from 0", "floats", "backwards", "shuffled", "with gaps"],
)
def test_columns_that_number_the_rows_are_left_out_under_any_name(tmp_path, name, numbers):
    sorted_by_class(name, numbers).to_csv(tmp_path / "sorted.csv", index=False)
    dataset = read(tmp_path / "sorted.csv")
    assert [column.name for column in dataset.description.inputs.columns] == ["x", "y1"]
    assert f"left out as they identify rows (--columns uses them): `{name}`" in dataset.summary
    selected = read(tmp_path / "sorted.csv", columns=[name, "x"])
    assert [column.name for column in selected.description.inputs.columns] == [name, "x"]


@pytest.mark.parametrize(
    "numbers",
    [
        np.arange(40) % 39,
        np.arange(40) / 2,
        np.random.default_rng(1).permutation(60)[:40],
        np.where(np.arange(40) == 3, np.nan, np.arange(40)),
    ],
    ids=["repeated", "fractions", "measured", "missing"],
)
def test_measured_numbers_stay_in_the_inputs(numbers):
    dataset = data.Table(sorted_by_class("size", numbers))
    dataset.setup()
    assert [column.name for column in dataset.description.inputs.columns] == ["size", "x", "y1"]


def test_a_long_table_of_sequences_leaves_row_numbers_out_too(tmp_path):
    frame = pandas.DataFrame(
        {"number": range(1, 201), "case": np.arange(200) // 10, "time": [*range(10)] * 20}
    )
    frame["x"] = np.random.default_rng(0).normal(size=200).round(3)
    frame["kind"] = np.where(frame["case"] < 10, "a", "b")
    frame.to_csv(tmp_path / "long.csv", index=False)
    dataset = read(tmp_path / "long.csv", group="case")
    assert dataset.description.inputs.features == ("x",)
    assert "left out as they number the rows: `number`" in dataset.summary


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        *[
            (text, "cp932")
            for text in ("番号,値\n", "判定\n良\n", "ラベル", "身長cm,体重kg", "品番A1,ＣＰＵ使用率")
        ],
        *[
            (text, "cp1252")
            for text in ("größe;süße", "Mädchen,año", "don’t", "l’école, étés créés", "Übung,Öl,où")
        ],
        ("ÄÖÜ,番号", "utf-8-sig"),
        ("plain", "utf-8-sig"),
        ("1,x\n" * 40_000 + "2,é\n", "cp1252"),
        ("番号", "utf-16"),
    ],
)
def test_the_encoding_of_text_is_detected(text, encoding):
    assert decode(text.encode(encoding)) == (text, encoding)


@pytest.mark.parametrize(
    ("encoding", "option", "note"),
    [
        ("cp932", None, "not UTF-8, read as cp932"),
        ("euc_jp", "euc_jp", "read as euc_jp"),
        ("iso2022_jp", "iso2022_jp", "read as iso2022_jp"),
        ("utf-8", None, ""),
    ],
)
def test_japanese_tables_are_read_and_the_encoding_is_reported(
    tmp_path, capsys, monkeypatch, encoding, option, note
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "parts.csv").write_bytes(JAPANESE.encode(encoding))
    options = ["--encoding", option] if option else []
    assert main(["train", "--data", "parts.csv", *options, *SMALL, "--out", "run"]) == 0
    line = capsys.readouterr().out.splitlines()[0]
    assert line.startswith(f"parts.csv: {note + ', ' if note else ''}40 rows, 2 numbers, left out as")
    assert "label `判定`: 2 classes (training part: 悪い 14, 良品 14)" in line
    assert main(["predict", "run", "parts.csv", "--csv"]) == 0
    out, err = capsys.readouterr()
    assert err == (f"parts.csv: {note}\n" if note else "")
    assert out.startswith("sample,判定,")


def test_unknown_and_wrong_encodings_are_refused(tmp_path):
    (tmp_path / "parts.csv").write_bytes(JAPANESE.encode("cp932"))
    for encoding in ("sjs", "utf-8"):
        with pytest.raises(
            ValueError, match=rf"parts\.csv can't be read: .* not text in the encoding {encoding}"
        ):
            read(tmp_path / "parts.csv", encoding=encoding)


@pytest.mark.parametrize("ending", ["wav", "aiff", "flac"])
def test_truncated_recordings_of_sound_are_refused(tmp_path, ending):
    soundfile = pytest.importorskip("soundfile", reason="the extra sound is not installed")
    from hibana.data.user_data.sound import read_levels

    path = tmp_path / f"cut.{ending}"
    soundfile.write(path, np.random.default_rng(0).normal(size=16_000) / 10, 16_000)
    content = path.read_bytes()
    assert len(read_levels(path, 8000.0)) == 98
    path.write_bytes(content[: len(content) * 3 // 4])
    with pytest.raises(ValueError, match=rf"recording .*cut\.{ending} can't be read: "):
        read_levels(path, 8000.0)
    if ending == "wav":  # a program that writes to a pipe does not know the sizes
        unknown = b"\xff" * 4
        path.write_bytes(content[:4] + unknown + content[8:40] + unknown + content[44 : len(content) // 2])
        assert 40 < len(read_levels(path, 8000.0)) < 98


@pytest.mark.parametrize(
    ("names", "label"),
    [("class,time,value", "class"), ("x,y,kind", "y"), ("x,y,z,kind", "kind"), ("y,Target,kind", "Target")],
)
def test_the_label_is_the_column_with_a_common_name_or_the_last(names, label):
    frame = pandas.DataFrame({name: [k % 3 for k in range(30)] for name in names.split(",")})
    dataset = data.Table(frame)
    dataset.setup()
    assert f"label `{label}`: 3 classes" in dataset.summary


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with training runs on sound, on a table, and on arrays."""
    soundfile = pytest.importorskip("soundfile", reason="the extra sound is not installed")
    folder = tmp_path_factory.mktemp("runs")
    for number in range(12):
        (folder / "tones" / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        wave = np.sin(np.arange(4000) * (0.1, 0.5)[number % 2] + number)
        soundfile.write(folder / "tones" / "ab"[number % 2] / f"{number}.wav", wave, 16_000)
    (folder / "table.csv").write_text("x,kind\n" + "".join(f"{k % 7}.5,{'ab'[k % 2]}\n" for k in range(40)))
    np.savez(folder / "arrays.npz", x=np.random.default_rng(0).normal(size=(40, 3)), y=np.arange(40) % 2)
    for name in ("tones", "table.csv", "arrays.npz"):
        run = str(folder / f"run-{name.partition('.')[0]}")
        assert main(["train", "--data", str(folder / name), *SMALL, "--out", run]) == 0
    (folder / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0")
    return folder


@pytest.mark.parametrize(
    ("run", "file", "message"),
    [
        ("tones", "missing.wav", "samples must be in a file or folder, there is no "),
        ("tones", "table.csv", "recordings of sound must be files of type .wav, .flac, .ogg, .opus, .mp3, "),
        ("table", "picture.png", "can't be read: the file contains zero bytes, so it is not a text file"),
        ("arrays", "table.csv", "table.csv can't be read: it is not a NumPy file of numbers"),
    ],
)
def test_predict_names_a_wrong_file_and_the_reason(runs, capsys, run, file, message):
    assert main(["predict", str(runs / f"run-{run}"), str(runs / file)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert message in err


def test_a_list_of_files_may_be_in_cp932(tmp_path):
    rows = []
    for number in range(20):
        np.savetxt(tmp_path / f"試料{number}.csv", np.ones([5, 2]) * number, delimiter=",")
        rows.append(f"試料{number}.csv,{('良品', '悪い')[number % 2]}")
    (tmp_path / "一覧.csv").write_bytes("\n".join(rows).encode("cp932"))
    dataset = read(tmp_path / "一覧.csv")
    assert (dataset.kind, dataset.names) == ("sequences", ("悪い", "良品"))
