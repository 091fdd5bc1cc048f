"""What is chosen between events and the dense product, and what it is chosen by."""

import copy
import json
import pickle
import threading
import time

import pytest
import torch
from torch import nn

import hibana as hb
from hibana.spikes import cost, speeds
from hibana.spikes import layer as shared_layer
from hibana.spikes.convolution import causal as of_windows
from hibana.spikes.convolution import layer as convolution_layer
from hibana.spikes.convolution import reckoned as of_convolutions
from hibana.spikes.convolution.geometry import Geometry
from hibana.spikes.linear import dense as dense_product
from hibana.spikes.linear import layer as linear_layer
from hibana.spikes.linear import reckoned as of_linear
from hibana.spikes.linear.few import weight_gradient_of_few

CHEAP = cost.Product(1.0, lambda density: 0.1)
DEAR = cost.Product(1.0, lambda density: 0.1 if density == cost.DENSITIES[0] else 2.0)
"""Pays at a density that no test here has, so that the input is looked at."""


def _costs(forward, weights, input_, scan=0.0):
    return cost.Costs(*(CHEAP if cheap else DEAR for cheap in (forward, weights, input_)), scan)


@pytest.fixture
def costs(monkeypatch):
    """Has layers told these costs, whatever their sizes."""
    told = {}
    for module in (of_linear, of_convolutions):
        monkeypatch.setattr(module, "costs", lambda *sizes: told["costs"])
    for module in (linear_layer, convolution_layer, of_windows):
        monkeypatch.setattr(module, "SMALLEST_WORK", 0)
    return told


def _layers():
    linear = hb.Linear(128, 70), nn.Linear(128, 70), (300, 128)
    convolution = hb.Conv2d(16, 40, 3, padding=1), nn.Conv2d(16, 40, 3, padding=1), (4, 16, 9, 8)
    window = hb.Window(16, 40, 5, dilation=2), hb.Window(16, 40, 5, dilation=2), (12, 8, 16)
    delayed = hb.DelayedLinear(16, 40, 9), hb.DelayedLinear(16, 40, 9), (12, 8, 16)
    window[1].mode = delayed[1].mode = "dense"
    for layer, dense, shape in (linear, convolution, window, delayed):
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


@pytest.mark.parametrize(
    ("forward", "weights", "wanted"),
    [
        (0.5, 0.5, (True, True)),
        (0.5, 0.9, (True, True)),  # 0.7 of both together
        (0.9, 0.5, (True, True)),
        (0.5, 1.1, (True, False)),
        (1.1, 0.5, (False, True)),
        (0.65, 0.95, (True, False)),  # 0.8 together
        (0.8, 0.8, (False, False)),
        (0.72, 1.2, (False, False)),  # 0.77 by itself, with what it takes to go both ways
    ],
)
def test_what_saves_most_is_chosen_of_what_is_sure_to_save(forward, weights, wanted):
    products = (cost.Product(1.0, lambda density, took=took: took, 0.0) for took in (forward, weights))
    costs = cost.Costs(*products, CHEAP, 0.0, apart=0.05)
    assert cost.chosen(costs, 0.1, 1, False, True)[:2] == wanted
    assert cost.chosen(costs, 0.1, 1, False, False)[:2] == (forward < cost.MARGIN, None)


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


@pytest.mark.parametrize("learning", [True, False])
def test_bits_that_are_known_are_left_where_the_dense_product_is_sooner(costs, learning):
    costs["costs"] = _costs(forward=False, weights=False, input_=False)
    linear, convolution, window, _ = _layers()  # fixed delays have costs of their own
    for layer, dense, shape in (linear, convolution, window):
        for each in (layer, dense):
            each.requires_grad_(learning)
        spikes = hb.IF(0.5)(torch.rand(shape if len(shape) == 3 else (2, *shape), requires_grad=learning))
        x = spikes if len(shape) == 3 or isinstance(layer, nn.Linear) else spikes.flatten(0, 1)
        torch.testing.assert_close(layer(x), dense(x), rtol=1e-4, atol=1e-4)
        assert layer.explain().startswith("dense: ")


