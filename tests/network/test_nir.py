"""Exchange through NIR: written networks are read with equal spikes, and errors name the node or layer."""

import re
import struct
import subprocess
import sys
import warnings
import zlib
from itertools import pairwise

import h5py
import numpy as np
import pytest
import torch
from torch import nn

import hibana as hb
from selection import examples

nir = pytest.importorskip("nir", reason="the extra nir is not installed")
from hibana.network.nir import Scale, file, read, write  # noqa: E402 - needs the extra

HAS_RESET = "v_reset" in nir.IF.__dataclass_fields__
needs_reset = pytest.mark.skipif(not HAS_RESET, reason="this version of nir has no v_reset")


def spikes_of(net, inputs):
    with torch.no_grad():
        return net(inputs)


def chain(*nodes, edges=None, **named_nodes):
    """A graph of nodes one after the other, unchecked by nir itself."""
    named_nodes = {**{f"n{i}": node for i, node in enumerate(nodes)}, **named_nodes}
    names = list(named_nodes)
    edges = list(pairwise(names)) if edges is None else edges
    checked = {} if not HAS_RESET else {"type_check": False}
    return nir.NIRGraph(nodes=named_nodes, edges=edges, **checked)


def ports(*nodes, shape=(3,), out=(3,), **kwargs):
    return chain(nir.Input(np.array(shape)), *nodes, nir.Output(np.array(out)), **kwargs)


def lif(n, tau=2e-3, r=1.0, threshold=1.0, leak=0.0, **kwargs):
    full = {"tau": tau, "r": r, "v_leak": leak, "v_threshold": threshold}
    return nir.LIF(**{k: np.full(n, v) for k, v in full.items()}, **kwargs)


# ---- round trips -----------------------------------------------------------------------------------

CONVOLUTIONS = [
    nn.Conv2d(4, 4, 3, padding="same", groups=2),
    nn.Conv2d(4, 2, (1, 2), padding=1, stride=2, bias=False),
    nn.Sequential(nn.Conv2d(4, 4, 2, dilation=2), nn.AvgPool2d(2, 1)),
    nn.Sequential(nn.Conv2d(4, 4, 3), nn.AvgPool2d((2, 1), (1, 2), (1, 0), divisor_override=1)),
    nn.Conv1d(4, 4, 3, padding=1, stride=2, dilation=2),
    nn.Conv1d(4, 4, 3, padding="same", bias=False),
]


@pytest.mark.parametrize("layer", CONVOLUTIONS, ids=repr)
def test_convolutions_pool_and_flatten_are_read_as_written(layer, tmp_path):
    shape = (4, 9) if "Conv1d" in repr(layer) else (4, 9, 7)
    features = layer(torch.zeros(1, *shape)).numel()
    net = nn.Sequential(hb.EachStep(layer), hb.LIF(3.0, 0.1), nn.Flatten(2), nn.Linear(features, 3), hb.LI())
    write(net, tmp_path / "net.nir", input_shape=shape)
    x = torch.randn(6, 2, *shape)
    assert torch.equal(spikes_of(read(tmp_path / "net.nir"), x), spikes_of(net, x))


def test_a_normalization_is_folded():
    net = nn.Sequential(hb.EachStep(nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3)))).eval()
    net[0].module[1].running_var.uniform_(0.5, 2)
    network, x = read(write(net, input_shape=(2, 6, 6))), torch.randn(6, 2, 2, 6, 6)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    torch.testing.assert_close(network(x), net(x), rtol=1e-4, atol=1e-5)


def on_grid(net):
    """`net` with weights that are multiples of 1/64, for which all sums are exact in any order."""
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if name.endswith(("weight", "bias")):
                parameter.copy_((parameter * 64).round() / 64)
    return net


SUBTRACT = {"reset": "subtract"}
TAUS = torch.tensor([2.0, 4.0, 8.0, 3.7])
CELLS = [
    hb.IFCell(0.3),
    hb.LIFCell(TAUS, torch.tensor([0.25, 0.5, 1.0, 0.1])),
    hb.LIFCell(4.0, decay_input=True),
    hb.PLIFCell(2.0, 0.25),
    hb.CubaLIFCell(TAUS, 3.3, 0.7),
    hb.LICell(TAUS),
    hb.LICell(),
]
CELLS_WITH_RESET = [
    hb.IFCell(0.5, reset=-0.25),
    hb.IFCell(0.5, initial=0.25),
    hb.LIFCell(4.0, rest=-0.25, reset=-0.5),
    hb.LIFCell(float("inf"), 0.5, rest=0.25),
    hb.CubaLIFCell(TAUS, reset=-0.125),
]
SUBTRACTING_CELLS = [
    hb.IFCell(0.5, **SUBTRACT),
    hb.IFCell(torch.tensor([0.25, 0.5, 1.0, 0.5]), initial=0.125, **SUBTRACT),
    hb.LIFCell(4.0, 0.5, **SUBTRACT),
    hb.LIFCell(TAUS, 0.5, **SUBTRACT, leak_first=True),
    hb.LIFCell(4.0, 0.5, **SUBTRACT, decay_input=True),
    hb.LIFCell(4.0, 0.5, **SUBTRACT, rest=-0.25),
    hb.LIFCell(1.0, 0.5, **SUBTRACT),
    hb.PLIFCell(2.0, 0.25, **SUBTRACT),
]


