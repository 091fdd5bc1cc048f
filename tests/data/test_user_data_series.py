"""Series and spike trains in arrays, and map-style datasets of samples."""

import json

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, Subset, TensorDataset

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
    spikes[3] = 0  # a sample in which nothing fires
    return spikes


def made_of(path, **changes):
    settings = train.Settings(data=str(path), **changes)
    made = settings.samples()
    made.setup()
    return settings, made


@pytest.mark.parametrize("dtype", ["f4", "f8", "i2"])
def test_series_in_arrays_are_series_and_the_line_says_so(tmp_path, dtype):
    x = (waves() * 100).astype(dtype)
    np.savez(tmp_path / "waves.npz", x=x, y=LABELS)
    settings, made = made_of(tmp_path / "waves.npz")
    assert (settings.kind, settings.steps, settings.coding, settings.cell) == ("sequences", 64, "none", "LIF")
    assert made.summary.startswith(
        "waves.npz: 40 sequences of 2 features, 30 steps, stretched to 64 "
        "(--kind arrays if they have no time axis)"
    )
    in_memory = user_data.Sequences(list(x), labels=LABELS)
    in_memory.setup()
    assert torch.equal(made.training.inputs, in_memory.training.inputs)
    settings, flat = made_of(tmp_path / "waves.npz", kind="arrays")
    assert settings.cell == "IF"
    assert "40 arrays of 30x2 without a time axis (--kind sequences if they are series)" in flat.summary


def test_lengths_beside_series_end_them(tmp_path):
    x, lengths = waves(), np.arange(40) % 7 + 20
    np.savez(tmp_path / "waves.npz", x=x, y=LABELS, lengths=lengths)
    _, made = made_of(tmp_path / "waves.npz")
    assert "40 sequences of 2 features, 20 to 26 steps" in made.summary
    frames = [each[:length] for each, length in zip(x, lengths, strict=True)]
    in_memory = user_data.Sequences(frames, labels=LABELS)
    in_memory.setup()
    assert torch.equal(made.training.inputs, in_memory.training.inputs)
    for wrong in (lengths * 2, lengths * 0, lengths / 3):
        np.savez(tmp_path / "wrong.npz", x=x, y=LABELS, lengths=wrong)
        with pytest.raises(ValueError, match="lengths must be whole numbers of 1 to 30 steps"):
            made_of(tmp_path / "wrong.npz")
    given = {f"{name}_{part}": values[at] for name, values in (("x", x), ("y", LABELS), ("lengths", lengths))
             for part, at in (("train", slice(0, 30)), ("test", slice(30, 40)))}  # fmt: skip
    np.savez(tmp_path / "parts.npz", **given)
    _, parts = made_of(tmp_path / "parts.npz")
    assert [len(part) for part in (parts.training, parts.validation, parts.test)] == [27, 3, 10]
    assert "20 to 26 steps" in parts.summary


def test_rows_of_numbers_are_series_where_that_is_asked_for(tmp_path):
    np.savez(tmp_path / "rows.npz", x=waves()[..., 0], y=LABELS)
    assert made_of(tmp_path / "rows.npz")[0].kind == "arrays"
    _, made = made_of(tmp_path / "rows.npz", kind="sequences")
    assert "40 sequences of 1 feature, 30 steps, stretched to 64" in made.summary
    np.savez(tmp_path / "video.npz", x=np.zeros([40, 5, 3, 4]), y=LABELS)
    with pytest.raises(ValueError, match=r"must be numbers \[N, T, F\] or \[N, T\], got float64"):
        made_of(tmp_path / "video.npz", kind="sequences")


@pytest.mark.parametrize("dtype", [bool, "u1", "i8", "f4"])
def test_spike_trains_are_shown_as_they_are(tmp_path, dtype):
    x = trains().astype(dtype)
    np.savez(tmp_path / "spikes.npz", x=x, y=LABELS, lengths=np.arange(40) % 5 + 26)
    settings, made = made_of(tmp_path / "spikes.npz")
    assert (settings.kind, settings.steps) == ("sequences", 30)
    assert "40 trains of spikes, 0 and 1, of 5 features, 26 to 30 steps, cut or padded to 30" in made.summary
    frames = [each[:length] for each, length in zip(x, np.arange(40) % 5 + 26, strict=True)]
    wanted = torch.stack(
        [torch.cat([torch.from_numpy(f).float(), torch.zeros(30 - len(f), 5)]) for f in frames]
    )
    assert torch.equal(made.description.inputs.tensor(made.read(made.source).values), wanted)
    assert made_of(tmp_path / "spikes.npz", steps=20)[1].shape == (5,)
    in_memory = user_data.Sequences(frames, labels=LABELS)
    in_memory.setup()
    assert torch.equal(in_memory.training.inputs, made.training.inputs)
    again = user_data.description_from_plain(json.loads(json.dumps(made.description.to_plain())))
    assert again == made.description
    assert torch.equal(again.inputs.tensor(again.read(tmp_path / "spikes.npz").values), wanted)


def test_bytes_stay_pictures_and_text_stays_stretched(tmp_path):
    bytes_ = np.random.default_rng(0).integers(0, 255, [40, 8, 8], np.uint8)
    np.savez(tmp_path / "bytes.npz", x=bytes_, y=LABELS)
    settings, made = made_of(tmp_path / "bytes.npz")
    assert (settings.kind, settings.layers) == ("arrays", "16c3b-p2-32c3b-p2-128")
    assert "--kind" not in made.summary
    for number in range(20):
        (tmp_path / "text" / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        np.savetxt(tmp_path / "text" / "ab"[number % 2] / f"{number}.csv", trains()[number], delimiter=",")
    assert "20 sequences of 5 features, 30 steps, stretched to 64" in made_of(tmp_path / "text")[1].summary


def test_one_command_trains_on_series_in_arrays_and_names_more(tmp_path, capsys, monkeypatch):
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
    wanted = user_data.Arrays(x, labels=y.tolist())
    wanted.setup()
    assert model.description == wanted.description
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
def test_what_is_no_dataset_of_pairs_is_refused(tmp_path, samples):
    words = rf"must be a map-style dataset of pairs \(x, y\) .*, got {type(samples).__name__}; hb.data.Arrays"
    with pytest.raises(ValueError, match=words):
        train.fit(train.Settings(), tmp_path / "run", samples=samples)
