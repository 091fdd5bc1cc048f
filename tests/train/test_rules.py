"""Training by an online rule: the settings choose it, and what it can't learn is refused by name."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from hibana import data, learn, train
from hibana.learn import rules
from hibana.train import settings as options


class Lines(data.DataSet):
    """Rising and falling lines of 12 steps."""

    shape, classes, sequential = (2,), 2, True

    def __init__(self, batch_size=64, *, steps=12, seed=0, workers=0):
        super().__init__(batch_size, seed=seed, workers=workers)
        self.steps = steps

    def splits(self):
        labels = torch.arange(140) % 2
        line = torch.linspace(0, 1, 12)
        noise = 0.05 * torch.randn(140, 12, generator=torch.Generator().manual_seed(0))
        lines = torch.where(labels[:, None] == 0, line, line.flip(0)) + noise
        inputs = torch.stack([lines, 1 - lines], 2)
        return tuple(data.InMemory(inputs[part], labels[part]) for part in PARTS)


PARTS = slice(0, 90), slice(90, 110), slice(110, 140)


@pytest.fixture
def settings(monkeypatch):
    monkeypatch.setitem(data.DATA_SETS, "lines", Lines)
    return train.Settings(
        data="lines", coding="none", steps=12, batch_size=30, epochs=1, layers="12", readout_tau=5.0, tau=4.0
    )


@pytest.mark.parametrize("layers", ["12", "10r", "12-8"])
@pytest.mark.parametrize("rule", learn.rules.NAMES)
def test_each_rule_trains(settings, rule, layers, tmp_path):
    chosen = train.Settings(
        data="lines", coding="none", steps=12, batch_size=30, epochs=1, layers=layers, rule=rule, seed=3
    )
    samples = chosen.samples()
    samples.setup()
    torch.manual_seed(3)
    before = train.Classifier(chosen, samples.shape, samples.classes)
    model, outcome = train.fit(chosen, tmp_path / "run")
    assert outcome.settings.rule == rule
    assert outcome.settings.rate_penalty == 0
    for (name, was), now in zip(before.net.named_parameters(), model.net.parameters(), strict=True):
        assert not torch.equal(was, now), name
    assert train.read(tmp_path / "run" / "settings.yaml").rule == rule


def test_one_layer_is_trained_by_d_rtrl_as_by_backpropagation_through_time(settings, tmp_path):
    settings = replace(settings, epochs=3, rate_penalty=0.0)
    exact, _ = train.fit(settings, tmp_path / "through-time")
    found, _ = train.fit(replace(settings, rule="d-rtrl"), tmp_path / "online")
    other, _ = train.fit(replace(settings, rule="ottt"), tmp_path / "approximate")
    weights = [torch.cat([p.flatten() for p in model.net.parameters()]) for model in (exact, found, other)]
    torch.testing.assert_close(weights[1], weights[0], atol=1e-4, rtol=1e-3)
    assert (weights[2] - weights[0]).abs().max() > 1e-3


def test_a_rule_has_defaults_of_its_own():
    assert train.Settings().rate_penalty == 0.1
    chosen = train.Settings(data="mnist-1d", rule="pp-prop")
    assert (chosen.layers, chosen.rate_penalty, chosen.learning_rate) == ("128", 0.0, 0.003)
    assert train.Settings(rule="ottt", layers="64,64").layers == "64,64"


@pytest.mark.parametrize("name", ["rate_penalty", "silence_penalty"])
def test_a_penalty_that_would_reach_the_traces_of_the_readout_is_refused(name):
    with pytest.raises(ValueError, match=f"{name} must be 0 with rule d-rtrl .*readout.*, got 0.1"):
        train.Settings(rule="d-rtrl", **{name: 0.1})


def test_what_no_rule_knows_is_refused_by_name(settings):
    with pytest.raises(ValueError, match="rule must be one of d-rtrl, e-prop, ottt, pp-prop; got"):
        replace(settings, rule="bptt")
    windows = train.Settings(data="lines", coding="none", steps=12, layers="12w3", rule="d-rtrl")
    with pytest.raises(ValueError, match=r"layers '12w3' can't be learned by rule d-rtrl: layer .* Window"):
        train.Classifier(windows, (2,), 2)


@pytest.mark.slow
def test_the_settings_know_every_rule_and_load_none():
    assert options.CHOICES["rule"] == rules.NAMES
    code = "import sys, hibana.cli.options, hibana.train.classifier; assert 'hibana.learn' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