@pytest.mark.parametrize("recurrent", [False, True])
@pytest.mark.parametrize("cell", [*CELLS, *SUBTRACTING_CELLS, *CELLS_WITH_RESET * HAS_RESET], ids=repr)
@pytest.mark.cover(1)
def test_neurons_are_read_as_written(cell, recurrent, tmp_path):
    neurons = hb.Recurrent(cell, 4, nn.Linear(4, 4)) if recurrent else hb.OverTime(cell)
    net, x = on_grid(nn.Sequential(nn.Linear(5, 4), neurons)), torch.randint(-64, 192, (40, 3, 5)) / 64
    graph = write(net, tmp_path / "net.nir", dt=0.7)
    for source in (graph, tmp_path / "net.nir"):
        network = read(source)
        assert torch.equal(spikes_of(network, x), spikes_of(net, x))
        assert [name for name, _ in network.named_children()] == ["0", "1"]
    assert spikes_of(net, x).any()


def test_a_reset_by_subtraction_is_an_integrator_a_threshold_and_a_scale():
    nodes = write(nn.Sequential(hb.LIF(4.0, 0.5, **SUBTRACT)), dt=1e-3, input_shape=(2,)).nodes["0"].nodes
    potential, threshold, scale = (nodes[name] for name in ("potential", "threshold", "reset"))
    assert (type(potential), type(threshold), type(scale)) == (nir.LI, nir.Threshold, nir.Scale)
    assert threshold.threshold.tolist() == [0.5, 0.5]
    assert scale.scale.tolist() == [-0.375, -0.375]  # after the leak of a quarter


@pytest.mark.parametrize(
    "pool",
    [
        nn.MaxPool2d(3, 2, 1),
        nn.Sequential(nn.MaxPool2d(2, 1), nn.MaxPool2d(2)),
        nn.AvgPool2d(2, divisor_override=3),
        nn.AvgPool2d(3, 2, 1, count_include_pad=False),
    ],
    ids=repr,
)
def test_poolings_without_a_nir_node_are_written_as_chains(pool):
    net = on_grid(nn.Sequential(hb.EachStep(nn.Conv2d(2, 3, 3)), hb.IF(0.5), hb.EachStep(pool)))
    x = torch.randint(-64, 192, (12, 3, 2, 9, 9)) / 64
    torch.testing.assert_close(spikes_of(read(write(net, input_shape=(2, 9, 9))), x), spikes_of(net, x))


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.neuron = nn.Linear(4, 4), nn.Linear(4, 4), hb.IF(0.3)
        self.out = nn.ModuleDict({"put": nn.Linear(4, 2)})

    def forward(self, x):
        x = self.neuron(self.first(x))
        x = x + self.neuron(self.second(x))
        return self.out["put"](x)


def test_additions_and_layers_called_twice():
    net, x = Residual(), torch.randn(12, 3, 4)
    graph = write(net)
    assert torch.equal(spikes_of(read(graph), x), spikes_of(net, x))
    assert sum(isinstance(node, nir.IF) for node in graph.nodes.values()) == 2


def test_a_network_read_from_nir_is_written_without_shape_and_dt(tmp_path):
    net = nn.Sequential(hb.EachStep(nn.Conv2d(1, 2, 3)), hb.LIF(4.0, 0.1))
    x = torch.rand(5, 2, 1, 6, 6)
    network = read(write(net, dt=0.25, input_shape=(1, 6, 6)))
    assert network.meta == {"input_shape": (1, 6, 6), "dt": 0.25}
    rewritten = write(network, tmp_path / "again.nir")
    np.testing.assert_allclose(rewritten.nodes["1"].tau, 1.0)
    assert torch.equal(spikes_of(read(tmp_path / "again.nir"), x), spikes_of(net, x))
    assert not list(tmp_path.glob("*.part"))


DELAYED_LAYERS = [
    hb.Window(3, 5, 4, dilation=2),
    hb.Window(3, 6, 3, groups=3, bias=False),
    hb.Window(3, 2, 1),
    hb.Delay(torch.tensor([0.0, 3.0, 7.0])),
    hb.DelayedLinear(3, 4, 6),
]


