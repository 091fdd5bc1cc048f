"""Whole numbers: the same spikes in PyTorch and in C, bit for bit; no product, no overflow."""

import itertools
import math
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import hibana as hb
from c_programs import compiled, needs_cc, outputs_of
from hibana.convert import to_c
from hibana.convert.quantized.cells import Leak
from hibana.loop.graph.ops import Unsupported

CELLS = {
    "IF": lambda: hb.IF(0.4),
    "soft IF": lambda: hb.IF(0.3, reset="subtract", initial=0.15),
    "LIF": lambda: hb.LIF(tau=4.0, threshold=0.3, reset=-0.1),
    "PLIF": lambda: hb.PLIF(tau=3.0, threshold=0.2),
    "CubaLIF": lambda: hb.CubaLIF(tau_synapse=2.0, tau=5.0, threshold=0.4),
    "ALIF": lambda: hb.ALIF(threshold=0.2, tau_adaptation=20.0),
    "RefractoryLIF": lambda: hb.RefractoryLIF(threshold=0.2),
    "Recurrent": lambda: hb.Recurrent(hb.LIFCell(threshold=0.3), 9, nn.Linear(9, 9)),
}


def images():
    return nn.Sequential(
        hb.EachStep(nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4))), hb.IF(0.4),
        hb.EachStep(nn.MaxPool2d(2)), hb.EachStep(nn.Conv2d(4, 6, 3)), hb.EachStep(nn.AvgPool2d(2)),
        hb.LIF(tau=2.0, threshold=0.2), nn.Flatten(2), nn.Linear(6, 3), hb.LI(3.0),
    ).eval()  # fmt: skip


def check(net, inputs, folder, **how):
    """The quantised network's outputs in C are those in PyTorch."""
    small, report = hb.quantize(net, inputs)
    program = to_c(small, inputs)
    whole = small.whole_input(inputs)
    with torch.no_grad():
        wanted = small.net(whole).flatten(2).double()
    outputs, scores, classes = outputs_of(compiled(program, folder, len(inputs), **how), program, whole)
    assert torch.equal(outputs, wanted)
    assert torch.equal(scores, wanted.sum(0))
    assert classes == scores.argmax(1).tolist()
    assert torch.allclose(small(inputs).double(), (wanted * small.output_scale).view(small(inputs).shape))
    assert wanted.count_nonzero() > 0
    return small, report, program


@needs_cc
@pytest.mark.parametrize("cell", CELLS)
def test_every_cell_in_whole_numbers_is_the_same_in_c(cell, tmp_path):
    net = nn.Sequential(nn.Linear(6, 9), CELLS[cell](), nn.Linear(9, 3), hb.LI()).eval()
    _, report, program = check(net, torch.rand(12, 3, 6), tmp_path)
    assert report.layers[1].agreement > 0.95
    assert report.layers[1].after > 0
    assert "float" not in re.sub(r"/\*.*?\*/", "", program.source, flags=re.DOTALL)


@needs_cc
def test_a_convolutional_network_in_whole_numbers_is_the_same_in_c(tmp_path):
    small, report, program = check(images(), torch.rand(5, 2, 1, 8, 8), tmp_path)
    assert [layer.what for layer in report.layers if layer.weight_error][:1] == ["Conv2d"]
    assert all(layer.weight_error < 0.02 for layer in report.layers)
    assert small.net[0].module[0].weight.abs().max() == 127
    assert program.constant_bytes < 4 * sum(p.numel() for p in images().parameters())


@settings(max_examples=3)
@given(st.data())
def test_networks_of_all_sorts_in_whole_numbers_are_the_same_in_c(tmp_path_factory, data):
    torch.manual_seed(data.draw(st.integers(0, 99)))
    sizes = data.draw(st.lists(st.integers(1, 40), min_size=2, max_size=3))
    layers = []
    for size, to in itertools.pairwise(sizes):
        tau = data.draw(st.sampled_from((1.0, 1.5, 2.0, 7.0, 64.0)))
        layers += [nn.Linear(size, to), data.draw(st.sampled_from((hb.IF(0.2), hb.LIF(tau, 0.2))))]
    layers += [nn.Linear(sizes[-1], 3), hb.LI(data.draw(st.sampled_from((math.inf, 5.0))))]
    inputs = torch.rand(data.draw(st.integers(1, 20)), 2, sizes[0]) * 3 - data.draw(st.integers(0, 2))
    check(nn.Sequential(*layers), inputs, tmp_path_factory.mktemp("c"))


def products(program):
    """The products in the functions of a program: nothing else has a ``*`` between two operands."""
    code = re.sub(r"/\*.*?\*/", "", program.source, flags=re.DOTALL)
    code = code[code.index("_read_events") :]
    return [line.strip() for line in code.splitlines() if re.search(r"[\w\])] \* [\w(]", line)]


def test_if_networks_multiply_nothing_but_the_first_layers_image():
    net = nn.Sequential(nn.Linear(9, 7), hb.IF(0.3), nn.Linear(7, 5), hb.IF(0.3), nn.Linear(5, 2), hb.LI())
    spikes = (torch.rand(4, 3, 9) < 0.5).float()
    small, _ = hb.quantize(net, spikes)
    by_numbers = ["net->current1[o] += x * net_w1[i][o];"]
    assert small.input_range == (0, 1)
    assert products(to_c(small, spikes)) == by_numbers  # of net_step; net_step_events has none
    assert products(to_c(net, spikes)) != by_numbers  # v * (1 - s), in floating point
    deep = nn.Sequential(*images()[:4], hb.IF(0.2), nn.Flatten(2), nn.Linear(24, 3), hb.LI())
    inputs = torch.rand(3, 2, 1, 8, 8)
    (product,) = products(to_c(hb.quantize(deep, inputs)[0], inputs))
    assert product.endswith("+= x * net_w1[c][ky][kx][o];")


