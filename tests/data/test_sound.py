"""Recordings of sound by class: levels compared with their formula, training, and damaged files."""

import json
import math

import numpy as np
import pytest
import torch

pytest.importorskip("lightning", reason="the extra train is not installed")
pytest.importorskip("soundfile", reason="the extra sound is not installed")

import soundfile

from hibana import data, train
from hibana.cli import main
from hibana.data import user_data
from hibana.data.user_data import sound

SMALL = ["--layers", "16", "--epochs", "3", "--batch-size", "8"]


def tone(pitch, seconds=0.4, rate=16_000, level=0.3):
    """A tone with two overtones that fades in and out."""
    time = np.arange(int(seconds * rate)) / rate
    waves = sum(np.sin(2 * np.pi * pitch * k * time + k) / k for k in (1, 2, 3))
    return level * waves * np.sin(np.pi * time / seconds)


def write_tones(folder, rates=(16_000,), count=20, ending="wav"):
    """Writes low and high tones of several pitches, lengths and levels to ``class/number.wav``."""
    draws = np.random.default_rng(0)
    for k in range(count):
        name, pitch = ("low", 200) if k % 2 else ("high", 900)
        path = folder / name / f"{k:02}.{ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        rate = rates[k % len(rates)]
        wave = tone(pitch * draws.uniform(0.8, 1.2), draws.uniform(0.2, 0.5), rate, draws.uniform(0.01, 0.3))
        soundfile.write(path, wave + 0.001 * draws.normal(size=wave.shape), rate)
    return folder


def test_levels_equal_the_formula_computed_by_torch():
    rate, length, hop = 16_000, 400, 160
    samples = tone(440) + 0.01 * np.random.default_rng(1).normal(size=6400)
    window = torch.hann_window(length, periodic=True, dtype=torch.float64)
    frames = torch.from_numpy(samples).unfold(0, length, hop) * window
    power = torch.fft.rfft(frames, 2 * length).abs().square()
    hertz = torch.arange(length + 1, dtype=torch.float64) * rate / (2 * length)
    mel = torch.linspace(2595 * math.log10(1 + 50 / 700), 2595 * math.log10(1 + 8000 / 700), 42)
    edges = 700 * (10 ** (mel.double() / 2595) - 1)
    bands = []
    for low, peak, high in edges.unfold(0, 3, 1).tolist():
        triangle = torch.minimum((hertz - low) / (peak - low), (high - hertz) / (high - peak))
        bands.append(power @ triangle.clamp(min=0))
    energy = torch.stack(bands, 1)
    expected = (10 * torch.log10(energy / energy.max())).clamp(min=-80)
    torch.testing.assert_close(torch.from_numpy(sound.log_mel(samples, rate)), expected, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("rate", [16_000, 22_050, 44_100, 48_000])
def test_a_tone_is_loudest_in_its_band_at_any_rate(rate):
    levels = sound.log_mel(np.sin(2 * np.pi * 1000 * np.arange(rate) / rate), rate)
    assert abs(len(levels) - 98) <= 1
    edges = np.array(sound._edges(8000.0))
    band = int(levels.mean(0).argmax())
    assert edges[band] < 1000 < edges[band + 2]
    assert levels.max() == 0
    louder = sound.log_mel(7 * np.sin(2 * np.pi * 1000 * np.arange(rate) / rate), rate)
    np.testing.assert_allclose(levels, louder, atol=1e-9)
    other = sound.log_mel(np.sin(2 * np.pi * 1000 * np.arange(16_000) / 16_000), 16_000)
    near = slice(band - 1, band + 2)
    np.testing.assert_allclose(levels[10, near], other[10, near], atol=1.0)


def test_silence_and_recordings_shorter_than_a_frame_have_levels():
    assert (sound.log_mel(np.zeros(1600), 16_000) == -80).all()
    assert sound.log_mel(np.ones(3), 16_000).shape == (1, 40)


@pytest.mark.parametrize("ending", ["wav", "flac", "ogg"])
def test_a_folder_of_sound_is_summarized_and_trained_on(tmp_path, capsys, ending):
    folder = write_tones(tmp_path / "tones", (16_000, 44_100), ending=ending)
    assert user_data.kind_of(folder) == "sound"
    run = tmp_path / "run"
    assert main(["train", "--data", str(folder), *SMALL, "--seed", "1", "--out", str(run)]) == 0
    output = " ".join(capsys.readouterr().out.split())
    assert "20 recordings of sound, 0.2" in output
    assert "at 16,000 to 44,100 Hz, 40 mel bands to 8,000 Hz every 10 ms" in output
    assert "2 classes" in output
    soundfile.write(tmp_path / "new.wav", tone(210, 0.3), 22_050)
    soundfile.write(tmp_path / "phone.wav", tone(210, 0.3, 8000), 8000)
    assert main(["predict", str(run), str(tmp_path / "new.wav")]) == 0
    assert "low" in capsys.readouterr().out
    assert main(["predict", str(run), str(tmp_path / "phone.wav")]) == 0
    assert "there is no sound above" in " ".join("".join(capsys.readouterr()).split())


def test_the_description_computes_the_same_levels(tmp_path):
    folder = write_tones(tmp_path / "tones", (8000, 16_000))
    settings = train.Settings(data=str(folder), steps=24, lengths="pad")
    dataset = settings.samples()
    dataset.setup()
    assert isinstance(dataset, data.Sound)
    assert dataset.shape == (40,)
    plain = json.loads(json.dumps(dataset.description.to_plain()))
    description = user_data.description_from_plain(plain)
    assert description.inputs.highest == 4000
    raw = description.read(folder)
    inputs = description.inputs.tensor(raw.values)
    assert inputs.shape == (20, 24, 40)
    first = dataset.training[0][0]
    assert any(torch.equal(first, sample) for sample in inputs)


DAMAGED = {
    "text": b"this is no sound",
    "samples": np.zeros([0, 1]),
    "finite": np.array([0.0, np.nan, 0.0] * 500),
}
"""Contents of files that are refused: for each, a word of the error message."""


@pytest.mark.parametrize("word", DAMAGED)
def test_damaged_files_are_named_in_a_one_line_error(tmp_path, word):
    folder = write_tones(tmp_path / "tones", count=6)
    path, content = folder / "low" / "99.wav", DAMAGED[word]
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        soundfile.write(path, content, 8000, subtype="FLOAT")
    message = rf"99\.wav can't be read: .*{word if word != 'text' else ''}"
    with pytest.raises(ValueError, match=message) as error:
        data.Sound(folder).setup()
    assert "\n" not in str(error.value)
