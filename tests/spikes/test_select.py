"""Which products are computed per spike: by the rule, and by times that ``hb.tune`` measured."""

import os
import subprocess
import sys

import pytest
import torch
from torch import nn

import hibana as hb
from hibana.spikes import costs, select
from hibana.spikes import layer as shared_layer
from hibana.spikes.bits import sampled_density
from hibana.spikes.convolution import causal as of_windows
from hibana.spikes.convolution import layer as convolution_layer
from hibana.spikes.linear import layer as linear_layer
from hibana.spikes.linear.autograd import linear_key


@pytest.fixture
def times(monkeypatch):
    """Replaces measured times: candidates take these seconds at any size; torch takes 1."""
    seconds = {"forward": 0.1, "weights": 0.1, "input": 0.1, "scan": 0.0}

    def fake_times(key, density, calls):
        for call in calls():
            call()
        if key.product.endswith("input"):
            return seconds["input"], 1.0
        seconds_ = [seconds["forward"], 1.0] + [seconds["weights"], 1.0] * key.learning
        return *seconds_, seconds["scan"]

    monkeypatch.setattr(select, "is_tuning", lambda: True)
    monkeypatch.setattr(select, "_times", fake_times)
    for module in (linear_layer, convolution_layer, of_windows):
        monkeypatch.setattr(module, "SMALLEST_WORK", 0)
    return seconds


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


@pytest.mark.cover(2)
@pytest.mark.parametrize("forward", [True, False])
@pytest.mark.parametrize("weights", [True, False])
@pytest.mark.parametrize("input_", [True, False])
@pytest.mark.parametrize("amd", [True, False])
def test_outputs_and_gradients_are_torchs_for_every_choice(times, forward, weights, input_, amd, monkeypatch):
    monkeypatch.setattr("hibana.spikes.linear.product.is_amd", lambda: amd)
    times |= {"forward": 0.1 if forward else 2.0, "weights": 0.1 if weights else 2.0}
    times["input"] = 0.1 if input_ else 2.0
    for layer, dense, shape in _layers():
        x = torch.rand(shape)
        if len(shape) == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        factors = torch.randn(dense(x).shape)
        for result, expected in zip(_run(layer, x, factors), _run(dense, x, factors), strict=True):
            torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-3)
        explanation = layer.explain()
        assert explanation.startswith("events" if forward else "dense forward" if weights else "dense:")
        assert f"forward takes {0.1 if forward else 2.0:.2f} of torch's time" in explanation
        assert ("the weights' gradient densely" in explanation) == (forward and not weights)


def test_without_a_weight_gradient_the_forward_alone_decides(times):
    times["forward"] = 2.0
    spikes = (torch.rand(300, 128) < 0.1).float()
    layer = hb.Linear(128, 70).requires_grad_(False)
    layer(spikes)
    density = f"{spikes.mean():.0%}"
    assert layer.explain() == f"dense: {density} of the input spiked; forward takes 2.00 of torch's time"


@pytest.mark.parametrize(("scan", "start"), [(0.5, "events: "), (1.5, "dense: ")])
def test_the_time_to_pack_bits_is_counted(times, scan, start):
    times["scan"] = scan
    layer = hb.Linear(128, 70).requires_grad_(False)
    for _ in range(2):
        layer((torch.rand(300, 128) < 0.1).float())
        assert layer.explain().startswith(start)


@pytest.mark.parametrize("learning", [True, False])
def test_packed_bits_are_not_used_if_the_dense_product_is_faster(times, learning):
    times |= {"forward": 2.0, "weights": 2.0, "input": 2.0}
    linear, convolution, window, _ = _layers()
    for layer, dense, shape in (linear, convolution, window):
        for each in (layer, dense):
            each.requires_grad_(learning)
        spikes = hb.IF(0.5)(torch.rand(shape if len(shape) == 3 else (2, *shape), requires_grad=learning))
        x = spikes if len(shape) == 3 or isinstance(layer, nn.Linear) else spikes.flatten(0, 1)
        torch.testing.assert_close(layer(x), dense(x), rtol=1e-4, atol=1e-4)
        assert layer.explain().startswith("dense: ")


