"""A deterministic part of the fuzzer; and tests that it detects injected errors."""

import warnings

import pytest
import torch
from hypothesis import HealthCheck, find, given, settings

from fuzz import contexts, deep, differ, large, networks, sparse, steps, twins
from fuzz.differ import Counts, Different
from fuzz.steps import Step
from fuzz.variations import Variation
from hibana.compiler import autograd
from hibana.spikes import provenance
from hibana.spikes.convolution import pixels
from selection import examples

BOUNDED = settings(max_examples=examples(3), suppress_health_check=list(HealthCheck))
FEW = settings(max_examples=examples(14), suppress_health_check=list(HealthCheck))
SOME = settings(max_examples=examples(40), suppress_health_check=list(HealthCheck))


@pytest.fixture(autouse=True)
def _what_torch_warns_of_is_torchs():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.mark.slow
@BOUNDED
@given(steps.steps())
def test_random_steps_are_the_references(step):
    _compared(step, 30)


@SOME
@given(networks.networks())
def test_random_networks_are_the_dense_ones(network):
    twins.compare(network, Counts())


@settings(FEW, max_examples=examples(24))
@given(sparse.sparse())
def test_random_sparse_networks_are_the_dense_ones(network):
    sparse.compare(network, Counts())


@pytest.mark.slow
@FEW
@given(deep.deep())
def test_random_deep_networks_are_torchs(network):
    deep.compare(network, Counts())


@pytest.mark.slow
@FEW
@given(large.large())
def test_random_large_layers_are_torchs(layer):
    large.compare(layer, Counts())


@pytest.mark.parametrize(
    ("programs", "context"),
    [(networks.networks, context) for context in contexts.CONTEXTS]
    + [(deep.deep, context) for context in deep.CONTEXTS],
)
def test_every_context_is_drawn(programs, context):
    assert find(programs(), lambda program: program.context == context).context == context


def test_a_list_with_too_small_indices_is_detected(monkeypatch):
    sizes = large.Large("Conv1d", 64, 16, 2, width=1100, kernel=(1, 3), padding=(0, 1))
    large.compare(sizes, Counts())
    monkeypatch.setattr(pixels, "PLACES", 1 << 40)
    with pytest.raises(Different, match="output differs"):
        large.compare(sizes, Counts())


def test_a_gradient_that_is_nan_in_one_run_only_is_counted():
    step, counts = Step(("n0 = x * s", "return n0, n0, self.surrogate(x - 0.4)")), Counts()
    for state in ("uniform", "not a number"):
        differ.compare(step, step.kind(), Variation((2, 1, 5), 1, state=state), counts)
    assert (counts.compared, counts.one_sided_nan) == (2, 1)


@pytest.mark.parametrize(
    ("number", "network"),
    [
        (1, deep.Deep(("Conv",), constant_image=True)),
        (1, deep.Deep(("Conv", "Block", "Conv"), neurons="LIF, Triangle")),
        (1, deep.Deep(("Conv", "MaxPool", "Conv"), phases=("evaluation", "training"))),
    ],
)
def test_a_wrong_gradient_in_a_deep_network_is_detected(monkeypatch, number, network):
    backward, calls = autograd._backward, []

    def wrong(*args):
        calls.append(1)
        grads = backward(*args)
        return _off(grads, 1e-2) if len(calls) > number else grads

    deep.compare(network, Counts())
    monkeypatch.setattr(autograd, "_backward", wrong)
    with pytest.raises(Different, match="gradient of"):
        deep.compare(network, Counts())


def test_a_wrong_spike_in_a_deep_network_is_detected(monkeypatch):
    network = deep.Deep(("Conv", "Conv"), phases=("evaluation", "evaluation, no gradient"))
    monkeypatch.setattr(deep.hb.Normalized, "forward", _flipped(deep.hb.Normalized.forward))
    with pytest.raises(Different, match="1 spikes differ in call 0"):
        deep.compare(network, Counts())


def _flipped(forward):
    def flipped(layer, spikes):
        out = forward(layer, spikes)
        first = (0,) * out.ndim
        out.data[first] = 1 - out[first].item()
        return out

    return flipped


def _compared(step, count):
    counts = Counts()
    differ.compare_all(step, count, counts)
    return counts


PLAIN = Step(("v = 0.5 * v + x * self.learned", "return u, v, self.surrogate(v - 0.4)"))


@pytest.mark.slow
def test_most_cases_of_a_plain_step_are_compared():
    counts = _compared(PLAIN, 100)
    assert counts.compared > 60
    assert counts.all == 100


@pytest.mark.parametrize(
    "change",
    [lambda t: t * (1 + 1e-6), lambda t: -t, lambda t: t.masked_fill(t == 0, -0.0), lambda t: t[..., :0]],
)
def test_a_wrong_state_is_detected(change, monkeypatch):
    run = autograd.run

    def wrong(*args):
        outputs, last = run(*args)
        return outputs, [change(value) for value in last]

    monkeypatch.setattr(autograd, "run", wrong)
    with pytest.raises(Different):
        _compared(Step(("v = 0.5 * v + x", "return u, v, self.surrogate(v - 0.4)")), 100)


def test_a_wrong_gradient_is_detected(monkeypatch):
    backward = autograd._backward
    monkeypatch.setattr(autograd, "_backward", lambda *args: _off(backward(*args)))
    with pytest.raises(Different, match="gradient of"):
        _compared(PLAIN, 40)


def _off(grads, by=1e-4):
    return tuple(None if grad is None else grad * (1 + by) for grad in grads)


def test_an_unexpected_error_is_detected(monkeypatch):
    def fails(*args):
        raise KeyError("v")

    monkeypatch.setattr(autograd, "run", fails)
    with pytest.raises(Different, match="KeyError"):
        _compared(PLAIN, 10)


def test_a_missing_gradient_is_detected(monkeypatch):
    rows = provenance.Provenance.rows
    monkeypatch.setattr(provenance.Provenance, "rows", lambda *arguments: torch.zeros_like(rows(*arguments)))
    wrong = networks.Network(("Linear", "IF", "Linear"), {}, batch=64, width=64)
    with pytest.raises(Different):
        twins.compare(wrong, Counts())