def test_what_takes_torch_no_time_asks_nothing(monkeypatch):
    layer = hb.Linear(64, 64)
    monkeypatch.setattr(layer, "_of_spikes", None)
    layer(torch.ones(1, 64))
    assert layer.explain() == "dense: at these sizes torch is sooner done at any density"


def test_time_lies_on_lines_between_what_was_reckoned():
    product = cost.Product(2.0, lambda density: density * 8)
    for density in (0.0, 0.01, 1 / 16, 0.1, 0.3, 0.5, 0.9, 1.0):
        assert product.ratio(density) == pytest.approx(4 * density + cost.OVERHEAD / 2)
    assert product.ratio(0.1, planes=3) == pytest.approx(1.2 + cost.OVERHEAD / 2)
    together = cost.Product(2.0, lambda density: density * 8, shared=lambda density: density * 2)
    assert together.ratio(0.1) == product.ratio(0.1)
    assert together.ratio(0.1, planes=3) == pytest.approx((0.2 + 3 * 0.6) / 2 + cost.OVERHEAD / 2)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where speeds are kept, and none is known."""
    monkeypatch.delenv("HIBANA_COSTS", raising=False)
    monkeypatch.setattr(speeds, "kept_in", lambda: tmp_path)
    monkeypatch.setattr(speeds, "_KNOWN", {})
    return tmp_path


@pytest.fixture
def seconds(monkeypatch):
    """The ways that were measured, each of which took twice as long as reckoned."""
    ways = []

    def measured(way):
        if way is not speeds.YARDSTICK:
            ways.append(way)
        return 2.0

    monkeypatch.setattr(speeds, "_measured", measured)
    return ways


WAY = speeds.Way("a", 1.0, lambda: "a piece")


def test_other_threads_compute_as_ever_while_one_is_measured(folder):
    """torch's number of threads is the process's: one that first computes meanwhile would keep to it."""
    seen, own = [], []

    def call():
        own.append(torch.get_num_threads())
        beside = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
        beside.start()
        beside.join()

    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        speeds.speed(speeds.Way("seen", 1e-3, lambda: call))
    finally:
        torch.set_num_threads(threads)
    assert set(own) == {1}
    assert set(seen) == {2}


def test_a_speed_is_measured_once_and_kept(folder, seconds):
    assert [speeds.speed(WAY), speeds.speed(WAY)] == [2.0, 2.0]
    speeds._KNOWN.clear()
    assert speeds.speed(WAY) == 2.0
    assert seconds == [WAY]
    assert speeds.speed(WAY._replace(name="b")) == 2.0
    assert len(seconds) == 2


class Processor:
    """A clock that goes on by what is called, each call `pace` times as long as it says."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr(time, "thread_time", lambda: self.now)
        monkeypatch.setattr(speeds, "YARDSTICK", self.way("yardstick", 3.0))

    def way(self, name, seconds):
        def call():
            self.now += seconds * self.pace(name)

        return speeds.Way(name, 1.0, lambda: call)

    def pace(self, name):
        return 1.0


def test_a_processor_that_stays_slow_changes_no_speed(folder, monkeypatch):
    processor = Processor(monkeypatch)
    assert speeds.speed(speeds.YARDSTICK) == pytest.approx(3.0)
    processor.pace = lambda name: 2.0
    assert speeds.speed(processor.way("another", 5.0)) == pytest.approx(5.0)
    assert speeds.speed(processor.way("one more", 7.0)) == pytest.approx(7.0)


def test_who_slows_a_way_alone_for_a_while_changes_no_speed(folder, monkeypatch):
    processor, calls = Processor(monkeypatch), []

    def pace(name):
        calls.append(name)
        return 1.5 if name == "another" and calls.count(name) <= 2 * speeds.RUNS else 1.0

    assert speeds.speed(speeds.YARDSTICK) == pytest.approx(3.0)
    processor.pace = pace
    assert speeds.speed(processor.way("another", 5.0)) == pytest.approx(5.0)
    assert calls.count("another") == speeds.ROUNDS * speeds.AGREED * speeds.RUNS


