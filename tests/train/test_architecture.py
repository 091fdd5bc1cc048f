"""Descriptions of networks, and scaling of weights to an initial firing rate."""

import sys
import types

import pytest
import torch
from torch import nn

import hibana as hb
from hibana.train import architecture
from hibana.train.firing_rates import scale_to_rate, spiking_layers


def sizes(net):
    """The shapes of all weights, including recurrent weights, in order."""
    return [tuple(p.shape) for name, p in net.named_parameters() if p.ndim > 1]


@pytest.mark.parametrize(
    ("description", "shape", "expected"),
    [
        ("512,512", (28, 28), [(512, 784), (512, 512), (10, 512)]),
        ("64-32r", (13,), [(64, 13), (32, 64), (32, 32), (10, 32)]),
        ("8c3-p2-16c5-p2-32", (28, 28), [(8, 1, 3, 3), (16, 8, 5, 5), (32, 784), (10, 32)]),
        ("16w5b-8w3d2-4r", (13,), [(16, 13, 5), (8, 16, 3), (4, 8), (4, 4), (10, 4)]),
        ("8c3s2b-a2", (2, 34, 34), [(8, 2, 3, 3), (10, 8 * 8 * 8)]),
        ("8-skip", (13,), [(8, 13), (10, 8), (10, 13)]),
        ("skip-4c3", (2, 6, 6), [(4, 2, 3, 3), (10, 4 * 36), (10, 72)]),
    ],
)
def test_a_description_gives_its_weights_and_its_shape(description, shape, expected):
    net = architecture.build(description, shape, 10, hb.IFCell)
    assert sizes(net) == expected
    assert net(torch.rand(3, 2, *shape)).shape == (3, 2, 10)


def test_a_skip_adds_a_linear_map_of_the_input_to_the_current_of_the_readout():
    net = architecture.build("8-skip", (5,), 3, hb.IFCell)
    inputs = torch.rand(4, 2, 5)
    assert not net(inputs).any()  # all outputs are 0 before training
    torch.nn.init.normal_(net.skip.linear.weight)
    torch.nn.init.normal_(net.linear.weight)
    plain = nn.Sequential(net.linear1, net.if1, net.linear)
    expected = (plain(inputs) + inputs @ net.skip.linear.weight.T).cumsum(0)
    assert torch.allclose(net(inputs), expected, atol=1e-5)
    assert list(spiking_layers(net)) == ["if1"]


def test_layers_do_not_share_a_cell():
    net = architecture.build("8-8", (4,), 2, hb.PLIFCell)
    first, second = spiking_layers(net).values()
    assert first.cell is not second.cell


def test_a_users_function_builds_the_network(monkeypatch):
    module = types.ModuleType("mine")
    module.net = lambda shape, classes, cell: nn.Sequential(
        nn.Flatten(2), nn.Linear(6, classes), hb.OverTime(cell())
    )
    module.number = lambda shape, classes, cell: 3
    monkeypatch.setitem(sys.modules, "mine", module)
    net = architecture.build("mine:net", (2, 3), 4, hb.LIFCell)
    assert net(torch.rand(5, 1, 2, 3)).shape == (5, 1, 4)
    assert isinstance(net[2].cell, hb.LIFCell)
    with pytest.raises(TypeError, match=r"'mine:number' must return a torch\.nn\.Module, got int"):
        architecture.build("mine:number", (2, 3), 4, hb.IFCell)
    with pytest.raises(ValueError, match="'mine:absent' can't be found"):
        architecture.build("mine:absent", (2, 3), 4, hb.IFCell)


@pytest.mark.parametrize(
    ("description", "message"),
    [
        ("512,,512", "'' of '512,,512' is not a layer"),
        ("32k3", "'32k3' of"),
        ("0", "'0' of"),
        ("16c3s0", "'16c3s0' of"),
        ("", "'' of '' is not a layer"),
        ("64-8c3", "'8c3' needs .* follows a linear layer"),
        ("p2-p2-p2-p2-p2", "'p2' must fit on 1x1"),
    ],
)
def test_an_invalid_layer_is_named(description, message):
    with pytest.raises(ValueError, match=message):
        architecture.build(description, (28, 28), 10, hb.IFCell)


