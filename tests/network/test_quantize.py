"""Quantized networks: the same spikes in PyTorch and in C, bit for bit; no product, no overflow."""

import copy
import itertools
import math
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import hibana as hb
from c_programs import WARNINGS, compiled, needs_cc, outputs_of
from hibana.cells import AtLeast
from hibana.compiler.graph.leaf import Leaf
from hibana.compiler.graph.ops import Unsupported
from hibana.network import to_c
from hibana.network.quantized.cell import fixed_cell
from selection import examples

CELLS = {
    "IF": lambda: hb.IF(0.4),
    "soft IF": lambda: hb.IF(0.3, reset="subtract", initial=0.15),
    "LIF": lambda: hb.LIF(tau=4.0, threshold=0.3, reset=-0.1),
    "PLIF": lambda: hb.PLIF(tau=3.0, threshold=0.2),
    "CubaLIF": lambda: hb.CubaLIF(tau_synapse=2.0, tau=5.0, threshold=0.4),
    "ALIF": lambda: hb.ALIF(threshold=0.2, tau_adaptation=20.0),
    "RefractoryLIF": lambda: hb.RefractoryLIF(threshold=0.2),
    "AdLIF": lambda: hb.AdLIF(tau=4.0, threshold=0.1),
    "LIF with its options": lambda: hb.LIF(3.0, 0.2, rest=-0.1, decay_input=True, lower_bound=-0.3),
    "LIF, leak first": lambda: hb.LIF(3.0, 0.3, leak_first=True, reset="subtract"),
    "LIF that counts its spikes": lambda: hb.LIF(3.0, 0.1, reset="subtract", most_spikes=3),
    "LIF with a tau for each neuron": lambda: hb.LIF(torch.linspace(1.5, 9.0, 9), 0.2),
    "QIF": lambda: hb.QIF(threshold=0.4),
    "EIF": lambda: hb.EIF(threshold=0.4),
    "Izhikevich": lambda: hb.Izhikevich(dt=0.5),
    "ResonateAndFire": lambda: hb.ResonateAndFire(threshold=0.4),
    "SiLIF": lambda: hb.SiLIF(threshold=0.4),
    "Recurrent": lambda: hb.Recurrent(hb.LIFCell(threshold=0.3), 9, nn.Linear(9, 9)),
}


class Drawing(hb.Cell):
    def forward(self, input_, v_previous, s_previous):
        v = v_previous * 0.5 + input_ + torch.rand_like(input_)
        return v, hb.Heaviside.apply(v - 1)


class Remainder(hb.Cell):
    def forward(self, input_, v_previous, s_previous):
        v = torch.fmod(v_previous, input_ * input_ + 1) + input_
        return v, hb.Heaviside.apply(v - 1)


class Logarithm(hb.Cell):
    def forward(self, input_, v_previous, s_previous):
        v = v_previous * 0.5 + torch.log(input_)
        return v, hb.Heaviside.apply(v - 1)


def with_cell(cell):
    net = nn.Sequential(nn.Linear(6, 9), CELLS[cell](), nn.Linear(9, 3), hb.LI()).eval()
    if cell == "Izhikevich":  # its input is in mV per ms
        with torch.no_grad():
            net[0].weight.mul_(60)
    return net


def images():
    return nn.Sequential(
        hb.EachStep(nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4))), hb.IF(0.4),
        hb.EachStep(nn.MaxPool2d(2)), hb.EachStep(nn.Conv2d(4, 6, 3)), hb.EachStep(nn.AvgPool2d(2)),
        hb.LIF(tau=2.0, threshold=0.2), nn.Flatten(2), nn.Linear(6, 3), hb.LI(3.0),
    ).eval()  # fmt: skip


def check(net, inputs, folder, **options):
    """Checks that the quantized `net` returns the same outputs in C as in PyTorch for `inputs`."""
    quantized, report = hb.quantize(net, inputs)
    program = to_c(quantized, inputs)
    integers = quantized.integer_input(inputs)
    with torch.no_grad():
        expected = quantized.net(integers).flatten(2).double()
    binary = compiled(program, folder, len(inputs), **options)
    outputs, scores, classes = outputs_of(binary, program, integers)
    assert torch.equal(outputs, expected)
    assert torch.equal(scores, expected.sum(0))
    assert classes == scores.argmax(1).tolist()
    scaled = quantized(inputs)
    assert torch.allclose(scaled.double(), (expected * quantized.output_scale).view(scaled.shape))
    assert expected.count_nonzero() > 0
    return quantized, report, program