@pytest.mark.parametrize("layer", DELAYED_LAYERS, ids=repr)
def test_windows_and_delays_are_read_as_written(layer, tmp_path):
    net = nn.Sequential(layer, hb.LI(tau=3.0)).eval()
    x = torch.rand(12, 2, 3)
    write(net, tmp_path / "net.nir", input_shape=(3,), dt=1e-3)
    network = read(tmp_path / "net.nir")
    torch.testing.assert_close(network(x), net(x))


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


def test_state_continues_in_run():
    net = read(write(nn.Sequential(nn.Linear(3, 4), hb.Recurrent(hb.LIFCell(3.0, 0.2), 4))))
    x = torch.rand(8, 2, 3)
    first, state = hb.run(net, x[:3])
    rest, _ = hb.run(net, x[3:], state)
    assert torch.equal(torch.cat([first, rest]), net(x))


# ---- equations of the nodes ------------------------------------------------------------------------


def euler(x, tau, r, leak, threshold, reset, dt):
    """NIR's LIF in forward Euler steps, starting at its leak potential."""
    v = torch.full_like(x[0], leak)
    out = []
    for current in x:
        v = v + dt / tau * (leak - v + r * current)
        spikes = (v > threshold).to(x)
        v = torch.where(spikes > 0, torch.full_like(v, reset), v)
        out.append(spikes)
    return torch.stack(out)


@needs_reset
@pytest.mark.parametrize("r", [1.0, 2.0, 0.37])
@pytest.mark.parametrize("leak", [0.0, 0.2, -0.3])
def test_lif_follows_its_differential_equation(r, leak):
    node = lif(3, tau=4e-3, r=r, threshold=0.5, leak=leak, v_reset=np.full(3, -0.1))
    x = torch.rand(200, 2, 3, dtype=torch.float64) * 3 / r
    net = read(ports(node), dt=1e-3).double()
    assert torch.equal(net(x), euler(x, 4e-3, r, leak, 0.5, -0.1, 1e-3))
    assert 0.02 < net(x).mean() < 0.9


def test_cubalif_gain_is_applied_in_both_stages():
    fields = {"tau_syn": 4e-3, "tau_mem": 2e-3, "r": 3.0, "w_in": 5.0, "v_leak": 0.0, "v_threshold": 0.5}
    net = read(ports(nir.CubaLIF(**{k: np.full(3, v) for k, v in fields.items()})), dt=1e-3).double()
    x = torch.rand(100, 2, 3, dtype=torch.float64) * 0.08
    i = v = torch.zeros(2, 3, dtype=torch.float64)
    expected = []
    for current in x:
        i = i + 0.25 * (-i + 5.0 * current)
        v = v + 0.5 * (-v + 3.0 * i)
        expected.append((v > 0.5).double())
        v = v * (1 - expected[-1])
    assert torch.equal(net(x), torch.stack(expected))
    assert 0.02 < net(x).mean() < 0.9


@pytest.mark.parametrize("tau", [10 / 3, 2.7182818284590452, 1.0000001, torch.full((3,), 10 / 3)])
@pytest.mark.parametrize("dt", [1e-4, 0.3])
def test_a_time_constant_is_read_to_its_last_bit(tmp_path, tau, dt):
    write(nn.Sequential(nn.Linear(2, 3), hb.LIF(tau)), tmp_path / "net.nir", dt=dt)
    network = _neuron(read(tmp_path / "net.nir")).tau
    assert type(network) is type(tau)
    assert torch.equal(torch.as_tensor(network), torch.as_tensor(tau))


def test_time_constants_are_seconds_even_if_metadata_contradicts():
    graph = write(nn.Sequential(nn.Linear(2, 3), hb.LIF(5.0)), dt=1e-3)
    assert _neuron(read(graph)).tau == 5.0
    assert _neuron(read(graph, dt=5e-4)).tau == pytest.approx(10.0)
    graph.nodes["1"].tau = np.full(3, 8e-3)
    assert _neuron(read(graph)).tau == pytest.approx(8.0)


def _neuron(net):
    return next(m.cell for m in net.modules() if isinstance(m, hb.OverTime | hb.Recurrent))


def test_scalars_are_written_for_each_neuron():
    graph = write(nn.Sequential(nn.Linear(2, 3), hb.LIF(4.0, 0.5)), dt=1e-3)
    node = graph.nodes["1"]
    assert node.tau.shape == node.r.shape == node.v_threshold.shape == (3,)
    np.testing.assert_allclose(node.r, 4.0)  # r = tau / dt: the input has the weight one