def test_a_convolution_needs_an_image():
    with pytest.raises(ValueError, match=r"needs images.*\(13,\)"):
        architecture.build("8c3", (13,), 10, hb.IFCell)


@pytest.mark.parametrize("description", ["200,100", "50r-50", "8c3-p2-8c3-40", "8c3b-p2-8c3b-40"])
@pytest.mark.parametrize("rate", [0.02, 0.1])
def test_scaled_layers_start_at_the_rate(description, rate):
    torch.manual_seed(0)
    shape = (12, 12)
    net = architecture.build(description, shape, 5, hb.IFCell)
    inputs = hb.encode.constant(torch.rand(64, *shape), 8)
    predicted = scale_to_rate(net, inputs, rate)
    measured = {}
    for name, layer in spiking_layers(net).items():
        layer.register_forward_hook(lambda m, a, out, name=name: measured.update({name: out.mean().item()}))
    net(inputs)
    assert measured == pytest.approx(predicted, rel=1e-2)
    assert list(measured.values()) == pytest.approx([rate] * len(measured), rel=0.1)


def test_a_layer_without_input_keeps_its_weights():
    net = nn.Sequential(nn.Linear(3, 4, bias=False), hb.IF())
    before = net[0].weight.clone()
    assert scale_to_rate(net, torch.zeros(2, 1, 3), 0.1) == {"1": 0.0}
    assert torch.equal(net[0].weight, before)


def test_the_initial_rate_is_checked():
    with pytest.raises(ValueError, match=r"rate must lie in \(0, 1\).* got 1.5"):
        scale_to_rate(nn.Sequential(hb.IF()), torch.zeros(2, 1, 3), 1.5)


def test_a_constant_input_costs_the_first_layer_one_product():
    net = architecture.build("6", (4, 2), 3, hb.IFCell)
    constant = hb.encode.constant(torch.rand(5, 4, 2), 7)
    current = net[:2](constant)
    assert current.stride(0) == 0
    expected = torch.stack(
        [torch.nn.functional.linear(x.flatten(1), net[1].weight, net[1].bias) for x in constant]
    )
    assert torch.allclose(current, expected)
    current.sum().backward()
    assert torch.allclose(net[1].bias.grad, torch.full([6], 35.0))


def test_neurons_of_different_time_constants_have_equal_potentials():
    torch.manual_seed(0)
    tau = torch.tensor([1.0, 2.0, 8.0, 60.0])
    net = nn.Sequential(nn.Linear(10, 4), hb.OverTime(hb.AdLIFCell(tau, coupling=0.001)))
    inputs = (torch.rand(200, 30, 10) < 0.2).float()
    assert scale_to_rate(net, inputs, 0.1, each_neuron=True)["1"] == pytest.approx(0.1, abs=0.01)
    without_spikes = hb.AdLIFCell(tau, coupling=0.001, threshold=1e9)
    deviation = hb.record(without_spikes, net[0](inputs))["v"].flatten(0, 1).std(0)
    torch.testing.assert_close(deviation, deviation.mean().expand(4), rtol=1e-3, atol=0)


def test_each_neuron_needs_potentials_and_separate_weights():
    class WithoutPotential(hb.Cell):
        def forward(self, input_, s_previous):
            return ((input_ > 0.5).float(),)

    with pytest.raises(ValueError, match="each_neuron needs cells with a potential v and a threshold, '1'"):
        scale_to_rate(
            nn.Sequential(nn.Linear(3, 2), hb.OverTime(WithoutPotential())),
            torch.rand(5, 2, 3),
            0.1,
            each_neuron=True,
        )
    shared = nn.Sequential(hb.EachStep(nn.ConvTranspose2d(2, 3, 1)), hb.IF())
    with pytest.raises(ValueError, match="each_neuron needs weights for each of 3 neurons"):
        scale_to_rate(shared, torch.rand(5, 2, 2, 4, 4), 0.1, each_neuron=True)
