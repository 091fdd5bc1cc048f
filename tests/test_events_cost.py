"""What is chosen between events and the dense product, and what it is chosen by."""

import json

import pytest
import torch
from torch import nn

import hibana as hb
from hibana.events import cost
from hibana.events import layer as shared_layer
from hibana.events.convolution import layer as convolution_layer
from hibana.events.convolution import measured as of_convolutions
from hibana.events.convolution.autograd import Geometry
from hibana.events.linear import layer as linear_layer
from hibana.events.linear import measured as of_linear
from hibana.native import build

CHEAP = cost.Product(1.0, (0.1, 0.1, 0.1, 0.1))
DEAR = cost.Product(1.0, (0.1, 2.0, 2.0, 2.0))
"""Pays at a density that no test here has, so that the input is looked at."""


def _costs(forward, weights, input_, scan=0.0):
    return cost.Costs(*(CHEAP if cheap else DEAR for cheap in (forward, weights, input_)), scan)


@pytest.fixture
def costs(monkeypatch):
    """Has layers told these costs, whatever their sizes."""
    told = {}
    monkeypatch.setenv("HIBANA_COSTS", "measured")
    for module in (of_linear, of_convolutions):
        monkeypatch.setattr(module, "costs", lambda *sizes: told["costs"])
    for module in (linear_layer, convolution_layer):
        monkeypatch.setattr(module, "SMALLEST_WORK", 0)
    return told


def _layers():
    linear = hb.Linear(128, 70), nn.Linear(128, 70), (300, 128)
    convolution = hb.Conv2d(16, 40, 3, padding=1), nn.Conv2d(16, 40, 3, padding=1), (4, 16, 9, 8)
    for layer, dense, shape in (linear, convolution):
        layer.load_state_dict(dense.state_dict())
        yield layer, dense, shape


def _run(layer, x, weights):
    layer.zero_grad()
    x = x.detach().requires_grad_()
    spikes = hb.IF(0.5, hb.surrogate.Box(0.4), detach_reset=True)(x[None])[0]
    out = layer(spikes)
    out.mul(weights).sum().backward()
    return [out.detach(), x.grad, *(p.grad for p in layer.parameters())]


@pytest.mark.parametrize("forward", [True, False])
@pytest.mark.parametrize("weights", [True, False])
@pytest.mark.parametrize("input_", [True, False])
def test_outputs_and_gradients_are_torchs_whatever_is_chosen(costs, forward, weights, input_, monkeypatch):
    costs["costs"] = _costs(forward, weights, input_)
    for layer, dense, shape in _layers():
        x = torch.rand(shape)
        if len(shape) == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        factors = torch.randn(dense(x).shape)
        for got, wanted in zip(_run(layer, x, factors), _run(dense, x, factors), strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-3)
        said = layer.explain()
        assert said.startswith("events" if forward else "dense forward" if weights else "dense:")
        assert f"forward {0.1 if forward else 2.0:.2f}" in said
        assert ("the weights' gradient densely" in said) == (forward and not weights)


def test_without_a_gradient_of_the_weights_the_forward_alone_decides(costs):
    costs["costs"] = _costs(forward=False, weights=True, input_=True)
    spikes = (torch.rand(300, 128) < 0.1).float()
    layer = hb.Linear(128, 70).requires_grad_(False)
    layer(spikes)
    assert layer.explain() == (
        f"dense: {spikes.mean():.0%} of the input spiked; events would take forward 2.00 of the dense time"
    )


def test_bits_that_have_to_be_made_cost_their_making(costs):
    spikes = (torch.rand(300, 128) < 0.1).float()
    layer = hb.Linear(128, 70).requires_grad_(False)
    for scan, said in ((0.5, "events: "), (1.5, "dense: ")):
        costs["costs"] = _costs(forward=True, weights=True, input_=True, scan=scan)
        layer(spikes)
        assert layer.explain().startswith(said)


def test_what_takes_torch_no_time_asks_nothing(monkeypatch):
    layer = hb.Linear(64, 64)
    monkeypatch.setattr(layer, "_of_spikes", None)
    layer(torch.ones(1, 64))
    assert layer.explain() == "dense: at these sizes torch is sooner done at any density"