def test_a_moment_that_slows_a_way_more_than_the_yardstick_changes_no_speed(folder, monkeypatch):
    processor, calls = Processor(monkeypatch), []

    def pace(name):
        calls.append(name)
        slow = len(calls) <= 3 * speeds.RUNS * (speeds.AGREED + 1)
        return (1.8 if name == "another" else 1.4) if slow else 1.0

    assert speeds.speed(speeds.YARDSTICK) == pytest.approx(3.0)
    processor.pace = pace
    assert speeds.speed(processor.way("another", 5.0)) == pytest.approx(5.0)
    processor.pace = lambda name: 1.8 if name == "one more" else 1.4
    assert speeds.speed(processor.way("one more", 7.0)) == pytest.approx(7.0 * 1.8 / 1.4)


def test_a_yardstick_that_was_met_in_a_slow_moment_is_put_right(folder, monkeypatch):
    processor = Processor(monkeypatch)
    one, another = processor.way("one", 5.0), processor.way("another", 7.0)
    processor.pace = lambda name: 1.4
    assert speeds.speed(speeds.YARDSTICK) == pytest.approx(3.0 * 1.4)
    assert speeds.speed(one) == pytest.approx(5.0 * 1.4)
    processor.pace = lambda name: 1.0
    assert speeds.speed(another) == pytest.approx(7.0)
    for _ in "in this process", "in the next":
        assert speeds.speed(speeds.YARDSTICK) == pytest.approx(3.0)
        assert speeds.speed(one) == pytest.approx(5.0)
        assert speeds.speed(another) == pytest.approx(7.0)
        speeds._KNOWN.clear()


def test_a_way_that_takes_another_time_each_time_is_measured_for_a_while_only(folder, monkeypatch):
    processor, calls = Processor(monkeypatch), []
    assert speeds.speed(speeds.YARDSTICK) == pytest.approx(3.0)
    processor.pace = lambda name: calls.append(name) or (0.99 ** len(calls) if name == "another" else 1.0)
    found = speeds.speed(processor.way("another", 5.0))
    assert calls.count("another") == speeds.ROUNDS * speeds.BURSTS * speeds.RUNS
    assert found == pytest.approx(5.0 * 0.99 ** (len(calls) - 2))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda said: b"",
        lambda said: b"{}",
        lambda said: b"[]",
        lambda said: json.dumps({**said, "of": "another"}).encode(),
        lambda said: json.dumps({**said, "times": "long"}).encode(),
        lambda said: json.dumps({**said, "times": -1.0}).encode(),
        lambda said: json.dumps({**said, "times": float("nan")}).encode(),
    ],
)
def test_a_file_that_can_not_be_believed_is_measured_anew(folder, seconds, spoil):
    speeds.speed(WAY)
    path = speeds._path(folder, speeds._name(WAY))
    path.write_bytes(spoil(json.loads(path.read_text())))
    speeds._KNOWN.clear()
    assert speeds.speed(WAY) == 2.0
    assert len(seconds) == 2
    assert json.loads(path.read_text())["times"] == 2.0 / speeds.MOST  # which the yardstick's is here


def test_nothing_is_measured_where_it_is_fixed_or_nothing_is_kept(folder, seconds, monkeypatch):
    monkeypatch.setattr(speeds, "kept_in", lambda: None)
    assert speeds.speed(WAY) == 1.0
    monkeypatch.setattr(speeds, "kept_in", lambda: folder)
    monkeypatch.setenv("HIBANA_COSTS", "fixed")
    assert speeds.speed(WAY) == 1.0
    assert not seconds


