"""The model of the inner ear: places of tones, causality, refractory times, and what is refused."""

import math

import numpy as np
import pytest
import torch

pytest.importorskip("scipy", reason="the extra train is not installed")

import hibana as hb
from hibana.nn import cochlea as ear

RATE = 16_000


def tone(pitch, seconds=0.2, rate=RATE):
    return torch.sin(2 * math.pi * pitch * torch.arange(int(seconds * rate)) / rate)


def seeded():
    return torch.Generator().manual_seed(0)


def spikes(sound, channels=70, **options):
    return hb.encode.cochlea(sound, RATE, channels=channels, generator=seeded(), **options)


def test_high_tones_are_near_the_base_and_low_ones_near_the_apex():
    places = []
    for pitch in (4000, 2000, 1000, 500, 250):
        velocity = ear._velocity(tone(pitch).double().numpy(), RATE, 70)
        places.append(int(np.abs(velocity[1600:]).max(0).argmax()))
    assert places == sorted(places)
    assert min(np.diff(places)) > 5


def test_nothing_moves_before_the_sound():
    click = np.zeros(2000)
    click[1000] = 1
    velocity = ear._velocity(click, RATE, 70)
    assert np.abs(velocity[:995]).max() < 0.02 * np.abs(velocity).max()
    energy = (velocity[1000:] ** 2).cumsum(0)
    delays = (energy < energy[-1] / 2).sum(0)
    assert delays[60] > delays[10]  # the wave travels from base to apex


def test_the_response_does_not_depend_on_the_rate():
    found = []
    for rate in (16_000, 32_000):
        velocity = ear._velocity(tone(1000, rate=rate).double().numpy(), rate, 70)
        found.append(np.sqrt((velocity[rate // 10 :] ** 2).mean(0)))
    np.testing.assert_allclose(*found, rtol=0.05, atol=0.05 * found[0].max())


def test_hair_cells_adapt_and_fall_silent_after_the_tone():
    velocity = np.zeros((4000, 1))
    velocity[500:2500] = 300.0
    released = ear._released(velocity, RATE)[:, 0]
    assert released[520:560].mean() > 2 * released[2000:2400].mean() > 2 * released[400:500].mean()
    assert released[2600:2700].mean() < released[400:500].mean()


def test_fibres_that_have_spiked_are_refractory():
    counts = ear._fibres(np.ones((64, 3)), RATE, np.random.default_rng(0))
    assert counts[::16].tolist() == [[40, 40, 40]] * 4
    assert counts.sum() == 40 * 3 * 4
    rare = ear._fibres(np.full((4000, 50), 0.01), RATE, np.random.default_rng(0)).mean() / 40
    assert rare == pytest.approx(0.01 / (1 + 15 * 0.01), rel=0.03)  # a renewal process with a dead time


def test_bushy_cells_wait_a_millisecond():
    fired = ear._bushy(np.full((400, 2), 20), RATE)
    gaps = np.diff(fired[:, 0].nonzero()[0])
    assert gaps.min() >= 16
    assert not ear._bushy(np.zeros((400, 2), int), RATE).any()


def test_a_tone_spikes_where_it_is_heard():
    found = spikes(tone(1000))
    assert found.shape == (200, 70)
    assert set(found.unique().tolist()) <= {0.0, 1.0}
    velocity = ear._velocity(tone(1000).double().numpy(), RATE, 70)
    place = int(np.abs(velocity[1600:]).max(0).argmax())
    rates = found.mean(0)
    assert rates[place - 3 : place + 3].mean() > 3 * rates[60:].mean()
    assert 0.001 < float(found.mean()) < 0.1
    assert torch.equal(found, spikes(tone(1000)))
    assert torch.equal(found, spikes(7 * tone(1000)))  # loudness does not matter


def test_sounds_in_a_batch_and_steps_of_other_lengths():
    both = torch.stack([tone(500), tone(2000)])
    found = spikes(both, channels=20, step=0.004)
    assert found.shape == (50, 2, 20)
    assert found[:, 0].mean(0).argmax() > found[:, 1].mean(0).argmax()
    silent = spikes(torch.zeros(800), channels=20)
    assert silent.shape == (50, 20)
    assert float(silent.mean()) < 0.2
    assert hb.encode.cochlea(tone(500).double(), RATE, channels=1).dtype == torch.float64


@pytest.mark.parametrize(
    ("given", "error", "says"),
    [
        ({"sound": [0.0]}, TypeError, "sound must be a floating-point tensor"),
        ({"sound": torch.zeros(0)}, ValueError, r"sound must be finite, \[N\] or \[batch, N\]"),
        ({"sound": torch.tensor([1.0, math.nan])}, ValueError, "sound must be finite"),
        ({"channels": 0}, ValueError, "channels must be an integer of at least 1"),
        ({"rate": 100}, ValueError, "rate must be at least 2,000"),
        ({"step": 1e-9}, ValueError, "step must be at least the"),
    ],
)
def test_refuses(given, error, says):
    with pytest.raises(error, match=says):
        hb.encode.cochlea(**{"sound": torch.zeros(100), "rate": RATE, "channels": 4, **given})