@pytest.mark.slow
@needs_cc
@pytest.mark.parametrize("cell", CELLS)
def test_every_quantized_cell_is_the_same_in_c(cell, tmp_path):
    net = with_cell(cell)
    _, report, program = check(net, torch.rand(12, 3, 6), tmp_path)
    assert report.layers[1].agreement > 0.95
    assert report.layers[1].after > 0
    assert "float" not in re.sub(r"/\*.*?\*/", "", program.source, flags=re.DOTALL)


@needs_cc
@pytest.mark.parametrize("inputs", [1, 2, 3, 4])
def test_layers_of_few_inputs_compile_without_warnings(inputs, tmp_path):
    net = nn.Sequential(nn.Linear(inputs, inputs), hb.IF(0.05), nn.Linear(inputs, 1, bias=False)).eval()
    nn.init.constant_(net[0].weight, 0.2)
    for flags in (*WARNINGS, "-O2"), (*WARNINGS, "-O3"):
        check(net, torch.rand(1, 2, inputs) + 0.5, tmp_path, flags=flags)
        check(net, torch.ones(1, 2, inputs), tmp_path, events=True, flags=flags)


@needs_cc
def test_a_quantized_convolutional_network_is_the_same_in_c(tmp_path):
    quantized, report, program = check(images(), torch.rand(5, 2, 1, 8, 8), tmp_path)
    assert [layer.what for layer in report.layers if layer.weight_error][:1] == ["Conv2d"]
    assert all(layer.weight_error < 0.02 for layer in report.layers)
    assert quantized.net[0].module[0].weight.abs().max() == 127
    assert program.constant_bytes < 4 * sum(p.numel() for p in images().parameters())


@settings(max_examples=examples(2))
@given(st.data())
def test_random_quantized_networks_are_the_same_in_c(tmp_path_factory, data):
    torch.manual_seed(data.draw(st.integers(0, 99)))
    sizes = data.draw(st.lists(st.integers(1, 40), min_size=2, max_size=3))
    layers = []
    for size, to in itertools.pairwise(sizes):
        tau = data.draw(st.sampled_from((1.0, 1.5, 2.0, 7.0, 64.0)))
        layers += [nn.Linear(size, to), data.draw(st.sampled_from((hb.IF(0.2), hb.LIF(tau, 0.2))))]
    layers += [nn.Linear(sizes[-1], 3), hb.LI(data.draw(st.sampled_from((math.inf, 5.0))))]
    inputs = torch.rand(data.draw(st.integers(1, 20)), 2, sizes[0]) * 3 - data.draw(st.integers(0, 2))
    check(nn.Sequential(*layers), inputs, tmp_path_factory.mktemp("c"))


class Sum(nn.Module):
    """The sum of the outputs of paths from one input."""

    def __init__(self, *paths):
        super().__init__()
        self.paths = nn.ModuleList(paths)

    def forward(self, x):
        first, *others = self.paths
        total = first(x)
        for path in others:
            total = total + path(x)
        return total


def skip():
    """The default network of small tables, and a third path."""
    third = nn.Sequential(nn.Linear(6, 4), hb.IF(0.3), hb.Delay(1.0), nn.Linear(4, 3))
    paths = nn.Linear(6, 3), nn.Sequential(nn.Linear(6, 9), hb.IF(0.3), nn.Linear(9, 3)), third
    return nn.Sequential(Sum(*paths), hb.LI())


def residual():
    """A residual network with global average pooling; one block adds spikes, and one currents."""

    def conv(inputs, outputs, kernel=3):
        return hb.EachStep(nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2))

    block = Sum(nn.Identity(), nn.Sequential(conv(4, 4), hb.IF(0.2)))
    shortcut = Sum(conv(4, 6), nn.Sequential(hb.EachStep(nn.AvgPool2d(3, 1, 1)), conv(4, 6, 1)))
    end = hb.EachStep(nn.AdaptiveAvgPool2d(1)), nn.Flatten(2), nn.Linear(6, 3), hb.LI()
    return nn.Sequential(conv(1, 4), hb.IF(0.3), block, shortcut, hb.IF(0.2), *end)