def test_a_potential_that_may_overflow_is_refused_with_its_layer():
    net = nn.Sequential(nn.Linear(2000, 3, bias=False), hb.IF(1e9), nn.Linear(3, 2), hb.LI())
    nn.init.constant_(net[0].weight, 0.5)
    hb.quantize(net, torch.rand(1, 1, 2000).expand(30, 1, 2000))
    with pytest.raises(Unsupported, match=r"layer '1': state v may reach 2,.* in 40 steps, more"):
        hb.quantize(net, torch.rand(1, 1, 2000).expand(40, 1, 2000))


def test_bounds_hold_on_the_worst_input():
    net = nn.Sequential(nn.Linear(4, 1, bias=False), hb.IF(1e6), nn.Linear(1, 1), hb.LI())
    inputs = torch.rand(6, 1, 4)
    small, _ = hb.quantize(net, inputs)
    worst = torch.where(small.net[0].weight < 0, 255.0, 0.0).expand(6, 1, 4).to(small.dtype)
    (v, _), *_ = hb.run(small.net, worst)[1].values()
    bounds = _bounds(small, inputs)
    assert bounds["v_state"][0] == int(v.min())


def _bounds(small, inputs):
    from hibana.convert.c import program

    written = program._written(small, inputs, "net", "sum")
    return next(iter(written.numbers.states.values()))


def test_a_leak_bounds_the_potential_for_any_number_of_steps():
    for tau in (4.0, 5.0):
        net = nn.Sequential(nn.Linear(4, 3), hb.LIF(tau, 1e5), nn.Linear(3, 1), hb.LI())
        inputs = torch.rand(1, 1, 4)
        few, many = (
            _bounds(hb.quantize(net, i)[0], i)["v_state"] for i in (inputs, inputs.expand(300, 1, 4))
        )
        assert many[1] <= few[1] * (tau + 0.1)


@pytest.mark.parametrize("tau", [1.0, 2.0, 3.0, 8.0, 100.0, math.inf])
def test_a_leak_is_rounded_to_the_nearest(tau):
    v = torch.arange(-1000, 1000, dtype=torch.float64)
    left = Leak(tau)(v)
    assert torch.equal(left, left.round())
    assert (left - v * (1 - 1 / tau)).abs().max() <= 0.5 + 1000 * 2**-16
    assert ("*" in repr(Leak(tau))) == (tau in (3.0, 100.0))


def test_readouts_have_one_scale_and_what_spikes_a_scale_a_channel():
    net = nn.Sequential(nn.Linear(3, 4), hb.IF(), nn.Linear(4, 3), hb.LI())
    with torch.no_grad():
        net[0].weight[0] *= 100
        net[2].weight[0] *= 100
    small, _ = hb.quantize(net, torch.rand(4, 2, 3))
    assert small.net[0].weight.abs().amax(1).tolist() == [127] * 4
    assert small.net[2].weight.abs().amax(1)[1:].max() < 10
    assert torch.allclose(small(torch.ones(4, 2, 3)), net(torch.ones(4, 2, 3)), rtol=0.2, atol=2)


def test_what_has_no_form_in_whole_numbers_is_refused_by_name():
    x = torch.rand(2, 1, 3)
    with pytest.raises(Unsupported, match="layer '1': EIFCell has no form in whole numbers; IF, LIF"):
        hb.quantize(nn.Sequential(nn.Linear(3, 2), hb.EIF()), x)
    with pytest.raises(Unsupported, match="layer '1': tau differs from neuron to neuron"):
        hb.quantize(nn.Sequential(nn.Linear(3, 2), hb.LIF(tau=torch.tensor([2.0, 3.0]))), x)
    with pytest.raises(ValueError, match="bits must be a whole number from 2 to 8, got 16"):
        hb.quantize(nn.Sequential(hb.IF()), x, bits=16)
    small, _ = hb.quantize(nn.Sequential(nn.Linear(3, 2), hb.IF()), x)
    with pytest.raises(ValueError, match="at most the 2 steps within which nothing overflows, got 3"):
        small(torch.rand(3, 1, 3))


def test_the_report_says_what_changed():
    net = nn.Sequential(nn.Linear(3, 4), hb.IF(0.3), nn.Linear(4, 3), hb.LI())
    x = torch.rand(4, 20, 3)
    coarse, fine = (hb.quantize(net, x, bits=bits)[1] for bits in (2, 8))
    assert coarse.layers[0].weight_error > 0.2 > 0.02 > fine.layers[0].weight_error > 0
    assert coarse.layers[1].agreement < fine.layers[1].agreement
    assert fine.same_class > 0.9
    assert all(layer.name in str(fine) for layer in fine.layers)


def test_a_network_trained_with_rounded_weights_changes_no_more_when_it_is_quantised():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(20, 30), hb.IF(0.5), hb.Linear(30, 4), hb.LI())
    x, y = (torch.rand(4, 64, 20) < 0.3).float(), torch.randint(4, (64,))
    aware = hb.convert.quantization_aware(net, x, bits=3)
    optimizer = torch.optim.Adam(aware.parameters(), 1e-2)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        losses.append(nn.functional.cross_entropy(aware(x).mean(0), y))
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < losses[0] - 0.2
    assert aware[0].bias.abs().max() > 0.01
    small, report = hb.quantize(aware, x, bits=3)
    assert all(layer.weight_error < 1e-6 for layer in report.layers)
    assert report.layers[1].agreement > 0.999
    assert torch.allclose(small(x), aware(x), atol=1e-4)
    assert hb.quantize(net, x, bits=3)[1].layers[0].weight_error > 0.05
