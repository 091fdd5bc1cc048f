"""The detector of anomalies: its equations, what it learns and forgets, thresholds and alarms."""

import math

import numpy as np
import pytest
import torch

import hibana as hb


def reference_scores(series, detector):
    """Scores of one column by the equations of the class, in float64, with learning."""
    first, second, cuts = (getattr(detector, name).numpy() for name in ("first", "second", "cuts"))
    groups = len(first)
    counts, heights = np.zeros((groups, 64)), np.zeros((2, 160))
    edges = 2.0**-4 * 2 ** (np.arange(161) / 8)
    mean = variance = adaptation = last = 0.0
    sums, means, variances = np.zeros(14), np.zeros(14), np.zeros(14)
    ring, scores, n = np.zeros(64), [], 0
    rates = np.tile(2.0 ** -np.arange(7), 2)

    def moments(x, mean, variance):
        share = 1 / (n + 1)
        difference = x - mean
        return mean + difference * share, variance + (difference**2 * (1 - share) - variance) * share

    def tail(y, height):
        above = n - np.concatenate([[0], np.cumsum(height)[:-1]])
        tails = np.flatnonzero((above <= 0.01 * n) & (above > 0))
        index = np.flatnonzero(edges <= y)[-1] if y >= edges[0] else -1
        quantile, share, extended = edges[-1], 0.0, 0.0
        if len(tails):
            quantile, share = edges[tails[0]], above[tails[0]]
        if y > quantile:
            excess = height[tails[0] :] @ (np.arange(160 - tails[0]) + 0.5) * math.log(2) / 8
            xi = (excess + 5 * 0.1 * math.log(2)) / (share + 5)
            extended = math.log10(y / quantile) / xi
        else:
            share = height[max(index, -1) + 1 :].sum() + (0.5 * height[index] if index >= 0 else 0)
        height[min(max(index, 0), 159)] += 1
        return extended - math.log10((share + 0.5) / (n + 1))

    for x in series.double().numpy():
        z = float(np.clip((x - mean) / (math.sqrt(variance) + 1e-30), -1000, 1000)) if n > 1 else 0.0
        mean, variance = moments(x, mean, variance)
        ring = np.full(64, z) if n == 0 else np.concatenate([[z], ring[:-1]])
        clipped = min(max(z, -20), 20)
        change = abs(clipped - last) if n else 0.0
        last = clipped
        inputs = np.repeat([clipped, change], 7)
        sums = inputs if n == 0 else sums + (inputs - sums) * rates
        standardized = (sums - means) / (np.sqrt(variances) + 1e-30) if n > 1 else np.zeros(14)
        means, variances = moments(sums, means, variances)
        features = np.concatenate([ring, [0], standardized.clip(-1000, 1000)])
        patterns = (features[first] - features[second] > cuts) @ (2 ** np.arange(5, -1, -1))
        rarity = -np.log2((counts[np.arange(groups), patterns] + 0.1) / (n + 1)).mean()
        counts[np.arange(groups), patterns] += 1
        level, pattern = tail(abs(z), heights[0]), tail(rarity, heights[1])
        surprise = max(level, pattern) + (level + pattern) / 2 if n >= 128 else 0.0
        adaptation *= math.exp(-1 / 400)
        scores.append(surprise - adaptation / 2)
        adaptation = max(adaptation, surprise)
        n += 1
    return torch.tensor(scores)