def sequences():
    """Poolings of sequences."""
    convolution = hb.EachStep(nn.Sequential(nn.Conv1d(2, 4, 3), nn.AvgPool1d(2)))
    end = hb.EachStep(nn.AdaptiveAvgPool1d(1)), nn.Flatten(2), nn.Linear(4, 3), hb.LI()
    return nn.Sequential(convolution, hb.IF(0.2), *end)


SUMS = {"skip": (skip, (6,)), "residual": (residual, (1, 6, 6)), "sequences": (sequences, (2, 9))}


@needs_cc
@pytest.mark.parametrize("name", SUMS)
def test_sums_at_different_scales_and_global_means_are_the_same_in_c(name, tmp_path):
    torch.manual_seed(0)
    make, shape = SUMS[name]
    net, inputs = make().eval(), torch.rand(8, 5, *shape)
    quantized, report, _ = check(net, inputs, tmp_path)
    assert torch.equal(hb.compile(quantized, inputs)(inputs), quantized(inputs))
    assert report.layers[-1].agreement > 0.99
    assert all(layer.weight_error < 0.01 for layer in report.layers)
    zeros = copy.deepcopy(net)
    nn.init.zeros_(next(m for m in zeros.modules() if isinstance(m, nn.Linear | nn.Conv2d)).weight)
    hb.quantize(zeros, inputs)


def test_global_means_of_an_optimized_network_are_quantized():
    torch.manual_seed(0)
    layers = nn.Conv2d(2, 4, 3), hb.IF(0.3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3), hb.LI()
    net, x = hb.optimize(nn.Sequential(*layers).eval(), verbose=False), torch.rand(6, 3, 2, 6, 6)
    quantized, report = hb.quantize(net, x)
    assert torch.equal(hb.compile(quantized, x)(x), quantized(x))
    assert report.layers[-1].agreement > 0.99


class Mean(nn.Module):
    def forward(self, x):
        return x.mean((-1, -2))


def test_averages_without_an_integer_form_are_named():
    x = torch.rand(3, 2, 2, 6, 6)
    with pytest.raises(Unsupported, match=r"layer 'mean': avg-pooling in a forward has .*AdaptiveAvgPool2d"):
        hb.quantize(nn.Sequential(hb.IF(), Mean(), nn.Linear(2, 3)), x)
    pooling = hb.EachStep(nn.AvgPool2d(3, padding=1, count_include_pad=False))
    with pytest.raises(Unsupported, match=r"layer '1\.module': AvgPool2d with count_include_pad=False"):
        hb.quantize(nn.Sequential(hb.IF(), pooling, hb.IF()), x)
    mean = hb.EachStep(nn.AdaptiveAvgPool2d(1))
    twice = nn.Sequential(hb.IF(), Sum(mean, nn.Sequential(hb.EachStep(nn.MaxPool2d(2)), mean)), hb.IF())
    with pytest.raises(Unsupported, match=r"layer .* is called on images of different sizes"):
        hb.quantize(twice, x)
    with pytest.raises(Unsupported, match="layer 'add' adds integers of different scales"):
        hb.quantize(nn.Sequential(hb.IF(), Sum(nn.Identity(), hb.EachStep(nn.Conv2d(2, 2, 1)))), x)


def products(program):
    """The lines of a program's functions that multiply numbers, except for address computations."""
    code = re.sub(r"/\*.*?\*/", "", program.source, flags=re.DOTALL)
    code = re.sub(r"\[[^]]*\]|\w+ \*const .*", "", code)
    code = re.sub(r"net_w\d \+ [^,;)]*", "", code)
    code = code[code.index("};\n\nstatic void") :]
    return [line.strip() for line in code.splitlines() if re.search(r"[\w\])] \* [\w(]", line)]


def test_if_networks_multiply_only_the_input_of_the_first_layer():
    net = nn.Sequential(nn.Linear(9, 7), hb.IF(0.3), nn.Linear(7, 5), hb.IF(0.3), nn.Linear(5, 2), hb.LI())
    spikes = (torch.rand(4, 3, 9) < 0.5).float()
    quantized, _ = hb.quantize(net, spikes)
    by_numbers = [  # two rows at once, and the last row
        "net->current1 += (int32_t)(int16_t)(x * a) + (int32_t)(int16_t)(y * b);",
        "net->current1 += x * row;",
    ]
    assert quantized.input_range == (0, 1)
    assert products(to_c(quantized, spikes)) == by_numbers  # of net_step; net_step_events has none
    assert products(to_c(net, spikes)) != by_numbers  # v * (1 - s), in floating point
    deep = nn.Sequential(*images()[:4], hb.IF(0.2), nn.Flatten(2), nn.Linear(24, 3), hb.LI())
    inputs = torch.rand(3, 2, 1, 8, 8)
    (product,) = products(to_c(hb.quantize(deep, inputs)[0], inputs))
    assert product == "target += x * weights;"