def test_no_bits_are_packed_if_a_sample_is_too_dense(monkeypatch):
    monkeypatch.setattr(select, "is_promising", lambda key, learning: True)
    monkeypatch.setattr(select, "estimate", lambda *_: _costs(dense=1e-3, added=2e-3))
    monkeypatch.setattr(shared_layer, "pack_multiples", lambda rows: pytest.fail("the bits were packed"))
    for layer, shape in ((hb.Linear(512, 256), (256, 512)), (hb.Conv2d(64, 64, 3), (8, 64, 16, 16))):
        spikes = (torch.rand(shape) < 0.9).float()
        torch.testing.assert_close(layer(spikes), layer._torch_product(spikes, layer.weight, layer.bias))
        assert layer.explain().endswith("spiked; torch is faster at these sizes and this density")


@pytest.mark.parametrize("columns", [64, 512, 1024])
def test_a_sample_of_the_density_covers_all_columns(columns):
    rows = torch.ones(1024, columns)
    rows[:, :64] = 0.0  # one word of each row
    assert sampled_density(rows) == pytest.approx(1 - 64 / columns, abs=0.05)


def _costs(dense, added):
    """Costs of torch's products, and of products per spike if all inputs spike, in seconds."""
    per_spike = costs.PerSpike(0.0, 0.0, added, float("inf"))
    return costs.Costs(per_spike, dense, per_spike, dense, per_spike, 0.0, 0.0)


@pytest.fixture(params=[0.0155, 0.011], ids=["half-width", "full-width"])
def processor(request, monkeypatch):
    """A processor with half-width or full-width vector units, and the caches of an AMD EPYC."""
    monkeypatch.setattr(costs, "_caches", lambda: (1 << 20, 32 << 20))
    linear = 0.020 if request.param == 0.0155 else request.param
    monkeypatch.setattr(costs, "_multiply_add", lambda by_mkl: linear if by_mkl else request.param)
    for function in (costs.estimate, select._is_promising):
        function.cache_clear()
    yield "half" if request.param == 0.0155 else "full"
    for function in (costs.estimate, select._is_promising):
        function.cache_clear()


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("learning", [False, True])
@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (lambda: hb.Linear(784, 512), (64, 784)),
        (lambda: hb.Linear(1024, 512), (24, 1024)),
        (lambda: hb.Conv2d(16, 8, 3, padding=1), (16, 16, 32, 32)),
        (lambda: hb.Conv2d(512, 512, 3, padding=1), (1, 512, 4, 4)),
        (lambda: hb.Window(512, 512, 3), (16, 2, 512)),
        (lambda: hb.Window(512, 8, 5), (100, 16, 512)),
        (lambda: hb.Conv2d(2, 64, 3, padding=1), (16, 2, 32, 32)),
    ],
)
def test_inputs_of_products_that_torch_computes_soon_are_not_sampled(
    processor, two_threads, layer, shape, learning, monkeypatch
):
    """At any density; only mode="events" computes them per spike."""
    monkeypatch.setattr(shared_layer, "sampled_density", lambda *_: pytest.fail("it was sampled"))
    layer = layer().requires_grad_(learning)
    spikes = (torch.rand(shape) < 0.1).float()
    layer(spikes)
    assert layer.explain() == "dense: looking for spikes does not pay at these sizes"
    monkeypatch.undo()
    layer.mode = "events"
    layer(spikes)
    assert layer.explain().startswith("events: ")


@pytest.mark.parametrize("learning", [False, True])
@pytest.mark.parametrize("density", [0.02, 0.1])
@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (lambda: hb.Linear(784, 512), (2048, 784)),
        (lambda: hb.Conv2d(64, 64, 3, padding=1), (32, 64, 16, 16)),
        (lambda: hb.Window(256, 256, 5), (50, 32, 256)),
    ],
)
def test_few_spikes_of_large_products_are_added_one_by_one(
    processor, two_threads, layer, shape, density, learning
):
    layer = layer().requires_grad_(learning)
    layer((torch.rand(shape) < density).float())
    assert layer.explain().startswith("events: ")
    assert "densely" not in layer.explain()


@pytest.mark.parametrize("shape", [(64, 128, 128), (64, 784, 512), (2048, 784, 512), (4096, 1024, 1024)])
def test_faster_dense_products_are_chosen_more_often(shape, monkeypatch):
    """The same for more threads: a thread that computes per spike needs as long, and calls are no faster."""
    rows, inputs, outputs = shape
    key = linear_key(rows * inputs, inputs, outputs)._replace(learning=True)
    chosen = []
    for nanoseconds in (0.04, 0.02, 0.01, 0.005, 0.001):
        monkeypatch.setattr(costs, "_multiply_add", lambda by_mkl, ns=nanoseconds: ns)
        costs.estimate.cache_clear()
        choices = [select._estimated(key, ones, 2) for ones in (0.0, 0.1, 0.3, 1.0)]
        chosen.append(sum(bool(each.forward) + bool(each.weights) for each in choices))
    costs.estimate.cache_clear()
    assert chosen == sorted(chosen, reverse=True)
    assert chosen[-1] == 0


