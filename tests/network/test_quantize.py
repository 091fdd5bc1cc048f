"""Whole numbers: the same spikes in PyTorch and in C, bit for bit; no product, no overflow."""

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
    if cell == "Izhikevich":  # whose input is in mV per ms
        with torch.no_grad():
            net[0].weight.mul_(60)
    return net


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
    whole = small.integer_input(inputs)
    with torch.no_grad():
        wanted = small.net(whole).flatten(2).double()
    outputs, scores, classes = outputs_of(compiled(program, folder, len(inputs), **how), program, whole)
    assert torch.equal(outputs, wanted)
    assert torch.equal(scores, wanted.sum(0))
    assert classes == scores.argmax(1).tolist()
    assert torch.allclose(small(inputs).double(), (wanted * small.output_scale).view(small(inputs).shape))
    assert wanted.count_nonzero() > 0
    return small, report, program


@pytest.mark.slow
@needs_cc
@pytest.mark.parametrize("cell", CELLS)
def test_every_cell_in_whole_numbers_is_the_same_in_c(cell, tmp_path):
    net = with_cell(cell)
    _, report, program = check(net, torch.rand(12, 3, 6), tmp_path)
    assert report.layers[1].agreement > 0.95
    assert report.layers[1].after > 0
    assert "float" not in re.sub(r"/\*.*?\*/", "", program.source, flags=re.DOTALL)


@needs_cc
@pytest.mark.parametrize("inputs", [1, 2, 3, 4])
def test_layers_of_few_inputs_are_programs_without_warnings(inputs, tmp_path):
    net = nn.Sequential(nn.Linear(inputs, inputs), hb.IF(0.05), nn.Linear(inputs, 1, bias=False)).eval()
    nn.init.constant_(net[0].weight, 0.2)
    for flags in (*WARNINGS, "-O2"), (*WARNINGS, "-O3"):
        check(net, torch.rand(1, 2, inputs) + 0.5, tmp_path, flags=flags)
        check(net, torch.ones(1, 2, inputs), tmp_path, events=True, flags=flags)


@needs_cc
def test_a_convolutional_network_in_whole_numbers_is_the_same_in_c(tmp_path):
    small, report, program = check(images(), torch.rand(5, 2, 1, 8, 8), tmp_path)
    assert [layer.what for layer in report.layers if layer.weight_error][:1] == ["Conv2d"]
    assert all(layer.weight_error < 0.02 for layer in report.layers)
    assert small.net[0].module[0].weight.abs().max() == 127
    assert program.constant_bytes < 4 * sum(p.numel() for p in images().parameters())


@settings(max_examples=examples(2))
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
    """The products of numbers in the functions of a program; places in memory are left out."""
    code = re.sub(r"/\*.*?\*/", "", program.source, flags=re.DOTALL)
    code = re.sub(r"\[[^]]*\]|\w+ \*const .*", "", code)
    code = re.sub(r"net_w\d \+ [^,;)]*", "", code)
    code = code[code.index("};\n\nstatic void") :]
    return [line.strip() for line in code.splitlines() if re.search(r"[\w\])] \* [\w(]", line)]


def test_if_networks_multiply_nothing_but_the_first_layers_image():
    net = nn.Sequential(nn.Linear(9, 7), hb.IF(0.3), nn.Linear(7, 5), hb.IF(0.3), nn.Linear(5, 2), hb.LI())
    spikes = (torch.rand(4, 3, 9) < 0.5).float()
    small, _ = hb.quantize(net, spikes)
    by_numbers = [  # two rows at once, and one that is left
        "net->current1 += (int32_t)(int16_t)(x * a) + (int32_t)(int16_t)(y * b);",
        "net->current1 += x * row;",
    ]
    assert small.input_range == (0, 1)
    assert products(to_c(small, spikes)) == by_numbers  # of net_step; net_step_events has none
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
    small, _ = hb.quantize(net, inputs)
    worst = torch.where(small.net[0].weight < 0, 255.0, 0.0).expand(6, 1, 4).to(small.dtype)
    (v, _), *_ = hb.run(small.net, worst)[1].values()
    bounds = _bounds(small, inputs)
    assert bounds["v_state"][0] == int(v.min())