def test_time_lies_on_lines_between_what_was_measured():
    product = cost.Product(2.0, tuple(density * 8 for density in cost.DENSITIES))
    for density in (0.0, 0.01, 1 / 16, 0.1, 0.3, 0.5, 0.9):
        assert product.ratio(density) == pytest.approx(4 * density + cost.OVERHEAD / 2)
    assert product.ratio(0.1, planes=3) == pytest.approx(1.2 + cost.OVERHEAD / 2)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HIBANA_COSTS", "measured")
    monkeypatch.setattr(cost, "kept_in", lambda: tmp_path)
    monkeypatch.setattr(cost, "_KNOWN", {})
    return tmp_path


def test_costs_are_measured_once_and_kept(folder):
    calls = []

    def measured():
        calls.append(1)
        return _costs(True, False, True, 0.25)

    first = cost.costs_of(("a", 3), measured)
    assert cost.costs_of(("a", 3), measured) is first
    cost._KNOWN.clear()
    assert cost.costs_of(("a", 3), measured) == first
    assert len(calls) == 1
    cost.costs_of(("a", 4), measured)
    assert len(calls) == 2


@pytest.mark.parametrize(
    "spoil",
    [
        lambda said: b"",
        lambda said: b"{}",
        lambda said: b"[]",
        lambda said: json.dumps({**said, "of": "another"}).encode(),
        lambda said: json.dumps({**said, "scan": "long"}).encode(),
        lambda said: json.dumps({**said, "forward": {"dense": 0.0, "events": [1, 1, 1, 1]}}).encode(),
        lambda said: json.dumps({**said, "forward": {"dense": 1.0, "events": [1]}}).encode(),
    ],
)
def test_a_file_that_can_not_be_believed_is_measured_anew(folder, spoil):
    wanted = cost.costs_of(("a",), lambda: _costs(True, True, True))
    (path,) = folder.glob("*.cost")
    path.write_bytes(spoil(json.loads(path.read_text())))
    cost._KNOWN.clear()
    assert cost.costs_of(("a",), lambda: _costs(True, True, True)) == wanted
    assert json.loads(path.read_text())["of"]


def test_nothing_is_measured_where_it_is_fixed_or_nothing_is_kept(folder, monkeypatch):
    monkeypatch.setattr(cost, "kept_in", lambda: None)
    assert cost.costs_of(("a",), None) is None
    monkeypatch.setattr(cost, "kept_in", build.kept_in)
    monkeypatch.setenv("HIBANA_COSTS", "fixed")
    assert cost.costs_of(("b",), None) is None


@pytest.mark.parametrize("layer", [hb.Linear(70, 40), hb.Conv2d(3, 8, 3, stride=2, padding=1)], ids=repr)
def test_what_is_measured_are_times(folder, layer):
    before = torch.get_rng_state()
    module = of_linear if isinstance(layer, nn.Linear) else of_convolutions
    costs = (
        module.costs(300, 70, 40)
        if module is of_linear
        else module.costs(9, 8, Geometry(3, (40, 40), (3, 3), (2, 2), (1, 1), (1, 1)))
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert len(list(folder.glob("*.cost"))) == 1
    for product in (costs.forward, costs.weights, costs.input):
        assert product.dense > 0
        assert all(each >= 0 for each in product.events)
    assert costs.scan > 0


@pytest.mark.parametrize("inputs", [64, 70])
def test_random_bits_have_the_density_and_nothing_beyond_the_inputs(inputs):
    bits = cost.random_bits(400, inputs, 1 / 8, torch.Generator().manual_seed(0))
    ones = ((bits[..., None] >> torch.arange(64)) & 1).flatten(1)
    assert not ones[:, inputs:].any()
    assert ones[:, :inputs].float().mean() == pytest.approx(1 / 8, abs=0.01)


def test_numbers_of_rows_are_told_apart_by_an_eighth():
    for count in (1, 7, 100, 1000, 3333, 12345):
        assert count * 7 / 8 < of_linear.about(count) <= count


def test_sizes_at_which_nothing_can_pay_are_not_looked_at(costs, monkeypatch):
    never = cost.Product(1.0, (2.0, 2.0, 2.0, 2.0))
    layer = hb.Linear(128, 70)
    looked = []
    monkeypatch.setattr(shared_layer, "bits_of", lambda *_: looked.append(1) or (None, None))
    for costs["costs"] in (cost.Costs(never, never, CHEAP, 0.0), _costs(True, True, True, scan=5.0)):
        layer((torch.rand(300, 128) < 0.1).float())
        assert not looked
        assert layer.explain() == "dense: at these sizes torch is sooner done at any density"
        layer.requires_grad_(False)
