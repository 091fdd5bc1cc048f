"""Networks of hibana in other simulators: equal spikes at each step, or the reason for a difference.

Skipped if the other libraries are not installed; benchmarks/nir_peers.py describes their installation.
"""

import importlib.util
import sys
import warnings

import pytest
import torch
from torch import nn

import hibana as hb

pytest.importorskip("nir", reason="the extra nir is not installed")
from benchmarks import nir_peers
from benchmarks.nir_peers import norse, rockpool, sinabs, snntorch, spikingjelly
from hibana.network.nir import read, write

pytestmark = pytest.mark.filterwarnings("ignore")  # the peers' warnings


PEERS = [
    pytest.param(
        run,
        marks=pytest.mark.skipif(
            any(importlib.util.find_spec(name) is None for name in (run.__name__, "nirtorch")),
            reason=f"{run.__name__} or nirtorch is not installed",
        ),
    )
    for run in (snntorch, norse, spikingjelly, sinabs, rockpool)
]


def recurrent(cell, bias):
    return nn.Sequential(nn.Linear(5, 8), hb.Recurrent(cell, 8, nn.Linear(8, 8, bias=bias)))


NETWORKS = {
    "if": lambda: nn.Sequential(nn.Linear(5, 8), hb.IF(0.3), nn.Linear(8, 3), hb.IF(0.2)),
    "lif": lambda: nn.Sequential(nn.Linear(5, 8), hb.LIF(4.0, 0.3), nn.Linear(8, 3), hb.LIF(2.0, 0.2)),
    "cubalif": lambda: nn.Sequential(nn.Linear(5, 8), hb.CubaLIF(4.0, 2.0, 0.3)),
    "recurrent if": lambda: recurrent(hb.IFCell(0.3), bias=False),
    "recurrent lif": lambda: recurrent(hb.LIFCell(4.0, 0.3), bias=False),
    "recurrent cubalif": lambda: recurrent(hb.CubaLIFCell(4.0, 2.0, 0.3), bias=False),
    "recurrent bias": lambda: recurrent(hb.CubaLIFCell(4.0, 2.0, 0.3), bias=True),
    "convolution": lambda: nn.Sequential(
        hb.EachStep(nn.Conv2d(5, 4, 3, padding=1)), hb.CubaLIF(4.0, 2.0, 0.1),
        hb.EachStep(nn.Conv2d(4, 4, 3, stride=2, padding=1)), hb.CubaLIF(3.0, 2.0, 0.1),
    ),
    "pooling": lambda: nn.Sequential(
        hb.EachStep(nn.Conv2d(5, 4, 3, padding=1)), hb.LIF(4.0, 0.1), hb.EachStep(nn.AvgPool2d(2)),
    ),
    "flatten": lambda: nn.Sequential(
        hb.EachStep(nn.Conv2d(5, 2, 3)), hb.CubaLIF(4.0, 2.0, 0.1), nn.Flatten(2), nn.Linear(32, 3),
        hb.CubaLIF(4.0, 2.0, 0.1)
    ),
}  # fmt: skip
DIFFERENT = {
    ("snntorch", "if"): "runs IF as a leak of 0.9 a step",
    ("snntorch", "recurrent if"): "has no recurrent IF",
    ("snntorch", "recurrent bias"): "leaves the recurrent bias out at the first step",
    ("snntorch", "flatten"): "counts Flatten's dimensions with the batch",
    ("norse", "lif"): "ignores the r of a LIF",
    ("norse", "recurrent lif"): "ignores the r of a LIF",
    ("norse", "recurrent bias"): "leaves the recurrent bias out at the first step",
    ("norse", "pooling"): "has no AvgPool2d",
    ("norse", "flatten"): "counts Flatten's dimensions with the batch",
    ("spikingjelly", "if"): "requires r = 1 / dt for an IF",
    ("spikingjelly", "recurrent bias"): "leaves the recurrent bias out at the first step",
    ("spikingjelly", "recurrent if"): "requires r = 1 / dt for an IF",
    **{
        ("sinabs", name): "subtracts the threshold, several times a step; decays by exp(-1/tau)"
        for name in NETWORKS
    },
    **{
        ("rockpool", name): "has no IF, reads a LIF as a CubaLIF, subtracts the threshold"
        for name in NETWORKS
    },
}


@pytest.mark.parametrize("peer", PEERS)
@pytest.mark.parametrize("name", NETWORKS)
def test_the_same_spikes_at_each_step(peer, name):
    net = NETWORKS[name]()
    shape = (5, 6, 6) if isinstance(net[0], hb.EachStep) else (5,)
    inputs = torch.rand(50, 4, *shape)
    graph = write(net, dt=1e-4, input_shape=shape)
    with torch.no_grad():
        expected = net(inputs)
        assert torch.equal(read(graph)(inputs), expected)
    assert 0.01 < expected.bool().float().mean() < 0.99 or name == "pooling"
    same = runs_equally(peer, graph, inputs, expected)
    assert same == ((peer.__name__, name) not in DIFFERENT), DIFFERENT.get((peer.__name__, name))


def runs_equally(peer, graph, inputs, expected):
    """Whether `peer` returns `expected`; False if it cannot run the network."""
    try:
        outputs = peer(graph, inputs)
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        warnings.warn(f"{peer.__name__} raised {error!r}", stacklevel=2)
        return False
    return torch.equal(outputs, expected)


@pytest.mark.parametrize("neuron", ["IFNode", "LIFNode", "CUBALIFNode"])
@pytest.mark.parametrize("dt", [1e-4, 1e-3])
def test_networks_written_by_spikingjelly_spike_as_in_spikingjelly(tmp_path, neuron, dt):
    exchange = pytest.importorskip("spikingjelly.activation_based.nir_exchange")
    from spikingjelly.activation_based import functional
    from spikingjelly.activation_based import neuron as neurons

    decays = {"c_decay": 0.5, "v_decay": 0.75} if neuron == "CUBALIFNode" else {}
    net = nn.Sequential(nn.Linear(5, 8), getattr(neurons, neuron)(v_threshold=0.4, **decays))
    functional.set_step_mode(net, "m")
    inputs = torch.rand(50, 4, 5)
    graph = exchange.export_to_nir(net, inputs, save_path=tmp_path / "x.nir", dt=dt)
    functional.reset_net(net)
    with torch.no_grad():
        expected = net(inputs)
        assert 0.01 < expected.mean() < 0.99
        for source in (graph, tmp_path / "x.nir"):
            assert torch.equal(read(source, dt=dt)(inputs), expected)


@pytest.fixture(scope="module")
def digits():
    sys.meta_path.insert(0, finder := nir_peers.Samna())
    yield nir_peers.digits()
    sys.meta_path.remove(finder)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "make", "simulate"),
    [
        ("rockpool", nir_peers.xylo_network, nir_peers.xylo),
        ("sinabs", nir_peers.dynapcnn_network, nir_peers.dynapcnn),
    ],
)
def test_trained_networks_spike_alike_in_the_simulation_of_a_chip(digits, module, make, simulate):
    pytest.importorskip(module)
    spikes, classes = digits
    net = make()
    nir_peers.train(net, spikes, classes, epochs=2)
    with torch.no_grad():
        chip, integers = simulate(net, spikes[:, 1697:])
    assert torch.equal(chip, integers)
    assert (chip.sum(0).argmax(1) == classes[1697:]).double().mean() > 0.4
