"""Users' own data: reading files in common layouts, the summary line, and reading after training."""

import csv
import json

import h5py
import numpy as np
import pytest
import torch

pytest.importorskip("lightning", reason="the extra train is not installed")
pytest.importorskip("pandas", reason="the extra train is not installed")

import pandas
from PIL import Image

import hibana as hb
from hibana import train
from hibana.cli import main
from hibana.data import user_data
from hibana.data.user_data.table_files import read_table
from hibana.train import checkpoint

SMALL = ["--layers", "16", "--epochs", "3", "--steps", "4", "--batch-size", "8"]


def table(path, rows=80, *, header=True, separator=",", gaps=False):
    """Writes a table of two kinds of plants that differ in height, with a random colour and a row number."""
    random = np.random.default_rng(0)
    with path.open("w", newline="") as file:
        writer = csv.writer(file, delimiter=separator)
        if header:
            writer.writerow(["id", "height", "width", "colour", "kind"])
        for row in range(rows):
            kind = row % 4 == 0
            height = "" if gaps and row % 10 == 5 else f"{random.normal(3 if kind else -3):.3f}"
            colour = random.choice(["red", "blue"])
            writer.writerow([row, height, f"{random.normal():.3f}", colour, "tree" if kind else "herb"])
    return path


def pictures(folder, count=24):
    """Writes light and dark pictures of several sizes to `folder`."""
    random = np.random.default_rng(0)
    for number in range(count):
        kind = ("dark", "light")[number % 2]
        (folder / kind).mkdir(parents=True, exist_ok=True)
        size = 8 + number % 5
        pixels = random.integers(0, 60, [size, size + 3]) + 190 * (number % 2)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / kind / f"{number:02}.png")
    return folder


def waves(count=40):
    """Slow and fast waves of unequal length, two features each, with their labels."""
    random = np.random.default_rng(0)
    kinds = ["slow" if number % 2 else "fast" for number in range(count)]
    lengths = random.integers(10, 30, count)
    frames = []
    for kind, length in zip(kinds, lengths, strict=True):
        time = np.arange(length) * (0.2 if kind == "slow" else 1.5)
        frames.append(np.stack([np.sin(time), np.cos(time)], axis=1).round(4))
    return frames, kinds


def recordings(folder, count=24):
    """Writes recordings of events that move up or down over 6x5 pixels, in four formats."""
    random = np.random.default_rng(0)
    for number in range(count):
        kind = ("down", "up")[number % 2]
        (folder / kind).mkdir(parents=True, exist_ok=True)
        t = np.sort(random.integers(0, 1000, 60))
        y = t // 200 if kind == "down" else 4 - t // 200
        x, p = random.integers(0, 6, 60), random.integers(0, 2, 60)
        path = folder / kind / f"{number:02}"
        match number % 4:
            case 0:
                np.savetxt(f"{path}.txt", np.stack([t, x, y, p], 1), fmt="%d", header="t x y p", comments="")
            case 1:
                events = np.zeros(60, dtype=[("x", "i2"), ("y", "i2"), ("t", "i8"), ("p", "?")])
                events["x"], events["y"], events["t"], events["p"] = x, y, t, p
                np.save(f"{path}.npy", events)
            case 2:
                with h5py.File(f"{path}.h5", "w") as file:
                    for name, values in {"t": t, "x": x, "y": y, "p": p}.items():
                        file[f"events/{name}"] = values
            case 3:
                np.savez(f"{path}.npz", t=t, x=x, y=y, pol=2 * p - 1)
    return folder


def read(path, **options):
    """The data set of the file or folder at `path`, after its ``setup``."""
    data = user_data.KINDS[user_data.kind_of(path, grouped="group" in options)](path, **options)
    data.setup()
    return data


