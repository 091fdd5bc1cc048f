"""Sequences at hand, recordings kept as bits, and samples of unequal length in batches."""

import random
import wave

import numpy as np
import pytest
import torch

from hibana import data


@pytest.mark.slow
def test_mnist_1d_is_made_by_its_authors_package_from_its_seed():
    pytest.importorskip("mnist1d")
    sequences = data.MNIST1D()
    before = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    sequences.setup()
    assert random.getstate() == before[0]
    assert np.array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), before[2])
    parts = sequences.training, sequences.validation, sequences.test
    assert [len(split) for split in parts] == [3600, 400, 1000]
    assert sequences.test.inputs.shape == (1000, 40, 1)
    joined = torch.cat([split.inputs for split in parts])
    assert joined.mean().abs() < 1e-4
    assert (joined.std() - 1).abs() < 1e-3
    assert torch.cat([split.labels for split in parts]).bincount().tolist() == [500] * 10
    again = data.MNIST1D(steps=20)
    again.setup()
    assert torch.equal(again.test.labels, sequences.test.labels)
    assert torch.equal(again.test.inputs[:, [0, -1]], sequences.test.inputs[:, [0, -1]])  # stretched


def test_mnist_1d_without_its_package_gets_a_sentence(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "mnist1d", None)
    with pytest.raises(
        ModuleNotFoundError, match=r"MNIST1D needs mnist1d, .*pip install '\.\[data\]' in a clone"
    ):
        data.MNIST1D().setup()


def test_samples_of_unequal_length_are_padded_and_their_lengths_told():
    sequences = [torch.rand(length, 3) for length in (5, 2, 7, 1)]
    split = data.Ragged(sequences, torch.tensor([3, 0, 1, 2]))
    loader = torch.utils.data.DataLoader(split, 3, collate_fn=data.padded)
    first, last = loader
    assert [part.shape for part in first] == [(3, 7, 3), (3,), (3,)]
    assert last[0].shape == (1, 1, 3)
    assert first[1].tolist() == [3, 0, 1]
    for inputs, length, sequence in zip(first[0], first[2].tolist(), sequences, strict=False):
        assert torch.equal(inputs[:length], sequence)
        assert not inputs[length:].any()
    with pytest.raises(ValueError, match="labels must be one for each of 4 sequences, got 2"):
        data.Ragged(sequences, torch.tensor([0, 1]))


def sound(path, values, rate=16_000):
    path.parent.mkdir(exist_ok=True, parents=True)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((values * 30_000).numpy().astype("<i2").tobytes())


@pytest.fixture
def words(tmp_path):
    """Thirty-five words of three recordings each: a low tone that becomes a high one half-way."""
    time = torch.arange(16_000) / 16_000
    tone = torch.where(time < 0.5, torch.sin(6.2832 * 300 * time), torch.sin(6.2832 * 3000 * time))
    for word in range(35):
        for speaker in range(3):
            length = 16_000 if speaker else 12_000
            sound(tmp_path / f"word{word:02}" / f"{speaker}_nohash_0.wav", tone[:length])
    sound(tmp_path / "_background_noise_" / "noise.wav", tone)
    (tmp_path / "validation_list.txt").write_text("".join(f"word{n:02}/1_nohash_0.wav\n" for n in range(35)))
    (tmp_path / "testing_list.txt").write_text("word07/2_nohash_0.wav\nword30/2_nohash_0.wav\n")
    return tmp_path


def test_speech_commands_by_their_lists_as_bands_over_time(words):
    pytest.importorskip("soundfile", reason="the extra sound is not installed")
    spoken = data.load("speech-commands", root=words, steps=50)
    spoken.setup()
    parts = spoken.training, spoken.validation, spoken.test
    assert [len(part) for part in parts] == [105 - 37, 35, 2]
    assert [label.item() for _, label in spoken.test] == [7, 30]
    bands, _ = spoken.test[0]
    assert bands.shape == (50, 40)
    assert bands.mean().abs() < 1e-4
    low, high = bands[5:20].mean(0).argmax(), bands[30:45].mean(0).argmax()
    assert 3 <= low <= 8  # 300 Hz of 8000, on the mel scale
    assert 22 <= high <= 28  # 3000 Hz
    short, _ = spoken.training[0]
    assert (short[40:].max(1).values < short[:35].max(1).values.min()).all()  # silence after its end


def test_speech_commands_that_are_damaged_or_missing_get_a_sentence(words):
    spoken = data.SpeechCommands(root=words)
    spoken.setup()
    content = (words / "word30" / "2_nohash_0.wav").read_bytes()
    for damaged, why in (
        (b"RIFF", "Format not recognised"),
        (content[:9000], "truncated, its header declares 32,000"),
    ):
        (words / "word30" / "2_nohash_0.wav").write_bytes(damaged)
        with pytest.raises(ValueError, match=rf"2_nohash_0\.wav can't be read as sound: .*{why}"):
            spoken.test[1]
    with pytest.raises(
        FileNotFoundError, match=r"root must hold validation_list\.txt, testing_list\.txt and the"
    ):
        data.SpeechCommands(root=words / "word00").setup()