@pytest.mark.parametrize("linear", [True, False])
def test_what_one_thread_does_alone_counts_for_all_that_wait(folder, seconds, monkeypatch, linear):
    found = {}
    for threads in (1, 2, 16):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        costs = of_linear.costs(301, 70, 40) if linear else of_convolutions.costs(*SOME)
        found[threads] = [costs.forward.call, costs.weights.call, costs.input.call, costs.apart]
    assert found[1] == found[2]
    assert found[16] == pytest.approx([8 * each for each in found[2]])
    monkeypatch.setenv("HIBANA_COSTS", "fixed")
    costs = of_linear.costs(301, 70, 40) if linear else of_convolutions.costs(*SOME)
    assert costs.forward.call == pytest.approx(found[2][0] / speeds.MOST)  # for any number of threads


def test_weights_that_come_from_afar_count_for_few_rows(folder, monkeypatch):
    found = {}
    for slow in (1.0, 4.0):
        monkeypatch.setattr(
            of_linear, "speed", lambda way, slow=slow: slow if way is of_linear._AFAR else 1.0
        )
        of_linear._costs.cache_clear()
        for rows in (32, 4096):
            costs = of_linear.costs(rows, 2048, 2048)
            found[slow, rows] = [costs.forward.ratio(0.05), costs.weights.ratio(0.05)]
    of_linear._costs.cache_clear()
    for near, far in zip(found[1.0, 32], found[4.0, 32], strict=True):
        assert far > 1.25 * near
    for near, far in zip(found[1.0, 4096], found[4.0, 4096], strict=True):
        assert far < 1.1 * near


SOME = 9, 8, Geometry(3, (41, 40), (3, 3), (2, 2), (1, 1), (1, 1))
"""A convolution that no other test reckons."""


def _reckoned(layer):
    if isinstance(layer, nn.Linear):
        return of_linear.costs(300, 70, 40)
    return of_convolutions.costs(9, 8, Geometry(3, (40, 40), (3, 3), (2, 2), (1, 1), (1, 1)))


@pytest.mark.parametrize("layer", [hb.Linear(70, 40), hb.Conv2d(3, 8, 3, stride=2, padding=1)], ids=repr)
def test_what_is_measured_are_times_and_changes_nothing_else(folder, layer):
    before = torch.get_rng_state(), torch.get_num_threads()
    of_linear._costs.cache_clear()
    of_convolutions._costs.cache_clear()
    costs = _reckoned(layer)
    for product in (costs.forward, costs.weights, costs.input):
        assert product.dense > 0
        assert all(product.events(density) > 0 for density in cost.DENSITIES)
    assert costs.scan > 0
    assert torch.equal(torch.get_rng_state(), before[0])
    assert torch.get_num_threads() == before[1]
    assert {json.loads(path.read_text())["times"] for path in folder.glob("*.speed")} == set(
        speeds._KNOWN.values()
    )


def test_what_only_dense_spikes_would_take_is_not_measured_for_sparse_ones(folder, seconds):
    of_linear._costs.cache_clear()
    costs = of_linear.costs(300, 70, 40)
    costs.forward.ratio(0.05)
    assert "sums, listed" in speeds._KNOWN
    assert "sums, looked up" not in speeds._KNOWN
    costs.forward.ratio(0.9)
    assert "sums, looked up" in speeds._KNOWN
    of_linear._costs.cache_clear()


@pytest.mark.parametrize("layer", [hb.Linear(70, 40), hb.Conv2d(3, 8, 3, stride=2, padding=1)], ids=repr)
def test_twice_as_slow_a_machine_takes_twice_as_long(folder, seconds, layer, monkeypatch):
    products = []
    for times in (1.0, 2.0):
        for module in (of_linear, of_convolutions):
            module._costs.cache_clear()
            monkeypatch.setattr(module, "speed", lambda way, times=times: times)
        costs = _reckoned(layer)
        products.append([costs.scan, costs.apart])
        for p in (costs.forward, costs.weights, costs.input):
            products[-1] += [p.dense, p.call, *[p.events(density) for density in cost.DENSITIES]]
    for module in (of_linear, of_convolutions):
        module._costs.cache_clear()
    assert products[1] == pytest.approx([2 * s for s in products[0]])


