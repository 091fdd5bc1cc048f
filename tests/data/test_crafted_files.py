"""Files that declare a size that cannot be meant are refused before their contents are read."""

import re

import numpy as np
import pandas
import pytest

from hibana import data
from hibana.cli import main
from hibana.data.user_data import samples

ZEROS = {
    "inputs": np.zeros((70_000, 1_000)),
    "labels": np.zeros(70_000),
}  # 560 MB, a compressed file of 0.5 MB


def refusal(capsys, path, *options):
    """What `hibana train` prints instead of reading the file or folder `path`."""
    assert main(["train", "--data", str(path), *options]) == 2
    return capsys.readouterr().err


@pytest.fixture
def recordings(tmp_path):
    """A function that writes recordings of 30 events each; the last one has an event at `pixel`."""

    def write(pixel, count=20):
        random = np.random.default_rng(0)
        for number in range(count):
            events = random.integers(0, 30, (30, 4))
            events[:, 0], events[:, 3] = np.arange(30), events[:, 3] % 2
            if number == count - 1:
                events[-1, 1] = pixel
            path = tmp_path / "recordings" / "ab"[number % 2] / f"{number:02}.csv"
            path.parent.mkdir(parents=True, exist_ok=True)
            np.savetxt(path, events, "%d", ",", header="t,x,y,p", comments="")
        return tmp_path / "recordings"

    return write


@pytest.mark.parametrize("pixel", [2048, 60_000, 10**9, 10**17])
def test_an_event_that_declares_a_huge_sensor_is_refused(recordings, capsys, pixel):
    folder = recordings(pixel)
    message = f"recording b/19.csv of recordings has an event at {pixel} pixels; sensors have at most 2,048"
    assert message in refusal(capsys, folder)
    samples_ = data.Events(folder, size=30, steps=2)  # the size leaves the event out
    samples_.setup()
    assert samples_.shape == (2, 30, 30)


def test_bins_that_would_fill_the_memory_are_refused_before_they_are_made(recordings, capsys):
    message = refusal(capsys, recordings(2000), "--steps", "100000")
    assert (
        "50% of the memory; 20 recordings of 100000 bins of 30x2001 pixels and 2 polarities take" in message
    )
    assert "use fewer bins (--steps), or a part of the sensor (--size)" in message


def test_a_table_of_many_columns_is_refused(tmp_path, capsys):
    row = ",".join("1" * 70_000)
    names = ",".join(f"c{number}" for number in range(70_000))
    (tmp_path / "wide.csv").write_text("\n".join([names, row, row]))
    assert "wide.csv can't be read: it has 70,000 columns; at most 65,536" in refusal(
        capsys, tmp_path / "wide.csv"
    )
    frame = pandas.DataFrame(np.ones((2, 70_000)), columns=names.split(","))
    frame.to_parquet(tmp_path / "wide.parquet")
    assert "it has 70,000 columns" in refusal(capsys, tmp_path / "wide.parquet")


def test_lines_are_counted_with_the_ends_of_old_files(tmp_path):
    (tmp_path / "old.csv").write_bytes(b"a,b\r" + b"1,x\r2,y\r" * 40_000)
    table = data.Table(tmp_path / "old.csv")
    table.setup()
    assert table.shape == (1,)


@pytest.mark.parametrize("contents", ["numbers", "texts"])
def test_a_compressed_table_that_would_fill_the_memory_is_refused(tmp_path, capsys, contents):
    columns = {"label": ["a", "b"] * 3000}
    if contents == "numbers":
        columns = {"label": np.zeros(20_000_000), **{f"c{k}": np.zeros(20_000_000) for k in range(3)}}
    else:
        columns["text"] = ["x" * 100_000] * 6000
    path = tmp_path / "table.parquet"
    pandas.DataFrame(columns).to_parquet(path, compression="zstd")
    size = 640 if contents == "numbers" else 600
    expected = (
        rf"table .*table.parquet can't be read: it declares {size} MB, [\d,]+ times its size; at most 500"
    )
    assert re.search(expected, refusal(capsys, path))


def test_a_compressed_archive_of_zeros_is_refused(tmp_path, capsys):
    np.savez_compressed(tmp_path / "bomb.npz", **ZEROS)
    assert "it declares 561 MB, 1,028 times its size" in refusal(capsys, tmp_path / "bomb.npz")
    np.savez_compressed(tmp_path / "small.npz", inputs=np.eye(50), labels=np.arange(50) % 2)
    assert data.Arrays(tmp_path / "small.npz").shape == (50,)


def test_an_hdf5_file_of_events_that_declares_more_than_it_holds_is_refused(tmp_path):
    h5py = pytest.importorskip("h5py", reason="the extra events is not installed")
    for name in "ab":
        (tmp_path / name).mkdir()
        with h5py.File(tmp_path / name / "one.h5", "w") as file:
            for column in "txyp":
                file.create_dataset(column, (10**11,), np.int64, chunks=(1000,))  # stores no chunk
    with pytest.raises(ValueError, match=r"one\.h5 .*: it declares 3,200,000 MB, .* times its size"):
        data.Events(tmp_path).setup()


def test_contents_larger_than_half_of_the_memory_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(samples, "machine_memory", lambda: 1_000_000)
    np.savez(tmp_path / "large.npz", inputs=np.eye(1000, 100), labels=np.arange(1000) % 2)
    with pytest.raises(ValueError, match=r"it declares 0.0 GB; 0.0 GB fit in 50% of the memory"):
        data.Arrays(tmp_path / "large.npz").setup()


def test_counts_of_events_are_exact(recordings):
    folder = recordings(29)
    counts, spikes = (data.Events(folder, bins=bins, steps=3) for bins in ("counts", "spikes"))
    for part in (counts, spikes):
        part.setup()
    assert counts.training.inputs.sum() == 30 * len(counts.training)
    assert (counts.training.inputs > 0).equal(spikes.training.inputs)
