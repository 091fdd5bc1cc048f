"""Sparse layers in everything that is made of a graph: native programs, C, integers, ONNX and NIR."""

import pytest
import torch
from torch import nn

import hibana as hb
from c_programs import compiled, needs_cc, outputs_of
from hibana.compiler.graph.ops import Unsupported
from hibana.network.layers import sparse

CASES = ["spikes", "delays of an image"]


def on_grid(net):
    """`net` with weights whose sums are exact in any order."""
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_((parameter * 64).round() / 64)
    return net.eval()


def network(case):
    """A network with sparse layers, one of them without synapses, and inputs on the grid of its weights."""
    torch.manual_seed(0)
    none, zeros = torch.zeros(6, 6, dtype=torch.bool), torch.zeros(6, 6, dtype=torch.int64)
    x = torch.randint(0, 17, (9, 3, 1, 4, 5)) / 16
    if case == "spikes":
        first, last = hb.SparseLinear(20, 20, 0.3), hb.SparseLinear(20, 6, 0.3)
        layers = [first, hb.IF(0.1), last, hb.IF(0.1), hb.SparseLinear(6, 6, none), hb.LI()]
        return on_grid(nn.Sequential(*layers)), (x > 0.6).float().flatten(2)
    layers = [
        *(hb.EachStep(nn.Conv2d(1, 2, 2)), hb.IF(0.3), nn.Flatten(2)),  # its channels are last in memory
        *(hb.SparseLinear(24, 20, 0.3, delays=torch.randint(0, 5, (20, 24))), hb.IF(0.1)),
        *(hb.SparseLinear(20, 6, 0.3, delays=torch.randint(0, 3, (6, 20))), hb.IF(0.1)),
        *(hb.SparseLinear(6, 6, none, delays=zeros), hb.LI()),
    ]
    return on_grid(nn.Sequential(*layers)), x


@pytest.mark.parametrize("case", CASES)
def test_a_native_program_and_its_stream_give_the_outputs_of_pytorch(case):
    net, x = network(case)
    outputs = []
    net[-3].register_forward_hook(lambda layer, inputs, output: outputs.append(output))
    expected = net(x)
    program = hb.compile(net, x)
    assert 0 < outputs[0].mean() < 1
    assert torch.equal(program(x), expected)
    stream = program.stream(3)
    assert torch.equal(torch.stack([stream.step(step) for step in x]), expected)


@needs_cc
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("bits", [None, 8])
def test_c_gives_the_outputs_of_pytorch(case, bits, tmp_path):
    net, x = network(case)
    small, report = (net, None) if bits is None else hb.quantize(net, x, bits)
    inputs = x if bits is None else small.integer_input(x)
    program = hb.convert.to_c(small, x)
    expected = (net if bits is None else small.net)(inputs).double()
    for events in {False, case == "spikes"}:
        binary = compiled(program, tmp_path, len(x), events=events)
        assert torch.equal(outputs_of(binary, program, inputs)[0], expected)
    assert torch.equal(hb.compile(small, x)(x), small(x))
    assert report is None or all(layer.weight_error < 0.01 for layer in report.layers)


def test_training_in_integers_moves_the_weights_of_synapses():
    net, x = network("spikes")
    aware = hb.convert.quantization_aware(nn.Sequential(*net[:3], hb.LI()), x)
    aware(x).sum().backward()
    assert aware.plain[2].weight.grad.count_nonzero() > 10


@pytest.mark.parametrize("case", CASES)
def test_onnx_gives_the_outputs_of_pytorch(case):
    pytest.importorskip("onnx", reason="onnx is not installed")
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    net, x = network(case)
    model = hb.convert.to_onnx(net, x).SerializeToString()
    session = runtime.InferenceSession(model, providers=["CPUExecutionProvider"])
    (outputs,) = session.run(None, {"input": x.numpy()})
    assert torch.equal(torch.from_numpy(outputs), net(x))


@pytest.mark.parametrize("case", CASES)
def test_a_graph_of_nir_computes_the_same(case, tmp_path, monkeypatch):
    pytest.importorskip("nir", reason="the extra nir is not installed")
    net = network(case)[0][-6:]
    shape = (net[0].in_features,)
    x = torch.rand(9, 3, *shape).round()
    hb.nir.write(net, tmp_path / "net.nir", dt=1e-3, input_shape=shape)
    assert torch.equal(hb.nir.read(tmp_path / "net.nir")(x), net(x))
    monkeypatch.setattr(sparse, "MAX_NUMBERS", 100)
    with pytest.raises(ValueError, match=r"layer '\d': its dense weight has [\d,]+ numbers"):
        hb.nir.write(net, dt=1e-3, input_shape=shape)


@pytest.mark.parametrize("delays", [None, torch.randint(0, 4, (8, 9))])
def test_an_export_to_torch_computes_the_same_for_any_number_of_steps(delays):
    layer, x = on_grid(hb.SparseLinear(9, 8, 0.3, delays=delays)), torch.rand(11, 2, 9).round()
    program = hb.convert.export(layer, x[:5], dynamic_time=True).module()
    assert torch.equal(program(x), layer(x))


@pytest.mark.parametrize(
    "change",
    [
        lambda layer: layer.targets.__setitem__(3, 20),
        lambda layer: layer.targets.__setitem__(3, -1),
        lambda layer: layer.row_starts.__setitem__(5, 0),
        lambda layer: layer.row_starts.__setitem__(-1, 1 << 40),
        lambda layer: setattr(layer, "targets", layer.targets[1:]),
        lambda layer: setattr(layer, "delays", layer.delays[1:]),
    ],
)
def test_indices_that_lead_outside_of_arrays_are_refused(change, monkeypatch):
    net = nn.Sequential(hb.SparseLinear(20, 20, 0.3, delays=torch.ones(20, 20)), hb.IF())
    change(net[0])
    monkeypatch.setattr(type(net[0]), "outputs_after", lambda layer, history, inputs: inputs)
    with pytest.raises(Unsupported, match=r"layer '0': (row_starts|the settings)"):
        hb.compile(net, torch.rand(4, 1, 20))


def test_tables_count_the_stored_synapses():
    net, x = network("spikes")
    node = hb.compile(net, x).graph.nodes[1]
    operations = node.layer.operations(node, x.dtype)
    synapses = net[0].weight.numel()
    assert operations == (synapses, pytest.approx(synapses * node.inputs[0].density), 20 * 20)
