"""Series and spike trains in arrays, and map-style datasets of samples."""

import json

import numpy as np
import pandas
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

pytest.importorskip("lightning", reason="the extra train is not installed")
pytest.importorskip("pandas", reason="the extra train is not installed")

import hibana as hb
from hibana import train
from hibana.cli import main
from hibana.data import user_data

LABELS = np.arange(40) % 2
SMALL = ["--layers", "16", "--epochs", "2", "--batch-size", "8"]


def waves(count=40, steps=30):
    """Slow and fast waves, ``[N, T, 2]``."""
    time = np.arange(steps) * np.where(np.arange(count) % 2, 0.2, 0.5)[:, None]
    return np.stack([np.sin(time), np.cos(time)], axis=2)


def trains(count=40, steps=30):
    spikes = (np.random.default_rng(0).random([count, steps, 5]) < 0.2) * 1
    spikes[3] = 0  # a sample without spikes
    return spikes


def load(path, **changes):
    settings = train.Settings(data=str(path), **changes)
    data = settings.samples()
    data.setup()
    return settings, data


@pytest.mark.parametrize("dtype", ["f4", "f8", "i2"])
def test_arrays_of_series_are_read_as_sequences_and_the_summary_states_it(tmp_path, dtype):
    x = (waves() * 100).astype(dtype)
    np.savez(tmp_path / "waves.npz", x=x, y=LABELS)
    settings, data = load(tmp_path / "waves.npz")
    assert (settings.kind, settings.steps, settings.coding, settings.cell) == ("sequences", 64, "none", "LIF")
    assert data.summary.startswith(
        "waves.npz: 40 sequences of 2 features, 30 steps, stretched to 64 "
        "(--kind arrays if they have no time axis)"
    )
    in_memory = user_data.Sequences(list(x), labels=LABELS)
    in_memory.setup()
    assert torch.equal(data.training.inputs, in_memory.training.inputs)
    settings, flat = load(tmp_path / "waves.npz", kind="arrays")
    assert settings.cell == "IF"
    assert "40 arrays of 30x2 without a time axis (--kind sequences if they are series)" in flat.summary


def test_the_array_lengths_truncates_the_series(tmp_path):
    x, lengths = waves(), np.arange(40) % 7 + 20
    np.savez(tmp_path / "waves.npz", x=x, y=LABELS, lengths=lengths)
    _, data = load(tmp_path / "waves.npz")
    assert "40 sequences of 2 features, 20 to 26 steps" in data.summary
    frames = [series[:length] for series, length in zip(x, lengths, strict=True)]
    in_memory = user_data.Sequences(frames, labels=LABELS)
    in_memory.setup()
    assert torch.equal(data.training.inputs, in_memory.training.inputs)
    for wrong in (lengths * 2, lengths * 0, lengths / 3):
        np.savez(tmp_path / "wrong.npz", x=x, y=LABELS, lengths=wrong)
        with pytest.raises(ValueError, match="lengths must be whole numbers of 1 to 30 steps"):
            load(tmp_path / "wrong.npz")
    arrays = {f"{name}_{part}": values[at] for name, values in (("x", x), ("y", LABELS), ("lengths", lengths))
             for part, at in (("train", slice(0, 30)), ("test", slice(30, 40)))}  # fmt: skip
    np.savez(tmp_path / "parts.npz", **arrays)
    _, parts = load(tmp_path / "parts.npz")
    assert [len(part) for part in (parts.training, parts.validation, parts.test)] == [27, 3, 10]
    assert "20 to 26 steps" in parts.summary


def test_rows_of_numbers_are_series_only_with_kind_sequences(tmp_path):
    np.savez(tmp_path / "rows.npz", x=waves()[..., 0], y=LABELS)
    assert load(tmp_path / "rows.npz")[0].kind == "arrays"
    _, data = load(tmp_path / "rows.npz", kind="sequences")
    assert "40 sequences of 1 feature, 30 steps, stretched to 64" in data.summary
    np.savez(tmp_path / "video.npz", x=np.zeros([40, 5, 3, 4]), y=LABELS)
    with pytest.raises(ValueError, match=r"must be numbers \[N, T, F\] or \[N, T\], got float64"):
        load(tmp_path / "video.npz", kind="sequences")


@pytest.mark.parametrize("dtype", [bool, "u1", "i8", "f4"])
def test_spike_trains_are_not_stretched(tmp_path, dtype):
    x = trains().astype(dtype)
    np.savez(tmp_path / "spikes.npz", x=x, y=LABELS, lengths=np.arange(40) % 5 + 26)
    settings, data = load(tmp_path / "spikes.npz")
    assert (settings.kind, settings.steps) == ("sequences", 30)
    assert "40 trains of spikes, 0 and 1, of 5 features, 26 to 30 steps, cut or padded to 30" in data.summary
    frames = [train[:length] for train, length in zip(x, np.arange(40) % 5 + 26, strict=True)]
    expected = torch.stack(
        [torch.cat([torch.from_numpy(f).float(), torch.zeros(30 - len(f), 5)]) for f in frames]
    )
    assert torch.equal(data.description.inputs.tensor(data.read(data.source).values), expected)
    assert load(tmp_path / "spikes.npz", steps=20)[1].shape == (5,)
    in_memory = user_data.Sequences(frames, labels=LABELS)
    in_memory.setup()
    assert torch.equal(in_memory.training.inputs, data.training.inputs)
    description = user_data.description_from_plain(json.loads(json.dumps(data.description.to_plain())))
    assert description == data.description
    assert torch.equal(description.inputs.tensor(description.read(tmp_path / "spikes.npz").values), expected)


