"""What is done to training recordings: each word does what it says, and no more."""

import numpy as np
import pytest
import torch

pytest.importorskip("lightning", reason="the extra train is not installed")

from hibana import data, train
from hibana.train.augment import augment_batch

SHAPE = (60, 6, 2, 16, 24)


@pytest.fixture
def recordings():
    torch.manual_seed(0)
    return (torch.rand(SHAPE) < 0.2).float()


def test_recordings_roll_around_the_sensor_by_up_to_an_eighth(recordings):
    ways = set()
    for before, after in zip(recordings, augment_batch(recordings, "roll"), strict=True):
        ((dy, dx),) = [
            (dy, dx)
            for dy in range(-2, 3)
            for dx in range(-3, 4)
            if torch.equal(after, before.roll((dy, dx), (-2, -1)))
        ]
        ways.add((dy, dx))
    assert len(ways) > 15
    assert {dy for dy, _ in ways} == {-2, -1, 0, 1, 2}
    assert {dx for _, dx in ways} == {-3, -2, -1, 0, 1, 2, 3}


def test_recordings_shift_by_up_to_an_eighth_and_zeros_come_in(recordings):
    ones = augment_batch(torch.ones_like(recordings), "shift")
    sides = {(int(each[0, 0].any(1).sum()), int(each[0, 0].any(0).sum())) for each in ones}
    assert {height for height, _ in sides} == {14, 15, 16}
    assert {width for _, width in sides} == {21, 22, 23, 24}
    assert (augment_batch(recordings, "shift").sum() < recordings.sum()).item()


def test_flips_mirror_half_of_the_recordings(recordings):
    after = augment_batch(recordings, "flip")
    mirrored = [torch.equal(a, b.flip(-1)) for a, b in zip(after, recordings, strict=True)]
    assert 15 < sum(mirrored) < 45
    for b, a, was in zip(recordings, after, mirrored, strict=True):
        assert was or torch.equal(a, b)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"augment": "flip-spin"}, "augment must be one of none, flip, shift, roll; got 'spin'"),
        ({"augment": ""}, "augment must be one of none"),
    ],
)
def test_words_that_mean_nothing_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        train.Settings(**settings)


def test_tables_are_not_augmented(tmp_path):
    samples = data.Arrays(np.zeros([60, 3]), labels=[0, 1] * 30)
    with pytest.raises(ValueError, match="augment must be none for inputs that are no images"):
        train.fit(train.Settings(augment="flip"), tmp_path / "run", samples=samples)