def test_a_potential_that_may_overflow_is_refused_with_its_layer():
    net = nn.Sequential(nn.Linear(2000, 3, bias=False), hb.IF(1e9), nn.Linear(3, 2), hb.LI())
    nn.init.constant_(net[0].weight, 0.5)
    hb.quantize(net, torch.rand(1, 1, 2000).expand(30, 1, 2000))
    with pytest.raises(Unsupported, match=r"layer '1': state v may reach 2,.* in 40 steps, more"):
        hb.quantize(net, torch.rand(1, 1, 2000).expand(40, 1, 2000))


def test_bounds_hold_on_the_worst_input():
    net = nn.Sequential(nn.Linear(4, 1, bias=False), hb.IF(1e6), nn.Linear(1, 1), hb.LI())
    inputs = torch.rand(6, 1, 4)
    quantized, _ = hb.quantize(net, inputs)
    worst = torch.where(quantized.net[0].weight < 0, 255.0, 0.0).expand(6, 1, 4).to(quantized.dtype)
    (v, _), *_ = hb.run(quantized.net, worst)[1].values()
    bounds = _bounds(quantized, inputs)
    assert bounds[Leaf("state", 0)][0] == int(v.min())


def _bounds(quantized, inputs):
    from hibana.network.c import unit as program

    unit = program.build_unit(quantized, inputs, "net", "sum")
    return next(iter(unit.arithmetic.leaf_bounds.values()))


def test_a_leak_bounds_the_potential_for_any_number_of_steps():
    for tau in (4.0, 5.0):
        net = nn.Sequential(nn.Linear(4, 3), hb.LIF(tau, 1e5), nn.Linear(3, 1), hb.LI())
        inputs = torch.rand(1, 1, 4)
        few, many = (
            _bounds(hb.quantize(net, i)[0], i)[Leaf("state", 0)] for i in (inputs, inputs.expand(300, 1, 4))
        )
        assert many[1] <= few[1] * (tau + 0.1)


@pytest.mark.parametrize("tau", [1.0, 2.0, 3.0, 8.0, 100.0, math.inf])
def test_a_leak_is_rounded_to_the_nearest(tau):
    v = torch.arange(-1000, 1000, dtype=torch.float64)
    cell = fixed_cell("1", hb.LICell(tau), (len(v),), torch.tensor(0.1), 127, None)
    (result,) = cell(torch.zeros_like(v), v)
    assert torch.equal(result, result.round())
    assert (result - v * (1 - 1 / tau)).abs().max() <= 0.5 + 1000 * 2**-16
    assert any(op == "parameter" for op, *_ in cell.program) == (tau in (1.0, 3.0, 100.0))  # else shifts


def test_readouts_have_one_scale_and_spiking_layers_one_for_each_channel():
    net = nn.Sequential(nn.Linear(3, 4), hb.IF(), nn.Linear(4, 3), hb.LI())
    with torch.no_grad():
        net[0].weight[0] *= 100
        net[2].weight[0] *= 100
    quantized, _ = hb.quantize(net, torch.rand(4, 2, 3))
    assert quantized.net[0].weight.abs().amax(1).tolist() == [127] * 4
    assert quantized.net[2].weight.abs().amax(1)[1:].max() < 10
    assert torch.allclose(quantized(torch.ones(4, 2, 3)), net(torch.ones(4, 2, 3)), rtol=0.2, atol=2)


@pytest.mark.parametrize("recurrent", [False, True])
def test_reshaped_layers_have_one_scale(recurrent):
    torch.manual_seed(0)
    neurons = hb.Recurrent(hb.IFCell(0.4), 8) if recurrent else hb.IF(0.4)
    net = nn.Sequential(hb.EachStep(nn.Conv2d(1, 2, 3, padding=1)), nn.Flatten(2), neurons).eval()
    x = torch.rand(5, 3, 1, 2, 2)
    quantized, report = hb.quantize(net, x)
    assert report.layers[-1].agreement > 0.9
    assert torch.equal(hb.compile(quantized, x)(x), quantized(x))