def test_sum_pooling_and_scale():
    pool = nir.SumPool2d(kernel_size=np.array([2, 2]), stride=np.array([2, 2]), padding=np.array([0, 0]))
    net = read(ports(pool, nir.Scale(np.full((1, 2, 2), 0.5)), shape=(1, 4, 4), out=(1, 2, 2)))
    x = torch.rand(2, 1, 1, 4, 4)
    torch.testing.assert_close(net(x), x.unfold(3, 2, 2).unfold(4, 2, 2).sum((-1, -2)) * 0.5)
    assert any(isinstance(m, Scale) for m in net.modules())
    kinds = {type(node) for node in write(net).nodes.values()}
    assert kinds == {nir.Input, nir.SumPool2d, nir.Scale, nir.Output}


def test_a_gain_before_a_recurrent_neuron_also_scales_the_recurrent_input():
    weight = np.random.default_rng(0).normal(size=(3, 3)).astype(np.float32)
    nodes = {"input": nir.Input(np.array([3])), "rec.lif": lif(3, tau=4e-3, r=2.0, threshold=0.3),
             "rec.w": nir.Linear(weight), "output": nir.Output(np.array([3]))}  # fmt: skip
    edges = [("input", "rec.lif"), ("rec.lif", "rec.w"), ("rec.w", "rec.lif"), ("rec.lif", "output")]
    net = read(chain(edges=edges, **nodes), dt=1e-3)
    x = torch.rand(40, 2, 3)
    v = s = torch.zeros(2, 3)
    expected = []
    for current in x:
        v = 0.75 * v * (1 - s) + 0.5 * (current + s @ torch.tensor(weight).T)
        s = (v > 0.3).float()
        expected.append(s)
    assert torch.equal(net(x), torch.stack(expected))


def test_a_graph_in_a_graph_in_a_graph():
    inner = ports(lif(3, threshold=0.1))
    middle = ports(nir.Linear(np.eye(3, dtype=np.float32)), inner)
    net = read(ports(middle, nir.Linear(np.ones((2, 3), np.float32)), out=(2,)), dt=1e-3)
    assert {name for name, m in net.named_modules() if isinstance(m, hb.OverTime)} == {"n1.n2.n1.1"}
    nodes = nir.Linear(np.eye(3, dtype=np.float32)), lif(3, threshold=0.1), nir.Linear(np.ones((2, 3)))
    x = torch.rand(10, 2, 3)
    assert torch.equal(net(x), read(ports(*nodes, out=(2,)), dt=1e-3)(x))


# ---- layers without a NIR node ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (hb.CubaLIF(reset="subtract"), 'reset="subtract"'),
        (hb.LIF(lower_bound=-1.0), "lower_bound=-1.0"),
        (hb.LIF(most_spikes=2, reset="subtract"), "most_spikes=2"),
        (hb.RefractoryLIF(), "RefractoryLIFCell"),
        (hb.Izhikevich(), "IzhikevichCell"),
        (hb.Recurrent(hb.IFCell(), 4, nn.Sequential(nn.Linear(4, 4), nn.ReLU())), "way back"),
        (nn.ReLU(), "ReLU has no NIR form"),
        (nn.GELU(), "GELU is not a supported layer"),
        (hb.CubaLIF(float("inf")), "finite time constants"),
    ],
)
def test_layers_that_nir_cannot_represent_are_named(layer, message):
    with pytest.raises(ValueError, match=rf"layer '1['.].*{re.escape(message)}"):
        write(nn.Sequential(nn.Linear(2, 4), layer))


def test_a_neuron_with_a_value_of_another_size_is_named():
    with pytest.raises(ValueError, match=r"(?s)threshold of IFCell must be one number .*layer '1' \(IF\)"):
        write(nn.Sequential(nn.Linear(2, 4), hb.IF(torch.ones(3))))


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (nn.MaxPool2d(2), "max-pooling only of spikes"),
        (nn.AvgPool2d(2, ceil_mode=True), "ceil_mode"),
        (nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect"), "padding_mode"),
        (nn.Conv2d(2, 1, 3), "channels"),
        (nn.Flatten(0), "time and batch"),
    ],
)
def test_image_layers_that_nir_cannot_represent_are_named(layer, message):
    with pytest.raises(ValueError, match="input_shape must be given"):
        write(nn.Sequential(hb.EachStep(layer)))
    with pytest.raises(ValueError, match=rf"layer '0.module'.*{message}"):
        write(nn.Sequential(hb.EachStep(layer)), input_shape=(1, 6, 6))


def test_a_warning_names_the_layers_that_only_training_needs():
    net = nn.Sequential(
        nn.Linear(2, 3), hb.IF(surrogate=hb.surrogate.ATan()), nn.Dropout(0.1), nn.Linear(3, 3),
        hb.LIF(detach_reset=True), nn.Linear(3, 2), hb.IF(),
    )  # fmt: skip
    with pytest.warns(UserWarning, match=r"1 \(ATan.*\); 2 \(Dropout.*\); 4 \(detach_reset\)$"):
        write(net)