def test_bytes_are_pictures_and_sequences_in_text_files_are_stretched(tmp_path):
    bytes_ = np.random.default_rng(0).integers(0, 255, [40, 8, 8], np.uint8)
    np.savez(tmp_path / "bytes.npz", x=bytes_, y=LABELS)
    settings, data = load(tmp_path / "bytes.npz")
    assert (settings.kind, settings.layers) == ("arrays", "16c3b-p2-32c3b-p2-128")
    assert "--kind" not in data.summary
    for number in range(20):
        (tmp_path / "text" / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        np.savetxt(tmp_path / "text" / "ab"[number % 2] / f"{number}.csv", trains()[number], delimiter=",")
    assert "20 sequences of 5 features, 30 steps, stretched to 64" in load(tmp_path / "text")[1].summary


def test_one_command_trains_on_series_in_arrays_and_predict_reads_more(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez("waves.npz", inputs=waves(), labels=np.array(["slow", "fast"])[LABELS])
    assert main(["train", "--data", "waves.npz", "--out", "run", *SMALL]) == 0
    np.savez("other.npz", x=waves(6), lengths=np.full(6, 25))
    np.save("new.npy", waves(6))
    capsys.readouterr()
    for name in ("other.npz", "new.npy", "waves.npz"):
        assert main(["predict", "run", name, "--csv"]) == 0
        assert capsys.readouterr().out.startswith("sample,class,")


@pytest.mark.parametrize("kind", ["tensors", "subset"])
def test_fit_takes_map_style_datasets(tmp_path, kind):
    x, y = torch.from_numpy(waves()[:, 0] + LABELS[:, None]).float(), torch.from_numpy(LABELS)
    tensors = TensorDataset(x, y)
    samples = tensors if kind == "tensors" else Subset(tensors, range(40))
    settings = train.Settings(layers="8", epochs=1, steps=3, batch_size=8)
    model, outcome = train.fit(settings, tmp_path / "run", samples=samples)
    assert (outcome.settings.kind, model.description.target.classes) == ("arrays", ("0", "1"))
    expected = user_data.Arrays(x, labels=y.tolist())
    expected.setup()
    assert model.description == expected.description
    assert len(hb.train.predict(model, x).answers) == 40


def test_fit_takes_datasets_of_series_and_of_spike_trains(tmp_path):
    settings = train.Settings(layers="8", epochs=1, batch_size=8)
    for x, steps in ((waves(), 64), (trains(), 30)):
        samples = TensorDataset(torch.from_numpy(x), torch.from_numpy(LABELS))
        model, outcome = train.fit(settings, tmp_path / "run", samples=samples, overwrite=True)
        assert (outcome.settings.kind, outcome.settings.steps) == ("sequences", steps)
        assert len(hb.train.predict(model, list(x)).answers) == 40


class _Stream(IterableDataset):
    def __iter__(self):
        return iter([])


class _Dictionaries(Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        return {"pixels": torch.zeros(3), "label": index % 2}


def test_a_dataset_of_dictionaries_and_a_data_frame_are_refused_with_a_hint(tmp_path):
    with pytest.raises(TypeError, match=r"pairs \(x, y\), got dictionaries with the keys pixels, label"):
        train.fit(train.Settings(), tmp_path / "run", samples=_Dictionaries())
    frame = pandas.DataFrame({"x": [1.0, 2.0], "label": ["a", "b"]})
    with pytest.raises(TypeError, match=r"got a DataFrame: pass hb\.data\.Table\(frame, label="):
        train.fit(train.Settings(), tmp_path / "run", samples=frame)


@pytest.mark.parametrize(
    "samples",
    [
        _Stream(),
        DataLoader(TensorDataset(torch.zeros(4, 2), torch.zeros(4))),
        {"train": [1], "test": [2]},
        TensorDataset(torch.zeros(4, 2)),
        TensorDataset(torch.zeros(4, 2), torch.zeros(4, 3)),
        ([[1.0]], [0]),
    ],
)
def test_anything_but_a_dataset_of_pairs_is_refused(tmp_path, samples):
    error = rf"must be a map-style dataset of pairs \(x, y\) .*, got {type(samples).__name__}; hb.data.Arrays"
    with pytest.raises(ValueError, match=error):
        train.fit(train.Settings(), tmp_path / "run", samples=samples)


@pytest.mark.parametrize(
    ("labels", "text"),
    [
        (np.arange(50) % 2, "50 arrays of 3, label `class`: 2 classes (training part: 0 18, 1 18)"),
        (np.linspace(0, 1, 50), "50 arrays of 3, label `class`: a quantity (training part: "),
    ],
)
def test_the_summary_counts_the_labels_of_the_training_part(tmp_path, labels, text):
    np.savez(tmp_path / "some.npz", x=np.random.default_rng(0).normal(size=(50, 3)), y=labels)
    _, samples = load(tmp_path / "some.npz")
    assert text in samples.summary