def test_operations_without_an_integer_form_are_named_in_the_error():
    x = torch.rand(2, 1, 3)
    for cell, message in (
        (Drawing(), "the step of Drawing draws random numbers"),
        (
            Remainder(),
            "Remainder: fmod has no integer form: it must be a function of one number, with constants",
        ),
        (Logarithm(), "Logarithm: log is not finite on the range of its argument, -"),
    ):
        with pytest.raises(Unsupported, match=f"layer '1': {re.escape(message)}"):
            hb.quantize(nn.Sequential(nn.Linear(3, 2), hb.OverTime(cell)), x)
    with pytest.raises(ValueError, match="bits must be a whole number from 2 to 8, got 16"):
        hb.quantize(nn.Sequential(hb.IF()), x, bits=16)
    quantized, _ = hb.quantize(nn.Sequential(nn.Linear(3, 2), hb.IF()), x)
    with pytest.raises(ValueError, match="at most the 2 steps within which nothing overflows, got 3"):
        quantized(torch.rand(3, 1, 3))


def test_the_report_measures_the_quantization_error():
    net = nn.Sequential(nn.Linear(3, 4), hb.IF(0.3), nn.Linear(4, 3), hb.LI())
    x = torch.rand(4, 20, 3)
    coarse, fine = (hb.quantize(net, x, bits=bits)[1] for bits in (2, 8))
    assert coarse.layers[0].weight_error > 0.2 > 0.02 > fine.layers[0].weight_error > 0
    assert coarse.layers[1].agreement < fine.layers[1].agreement
    assert fine.same_class > 0.9
    assert all(layer.name in str(fine) for layer in fine.layers)


def train(aware, x, y, steps=30, rate=1e-2):
    optimizer = torch.optim.Adam(aware.parameters(), rate)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        losses.append(nn.functional.cross_entropy(aware(x).mean(0), y))
        losses[-1].backward()
        optimizer.step()
    return losses


@pytest.mark.cover(1)
@pytest.mark.slow
@pytest.mark.parametrize("learns", [False, True], ids=["", "learned parameters"])
@pytest.mark.parametrize("cell", CELLS)
def test_quantization_aware_training_computes_the_quantized_network_bit_for_bit(cell, learns):
    torch.manual_seed(0)
    net, x, y = with_cell(cell).train(), torch.rand(12, 20, 6), torch.randint(3, (20,))
    for layer in net.modules():
        if learns and hasattr(layer, "threshold"):
            tau = ["tau"] if isinstance(vars(type(layer)).get("tau"), AtLeast) else []
            layer._learn(["threshold", *tau])
    aware = hb.convert.quantization_aware(net, x, bits=4)
    train(aware, x, y, steps=3)
    training_outputs = []
    hooks = [layer.register_forward_hook(lambda m, a, o: training_outputs.append(o)) for layer in aware.net]
    outputs = aware(x)
    for hook in hooks:
        hook.remove()
    in_training = hb.run(aware.net, aware.integer_input(x))[1]
    assert outputs.requires_grad
    assert all(layer.cell.float_cell for layer in aware.net[1::2])
    quantized, report = hb.quantize(aware, x)
    values, layers = quantized.integer_input(x), []
    assert torch.equal(quantized.whole_input(x), values)  # deprecated name
    with torch.no_grad():
        for layer in quantized.net:
            values = layer(values)
            layers.append(values)
    for integers, floats in zip(layers, training_outputs, strict=True):
        assert torch.equal(integers.double(), floats.detach().double())
    for name, states in hb.run(quantized.net, quantized.integer_input(x))[1].items():
        for integers, floats in zip(states, in_training[name], strict=True):
            assert torch.equal(integers.double(), floats.detach().double())
            assert torch.equal(integers, integers.round())
    assert 0 < layers[1].double().mean() < 1
    assert torch.equal(quantized(x), outputs.detach())
    assert abs(report.layers[1].agreement - 1) < 1e-9
    if learns:
        learned = [p for name, p in aware.named_parameters() if ".cell." in name and p.requires_grad]
        assert learned
        assert all(p.grad.abs().sum() > 0 for p in learned)


