"""Augmentations of training recordings: roll, shift and flip."""

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
    shifts = set()
    for before, after in zip(recordings, augment_batch(recordings, "roll"), strict=True):
        ((dy, dx),) = [
            (dy, dx)
            for dy in range(-2, 3)
            for dx in range(-3, 4)
            if torch.equal(after, before.roll((dy, dx), (-2, -1)))
        ]
        shifts.add((dy, dx))
    assert len(shifts) > 15
    assert {dy for dy, _ in shifts} == {-2, -1, 0, 1, 2}
    assert {dx for _, dx in shifts} == {-3, -2, -1, 0, 1, 2, 3}


def test_recordings_shift_by_up_to_an_eighth_and_are_padded_with_zeros(recordings):
    ones = augment_batch(torch.ones_like(recordings), "shift")
    sides = {(int(image[0, 0].any(1).sum()), int(image[0, 0].any(0).sum())) for image in ones}
    assert {height for height, _ in sides} == {14, 15, 16}
    assert {width for _, width in sides} == {21, 22, 23, 24}
    assert (augment_batch(recordings, "shift").sum() < recordings.sum()).item()


def test_flips_mirror_half_of_the_recordings(recordings):
    after = augment_batch(recordings, "flip")
    mirrored = [torch.equal(a, b.flip(-1)) for a, b in zip(after, recordings, strict=True)]
    assert 15 < sum(mirrored) < 45
    for b, a, is_mirrored in zip(recordings, after, mirrored, strict=True):
        assert is_mirrored or torch.equal(a, b)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"augment": "flip-spin"}, "augment must be one of none, flip, shift, roll; got 'spin'"),
        ({"augment": ""}, "augment must be one of none"),
    ],
)
def test_unknown_augmentations_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        train.Settings(**settings)


def test_tables_are_not_augmented(tmp_path):
    samples = data.Arrays(np.zeros([60, 3]), labels=[0, 1] * 30)
    with pytest.raises(ValueError, match="augment must be none for inputs that are no images"):
        train.fit(train.Settings(augment="flip"), tmp_path / "run", samples=samples)


def test_one_seed_gives_one_batch(recordings):
    batches = []
    for _ in range(2):
        torch.manual_seed(7)
        batches.append(augment_batch(recordings, "flip-shift-roll"))
    assert torch.equal(*batches)
    assert not torch.equal(batches[0], recordings)


def test_without_augmentation_the_recordings_are_returned_themselves(recordings):
    assert augment_batch(recordings, "none") is recordings