@pytest.mark.parametrize("inputs", [64, 70])
def test_random_bits_have_the_density_and_nothing_beyond_the_inputs(inputs):
    bits = speeds.random_bits(400, inputs, 1 / 8)
    ones = ((bits[..., None] >> torch.arange(64)) & 1).flatten(1)
    assert not ones[:, inputs:].any()
    assert ones[:, :inputs].float().mean() == pytest.approx(1 / 8, abs=0.01)


def test_numbers_of_rows_are_told_apart_by_an_eighth():
    for count in (1, 7, 100, 1000, 3333, 12345):
        assert count * 7 / 8 < of_linear.about(count) <= count


def test_sizes_at_which_nothing_can_pay_are_not_looked_at(costs, monkeypatch):
    never = cost.Product(1.0, lambda density: 2.0)
    layer = hb.Linear(128, 70)
    looked = []
    monkeypatch.setattr(shared_layer, "bits_of", lambda *_: looked.append(1) or (None, None))
    for costs["costs"] in (cost.Costs(never, never, CHEAP, 0.0), _costs(True, True, True, scan=5.0)):
        layer((torch.rand(300, 128) < 0.1).float())
        assert not looked
        assert layer.explain() == "dense: at these sizes torch is sooner done at any density"
        layer.requires_grad_(False)


def test_what_pays_at_every_density_is_looked_at_however_short_it_takes(costs):
    short = cost.Product(2e-4, lambda density: 2e-5)
    costs["costs"] = cost.Costs(short, short, short, 0.0)
    layer = hb.Linear(128, 70)
    layer((torch.rand(300, 128) < 0.1).float())
    assert layer.explain().startswith("events")


def test_what_a_layer_below_made_is_looked_at_where_its_bits_are_known(costs):
    never = cost.Product(1.0, lambda density: 2.0)
    costs["costs"] = cost.Costs(never, never, never, 0.0)
    layer, currents = hb.Linear(128, 70), (0.5 * torch.rand(4, 100, 128)).requires_grad_()
    layer(hb.IF(1.0)(currents) * 1.0)  # of which nothing is known
    costs["costs"] = _costs(True, True, True)
    layer(hb.IF(1.0)(currents) * 1.0)
    assert layer.explain() == "dense: at these sizes torch is sooner done at any density"
    layer(hb.IF(1.0)(currents))
    assert layer.explain().startswith("events")


@pytest.mark.parametrize("layer", list(_layers())[:2], ids=lambda layers: type(layers[0]).__name__)
def test_sizes_that_were_left_to_torch_are_not_asked_about_again(costs, monkeypatch, layer):
    ours, dense, shape = layer
    never = cost.Product(1.0, lambda density: 2.0)
    costs["costs"] = cost.Costs(never, never, never, 0.0)
    ours(torch.ones(shape))
    asked = []
    monkeypatch.setattr(cost.Costs, "worth_looking", lambda *_: asked.append(1) or True)
    torch.testing.assert_close(ours(torch.ones(shape)), dense(torch.ones(shape)))
    assert not asked
    ours(torch.ones(shape[0] + 1, *shape[1:]))
    assert asked


@pytest.mark.parametrize(
    ("seconds", "pays_at", "call", "wanted"),
    [(0.01, 0.1, 1e-4, True), (1e-3, 0.1, 1e-5, False), (1e-3, 1, 1e-5, True), (0.01, 0.1, 2e-3, False)],
)
def test_an_input_is_looked_at_where_that_is_little_beside_what_it_saves(seconds, pays_at, call, wanted):
    product = cost.Product(seconds, lambda density: seconds * (0.1 if density <= pays_at else 2.0), call)
    assert cost.Costs(product, product, product, 0.0).worth_looking(False) is wanted


def test_a_sample_of_the_input_is_of_all_columns(costs, monkeypatch):
    seen = []
    scan = shared_layer.bits_of
    monkeypatch.setattr(shared_layer, "bits_of", lambda *given: seen.append(scan(*given)) or seen[-1])
    few = cost.Product(1.0, lambda density: 0.1 if density < 0.5 else 2.0)
    costs["costs"] = cost.Costs(few, few, few, 0.0)
    rows = torch.ones(1024, 512)
    rows[:, :64] = 0.0  # a word of each row, of eight
    hb.Linear(512, 64)(rows)
    ((_, density),) = seen
    assert 0.8 < density < 0.95