def test_a_table_is_summarized_in_a_line(tmp_path):
    data = read(table(tmp_path / "plants.csv", gaps=True))
    assert data.summary == (
        "plants.csv: 80 rows, 2 numbers, 1 category, 3.3% missing, filled with the median, "
        "left out as they identify rows (--columns uses them): `id`, "
        "label `kind`: 2 classes (training part: herb 42, tree 14)"
    )
    assert [len(part) for part in (data.training, data.validation, data.test)] == [56, 8, 16]
    assert data.shape == (4,)  # two numbers, two colours


def test_parts_are_stratified_and_depend_on_the_seed():
    labels = ["a"] * 60 + ["b"] * 30 + ["c"] * 3
    first = user_data.samples.draw_parts(labels, 0, stratified=True)
    assert sorted([*first[0], *first[1], *first[2]]) == list(range(93))
    for part, counts in zip(first, ((42, 21, 1), (6, 3, 1), (12, 6, 1)), strict=True):
        assert tuple([labels[index] for index in part].count(kind) for kind in "abc") == counts
    same, other = (user_data.samples.draw_parts(labels, seed, stratified=True) for seed in (0, 1))
    assert first == same != other


def test_scales_are_fitted_to_the_training_part_only(tmp_path):
    data = read(table(tmp_path / "plants.csv"))
    inputs = data.training.inputs
    assert torch.allclose(inputs.mean(0), torch.zeros(4), atol=1e-6)
    assert torch.allclose(inputs.std(0, correction=0), torch.ones(4), atol=1e-5)
    assert not torch.allclose(data.test.inputs.mean(0), torch.zeros(4), atol=1e-3)
    unit = read(tmp_path / "plants.csv", unit=True)
    assert unit.training.inputs.min() == 0
    assert unit.training.inputs.max() == 1
    assert 0 <= unit.test.inputs.min() <= unit.test.inputs.max() <= 1


@pytest.mark.parametrize(
    ("first", "rows", "header"),
    [
        ("0,1,2", ["3,4,5", "1,0,1"], True),  # as pandas names columns without names
        (",0,1,2,y", ["0,0.5,0.25,3,0", "1,1.5,2.5,4,1"], True),
        ("0,1,2,3,4", ["0.5,0.25,0,1,a", "1.5,2.5,1,3,b"], True),
        ("name,1990,1991,1992,1993,1994", ["x,1,2,3,4,5", "y,2,3,4,5,6"], True),
        ("0,1,a", ["1,1,b", "1,0,a"], False),
        ("3,4,y", ["3,4,0", "1,0,1"], False),
        ("0,1,?", ["3,4,5", "1,0,1"], False),
        ("5.1,3.5,y", ["3,4,0", "1,0,1"], False),
    ],
)
def test_names_of_columns_may_be_consecutive_numbers(tmp_path, first, rows, header):
    (tmp_path / "mine.csv").write_text("\n".join([first, *rows * 3]) + "\n")
    frame, _ = read_table(tmp_path / "mine.csv")
    assert len(frame) == 6 + (not header)
    if header:
        assert list(frame.columns)[1:] == first.split(",")[1:]


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("header", [True, False])
def test_layouts_of_tables_hold_the_same_numbers(tmp_path, separator, header):
    plain = read(table(tmp_path / "plain.csv"), label="kind", columns=["height", "width"])
    path = table(tmp_path / "other.txt", header=header, separator=separator)
    names = ["height", "width"] if header else ["column 2", "column 3"]
    other = read(path, label=None if header else "5", columns=names)
    assert torch.equal(plain.training.inputs, other.training.inputs)
    assert torch.equal(plain.test.labels, other.test.labels)


FRUIT = "größe;süße;klasse\n" + "".join(
    f"{k % 7 - 3},{k % 10};{k},5;{('apfel', 'kürbis')[k % 2]}\n" for k in range(40)
)