def _bounds(small, inputs):
    from hibana.network.c import program

    written = program.build_unit(small, inputs, "net", "sum")
    return next(iter(written.arithmetic.leaf_bounds.values()))


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
    cell = fixed_cell("1", hb.LICell(tau), (len(v),), torch.tensor(0.1), 127, None)
    (left,) = cell(torch.zeros_like(v), v)
    assert torch.equal(left, left.round())
    assert (left - v * (1 - 1 / tau)).abs().max() <= 0.5 + 1000 * 2**-16
    assert any(op == "parameter" for op, *_ in cell.program) == (tau in (1.0, 3.0, 100.0))  # else shifts


def test_readouts_have_one_scale_and_what_spikes_a_scale_a_channel():
    net = nn.Sequential(nn.Linear(3, 4), hb.IF(), nn.Linear(4, 3), hb.LI())
    with torch.no_grad():
        net[0].weight[0] *= 100
        net[2].weight[0] *= 100
    small, _ = hb.quantize(net, torch.rand(4, 2, 3))
    assert small.net[0].weight.abs().amax(1).tolist() == [127] * 4
    assert small.net[2].weight.abs().amax(1)[1:].max() < 10
    assert torch.allclose(small(torch.ones(4, 2, 3)), net(torch.ones(4, 2, 3)), rtol=0.2, atol=2)


@pytest.mark.parametrize("recurrent", [False, True])
def test_numbers_in_another_shape_have_one_scale(recurrent):
    torch.manual_seed(0)
    neurons = hb.Recurrent(hb.IFCell(0.4), 8) if recurrent else hb.IF(0.4)
    net = nn.Sequential(hb.EachStep(nn.Conv2d(1, 2, 3, padding=1)), nn.Flatten(2), neurons).eval()
    x = torch.rand(5, 3, 1, 2, 2)
    small, report = hb.quantize(net, x)
    assert report.layers[-1].agreement > 0.9
    assert torch.equal(hb.compile(small, x)(x), small(x))


def test_what_has_no_form_in_whole_numbers_is_refused_by_name():
    x = torch.rand(2, 1, 3)
    for cell, says in (
        (Drawing(), "the step of Drawing draws random numbers"),
        (
            Remainder(),
            "Remainder: fmod has no integer form: it must be a function of one number, with constants",
        ),
        (Logarithm(), "Logarithm: log is not finite on the range of its argument, -"),
    ):
        with pytest.raises(Unsupported, match=f"layer '1': {re.escape(says)}"):
            hb.quantize(nn.Sequential(nn.Linear(3, 2), hb.OverTime(cell)), x)
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


def trained(aware, x, y, steps=30, rate=1e-2):
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
@pytest.mark.parametrize("learns", [False, True], ids=["", "learning its values"])
@pytest.mark.parametrize("cell", CELLS)
def test_what_is_computed_in_training_is_the_network_in_whole_numbers_bit_for_bit(cell, learns):
    torch.manual_seed(0)
    net, x, y = with_cell(cell).train(), torch.rand(12, 20, 6), torch.randint(3, (20,))
    for layer in net.modules():
        if learns and hasattr(layer, "threshold"):
            tau = ["tau"] if isinstance(vars(type(layer)).get("tau"), AtLeast) else []
            layer._learn(["threshold", *tau])
    aware = hb.convert.quantization_aware(net, x, bits=4)
    trained(aware, x, y, steps=3)
    seen = []
    hooks = [layer.register_forward_hook(lambda m, a, o: seen.append(o)) for layer in aware.net]
    outputs = aware(x)
    for hook in hooks:
        hook.remove()
    in_training = hb.run(aware.net, aware.integer_input(x))[1]
    assert outputs.requires_grad
    assert all(layer.cell.float_cell for layer in aware.net[1::2])
    small, report = hb.quantize(aware, x)
    given, layers = small.integer_input(x), []
    assert torch.equal(small.whole_input(x), given)  # its name until now
    with torch.no_grad():
        for layer in small.net:
            given = layer(given)
            layers.append(given)
    for whole, computed in zip(layers, seen, strict=True):
        assert torch.equal(whole.double(), computed.detach().double())
    for name, states in hb.run(small.net, small.integer_input(x))[1].items():
        for whole, computed in zip(states, in_training[name], strict=True):
            assert torch.equal(whole.double(), computed.detach().double())
            assert torch.equal(whole, whole.round())
    assert 0 < layers[1].double().mean() < 1
    assert torch.equal(small(x), outputs.detach())
    assert abs(report.layers[1].agreement - 1) < 1e-9
    if learns:
        learned = [p for name, p in aware.named_parameters() if ".cell." in name and p.requires_grad]
        assert learned
        assert all(p.grad.abs().sum() > 0 for p in learned)