def test_one_product_alone_by_events_has_to_save_more():
    near = cost.Product(1e-3, lambda density: 6e-4)
    far = cost.Product(1e-3, lambda density: 2e-3)
    assert cost.chosen(cost.Costs(near, near, near, 0.0), 0.1, 1, False, True)[:2] == (True, True)
    assert cost.chosen(cost.Costs(near, far, near, 0.0), 0.1, 1, False, True)[:2] == (False, False)
    assert cost.chosen(cost.Costs(far, near, near, 0.0), 0.1, 1, False, True)[:2] == (False, False)
    assert cost.chosen(cost.Costs(near, far, near, 0.0), 0.1, 1, False, False)[:2] == (True, None)


WITH_ONEDNN = pytest.mark.skipif(not dense_product.there(), reason="this torch has no oneDNN")


@WITH_ONEDNN
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(300, 128), (3, 100, 128), (128,)])
def test_the_product_by_onednn_has_torchs_outputs_and_gradients(monkeypatch, bias, shape):
    monkeypatch.setattr(of_linear, "by_onednn", lambda: True)
    monkeypatch.setattr(linear_layer, "SMALLEST_WORK", 0)
    monkeypatch.setattr(linear_layer, "BY_ONEDNN", 0)
    layer, dense = hb.Linear(128, 70, bias=bias), nn.Linear(128, 70, bias=bias)
    layer.load_state_dict(dense.state_dict())
    x, factors = torch.randn(shape), torch.randn(*shape[:-1], 70)
    for _ in range(2):  # asked about, and remembered
        results = []
        for net in (layer, dense):
            net.zero_grad()
            inputs = x.clone().requires_grad_()
            out = net(inputs)
            (first,) = torch.autograd.grad((out.tanh() * factors).sum(), inputs, create_graph=True)
            (first.square().sum() + (out * factors).sum()).backward()
            results.append([out, first, inputs.grad, *(p.grad for p in net.parameters())])
        for got, wanted in zip(*results, strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)
        with torch.inference_mode():
            torch.testing.assert_close(layer(x), dense(x), rtol=1e-4, atol=1e-4)
    assert layer(x.clone().requires_grad_())._base is None
    assert layer.explain().endswith("by oneDNN")


