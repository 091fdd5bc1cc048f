"""What is done to training recordings: each word does what it says, and no more."""

import numpy as np
import pytest
import torch

pytest.importorskip("lightning", reason="the extra train is not installed")

from hibana import data, train
from hibana.train import augment
from hibana.train.augment import augmented, mixed

SHAPE = (60, 6, 2, 16, 24)


@pytest.fixture
def recordings():
    torch.manual_seed(0)
    return (torch.rand(SHAPE) < 0.2).float()


def test_recordings_roll_around_the_sensor_by_up_to_an_eighth(recordings):
    ways = set()
    for before, after in zip(recordings, augmented(recordings, "roll"), strict=True):
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
    ones = augmented(torch.ones_like(recordings), "shift")
    sides = {(int(each[0, 0].any(1).sum()), int(each[0, 0].any(0).sum())) for each in ones}
    assert {height for height, _ in sides} == {14, 15, 16}
    assert {width for _, width in sides} == {21, 22, 23, 24}
    assert (augmented(recordings, "shift").sum() < recordings.sum()).item()


def test_flips_mirror_half_of_the_recordings(recordings):
    after = augmented(recordings, "flip")
    mirrored = [torch.equal(a, b.flip(-1)) for a, b in zip(after, recordings, strict=True)]
    assert 15 < sum(mirrored) < 45
    for b, a, was in zip(recordings, after, mirrored, strict=True):
        assert was or torch.equal(a, b)


def test_what_is_dropped_is_bins_time_or_a_rectangle():
    ones = torch.ones(400, 6, 2, 16, 24)
    ways = {"nothing": 0, "time": 0, "rectangle": 0, "bins": 0}
    for each in augmented(ones, "drop"):
        gone = each == 0
        assert gone.float().mean() <= 0.6
        if not gone.any():
            ways["nothing"] += 1
        elif torch.equal(gone, gone.any(-1, keepdim=True).any(-2, keepdim=True).expand_as(gone)):
            steps = gone.flatten(1).all(1).nonzero()[:, 0]
            assert torch.equal(steps, torch.arange(steps[0], steps[-1] + 1))
            assert len(steps) <= 4
            ways["time"] += 1
        elif torch.equal(gone, gone[:1, :1].expand_as(gone)):
            rows, columns = gone[0, 0].any(1), gone[0, 0].any(0)
            assert torch.equal(gone[0, 0], rows[:, None] & columns)
            assert rows.sum() <= 9
            assert columns.sum() <= 13
            ways["rectangle"] += 1
        else:
            ways["bins"] += 1
    assert min(ways.values()) > 60


def test_what_is_mixed_comes_from_two_and_is_called_as_often_as_its_events_are_of_either():
    torch.manual_seed(1)
    labels = torch.arange(40) % 4
    inputs = (labels + 1.0).view(-1, 1, 1, 1, 1).expand(40, 5, 2, 8, 8)  # what a bin holds says whose it is
    shares, called, mixes = [], [], 0
    for _ in range(60):
        result, answers = mixed(inputs, labels)
        for own, recording, answer in zip(labels.tolist(), result, answers.tolist(), strict=True):
            kinds = [int(kind) - 1 for kind in recording.unique().tolist()]
            assert len(kinds) <= 2
            assert own in kinds or (recording == recording.flatten()[0]).all()
            assert answer in kinds
            alike = recording[:, :1].expand_as(recording)
            assert torch.equal(recording, alike)  # both polarities of a place come from one
            if len(kinds) == 2:
                mixes += 1
                mass = recording[recording == own + 1].sum() / recording.sum()
                shares.append(mass.item())
                called.append(answer == own)
    assert 0.25 < mixes / 2400 < 0.45  # half, less those whose partner has their own label
    assert np.mean(called) == pytest.approx(np.mean(shares), abs=0.05)
    half = np.array(shares) > 0.5
    assert np.mean(np.array(called)[half]) > 0.65 > 0.35 > np.mean(np.array(called)[~half])


def test_one_seed_gives_one_batch(recordings):
    labels = torch.arange(60)
    results = []
    for _ in range(2):
        torch.manual_seed(7)
        results.append((augmented(recordings, "flip-shift-roll-drop"), *mixed(recordings, labels)))
    for first, second in zip(*results, strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("how", ["none", "mix"])
def test_what_does_nothing_gives_the_recordings_themselves(recordings, how):
    assert augmented(recordings, how) is recordings


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"augment": "flip-spin"}, "augment must be one of none, flip, shift, roll, drop, mix; got 'spin'"),
        ({"augment": ""}, "augment must be one of none"),
    ],
)
def test_words_that_mean_nothing_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        train.Settings(**settings)


@pytest.mark.parametrize(
    ("how", "shape", "sequential", "words"),
    [
        ("roll", (8, 8), False, "augment must be none, flip or shift for images without time, got 'roll'"),
        ("flip-drop", (8, 8), False, "for images without time"),
        ("mix", (8, 8), False, "for images without time"),
        ("flip", (3,), False, "augment must be none for inputs that are no images, got 'flip'"),
        ("mix", (3,), True, "for inputs that are no images"),
    ],
)
def test_samples_that_cannot_be_augmented_are_refused(how, shape, sequential, words):
    with pytest.raises(ValueError, match=words):
        augment.check(how, shape, sequential=sequential)


@pytest.mark.parametrize(("how", "shape", "sequential"), [("flip-shift", (8, 8), False), (None, (3,), False)])
def test_samples_that_can_be_augmented_are_accepted(how, shape, sequential):
    augment.check(how, shape, sequential=sequential)


def test_tables_are_not_augmented(tmp_path):
    samples = data.Arrays(np.zeros([60, 3]), labels=[0, 1] * 30)
    with pytest.raises(ValueError, match="augment must be none for inputs that are no images"):
        train.fit(train.Settings(augment="flip"), tmp_path / "run", samples=samples)