@pytest.mark.parametrize("dt", [0.0, -1.0, float("nan")])
def test_dt_must_be_seconds(dt):
    with pytest.raises(ValueError, match=r"node 'n1' \(LIF\).*give dt"):
        read(ports(lif(3)))
    with pytest.raises(ValueError, match="dt must be positive"):
        write(nn.Linear(2, 2), dt=dt)
    with pytest.raises(ValueError, match="dt must be positive"):
        read(ports(nir.Linear(np.eye(3))), dt=dt)


@pytest.mark.skipif(HAS_RESET, reason="this version of nir has v_reset")
def test_an_old_nir_has_no_reset_potential():
    with pytest.raises(ValueError, match=r"layer '1'.*reset potential"):
        write(nn.Sequential(nn.Linear(2, 3), hb.IF(reset=-0.1)))


# ---- invalid files and graphs ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        (lambda: ports(nir.Linear(np.eye(4))), r"node 'n1' \(Linear\): takes 4 inputs.*\(3,\)"),
        (lambda: ports(nir.Affine(np.eye(3), np.ones(2))), r"node 'n1' \(Affine\): (.|\n)*bias"),
        (lambda: ports(lif(4)), r"node 'n1' \(LIF\): has the shape \(4,\)"),
        (lambda: ports(lif(3, threshold=0.0)), r"node 'n1' \(LIF\): threshold"),
        (lambda: ports(lif(3, tau=1e-4)), r"node 'n1' \(LIF\): tau is in time steps"),
        (lambda: ports(lif(3, threshold=np.nan)), r"node 'n1' \(LIF\): v_threshold"),
        (lambda: ports(nir.LI(*(np.ones(3) for _ in range(3)))), r"node 'n1' \(LI\): v_leak"),
        (lambda: ports(nir.Threshold(np.ones(3))), r"node 'n1' \(Threshold\): hibana has no layer for it"),
        (lambda: ports(nir.Linear(np.eye(3)), shape=(0,)), r"node 'n0' \(Input\)"),
        (lambda: chain(nir.Linear(np.eye(3)), nir.Output(np.array([3]))), "one Input node, has 0"),
        (lambda: ports(nir.Linear(np.eye(3)), edges=[("n0", "n1"), ("n0", "n1"), ("n1", "n2")]), "twice"),
    ],
)
def test_a_graph_that_does_not_fit_names_the_node(graph, message):
    with pytest.raises(ValueError, match=message):
        read(graph(), dt=1e-3)


def test_cycles_name_their_nodes():
    eye = nir.Linear(np.eye(3))
    stateless = chain(
        a=nir.Input(np.array([3])), b=eye, c=nir.Linear(np.eye(3)), d=nir.Output(np.array([3])),
        edges=[("a", "b"), ("b", "c"), ("c", "b"), ("c", "d")],
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"cycle (b -> c -> b|c -> b -> c) holds no neuron"):
        read(stateless)
    wide = chain(
        a=nir.Input(np.array([3])), b=lif(3), c=eye, d=lif(3), e=nir.Output(np.array([3])),
        edges=[("a", "b"), ("b", "c"), ("c", "d"), ("d", "b"), ("d", "e")],
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"cycle .*b.* is more than one neuron layer"):
        read(wide, dt=1e-3)
    ends = {"a": nir.Input(np.array([3])), "b": ports(), "c": nir.Output(np.array([3]))}
    with pytest.raises(ValueError, match="holds no neuron"):
        read(chain(**ends, edges=[("a", "b"), ("b", "b"), ("b", "c")]))


def test_an_unknown_edge_and_a_dead_end():
    nodes = {"a": nir.Input(np.array([3])), "b": nir.Output(np.array([3])), "c": lif(3)}
    graph = chain(edges=[("a", "b")], **nodes)
    graph.edges.append(("a", "nowhere"))
    with pytest.raises(ValueError, match="nowhere"):
        read(graph)
    graph.edges[-1] = ("a", "c")
    with pytest.warns(UserWarning, match="left out: c"):
        read(graph, dt=1e-3)


def write_file(path, nodes, edges=()):
    """Writes a NIR file with `nodes`, a dictionary of fields for each name, and returns its path."""
    with h5py.File(path, "w") as file:
        top = file.create_group("node")
        top["type"] = "NIRGraph"
        top["edges"] = np.array(list(edges), dtype=h5py.string_dtype()).reshape(-1, 2)
        for name, fields in nodes.items():
            group = top.create_group(f"nodes/{name}")
            for key, value in fields.items():
                group[key] = value
    return path