def wave(steps, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.sin(torch.arange(float(steps)) / 8) + 0.1 * torch.randn(steps, generator=generator)


def test_scores_follow_the_equations():
    series = wave(1200)
    series[900:903] += 4
    detector = hb.learn.AnomalyDetector(seed=3)
    expected = reference_scores(series, detector)
    difference = (detector(series) - expected).abs()
    assert difference.median() < 1e-4
    assert (difference < 0.02).float().mean() > 0.97  # elsewhere rounding moves a value to another bin
    assert expected[900] > 5


def test_a_call_continues_the_one_before():
    series = wave(900)
    at_once, in_parts = hb.learn.AnomalyDetector(), hb.learn.AnomalyDetector()
    scores = at_once(series)
    assert torch.equal(torch.cat([in_parts(part) for part in series.split(70)]), scores)


def test_without_learning_only_the_short_memory_changes():
    detector = hb.learn.AnomalyDetector()
    detector(wave(1000))
    before = {name: value.clone() for name, value in detector.state_dict().items()}
    detector(wave(500, seed=1), learn=False)
    for name in ("counts", "tails"):
        assert torch.equal(before[name], detector.state_dict()[name])
    assert not torch.equal(before["features"], detector.state_dict()["features"])


def test_a_lasting_change_becomes_usual_only_with_learning():
    series = torch.cat([wave(3000), wave(3000, seed=1) * 3])
    scores = {}
    for learn in (True, False):
        detector = hb.learn.AnomalyDetector()
        detector(series[:3000])
        scores[learn] = detector(series[3000:], learn=learn)[-1000:].mean()
    assert scores[True] < 0.5 * scores[False]


def test_counts_are_halved_and_never_overflow():
    detector = hb.learn.AnomalyDetector(memory=512)
    detector(wave(5000))
    assert detector.moments[0, 0] < 512
    assert detector.counts.max() < 512
    assert detector.counts.min() >= 0


def test_the_score_of_columns_is_the_largest():
    series = torch.stack([wave(2000), wave(2000, seed=1)], 1)
    series[1500, 1] += 5
    both = hb.learn.AnomalyDetector(2)(series)
    each = [hb.learn.AnomalyDetector()(column) for column in series.T]
    assert torch.equal(both, torch.maximum(*each))
    assert both.argmax() == 1500


def test_scaling_and_shifting_a_series_changes_no_alarm():
    series = wave(3000)
    series[2500:2510] = 3
    alarms = [
        hb.learn.AnomalyDetector(threshold=6.0).alarms(hb.learn.AnomalyDetector()(x))
        for x in (series, 1024 * series, series / 4096)
    ]
    assert alarms[0] == [2500]
    assert alarms[0] == alarms[1] == alarms[2]


def test_alarms_are_silent_for_a_while_across_calls():
    detector = hb.learn.AnomalyDetector(threshold=1.0, silence=3)
    scores = torch.tensor([2.0, 2, 2, 2, 2, 0, 0, 2, 2, 2])
    assert detector.alarms(scores) == [0, 4, 8]
    assert detector.alarms(torch.tensor([2.0, 2, 2])) == [2]
    detector.reset()
    assert detector.alarms(torch.tensor([2.0])) == [0]


@pytest.mark.parametrize("rate", [0.002, 0.0002])
def test_a_calibrated_threshold_gives_the_requested_rate(rate):
    detector = hb.learn.AnomalyDetector()
    detector(wave(10_000))
    detector.calibrate(detector(wave(20_000, seed=1), learn=False), rate)
    detector.reset()
    alarms = len(detector.alarms(detector(wave(50_000, seed=2), learn=False)))
    assert 0.4 * rate * 50_000 < alarms < 2.5 * rate * 50_000


def test_a_stream_gives_the_same_scores_and_alarms():
    series = wave(1500)
    series[1200:1204] = 4
    detector, stream = (hb.learn.AnomalyDetector(threshold=6.0) for _ in range(2))
    scores = detector(series)
    results = list(stream.stream(series.tolist(), learn=True))
    assert [score for score, _ in results] == scores.tolist()
    assert [step for step, (_, alarm) in enumerate(results) if alarm] == detector.alarms(scores) == [1200]


def test_saved_and_loaded_detectors_are_equal():
    detector, other = hb.learn.AnomalyDetector(seed=1), hb.learn.AnomalyDetector(seed=1)
    detector(wave(1000))
    other.load_state_dict(detector.state_dict())
    assert torch.equal(detector(wave(300, 1)), other(wave(300, 1)))
    assert not {"first", "second", "cuts"} & {*detector.state_dict()}  # a file must not choose indices


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: hb.learn.AnomalyDetector(0), "columns must be at least 1"),
        (lambda: hb.learn.AnomalyDetector(memory=10), "memory must be at least 256"),
        (lambda: hb.learn.AnomalyDetector(2)(torch.zeros(5)), r"series must be \[steps, 2\]"),
        (lambda: hb.learn.AnomalyDetector()(torch.tensor([math.nan])), "series must be finite"),
        (lambda: hb.learn.AnomalyDetector().calibrate(torch.zeros(100), 0.1), "at least 1,020 steps"),
        (lambda: hb.learn.AnomalyDetector().calibrate(torch.zeros(5000), 0), r"rate must be .* in \(0, 1\)"),
    ],
)
def test_wrong_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