@pytest.mark.cover(2)
@pytest.mark.parametrize(
    ("encoding", "note"),
    [("utf-8", ""), ("utf-8-sig", ""), ("utf-16", ""), ("latin-1", "not UTF-8, read as cp1252, ")],
)
@pytest.mark.parametrize("decimal", [",", "."])
@pytest.mark.parametrize("header", [True, False])
def test_encodings_and_decimal_marks_hold_the_same_numbers(tmp_path, encoding, note, decimal, header):
    path = tmp_path / "fruit.csv"
    text = FRUIT.replace(",", decimal)
    path.write_bytes((text if header else text.partition("\n")[2]).encode(encoding))
    data = read(path)
    comma = "numbers with a decimal comma, " if decimal == "," else ""
    assert data.summary.startswith(f"fruit.csv: {note}{comma}40 rows, 2 numbers, label `")
    assert data.names == ("apfel", "kürbis")
    columns = data.description.inputs.columns
    assert [column.name for column in columns] == (["größe", "süße"] if header else ["column 1", "column 2"])
    raw = data.read(path).values.to_numpy()
    assert raw.tolist() == [[float(f"{k % 7 - 3}.{k % 10}"), k + 0.5] for k in range(40)]


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_the_summary_of_sequences_states_encoding_and_decimal_mark(tmp_path, encoding):
    for k in range(20):
        path = tmp_path / "waves" / "ab"[k % 2] / f"{k}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes("\n".join(["é;e", *(f"{t},5;1" for t in range(5 + k % 2))]).encode(encoding))
    note = "" if encoding == "utf-8" else "not UTF-8, read as cp1252, "
    assert read(tmp_path / "waves").summary.startswith(
        f"waves: {note}numbers with a decimal comma, 20 sequences of 2 features"
    )


def test_a_table_read_by_its_description_omits_the_same_rows(tmp_path):
    path = table(tmp_path / "plants.csv", gaps=True)
    frame = pandas.read_csv(path)
    frame.loc[::9, "kind"] = None
    first = hb.data.Table(frame)
    first.setup()
    second = hb.data.Table(frame, description=first.description)
    second.setup()
    assert len(first.test) < 16
    assert "9 samples without a label left out" in second.summary
    for part in ("training", "validation", "test"):
        assert torch.equal(getattr(first, part).inputs, getattr(second, part).inputs)
        assert torch.equal(getattr(first, part).labels, getattr(second, part).labels)


def test_a_test_table_may_have_the_columns_in_any_order(tmp_path):
    frame = pandas.read_csv(table(tmp_path / "plants.csv"))
    other = frame[["kind", "width", "colour", "id", "height"]]
    tables = [hb.data.Table(frame, test=test) for test in (frame, other)]
    for table_ in tables:
        table_.setup()
    assert torch.equal(tables[0].test.inputs, tables[1].test.inputs)
    assert torch.equal(tables[0].test.labels, tables[1].test.labels)
    with pytest.raises(ValueError, match=r"test must have labels \('kind'\)"):
        hb.data.Table(frame, test=frame.rename(columns={"kind": "sort"})).setup()