def test_training_computes_in_what_holds_every_product():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 40), hb.LIF(3.0, 30.0), nn.Linear(40, 2), hb.LI())
    x = torch.rand(30, 200, 6)
    aware = hb.convert.quantization_aware(net, x)
    assert aware.dtype == torch.float64
    aware(x)
    in_training = hb.run(aware.net, aware.integer_input(x))[1]["1"][0]
    small, _ = hb.quantize(aware, x)
    assert torch.equal(hb.run(small.net, small.integer_input(x))[1]["1"][0], in_training.detach())
    on_spikes = nn.Sequential(nn.Linear(6, 40), hb.LIF(4.0), nn.Linear(40, 2), hb.LI())
    assert hb.convert.quantization_aware(on_spikes, x.round()).dtype == torch.float32
    on_spikes[1] = hb.LIF(4.0, learn="tau")
    assert hb.convert.quantization_aware(on_spikes, x.round()).dtype == torch.float64


def test_gradients_in_training_are_those_of_the_network_in_its_own_units():
    """Where rounding changes nothing: weights, thresholds and inputs that are multiples of their scales."""
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


def test_training_in_whole_numbers_learns_and_is_quantised_as_it_is():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(20, 30), hb.LIF(3.0, 0.5), hb.Linear(30, 4), hb.LI())
    x, y = (torch.rand(4, 64, 20) < 0.3).float(), torch.randint(4, (64,))
    aware = hb.convert.quantization_aware(net, x, bits=3)
    cell = aware.net[1].cell
    losses = trained(aware, x, y)
    assert losses[-1] < losses[0] - 0.2
    assert aware.net[1].cell is not cell  # its gradients came at the first step,
    cell = aware.net[1].cell
    trained(aware, x, y, steps=1)
    assert aware.net[1].cell is cell  # and what is compiled for it serves all others
    assert aware.plain[0].bias.abs().max() > 0.01
    small, report = hb.quantize(aware, x)
    assert small.bits == 3
    assert all(layer.weight_error == 0 and layer.agreement > 1 - 1e-9 for layer in report.layers)
    assert torch.equal(small(x), aware(x).detach())
    assert hb.quantize(net, x, bits=3)[1].layers[0].weight_error > 0.05
    with pytest.raises(ValueError, match="bits must be 3, which the network was trained with, got 8"):
        hb.quantize(aware, x, bits=8)


def test_a_network_in_training_is_copied_saved_and_goes_on(tmp_path):
    torch.manual_seed(0)
    make = lambda: nn.Sequential(nn.Linear(5, 9), hb.PLIF(3.0, 0.2), nn.Linear(9, 2), hb.LI())  # noqa: E731
    x, y = torch.rand(4, 8, 5), torch.randint(2, (8,))
    aware = hb.convert.quantization_aware(make(), x)
    trained(aware, x, y, steps=2)
    torch.save(aware.state_dict(), tmp_path / "state.pt")
    again = hb.convert.quantization_aware(make(), x)
    again.load_state_dict(torch.load(tmp_path / "state.pt"))
    copied = copy.deepcopy(aware)
    for other in (again, copied):
        assert torch.equal(other(x), aware(x))
    trained(copied, x, y, steps=2)
    assert not torch.equal(copied(x), aware(x))


def test_batch_normalisation_is_folded_and_dropout_stays_before_training_in_whole_numbers():
    torch.manual_seed(0)
    net = images()
    net.insert(7, nn.Dropout(0.5))
    x = torch.rand(5, 4, 1, 8, 8)
    aware = hb.convert.quantization_aware(net.train(), x)
    assert aware.training
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in aware.modules())
    assert not torch.equal(aware(x), aware(x))
    small, _ = hb.quantize(aware, x)
    assert torch.equal(small(x), aware.eval()(x).detach())
