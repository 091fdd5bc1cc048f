"""Training on samples of unequal length: padded batches and single samples have equal outputs."""

import pytest
import torch

import hibana as hb
from hibana import data, train

SHAPE = {"layers": "12w3-8r", "cell": "LIF", "surrogate": "ATan", "loss": "membrane-mean", "readout_tau": 5.0}


class ShortLines(data.DataSet):
    """Rising and falling lines of 3 to 12 steps."""

    shape, classes, sequential = (2,), 2, True

    def __init__(self, batch_size=64, *, steps=12, seed=0, workers=0):
        super().__init__(batch_size, seed=seed, workers=workers)
        self.steps = steps

    def splits(self):
        generator = torch.Generator().manual_seed(0)
        parts = []
        for count in (90, 20, 30):
            labels = torch.randint(2, (count,), generator=generator)
            lengths = torch.randint(3, 13, (count,), generator=generator)
            lines = [torch.linspace(0, 1, int(length)) for length in lengths]
            lines = [line.flip(0) if label else line for line, label in zip(lines, labels, strict=True)]
            padded, lengths = hb.lengths.pad([torch.stack([line, 1 - line], 1) for line in lines])
            parts.append(data.InMemory(padded.transpose(0, 1), labels, lengths))
        return tuple(parts)


@pytest.fixture
def settings(monkeypatch):
    monkeypatch.setitem(data.DATA_SETS, "short", ShortLines)
    return train.Settings(
        data="short", coding="none", steps=12, batch_size=30, epochs=6, learning_rate=2e-2, **SHAPE
    )


def test_sequences_of_unequal_length_are_trained_on_and_tested(settings, tmp_path):
    model, outcome = train.fit(settings, tmp_path / "run")
    assert outcome.accuracy > 0.8
    assert outcome.rates.keys() == outcome.silent.keys() == {"lif1", "lif2"}
    samples = ShortLines()
    samples.setup()
    with torch.no_grad():
        correct = [model(x[None, :length]).argmax(1).item() == label for x, label, length in samples.test]
    assert outcome.accuracy == pytest.approx(sum(correct) / len(correct))
    assert 0.3 < train.linear_accuracy(model, samples) < 0.7  # means over time do not depend on the class
    loaded = train.load(outcome.checkpoint)
    inputs, labels, lengths = samples.test.__getitems__(range(30))
    with torch.no_grad():
        classes = loaded(inputs, lengths).argmax(1)
    assert (classes == labels).float().mean().item() == pytest.approx(outcome.accuracy)


def test_neurons_that_never_spike_are_counted_beside_the_rates(settings, tmp_path):
    from dataclasses import replace

    _, outcome = train.fit(replace(settings, epochs=1, start_rate=0.001, rate_penalty=0.0), tmp_path / "run")
    assert 0 < outcome.silent["lif1"] <= 12
    assert "test/silent/lif1" not in outcome.history
    assert "validation/silent/lif1" in outcome.history
