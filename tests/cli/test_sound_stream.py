"""``hibana predict --stream`` on raw sound: frames as in training, and refused inputs."""

import io
import json

import numpy as np
import pytest
import torch

pytest.importorskip("lightning", reason="the extra train is not installed")
pytest.importorskip("soundfile", reason="the extra sound is not installed")

import soundfile

from hibana import train
from hibana.cli import main
from hibana.data.user_data import sound

RATE = 16_000


def tone(pitch, seconds=0.3):
    time = np.arange(int(seconds * RATE)) / RATE
    return 0.3 * np.sin(2 * np.pi * pitch * time) * np.minimum(1, 20 * time)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a run on low and high tones, trained for few epochs."""
    folder, draws = tmp_path_factory.mktemp("sound"), np.random.default_rng(0)
    for k in range(20):
        path = folder / "tones" / ("low", "high")[k % 2] / f"{k}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        wave = tone((300, 1500)[k % 2] * draws.uniform(0.9, 1.1), draws.uniform(0.2, 0.4))
        soundfile.write(path, wave + 0.001 * draws.normal(size=wave.shape), RATE)
    settings = train.Settings(
        data=str(folder / "tones"), layers="16", epochs=4, batch_size=8, lengths="mask", steps=40
    )
    train.fit(settings, folder / "run")
    return folder / "run"


@pytest.fixture
def listen(run, monkeypatch, capsys):
    def run_command(raw, *options):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(raw)))
        status = main(["predict", str(run), "--stream", *options])
        out, err = capsys.readouterr()
        return status, out.splitlines(), err

    return run_command


def raw(samples):
    return (samples * 32_767).astype("<i2").tobytes()


def test_levels_of_a_frame_are_relative_to_the_loudest_so_far(run, listen):
    samples = tone(1500)
    status, lines, err = listen(raw(samples), "--rate", str(RATE), "--json")
    model = train.load(run)
    exact = np.frombuffer(raw(samples), "<i2") / 32_768
    energies = sound.band_energies(exact, RATE, model.description.inputs.highest)
    loudest = np.maximum.accumulate(energies.max(1))
    frames = [sound.levels(row[None], top)[0] for row, top in zip(energies, loudest, strict=True)]
    inputs = model.description.inputs.scaled(np.stack(frames)).float()[:, None]
    with torch.no_grad():
        outputs = model.net(inputs)
        expected = [model.objective.scores(outputs[: t + 1]).softmax(1)[0] for t in range(len(outputs))]
    assert status == 0
    assert len(lines) == len(frames) == 28
    for line, probabilities in zip(lines, expected, strict=True):
        assert list(json.loads(line)["probabilities"].values()) == pytest.approx(
            probabilities.tolist(), abs=1e-4
        )
    assert "28 steps; from a frame to its answer median" in err


def test_tones_are_classified(listen):
    for pitch, name in ((300, "low"), (1500, "high")):
        assert name in listen(raw(tone(pitch)))[1][-1]


def test_short_input_has_no_answer_and_half_a_sample_is_an_error(listen):
    assert listen(raw(tone(300)[:399]))[:2] == (0, [])
    status, lines, err = listen(raw(tone(300)) + b"\1")
    assert status == 1
    assert len(lines) == 28
    assert "standard input must hold samples of two bytes, and ends in the middle of one" in err


def test_invalid_rates_are_refused(listen):
    assert "--rate must be at least 16,000: tones was trained on sound to 8,000 Hz" in listen(
        b"", "--rate", "8000"
    )[2].replace("\n", " ")