def test_training_uses_a_dtype_that_represents_every_product():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 40), hb.LIF(3.0, 30.0), nn.Linear(40, 2), hb.LI())
    x = torch.rand(30, 200, 6)
    aware = hb.convert.quantization_aware(net, x)
    assert aware.dtype == torch.float64
    aware(x)
    in_training = hb.run(aware.net, aware.integer_input(x))[1]["1"][0]
    quantized, _ = hb.quantize(aware, x)
    assert torch.equal(hb.run(quantized.net, quantized.integer_input(x))[1]["1"][0], in_training.detach())
    on_spikes = nn.Sequential(nn.Linear(6, 40), hb.LIF(4.0), nn.Linear(40, 2), hb.LI())
    assert hb.convert.quantization_aware(on_spikes, x.round()).dtype == torch.float32
    on_spikes[1] = hb.LIF(4.0, learn="tau")
    assert hb.convert.quantization_aware(on_spikes, x.round()).dtype == torch.float64


def test_gradients_in_training_equal_those_of_the_float_network():
    """Weights, thresholds and inputs are multiples of their scales, so that rounding changes nothing."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 7), hb.IF(2.0, "ATan"), nn.Linear(7, 2), hb.LI()).double()
    with torch.no_grad():
        for layer in net[::2]:
            layer.weight.copy_(torch.randint(-6, 7, layer.weight.shape) / 4)
            layer.weight[:, 0] = 7 / 4
            layer.bias.copy_(torch.randint(-2, 3, layer.bias.shape) / 4)
    x = (torch.rand(9, 5, 6) < 0.4).double()
    aware = hb.convert.quantization_aware(net, x, bits=4)
    assert torch.allclose(aware(x), net(x), atol=1e-9)
    (aware(x) ** 2).sum().backward()
    (net(x) ** 2).sum().backward()
    for name, values in net.named_parameters():
        assert torch.allclose(aware.plain.get_parameter(name).grad, values.grad, rtol=1e-5, atol=1e-5), name


def test_quantization_aware_training_learns_and_quantizes_without_error():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(20, 30), hb.LIF(3.0, 0.5), hb.Linear(30, 4), hb.LI())
    x, y = (torch.rand(4, 64, 20) < 0.3).float(), torch.randint(4, (64,))
    aware = hb.convert.quantization_aware(net, x, bits=3)
    cell = aware.net[1].cell
    losses = train(aware, x, y)
    assert losses[-1] < losses[0] - 0.2
    assert aware.net[1].cell is not cell  # rebuilt with gradients at the first step,
    cell = aware.net[1].cell
    train(aware, x, y, steps=1)
    assert aware.net[1].cell is cell  # and reused at all others
    assert aware.plain[0].bias.abs().max() > 0.01
    quantized, report = hb.quantize(aware, x)
    assert quantized.bits == 3
    assert all(layer.weight_error == 0 and layer.agreement > 1 - 1e-9 for layer in report.layers)
    assert torch.equal(quantized(x), aware(x).detach())
    assert hb.quantize(net, x, bits=3)[1].layers[0].weight_error > 0.05
    with pytest.raises(ValueError, match="bits must be 3, which the network was trained with, got 8"):
        hb.quantize(aware, x, bits=8)


def test_a_quantization_aware_network_is_copied_saved_and_trained_on(tmp_path):
    torch.manual_seed(0)
    make = lambda: nn.Sequential(nn.Linear(5, 9), hb.PLIF(3.0, 0.2), nn.Linear(9, 2), hb.LI())  # noqa: E731
    x, y = torch.rand(4, 8, 5), torch.randint(2, (8,))
    aware = hb.convert.quantization_aware(make(), x)
    train(aware, x, y, steps=2)
    torch.save(aware.state_dict(), tmp_path / "state.pt")
    loaded = hb.convert.quantization_aware(make(), x)
    loaded.load_state_dict(torch.load(tmp_path / "state.pt"))
    copied = copy.deepcopy(aware)
    for other in (loaded, copied):
        assert torch.equal(other(x), aware(x))
    train(copied, x, y, steps=2)
    assert not torch.equal(copied(x), aware(x))


def test_quantization_aware_folds_batch_normalization_and_applies_dropout():
    torch.manual_seed(0)
    net = images()
    net.insert(7, nn.Dropout(0.5))
    x = torch.rand(5, 4, 1, 8, 8)
    aware = hb.convert.quantization_aware(net.train(), x)
    assert aware.training
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in aware.modules())
    assert not torch.equal(aware(x), aware(x))
    quantized, _ = hb.quantize(aware, x)
    assert torch.equal(quantized(x), aware.eval()(x).detach())