def test_high_densities_are_added_by_tables_where_dense_products_are_slow(processor, two_threads):
    """With full-width units a table takes about as long as torch, which then computes the product."""
    layer = hb.Conv2d(64, 64, 3, padding=1)
    layer((torch.rand(32, 64, 16, 16) < 0.9).float())
    assert layer.explain().startswith("events: " if processor == "half" else "dense: ")


def test_no_density_is_sampled_for_small_products(monkeypatch):
    monkeypatch.setattr(shared_layer, "sampled_density", lambda *_: pytest.fail("it was looked at"))
    layer = hb.Linear(128, 70)
    layer((torch.rand(30, 128) < 0.1).float())
    assert layer.explain() == "dense: looking for spikes does not pay at these sizes"


def test_small_calls_use_parametrized_and_missing_parameters():
    parametrized = nn.utils.parametrizations.weight_norm(hb.Linear(8, 4))
    x = torch.rand(2, 8)
    for layer in (parametrized, hb.Linear(8, 4, bias=False), hb.Linear(8, 4)):
        torch.testing.assert_close(layer(x), nn.functional.linear(x, layer.weight, layer.bias))
        assert layer.explain() == "dense: looking for spikes does not pay at these sizes"


@pytest.mark.cover(2)
@pytest.mark.parametrize("mode", ["auto", "dense", "events"])
@pytest.mark.parametrize("grad", [True, False], ids=["learns", "frozen"])
@pytest.mark.parametrize("last", [True, False], ids=["last", "first"])
@pytest.mark.parametrize("stride", [2, (2, 3)])
def test_a_window_of_one_pixel_at_a_stride_has_torchs_outputs_and_gradients(mode, grad, last, stride):
    """Torch's convolution with as many channels in channels-last format writes beyond its memory."""
    layer, dense = hb.Conv2d(8, 8, 1, stride), nn.Conv2d(8, 8, 1, stride)
    layer.load_state_dict(dense.state_dict())
    layer.mode = mode
    layer.weight.requires_grad_(grad)
    x = (torch.rand(4, 8, 64, 64) < 0.3).float()
    inputs = x.contiguous(memory_format=torch.channels_last) if last else x.clone()
    factors = torch.randn(dense(x).shape)
    for _ in range(20):  # a write beyond the memory is detected when it is freed
        inputs, x = inputs.detach().requires_grad_(), x.detach().requires_grad_()
        layer.zero_grad()
        (layer(inputs) * factors).sum().backward()
    dense(x).mul(factors).sum().backward()
    torch.testing.assert_close(layer(inputs), dense(x), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(inputs.grad, x.grad, rtol=1e-4, atol=1e-4)
    if grad:
        torch.testing.assert_close(layer.weight.grad, dense.weight.grad, rtol=1e-4, atol=1e-3)
    assert layer(inputs).is_contiguous(memory_format=torch.channels_last)


def test_a_strided_window_of_one_pixel_is_sampled_with_gradients_only(monkeypatch):
    layer, calls = hb.Conv2d(8, 8, 1, 2), []
    sampled = convolution_layer.dense.sample_pixels
    monkeypatch.setattr(
        convolution_layer.dense, "sample_pixels", lambda *args: calls.append(1) or sampled(*args)
    )
    x = torch.rand(2, 8, 6, 6).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        expected = [layer(x) for _ in range(2)][1]
    assert not calls
    torch.testing.assert_close(layer(x), expected)
    assert calls
    with torch.no_grad():
        layer(x)
    assert len(calls) == 1


def test_changed_sizes_of_a_small_convolution_are_used():
    layer, plain = hb.Conv2d(16, 4, 3, padding=2), nn.Conv2d(16, 4, 3, padding=2)
    layer.load_state_dict(plain.state_dict())
    x = torch.rand(2, 16, 6, 6).contiguous(memory_format=torch.channels_last)
    for change in ({}, {}, {"dilation": (2, 2)}, {"stride": (2, 2)}, {"padding": (4, 4)}):
        for each in (layer, plain):
            vars(each).update(change)
        torch.testing.assert_close(layer(x), plain(x))
    layer.mode = "events"
    layer(x.round())
    assert layer.explain().startswith("events")


@pytest.fixture
def tuned(monkeypatch):
    """An empty table of tuned times, which is used."""
    monkeypatch.setattr(select, "_TUNED", {})
    monkeypatch.setattr(select, "_TUNED_SIZES", set())
    torch.use_deterministic_algorithms(False)  # tests enable them by default
    return select._TUNED


def _network():
    torch.manual_seed(0)
    net = nn.Sequential(
        *(hb.Linear(128, 256), hb.IF(0.5, hb.surrogate.Box(0.4), detach_reset=True)),
        *(hb.Linear(256, 256), hb.LIF(surrogate=hb.surrogate.ATan()), nn.Dropout(0.1), hb.LI()),
    )
    return net, (torch.rand(8, 64, 128) < 0.1).float()


@pytest.mark.parametrize("faster", ["torch", "events"])
def test_the_faster_product_of_tune_is_used(tuned, monkeypatch, faster):
    def fake_times(calls):
        for call in calls:
            call()
        ours, torchs = (2.0, 1.0) if faster == "torch" else (1.0, 2.0)
        return tuple([ours, torchs] * (len(calls) // 2) + [0.0] * (len(calls) % 2))

    monkeypatch.setattr(select, "_timed", fake_times)
    net, x = _network()
    assert hb.tune(net, x) is net
    assert {key.product for key in tuned} == {"linear"} | ({"linear input"} if faster == "events" else set())
    net(x).sum().backward()
    for layer in (net[0], net[2]):
        share = "2.00" if faster == "torch" else "0.50"
        assert layer.explain().startswith("dense: " if faster == "torch" else "events: ")
        assert f"forward takes {share} of torch's time" in layer.explain()
    net((torch.rand(8, 64, 128) < 0.4).float())
    assert "torch's time" not in net[0].explain()  # tuned for another density
    torch.use_deterministic_algorithms(True)
    net(x)
    assert "torch's time" not in net[0].explain()


def test_tune_only_fills_the_table(tuned):
    net, x = _network()
    before, state = {name: each.clone() for name, each in net.state_dict().items()}, torch.get_rng_state()
    hb.tune(net, x)
    assert tuned
    assert all(0 < seconds < 10 for times in tuned.values() for seconds in times)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(each, before[name]) for name, each in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())
    assert not select.is_tuning()


def test_without_tune_nothing_is_timed(tuned, monkeypatch):
    monkeypatch.setattr(select.time, "perf_counter", lambda: pytest.fail("a clock was read"))
    net, x = _network()
    net(x).sum().backward()
    assert not tuned


def test_tune_takes_a_network_without_gradients_and_several_outputs(tuned):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = hb.Linear(128, 256)

        def forward(self, x):
            return {"a": self.layer(x), "b": (x,)}

    net, x = Two(), (torch.rand(512, 128) < 0.1).float()
    hb.tune(net, x)
    assert {key.learning for key in tuned} == {True, False}
    tuned.clear()
    hb.tune(net.requires_grad_(False), x)
    assert {key.learning for key in tuned} == {False}


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bits_in_other_processes(tmp_path):
    """With an empty and a warm cache, and beside a busy process."""
    program = """
import torch, hibana as hb
torch.manual_seed(0)
layers = [torch.nn.Linear(256, 512), hb.LIF(), torch.nn.Linear(512, 256), hb.LIF()]
net = torch.nn.Sequential(*layers, torch.nn.Linear(256, 10), hb.LI())
x = (torch.rand(10, 64, 256) < 0.2).float()
hb.optimize(net, x, verbose=False)
optimizer = torch.optim.SGD(net.parameters(), 0.1)
for _ in range(3):
    net(x).square().mean().backward()
    optimizer.step()
print(hash(tuple(float(each) for p in net.parameters() for each in p.flatten()[::7])), net[2].explain())
"""
    environment = {**os.environ, "HIBANA_CACHE": str(tmp_path)}
    busy = [sys.executable, "-c", "while True: pass"]
    outputs = []
    for count in (0, 0, 2):
        busy_processes = [subprocess.Popen(busy) for _ in range(count)]
        try:
            finished = subprocess.run(
                [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
            )
        finally:
            for process in busy_processes:
                process.kill()
                process.wait()
        outputs.append(finished.stdout)
    assert "events" in outputs[0]
    assert len(set(outputs)) == 1