IN, OUT = {"type": "Input", "shape": [3]}, {"type": "Output", "shape": [3]}
LINE = [("input", "x"), ("x", "output")]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"type": "Izhikevich", "a": 0.1, "r": np.ones(3)},
            r"node 'x' \(Izhikevich\): hibana has no layer for it",
        ),
        ({"type": "Linear"}, r"node 'x' \(Linear\): has no field 'weight'"),
        ({"type": "Linear", "weight": "none"}, r"node 'x' \(Linear\)"),
        ({"weight": np.eye(3)}, "node 'x' has no type"),
    ],
)
def test_a_file_with_invalid_nodes(tmp_path, fields, message):
    path = write_file(tmp_path / "x.nir", {"input": IN, "x": fields, "output": OUT}, LINE)
    with pytest.raises(ValueError, match=message):
        read(path)


def test_a_file_that_claims_to_be_huge_is_not_loaded(tmp_path):
    path = write_file(tmp_path / "x.nir", {"input": IN, "x": {"type": "Linear"}, "output": OUT}, LINE)
    with h5py.File(path, "r+") as file:
        file["node/nodes/x"].create_dataset(
            "weight", (10**6, 10**6), "f4", chunks=(64, 64), compression="gzip"
        )
    assert path.stat().st_size < 100_000
    with pytest.raises(ValueError, match="nodes/x/weight would bring the file to more than"):
        read(path)


def test_a_layer_whose_output_would_be_huge(tmp_path):
    conv = {"type": "Conv2d", "weight": np.ones((1, 1, 1, 1)), "bias": np.ones(1), "stride": [1, 1],
            "padding": [10**6, 10**6], "dilation": [1, 1], "groups": 1}  # fmt: skip
    image = {"type": "Input", "shape": [1, 8, 8]}
    path = write_file(tmp_path / "x.nir", {"input": image, "x": conv, "output": OUT}, LINE)
    with pytest.raises(ValueError, match=r"node 'x' \(Conv2d\).*max_bytes"):
        read(path)


def test_a_delay_whose_past_would_be_huge(tmp_path):
    image, late = {"type": "Input", "shape": [3]}, {"type": "Delay", "delay": np.full(3, 1e9)}
    path = write_file(tmp_path / "x.nir", {"input": image, "x": late, "output": OUT}, LINE)
    for dt, message in (
        (1e-4, r"delay must be at most 16,777,216 steps"),
        (1e2, r"\(10000000, 3\), takes 120,"),
    ):
        with pytest.raises(ValueError, match=rf"node 'x' \(Delay\): .*{message}"):
            read(path, dt=dt, max_bytes=10**8)
    assert read(path, dt=1e6).x.reach == 1000


NAMES = [
    "forward",
    "train",
    "training",
    "__class__",
    "_modules",
    "meta",
    "graph",
    "import",
    "None",
    "a.forward",
]
NAMES += ["add", "flatten", "ﬁ", 'a"b', "a b", "a\\", "a/b", "a.b", "a", ".", "", "*/", "é", "0"]
IN_FILES = [name for name in NAMES if "/" not in name and name not in (".", "")]  # HDF5 reads those as paths


def graph_of_names(names):
    """A chain with one linear layer for each of `names`, and the layers, which have different weights."""
    layers = [nir.Linear(torch.randn(3, 3).numpy()) for _ in names]
    line = {"input": nir.Input(np.array([3])), **dict(zip(names, layers, strict=True))}
    return chain(**{**line, "output": nir.Output(np.array([3]))}), layers


@pytest.mark.parametrize("names", [*([name] for name in NAMES), NAMES, NAMES[::-1]], ids=str)
def test_a_node_may_have_any_name(names, tmp_path):
    graph, layers = graph_of_names(names)
    net, x = read(graph), torch.randn(2, 1, 3)
    expected = x
    for layer in layers:
        expected = expected @ torch.from_numpy(layer.weight).T
    torch.testing.assert_close(net(x), expected, rtol=1e-4, atol=1e-4)
    assert len({*net.state_dict()}) == len(names)
    net.load_state_dict(net.state_dict())
    write(net, tmp_path / "net.nir")
    assert {*nir.read(tmp_path / "net.nir").nodes} >= {*names} & {*IN_FILES}
    assert torch.equal(read(tmp_path / "net.nir")(x), net(x))


@pytest.mark.parametrize("name", ['a"b', "import", "graph", "meta", "add", "a/b", "??/", "*/", "new\nline"])
def test_a_layer_may_have_any_name(tmp_path, name):
    net = nn.Sequential()
    net.add_module(name, nn.Linear(3, 2))
    write(net, tmp_path / "x.nir")
    x = torch.rand(2, 1, 3)
    assert torch.equal(read(tmp_path / "x.nir")(x), net(x))