def test_samples_without_a_label_are_classified_but_not_scored(tmp_path, capsys):
    path = table(tmp_path / "plants.csv")
    assert main(["train", "--data", str(path), "--out", str(tmp_path / "run"), *SMALL]) == 0
    frame = pandas.read_csv(path)
    frame.loc[::2, "kind"] = None
    frame.to_csv(tmp_path / "half.csv", index=False)
    capsys.readouterr()
    assert main(["predict", str(tmp_path / "run"), str(tmp_path / "half.csv")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 81
    assert "of 40 right" in lines[-1]


def test_a_long_table_is_read_with_the_label_of_the_training(tmp_path):
    rows = [(n, "ab"[n % 2], step * (n % 2), n % 3) for n in range(30) for step in range(5)]
    frame = pandas.DataFrame(rows, columns=["case", "sort", "value", "group"])
    frame["group"] = frame["group"].map({0: "x", 1: "y", 2: "z"})
    frame.to_csv(tmp_path / "long.csv", index=False)
    data = read(tmp_path / "long.csv", group="case", label="sort", steps=5)
    assert data.description.read(tmp_path / "long.csv").labels == ["a", "b"] * 15
    frame.drop(columns="sort").to_csv(tmp_path / "new.csv", index=False)
    assert data.description.read(tmp_path / "new.csv").labels is None


def test_parquet_and_frames_hold_the_same_as_csv(tmp_path):
    pytest.importorskip("pyarrow", reason="the extra data is not installed")
    path = table(tmp_path / "plants.csv")
    frame = pandas.read_csv(path)
    frame.to_parquet(tmp_path / "plants.parquet")
    expected = read(path).test.inputs
    assert torch.equal(read(tmp_path / "plants.parquet").test.inputs, expected)
    in_memory = hb.data.Table(frame)
    in_memory.setup()
    assert torch.equal(in_memory.test.inputs, expected)


def test_pictures_of_several_sizes_are_resized_to_one(tmp_path):
    data = read(pictures(tmp_path / "tones"))
    assert data.summary.startswith(
        "tones: 24 pictures, grey, 8x11 to 12x15 pixels resized to 25x32, label `class`"
    )
    assert data.shape == (25, 32)
    pixels, label = data.test[0]
    assert 0 <= pixels.min() < pixels.max() <= 1
    assert data.names[int(label)] == "dark"
    assert read(tmp_path / "tones", size=6).shape == (6, 6)


def test_files_that_are_not_pictures_are_ignored_in_a_folder_of_pictures(tmp_path):
    folder = pictures(tmp_path / "tones")
    for name in (
        "dark/.DS_Store",
        "dark/readme.txt",
        "light/._01.png",
        ".ipynb_checkpoints/01.png",
        "notes.csv",
    ):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("1")
    (folder / "__MACOSX" / "dark").mkdir(parents=True)
    data = read(folder)
    assert data.summary.startswith("tones: 24 pictures, grey")
    assert data.names == ("dark", "light")


def test_arrays_with_channels_last_are_transposed(tmp_path):
    images = np.random.default_rng(0).integers(0, 255, [20, 6, 5, 3], np.uint8)
    layouts = images, images.transpose(0, 3, 1, 2)
    channels_last, channels_first = (user_data.Arrays(layout, labels=[0, 1] * 10) for layout in layouts)
    for data in (channels_last, channels_first):
        data.setup()
        assert data.shape == (3, 6, 5)
    assert channels_last.summary.startswith("Arrays: 20 arrays of 6x5x3, turned to 3x6x5, ")
    assert torch.equal(channels_last.test[0][0], channels_first.test[0][0])
    description = channels_last.description
    assert all(np.array_equal(description.read(layout).values, layouts[1]) for layout in layouts)
    with pytest.raises(ValueError, match=r"must have the shape \[N, 3, 6, 5\]"):
        description.inputs.difference_from_training(description.read(images[:, :5]).values)


@pytest.mark.parametrize("shape", [(20, 6, 4), (20,), (20, 6)])
def test_arrays_other_than_pictures_are_never_transposed(shape):
    data = user_data.Arrays(np.random.default_rng(0).random([20, 4, 6]), labels=[0, 1] * 10)
    data.setup()
    with pytest.raises(ValueError, match=r"must have the shape \[N, 4, 6\]"):
        data.description.inputs.difference_from_training(data.description.read(np.zeros(shape)).values)


def test_the_kind_of_a_folder_is_the_kind_of_most_of_its_files(tmp_path):
    def kind(**counts):
        folder = tmp_path / "-".join(f"{count}{extension}" for extension, count in counts.items())
        for extension, count in counts.items():
            for number in range(count):
                (folder / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
                (folder / "ab"[number % 2] / f"{number}.{extension}").write_text("t,x,y,p\n1,2,3,0\n")
        return user_data.kind_of(folder)

    assert kind(png=3, txt=1, npy=1) == "images"
    assert kind(png=2, csv=3) == "events"
    assert kind(tsv=4, h5=3) == "sequences"


def test_colour_transparency_and_sixteen_bits(tmp_path):
    for number in range(12):
        kind = tmp_path / "mixed" / "ab"[number % 2]
        kind.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (255, 0, 0)).save(kind / f"{number}.png")
    Image.new("RGBA", (4, 4), (0, 0, 0, 0)).save(kind / "clear.png")
    Image.fromarray(np.full([4, 4], 65535, np.uint16)).save(kind / "deep.png")
    data = read(tmp_path / "mixed")
    inputs = data.description.inputs
    assert data.shape == (3, 4, 4)
    pixels = inputs.tensor([kind / name for name in ("1.png", "clear.png", "deep.png")])
    assert pixels[:, :, 0, 0].tolist() == [[255, 0, 0], [255, 255, 255], [255, 255, 255]]


def test_predefined_parts_are_used(tmp_path):
    for part, count in (("train", 40), ("test", 6)):
        pictures(tmp_path / "parts" / part, count)
    data = read(tmp_path / "parts")
    assert [len(part) for part in (data.training, data.validation, data.test)] == [36, 4, 6]
    x, y = np.arange(60.0).reshape(30, 2), np.arange(30) % 2
    np.savez(tmp_path / "parts.npz", x_train=x[:20], y_train=y[:20], x_test=x[20:], y_test=y[20:])
    arrays = read(tmp_path / "parts.npz")
    assert [len(part) for part in (arrays.training, arrays.validation, arrays.test)] == [18, 2, 10]


def long_table(frames, kinds):
    """A frame with one row for each step of each sequence; the column `case` numbers the sequences."""
    rows = [
        (n, t, *row, kind)
        for n, (f, kind) in enumerate(zip(frames, kinds, strict=True))
        for t, row in enumerate(f)
    ]
    return pandas.DataFrame(rows, columns=["case", "time", "x", "y", "speed"])


def folder_by_class(folder, frames, kinds):
    for number, (frame, kind) in enumerate(zip(frames, kinds, strict=True)):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        pandas.DataFrame(frame, columns=["x", "y"]).to_csv(folder / kind / f"{number}.csv", index=False)
    return folder


def test_sequences_are_the_same_from_folders_long_tables_ts_files_and_memory(tmp_path):
    frames, kinds = waves()
    long_table(frames, kinds).to_csv(tmp_path / "long.csv", index=False)
    lines = [":".join([*(",".join(map(str, c)) for c in f.T), k]) for f, k in zip(frames, kinds, strict=True)]
    (tmp_path / "waves.ts").write_text("@classLabel true slow fast\n@data\n" + "\n".join(lines) + "\n")
    in_memory = hb.data.Sequences(frames, labels=kinds, steps=12)
    in_memory.setup()
    for data in (read(tmp_path / "long.csv", group="case", steps=12), read(tmp_path / "waves.ts", steps=12)):
        assert "40 sequences of 2 features, 10 to 29 steps, stretched to 12" in data.summary
        assert torch.equal(data.training.inputs, in_memory.training.inputs)
        assert torch.equal(data.test.labels, in_memory.test.labels)
    assert read(tmp_path / "long.csv", group="case").description.target.name == "speed"
    folder = read(folder_by_class(tmp_path / "folder", frames, kinds), steps=12)
    assert folder.training.inputs.shape == in_memory.training.inputs.shape


def test_rows_of_a_sequence_are_sorted_by_time(tmp_path):
    table = long_table(*waves())
    table.to_csv(tmp_path / "long.csv", index=False)
    expected = read(tmp_path / "long.csv", group="case", steps=12)
    assert "in the order" not in expected.summary
    shuffled = [part.sample(frac=1, random_state=1) for _, part in table.groupby("case")]
    pandas.concat(shuffled).to_csv(tmp_path / "long.csv", index=False)
    result = read(tmp_path / "long.csv", group="case", steps=12)
    assert "rows put in the order of 'time'" in result.summary
    assert torch.equal(result.training.inputs, expected.training.inputs)
    repeated = table.assign(time=table["time"] // 2 * -1)  # each time occurs twice
    repeated.to_csv(tmp_path / "long.csv", index=False)
    assert "in the order" not in read(tmp_path / "long.csv", group="case", steps=12).summary


def test_sequences_are_stretched_or_padded():
    frames = [np.arange(float(n))[:, None] for n in (3, 5, *[4] * 20)]
    for lengths, ends in (("stretch", (1.0, 1.0)), ("pad", (0.0, 1.0))):
        data = hb.data.Sequences(frames, labels=[0, 1] * 11, steps=5, lengths=lengths)
        data.setup()
        tensor = data.description.inputs.tensor(frames[:2])
        scale = data.description.inputs.scale
        last = [scale(torch.tensor([[2.0]])).item() * ends[0], scale(torch.tensor([[4.0]])).item() * ends[1]]
        assert tensor[:, -1, 0].tolist() == pytest.approx(last)


def test_recordings_in_four_formats_are_binned_alike(tmp_path):
    data = read(recordings(tmp_path / "moves"), steps=5)
    assert data.summary.startswith("moves: 24 recordings, 1,440 events on 5x6 pixels, 5 bins of")
    assert data.shape == (2, 5, 6)
    spikes, label = data.test[0]
    assert set(spikes.unique().tolist()) == {0.0, 1.0}
    rows = spikes.sum(dim=(1, 3)).argmax(1)  # the row with the most events in each bin
    assert rows.tolist() == ([0, 1, 2, 3, 4] if data.names[int(label)] == "down" else [4, 3, 2, 1, 0])
    counted = read(tmp_path / "moves", steps=5, bins="counts")
    assert counted.test[0][0].sum() > spikes.sum()


@pytest.mark.parametrize(
    ("header", "order"),
    [
        ("x,y,polarity,timestamp", "xypt"), ("t,x,y,p", "txyp"), ("TIME;pol;y;x", "tpyx"),
        ("x y p ts", "xypt"), ('"x","y","t","p"', "xytp"), ("# p x y t", "pxyt"),
    ],
)  # fmt: skip
def test_recordings_in_csv_are_detected_by_the_names_of_their_columns(tmp_path, header, order):
    mark = next((character for character in ",;" if character in header), " ")
    for folder, names, columns, between in (("as", header, order, mark), ("txyp", "t,x,y,p", "txyp", ",")):
        random = np.random.default_rng(0)
        for number in range(20):
            path = tmp_path / folder / "ab"[number % 2] / f"{number}.csv"
            path.parent.mkdir(parents=True, exist_ok=True)
            events = {
                "t": np.sort(random.integers(0, 1000, 50)), "x": random.integers(0, 7, 50),
                "y": random.integers(0, 4, 50), "p": random.integers(0, 2, 50),
            }  # fmt: skip
            rows = zip(*(events[column] for column in columns), strict=True)
            path.write_text("\n".join([names, *(between.join(map(str, row)) for row in rows)]))
    data, plain = read(tmp_path / "as"), read(tmp_path / "txyp")
    assert data.summary.startswith(
        "as: 20 recordings, 1,000 events by the names of their columns (--kind sequences if they are none)"
    )
    assert data.shape == (2, 4, 7)
    assert torch.equal(data.training.inputs, plain.training.inputs)
    assert isinstance(user_data.Sequences(tmp_path / "txyp").splits()[0].inputs, torch.Tensor)


@pytest.mark.parametrize("first", ["x,y,p\n1,2,3", "x,y,p,t,q\n1,2,0,3,4"])
def test_a_csv_without_the_columns_of_events_is_a_sequence(tmp_path, first):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "one.csv").write_text(first)
    assert user_data.kind_of(tmp_path) == "sequences"


def test_recordings_with_unknown_columns_are_refused_and_comments_ignored(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "one.txt").write_text("x y p when\n1 2 0 3\n")
    with pytest.raises(ValueError, match="can't be read: there is no 't' among x, y, p, when"):
        read(tmp_path)
    (tmp_path / "a" / "one.txt").write_text("# 240 180\n5 1 2 0\n# 1 2 3 4\n6 3 2 1\n")
    assert user_data.events.read_events(tmp_path / "a" / "one.txt").tolist() == [
        [5, 1, 2, 0],
        [6, 3, 2, 1],
    ]


@pytest.mark.parametrize("kind", ["table", "images", "sequences", "events", "arrays"])
def test_one_command_trains_and_the_moved_checkpoint_classifies_samples(kind, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    frames, kinds = waves()
    options, new_samples = [], "mine"
    match kind:
        case "table":
            source = new_samples = table(tmp_path / "mine.csv")
        case "images":
            source, new_samples = pictures(tmp_path / "mine"), tmp_path / "mine" / "light"
        case "sequences":
            rows = [(n, *row, kinds[n]) for n, f in enumerate(frames) for row in f]
            source = new_samples = tmp_path / "mine.csv"
            pandas.DataFrame(rows, columns=["case", "x", "z", "speed"]).to_csv(source, index=False)
            options = ["--group", "case"]
        case "events":
            source, new_samples = recordings(tmp_path / "mine"), tmp_path / "mine" / "up"
        case "arrays":
            source = new_samples = tmp_path / "mine.npz"
            labels = np.array(["low", "high"])[np.arange(40) % 2]
            np.savez(source, x=np.arange(40)[:, None] % 2 * 4.0 + np.eye(40)[:, :3], y=labels)
    assert main(["train", "--data", source.name, *options, *SMALL]) == 0
    output = capsys.readouterr().out
    assert output.startswith(f"{source.name}: ")
    assert "linear classifier" in output
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "hibana-runs" / "mine-0").rename(tmp_path / "elsewhere" / "run")
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert main(["predict", "run", str(new_samples), "--json"]) == 0
    answers = json.loads(capsys.readouterr().out)
    model = train.load(tmp_path / "elsewhere" / "run")
    names = model.description.target.classes
    label = model.description.target.name
    assert len(answers) > 5
    assert {answer[label] for answer in answers} <= set(names)
    assert all(sum(answer["probabilities"].values()) == pytest.approx(1, abs=1e-4) for answer in answers)
    assert main(["predict", "run", str(new_samples), "--csv"]) == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert first.startswith(f"sample,{label},{names[0]},{names[1]}")
    assert main(["predict", "run"]) == 0  # reads the training data at their original path
    assert "accuracy" in capsys.readouterr().out
    assert main(["convert", "run", "net.pt2"]) == 0


def test_balanced_weights_give_all_classes_equal_influence():
    target = user_data.target.fit_target("kind", ["a"] * 30 + ["b"] * 10, range(40), None)
    assert target.weights() == pytest.approx((2 / 3, 2.0))
    objective = hb.loss.named("membrane-mean", weights=target.weights())
    outputs, labels = torch.tensor([[[1.0, 0.0]] * 30 + [[0.0, 3.0]] * 10]), torch.tensor([0] * 30 + [1] * 10)
    losses = torch.nn.functional.cross_entropy(outputs[0], labels, reduction="none")
    assert objective(outputs, labels) == pytest.approx((losses[:30].mean() + losses[30:].mean()).item() / 2)


def test_descriptions_are_restored_from_plain_values(tmp_path):
    for data in (
        read(table(tmp_path / "plants.csv", gaps=True)),
        read(pictures(tmp_path / "tones")),
        read(recordings(tmp_path / "moves"), steps=3),
    ):
        plain = data.description.to_plain()
        assert user_data.description_from_plain(json.loads(json.dumps(plain))) == data.description
        for broken in (
            {**plain, "kind": "os"},
            {**plain, "inputs": {}},
            {**plain, "inputs": {**plain["inputs"], "more": 1}},
            {**plain, "target": {**plain["target"], "mean": float("nan")}},
            {**plain, "target": {**plain["target"], "classes": ["a"] * 3}},
            {**plain, "target": {**plain["target"], "name": 3}},
            [],
        ):
            with pytest.raises(ValueError, match="must"):
                user_data.description_from_plain(broken)


def test_a_checkpoint_with_a_missing_or_different_description_is_refused(tmp_path):
    settings = train.Settings(data=str(table(tmp_path / "plants.csv")), layers="4", steps=2)
    samples = settings.samples()
    samples.setup()
    model = train.build_classifier(settings, samples)
    contents = {"hyper_parameters": dict(model.hyper), "state_dict": model.state_dict()}
    contents["description"] = model.description.to_plain()
    for broken in (
        {name: value for name, value in contents.items() if name != "description"},
        {**contents, "description": {**contents["description"], "kind": "images"}},
        {**contents, "hyper_parameters": {**contents["hyper_parameters"], "shape": [5]}},
        {**contents, "hyper_parameters": {**contents["hyper_parameters"], "kind": None}},
    ):
        checkpoint.write(broken, tmp_path / "broken.ckpt")
        with pytest.raises(ValueError, match="checkpoint must be a file that `hibana train` wrote"):
            train.load(tmp_path / "broken.ckpt")
    checkpoint.write(contents, tmp_path / "complete.ckpt")
    assert train.load(tmp_path / "complete.ckpt").description == samples.description


def test_a_class_named_in_a_settings_file_must_be_trusted(tmp_path, monkeypatch):
    (tmp_path / "newcomer.py").write_text(
        "import hibana as hb\nclass Data(hb.data.DataSet):\n    shape, classes = (3,), 2\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "theirs.yaml").write_text("data: newcomer:Data\n")
    with pytest.raises(ValueError, match="'newcomer:Data'"):
        train.read(tmp_path / "theirs.yaml")
    assert train.read(tmp_path / "theirs.yaml", trust=["newcomer:Data"]).data_set.classes == 2


def test_an_untested_class_has_no_recall_and_is_excluded_from_balanced_accuracy(tmp_path):
    random = np.random.default_rng(0)
    labels = ["common"] * 60 + ["rare"] * 10 + ["single"]
    frame = pandas.DataFrame({"a": random.normal(size=71), "label": labels})
    settings = hb.train.Settings(layers="8", epochs=1, steps=2)
    _, outcome = hb.train.fit(settings, tmp_path / "run", samples=hb.data.Table(frame))
    assert np.isnan(outcome.recalls["single"])
    recalls = [outcome.recalls[name] for name in ("common", "rare")]
    assert not np.isnan(recalls).any()
    assert outcome.balanced == pytest.approx(sum(recalls) / 2)


def test_pictures_of_floating_point_numbers_are_refused(tmp_path):
    for number in range(6):
        kind = tmp_path / "maps" / "ab"[number % 2]
        kind.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full([4, 4], 0.5, np.float32)).save(kind / f"{number}.tif")
    with pytest.raises(ValueError, match=r"picture .*0\.tif can't be read: its numbers are floating-point"):
        read(tmp_path / "maps")


def test_small_networks_use_one_thread(monkeypatch):
    from hibana.train import threads as train_threads

    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)
    for layers, threads in (("16", 1), ("4096,4096", 2)):
        model = train.Network(train.Settings(layers=layers), (8, 8), 10)
        assert train_threads.choose(model) == threads


def test_predict_prints_the_error_of_predicted_quantities(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rows = "".join(f"{i / 3:.3f},{i % 7},{i / 9:.3f}\n" for i in range(60))
    (tmp_path / "slope.csv").write_text(f"a,b,y\n{rows}")
    settings = train.Settings(data="slope.csv", layers="4", epochs=1, steps=2)
    train.fit(settings, tmp_path / "run")
    assert main(["predict", "run", "slope.csv"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    answers = np.array(train.predict("run", "slope.csv").answers)
    error = np.mean((answers - np.round(np.arange(60) / 9, 3)) ** 2)
    assert last.startswith(f"y: 60 samples, mean squared error {error:.4g} (in the unit of y, squared), ")
    assert "of the variance explained" in last
