"""Networks as snnTorch modules: the same spikes at each step; layers without a form there are named."""

import pytest
import torch
from torch import nn

import hibana as hb
from hibana.compiler.graph.ops import Unsupported

pytest.importorskip("snntorch", reason="snntorch is not installed")
pytestmark = pytest.mark.filterwarnings("ignore")  # snnTorch's warnings


def chain_on_grid(*layers):
    """`layers` with weights that are multiples of 1/64, for which all sums are exact in any order."""
    net = nn.Sequential(*layers).eval()
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if name.endswith(("weight", "bias")):
                parameter.copy_((parameter * 128).round() / 64)
    return net


NETWORKS = {
    "if": lambda: (nn.Linear(6, 8), hb.IF(0.3), nn.Dropout(0.2), nn.Linear(8, 3), hb.IF(0.2)),
    "if subtract": lambda: (nn.Linear(6, 8), hb.IF(0.25, reset="subtract")),
    "lif": lambda: (nn.Linear(6, 8), hb.LIF(torch.rand(8) + 2, 0.2 + torch.rand(8))),
    "lif subtract": lambda: (
        nn.Linear(6, 8), hb.LIF(3.0, 0.3, reset="subtract", leak_first=True), hb.Linear(8, 3), hb.LIF()
    ),
    "cubalif": lambda: (nn.Linear(6, 8, bias=False), hb.CubaLIF(3.0, 5.0, 0.5)),
    "convolution": lambda: (
        hb.EachStep(nn.Conv2d(2, 4, 3, padding=1)), hb.LIF(3.0, 0.1), hb.EachStep(nn.MaxPool2d(2)),
        hb.EachStep(nn.Conv2d(4, 4, 2)), hb.IF(0.3), hb.EachStep(nn.AdaptiveAvgPool2d(1)),
        nn.Flatten(2), nn.Linear(4, 3), hb.LIF(threshold=0.1),
    ),
    "recurrent": lambda: (
        nn.Linear(6, 8), hb.Recurrent(hb.IFCell(0.25), 8),
        hb.Recurrent(hb.LIFCell(2.0, 0.5), 8, nn.Linear(8, 8)),
    ),
    "recurrent subtract": lambda: (
        nn.Linear(6, 8), hb.Recurrent(hb.IFCell(0.25, reset="subtract"), 8)
    ),
}  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", NETWORKS)
def test_snntorch_modules_spike_alike_at_each_step(name, dtype):
    net = chain_on_grid(*NETWORKS[name]()).to(dtype)
    x = torch.randint(0, 64, (30, 4, 2, 6, 6) if name == "convolution" else (30, 4, 6)).to(dtype) / 32
    chain = hb.convert.to_snntorch(net, x[:2])
    assert not any(type(module).__module__.startswith("hibana") for module in chain.modules())
    assert any(type(module).__module__.startswith("hibana") for module in net.modules())
    with torch.no_grad():
        spikes = torch.stack([chain(step) for step in x])
        assert torch.equal(spikes, net(x))
    assert 0.01 < spikes.mean() < 0.99


def test_a_readout_returns_its_potential():
    net, x = chain_on_grid(nn.Linear(6, 8), hb.LI(4.0)), torch.randint(0, 64, (9, 2, 6)) / 32
    chain = hb.convert.to_snntorch(net, x)
    with torch.no_grad():
        assert torch.equal(torch.stack([chain(step)[1] for step in x]), net(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_factors_have_the_dtype_of_the_network(dtype):
    net, x = chain_on_grid(nn.Linear(6, 8), hb.LIF(7.0, 0.1)).to(dtype), torch.ones(20, 2, 6, dtype=dtype)
    chain = hb.convert.to_snntorch(net, x)
    assert torch.equal(chain[1].beta, torch.tensor(1 - 1 / 7, dtype=dtype))
    with torch.no_grad():
        assert torch.equal(torch.stack([chain(step) for step in x]), net(x))


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.neurons, self.linear = hb.IF(), nn.Linear(6, 6)

    def forward(self, x):
        spikes = self.neurons(x)
        return spikes + self.linear(spikes)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (hb.LIF(reset="subtract"), "layer '0': snnTorch has no leak_first=False, only True"),
        (hb.IF(reset=-0.5), "layer '0': snnTorch has no reset=-0.5"),
        (hb.IF(initial=0.5), "layer '0': snnTorch has no initial=0.5"),
        (hb.LIF(decay_input=True), "layer '0': snnTorch has no decay_input=True"),
        (hb.Izhikevich(), "layer '0': Izhikevich has no snnTorch form"),
        (hb.Recurrent(hb.CubaLIFCell(), 6), "layer '0': recurrent CubaLIF has no snnTorch form"),
        (hb.Delay(2.0), "layer '0': Delay has no snnTorch form"),
        (hb.LI(), "layer '0': LI has no snnTorch form"),
        (Residual(), "layer 'add': a chain of snnTorch modules has no branches"),
    ],
)
def test_a_layer_without_a_form_is_named(layer, message):
    with pytest.raises(Unsupported, match=message):
        hb.convert.to_snntorch(nn.Sequential(layer, nn.Linear(6, 3)), torch.rand(3, 2, 6))