def test_links_and_recursive_groups_are_not_followed(tmp_path):
    path = write_file(tmp_path / "x.nir", {"input": IN, "x": {"type": "Linear"}, "output": OUT}, LINE)
    with h5py.File(path, "r+") as file:
        file["node/nodes/x/weight"] = h5py.ExternalLink("/etc/hostname", "/weight")
    with pytest.raises(ValueError, match="nodes/x/weight is a link"):
        read(path)
    with h5py.File(path, "r+") as file:
        del file["node/nodes/x/weight"]
        file["node/nodes/x/again"] = file["node/nodes"]  # a hard link to its parent
    with pytest.raises(ValueError, match="recursion"):
        read(path)


def test_values_stored_outside_the_file_are_not_read(tmp_path):
    (tmp_path / "raw").write_bytes(bytes(36))
    path = write_file(tmp_path / "x.nir", {"input": IN, "x": {"type": "Linear"}, "output": OUT}, LINE)
    with h5py.File(path, "r+") as file:
        file["node/nodes/x"].create_dataset("weight", (3, 3), "f4", external=[(str(tmp_path / "raw"), 0, 36)])
    with pytest.raises(ValueError, match="nodes/x/weight keeps its values outside"):
        read(path)


def test_missing_and_invalid_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.nir"):
        read(tmp_path / "none.nir")
    (tmp_path / "text.nir").write_text("hello")
    with pytest.raises(ValueError, match=r"text\.nir is damaged or not a NIR file"):
        read(tmp_path / "text.nir")
    with pytest.raises(TypeError, match="source"):
        read(3)


def _recursive_tree(path, graphs=160):
    """A file whose table of groups contains itself: HDF5 walks over it until its stack overflows."""
    write_file(path, {"input": IN, **{f"n{i:03d}": {"type": "Scale"} for i in range(graphs)}, "output": OUT})
    data = bytearray(path.read_bytes())
    at = -1
    while (at := data.find(b"TREE", at + 1)) >= 0:
        if data[at + 5] > 0:  # above the leaves: the first child is the node itself
            struct.pack_into("<Q", data, at + 32, at)
            break
    assert at >= 0
    path.write_bytes(data)
    return path


def _decompression_bomb(path):
    """A file of 1 MB whose data set of sixteen numbers decompresses to 1 GB of zeros."""
    write_file(path, {"input": IN, "x": {"type": "Scale"}, "output": OUT}, LINE)
    packer = zlib.compressobj(9, wbits=-15)
    block = packer.compress(bytes(1 << 24)) + packer.flush(zlib.Z_FULL_FLUSH)  # may be repeated
    checksum = ((64 << 24) % 65521 << 16) + 1  # Adler-32 of the zeros
    compressed = b"x\xda" + 64 * block + packer.flush() + checksum.to_bytes(4, "big")
    with h5py.File(path, "r+") as file:
        values = file["node/nodes/x"].create_dataset("scale", (16,), "f4", chunks=(16,), compression="gzip")
        values.id.write_direct_chunk((0,), compressed)
    return path


