"""Windows and delays as NIR: sums of delayed products, written and read again."""

import numpy as np
import pytest
import torch
from torch import nn

import hibana as hb

nir = pytest.importorskip("nir", reason="the extra nir is not installed")
from hibana.network.nir import read, write  # noqa: E402 - only where nir is installed

LAYERS = [
    hb.Window(3, 5, 4, dilation=2),
    hb.Window(3, 6, 3, groups=3, bias=False),
    hb.Window(3, 2, 1),
    hb.Delay(torch.tensor([0.0, 3.0, 7.0])),
    hb.DelayedLinear(3, 4, 6),
]


@pytest.mark.parametrize("layer", LAYERS, ids=repr)
def test_a_graph_of_it_does_what_it_does(layer, tmp_path):
    net = nn.Sequential(layer, hb.LI(tau=3.0)).eval()
    x = torch.rand(12, 2, 3)
    write(net, tmp_path / "net.nir", input_shape=(3,), dt=1e-3)
    again = read(tmp_path / "net.nir")
    torch.testing.assert_close(again(x), net(x))


def test_delays_are_in_seconds():
    graph = write(nn.Sequential(hb.Delay(torch.tensor([0.0, 2.0]))), dt=1e-3, input_shape=(2,))
    (node,) = (node for node in graph.nodes.values() if isinstance(node, nir.Delay))
    np.testing.assert_allclose(node.delay, [0.0, 2e-3])


def test_a_delay_between_two_steps_is_refused():
    nodes = {"input": nir.Input(np.array([2])), "late": nir.Delay(np.array([1e-3, 2.5e-3]))}
    nodes["output"] = nir.Output(np.array([2]))
    graph = nir.NIRGraph(nodes=nodes, edges=[("input", "late"), ("late", "output")])
    with pytest.raises(ValueError, match=r"node 'late' \(Delay\): delay must be whole steps of dt"):
        read(graph, dt=1e-3)
    assert read(graph, dt=5e-4)(torch.eye(6)[:, None, :2]).nonzero()[:, 0].tolist() == [2]


def test_a_window_over_images_is_refused():
    with pytest.raises(ValueError, match=r"layer '0': only samples of one axis, \(3,\), can be written"):
        write(nn.Sequential(hb.Window(3, 4, 2)), input_shape=(3, 8, 8))


@pytest.mark.parametrize("options", [{"decay_input": True}, {"rest": -0.25, "reset": -0.5}])
def test_options_of_leaky_neurons_that_nir_has_are_written(options, tmp_path):
    net, x = nn.Sequential(hb.LIF(tau=4.0, **options)), torch.randint(0, 200, (40, 3, 5)) / 64
    write(net, tmp_path / "net.nir", input_shape=(5,))
    assert torch.equal(read(tmp_path / "net.nir")(x), net(x))
    assert net(x).any()