@pytest.mark.parametrize("density", [0.0, 0.1, 0.3, 1.0])
@pytest.mark.parametrize("size", [(256, 512, 784), (1, 1, 1), (600, 17, 70), (65, 33, 16)])
def test_a_weights_gradient_is_the_sum_over_values_that_are_not_zero(size, density):
    rows, outputs, inputs = size
    torch.manual_seed(0)
    grads = torch.randn(rows, outputs) * (torch.rand(rows, outputs) < density)
    numbers = torch.randn(rows, inputs)
    wanted = (grads.double().T @ numbers.double()).float()
    torch.testing.assert_close(weight_gradient_of_few(grads, numbers), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("library", ["torch's", pytest.param("oneDNN", marks=WITH_ONEDNN)])
@pytest.mark.parametrize("few", [True, False])
def test_a_dense_layer_goes_through_the_values_of_a_gradient_that_are_few(monkeypatch, few, library):
    monkeypatch.setattr(of_linear, "by_onednn", lambda: library == "oneDNN")
    monkeypatch.setattr(linear_layer, "OF_FEW", 0)
    layer = hb.Linear(300, 70)
    numbers = torch.randn(300, 300)
    numbers[0] = float("inf")  # of a row whose gradient is zero everywhere
    grad = torch.randn(300, 70) * (torch.rand(300, 70) < (0.1 if few else 1.0))
    grad[0] = 0.0
    layer(numbers).backward(grad)
    assert layer.explain().endswith("by oneDNN") == (library == "oneDNN")
    assert layer.weight.grad.isfinite().all() == few  # a product, unlike a sum, has zero times infinity
    if few:
        torch.testing.assert_close(layer.weight.grad, grad[1:].T @ numbers[1:], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(layer.bias.grad, grad.sum(0), rtol=1e-4, atol=1e-4)


def test_a_dense_layer_whose_gradients_have_many_values_is_left_to_torch_but_now_and_then(monkeypatch):
    monkeypatch.setattr(of_linear, "by_onednn", lambda: False)
    monkeypatch.setattr(linear_layer, "OF_FEW", 0)
    layer, numbers = hb.Linear(300, 70), torch.randn(300, 300)
    many, few = torch.randn(300, 70), torch.zeros(300, 70)
    looked = []
    for call in range(2 * dense_product.AGAIN + 4):
        outs = [layer(numbers) for _ in range(2)]
        assert len({type(out.grad_fn) for out in outs}) == 1
        looked.append("Addmm" not in type(outs[0].grad_fn).__name__)
        (outs[0] + outs[1]).backward(few if call >= dense_product.AGAIN - 1 else many)
        with torch.no_grad():
            layer.weight.mul_(0.5)
    assert looked[0]
    assert sum(looked[: dense_product.AGAIN]) == 2
    assert all(looked[dense_product.AGAIN :])
    copied = copy.deepcopy(layer)
    assert copied.state_dict().keys() == {"weight", "bias"}
    pickle.loads(pickle.dumps(layer))


def test_small_calls_take_parameters_wherever_they_are():
    parametrized = nn.utils.parametrizations.weight_norm(hb.Linear(8, 4))
    x = torch.rand(2, 8)
    for layer in (parametrized, hb.Linear(8, 4, bias=False), hb.Linear(8, 4)):
        torch.testing.assert_close(layer(x), nn.functional.linear(x, layer.weight, layer.bias))
        assert layer.explain() == "dense: at these sizes torch is sooner done at any density"


@pytest.mark.parametrize("mode", ["auto", "dense", "events"])
@pytest.mark.parametrize("grad", [True, False], ids=["learns", "frozen"])
@pytest.mark.parametrize("last", [True, False], ids=["last", "first"])
@pytest.mark.parametrize("stride", [2, (2, 3)])
def test_a_window_of_one_pixel_at_a_stride_has_torchs_outputs_and_gradients(mode, grad, last, stride):
    """Torch's own, of as many channels that lie last, writes beyond its memory."""
    layer, dense = hb.Conv2d(8, 8, 1, stride), nn.Conv2d(8, 8, 1, stride)
    layer.load_state_dict(dense.state_dict())
    layer.mode = mode
    layer.weight.requires_grad_(grad)
    x = (torch.rand(4, 8, 64, 64) < 0.3).float()
    mine = x.contiguous(memory_format=torch.channels_last) if last else x.clone()
    factors = torch.randn(dense(x).shape)
    for _ in range(20):  # what is written beyond is seen when it is freed
        mine, x = mine.detach().requires_grad_(), x.detach().requires_grad_()
        layer.zero_grad()
        (layer(mine) * factors).sum().backward()
    dense(x).mul(factors).sum().backward()
    torch.testing.assert_close(layer(mine), dense(x), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(mine.grad, x.grad, rtol=1e-4, atol=1e-4)
    if grad:
        torch.testing.assert_close(layer.weight.grad, dense.weight.grad, rtol=1e-4, atol=1e-3)
    assert layer(mine).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("stride", [1, 2])
def test_an_input_gradient_is_reckoned_longer_than_the_product_at_a_stride(stride):
    """So that at a support of 30%, 0.9 of the time of the product, it is computed there."""
    geometry = Geometry(64, (16, 16), (3, 3), (stride, stride), (1, 1), (1, 1))
    costs = of_convolutions.costs(64, 128, geometry)
    assert (costs.input.dense > costs.forward.dense) == (stride > 1)
    assert cost.Choice(costs=costs).restricted(0.3)