@pytest.mark.parametrize("make", [_recursive_tree, _decompression_bomb])
def test_files_that_crash_hdf5_or_fill_the_memory_raise_an_error(tmp_path, make):
    resource = pytest.importorskip("resource", reason="memory is not measured here")
    path = make(tmp_path / "x.nir")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=r"x\.nir.*damaged"):
        read(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < before + (100 << 10)


def test_random_damage_raises_an_error_or_is_read(tmp_path):
    """Every second file is truncated; in the others, twelve bytes are replaced."""
    net = nn.Sequential(nn.Linear(5, 8), hb.Recurrent(hb.LIFCell(3.0, 0.3), 8), nn.Linear(8, 3), hb.LI())
    write(net, tmp_path / "good.nir")
    good, path = (tmp_path / "good.nir").read_bytes(), tmp_path / "bad.nir"
    random, refused, count = np.random.default_rng(0), 0, examples(8)
    for i in range(count):
        bad = bytearray(good if i % 2 else good[: random.integers(len(good))])
        for _ in range(12 * (i % 2)):
            bad[random.integers(len(bad))] = random.integers(256)
        path.write_bytes(bad)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # about nodes that a damaged edge left out
            try:
                read(path, max_bytes=2**24)
            except ValueError:  # and no other error
                refused += 1
    assert refused >= count // 2


ENDLESS = """
import signal, sys, time
sys.path.insert(0, {folder!r})
import file
file.refusal = lambda *arguments: any(iter(int, 1))  # an endless loop that ignores signals, as in HDF5
signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
file.main(sys.argv[1], int(sys.argv[2]))
"""


@pytest.mark.parametrize(
    ("program", "patience", "message"),
    [
        ("", 60.0, "HDF5 crashes on it or does not end"),
        ("import sys; sys.modules['resource'] = None\n", 3.0, "reading it does not end"),  # as on Windows
    ],
)
def test_files_that_never_end_raise_an_error(tmp_path, monkeypatch, program, patience, message):
    path = write_file(tmp_path / "x.nir", {"input": IN, "output": OUT}, [("input", "output")])
    (tmp_path / "program.py").write_text(program + ENDLESS.format(folder=str(file.PROGRAM.parent)))
    monkeypatch.setattr(file, "PROGRAM", tmp_path / "program.py")
    monkeypatch.setattr(file, "PATIENCE", patience)
    with pytest.raises(ValueError, match=rf"x\.nir is damaged: {message}"):
        read(path)


def test_a_small_file_has_a_second_of_processor_time(tmp_path, monkeypatch):
    pytest.importorskip("resource", reason="processor time is not limited here")
    path = write_file(tmp_path / "x.nir", {"input": IN, "output": OUT}, [("input", "output")])
    (tmp_path / "program.py").write_text(
        f"import signal, sys\nsys.path.insert(0, {str(file.PROGRAM.parent)!r})\nimport file\n"
        "file.refusal = lambda *arguments: str(signal.getitimer(signal.ITIMER_PROF)[0])\n"
        "sys.exit(file.main(sys.argv[1], int(sys.argv[2])))\n"
    )
    monkeypatch.setattr(file, "PROGRAM", tmp_path / "program.py")
    with pytest.raises(ValueError, match=r"not a NIR file: (0\.|1\.0)\d*[1-9]"):
        read(path)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("edges", 3.0, "must have pairs of names as edges"),
        ("edges", np.zeros((2, 3)), "must have pairs of names as edges"),
        ("edges", np.zeros((1, 2)), "an edge between nodes it does not have"),
        ("edges", np.zeros((1, 2, 2)), "must have pairs of names as edges"),
        ("metadata/dt", "soon", "dt must be positive and finite seconds"),
        ("metadata/dt", -1.0, "dt must be positive and finite seconds"),
        ("metadata/dt", np.zeros(2), "dt must be positive and finite seconds"),
    ],
)
def test_a_file_with_invalid_edges_or_metadata(tmp_path, key, value, message):
    path = write_file(tmp_path / "x.nir", {"input": IN, "output": OUT}, [("input", "output")])
    with h5py.File(path, "r+") as contents:
        if key in contents["node"]:
            del contents["node"][key]
        contents["node"][key] = value
    with pytest.raises(ValueError, match=message):
        read(path)
    with h5py.File(path, "r+") as contents:
        contents["node"].pop("metadata", None)
        contents["node"]["metadata"] = 3.0  # not a group, so dt is unknown
        contents["node"].pop("edges")
        contents["node"]["edges"] = np.array([("input", "output")], h5py.string_dtype())
    assert read(path).meta["dt"] is None


# ---- neurons without a leak: writers scale the input by step or by second ---------------------------


def _integrators(r, n=3, kind="IF"):
    fields = {"r": np.broadcast_to(np.asarray(r, float), n).copy()}
    if kind == "IF":
        fields["v_threshold"] = np.ones(n)
    return ports(getattr(nir, kind)(**fields))


def test_metadata_that_are_no_group_are_ignored(tmp_path):
    path = write_file(tmp_path / "x.nir", {"input": IN, "output": OUT}, [("input", "output")])
    with h5py.File(path, "r+") as contents:
        contents["node"]["metadata"] = 3.0
    assert read(path).meta["dt"] is None


def test_the_process_that_reads_a_file_first_loads_no_torch():
    code = f"import runpy, sys; runpy.run_path({str(file.PROGRAM)!r}); print('torch' in sys.modules)"
    process = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert process.stdout.strip() == "False"


@pytest.mark.parametrize("kind", ["IF", "I"])
@pytest.mark.parametrize(
    ("r", "dt", "gain"),
    [
        (1.0, None, 1.0),
        (1e4, None, 1.0),  # SpikingJelly's default, without dt in the metadata
        (1.0 / 1e-3, 1e-3, 1.0),
        (np.float32(1 / 3e-4), 3e-4, 1.0),
        (1.0, 1e-3, 1.0),
        (2.0, 1e-3, 2.0),
        (1e4, 1e-3, 1e4),
        ([1.0, 1e3, 2.0], 1e-3, [1.0, 1.0, 2.0]),
    ],
)
def test_one_over_dt_is_a_gain_of_one(kind, r, dt, gain):
    x = torch.rand(20, 2, 3)
    net = hb.IF() if kind == "IF" else hb.LI()
    expected = net(x * torch.tensor(gain))
    assert torch.equal(read(_integrators(r, kind=kind), dt=dt)(x), expected)
