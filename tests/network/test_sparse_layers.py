"""Sparse layers in native programs, C, quantized networks, ONNX and NIR."""

import pytest
import torch
from torch import nn

import hibana as hb
from c_programs import check_programs, compiled, needs_cc, outputs_of
from hibana.compiler.graph.ops import Unsupported
from hibana.network.layers import LAYERS

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
    no_synapses, zeros = torch.zeros(6, 6, dtype=torch.bool), torch.zeros(6, 6, dtype=torch.int64)
    x = torch.randint(0, 17, (9, 3, 1, 4, 5)) / 16
    if case == "spikes":
        first, last = hb.SparseLinear(20, 20, 0.3), hb.SparseLinear(20, 6, 0.3)
        layers = [first, hb.IF(0.1), last, hb.IF(0.1), hb.SparseLinear(6, 6, no_synapses), hb.LI()]
        return on_grid(nn.Sequential(*layers)), (x > 0.6).float().flatten(2)
    layers = [
        *(hb.EachStep(nn.Conv2d(1, 2, 2)), hb.IF(0.3), nn.Flatten(2)),  # its channels are last in memory
        *(hb.SparseLinear(24, 20, 0.3, delays=torch.randint(0, 5, (20, 24))), hb.IF(0.1)),
        *(hb.SparseLinear(20, 6, 0.3, delays=torch.randint(0, 3, (6, 20))), hb.IF(0.1)),
        *(hb.SparseLinear(6, 6, no_synapses, delays=zeros), hb.LI()),
    ]
    return on_grid(nn.Sequential(*layers)), x


def in_onnxruntime(net, x):
    """The outputs of `net` for `x` as an ONNX model."""
    pytest.importorskip("onnx", reason="onnx is not installed")
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    model = hb.convert.to_onnx(net, x).SerializeToString()
    session = runtime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"input": x.numpy()})[0])


@pytest.mark.parametrize("case", CASES)
def test_a_native_program_and_its_stream_give_the_outputs_of_pytorch(case):
    net, x = network(case)
    outputs = []
    net[-3].register_forward_hook(lambda layer, inputs, output: outputs.append(output))
    check_programs(net, x, expected=net(x))
    assert 0 < outputs[0].mean() < 1


@needs_cc
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("bits", [None, 8])
def test_c_gives_the_outputs_of_pytorch(case, bits, tmp_path):
    net, x = network(case)
    quantized, report = (net, None) if bits is None else hb.quantize(net, x, bits)
    inputs = x if bits is None else quantized.integer_input(x)
    program = hb.convert.to_c(quantized, x)
    expected = (net if bits is None else quantized.net)(inputs).double()
    for events in {False, case == "spikes"}:
        binary = compiled(program, tmp_path, len(x), events=events)
        assert torch.equal(outputs_of(binary, program, inputs)[0], expected)
    assert torch.equal(hb.compile(quantized, x)(x), quantized(x))
    assert report is None or all(layer.weight_error < 0.01 for layer in report.layers)


def test_quantization_aware_training_updates_the_weights_of_synapses():
    net, x = network("spikes")
    aware = hb.convert.quantization_aware(nn.Sequential(*net[:3], hb.LI()), x)
    aware(x).sum().backward()
    assert aware.plain[2].weight.grad.count_nonzero() > 10


@pytest.mark.parametrize("case", CASES)
def test_onnx_gives_the_outputs_of_pytorch(case):
    net, x = network(case)
    assert torch.equal(in_onnxruntime(net, x), net(x))


@pytest.mark.parametrize("case", CASES)
def test_a_graph_of_nir_computes_the_same(case, tmp_path):
    pytest.importorskip("nir", reason="the extra nir is not installed")
    net = network(case)[0][-6:]
    shape = (net[0].in_features,)
    x = torch.rand(9, 3, *shape).round()
    hb.nir.write(net, tmp_path / "net.nir", dt=1e-3, input_shape=shape)
    assert torch.equal(hb.nir.read(tmp_path / "net.nir")(x), net(x))


@pytest.mark.parametrize("delays", [None, torch.randint(0, 4, (8, 9))])
def test_an_export_to_torch_computes_the_same_for_any_number_of_steps(delays):
    layer, x = on_grid(hb.SparseLinear(9, 8, 0.3, delays=delays)), torch.rand(11, 2, 9).round()
    program = hb.convert.export(layer, x[:5], dynamic_time=True).module()
    assert torch.equal(program(x), layer(x))


class TwoMatrices(hb.Cell):
    """Neurons with two sparse matrices in their step."""

    def __init__(self):
        super().__init__()
        self.first, self.second = hb.SparseLinear(20, 20, 0.1), hb.SparseLinear(20, 20, 0.1, bias=False)

    def forward(self, input_, v_previous, s_previous):
        v = v_previous * 0.5 + input_ + self.first(s_previous) - self.second(s_previous)
        return v, hb.spike(v - 0.3)


DELAYS = torch.randint(0, 4, (20, 20))
RECURRENT = {
    "sparse": lambda: hb.Recurrent(hb.IFCell(0.3), 20, hb.SparseLinear(20, 20, 0.2)),
    "sparse with delays": lambda: hb.Recurrent(
        hb.IFCell(0.3), 20, hb.SparseLinear(20, 20, 0.2, delays=DELAYS)
    ),
    "two in a cell": lambda: hb.OverTime(TwoMatrices()),
    "dense with delays": lambda: hb.DelayedRecurrent(hb.IFCell(0.3), 20, 4),
}


def recurrent_network(name):
    """A network with recurrent synapses, whose neurons read an image with channels last in memory."""
    torch.manual_seed(0)
    image = hb.EachStep(nn.Conv2d(1, 2, (1, 2))), nn.Flatten(2)
    net = on_grid(nn.Sequential(*image, RECURRENT[name](), hb.Linear(20, 3), hb.LI()))
    x = torch.randint(0, 17, (12, 3, 1, 2, 6)) / 16
    net[0].module.bias.data.fill_(0.25)
    assert 0.1 < net[:3](x).mean() < 0.9
    return net, x


@pytest.mark.parametrize("name", RECURRENT)
def test_recurrent_synapses_are_the_same_in_programs(name, tmp_path):
    net, x = recurrent_network(name)
    expected = net(x)
    check_programs(net, x, tmp_path, expected)
    assert torch.equal(hb.convert.export(net, x).module()(x), expected)
    if name != "sparse":
        with pytest.raises(Unsupported, match=r"layer '2': .* (integer form|no form here)"):
            hb.quantize(net, x)


@pytest.mark.parametrize("connectivity", [0.05, 0.3])
def test_recurrent_synapses_are_the_same_in_integers(connectivity, tmp_path):
    torch.manual_seed(0)
    synapses = hb.SparseLinear(40, 40, connectivity)
    net = nn.Sequential(hb.Linear(9, 40), hb.Recurrent(hb.LIFCell(threshold=0.3), 40, synapses))
    x = (torch.rand(12, 3, 9) < 0.5).float()
    quantized, _ = hb.quantize(net, x)
    recurrent, dense = quantized.net[1].cell.m0.T.double(), synapses.to_dense().detach().double()
    scales = dense.abs().amax(1, keepdim=True) / recurrent.abs().amax(1, keepdim=True).clamp(min=1)
    assert (recurrent[dense == 0] == 0).all()
    assert torch.allclose(recurrent * scales, dense, atol=0.005)
    program = hb.convert.to_c(quantized, x)
    assert ("m0_targets" in program.source or "m0_places" in program.source) == (connectivity < 0.1)
    binary = compiled(program, tmp_path, len(x))
    expected = quantized.net(quantized.integer_input(x)).double()
    assert 0.05 < expected.mean() < 0.95
    assert torch.equal(outputs_of(binary, program, quantized.integer_input(x))[0], expected)
    assert torch.equal(hb.compile(quantized, x)(x), quantized(x))


def test_quantization_aware_training_updates_only_existing_recurrent_synapses():
    synapses = hb.SparseLinear(20, 20, 0.2)
    net = nn.Sequential(hb.Linear(9, 20), hb.Recurrent(hb.LIFCell(threshold=0.3), 20, synapses), hb.LI())
    x = (torch.rand(12, 3, 9) < 0.5).float()
    aware = hb.convert.quantization_aware(net, x)
    aware(x).sum().backward()
    gradient = aware.plain[1].recurrent.weight.grad
    assert gradient.count_nonzero() > 10
    assert not gradient[synapses.to_dense() == 0].any()
    aware.plain[1].recurrent.weight.data.add_(0.1)
    assert (aware.quantized().net[1].cell.m0.T[synapses.to_dense() == 0] == 0).all()


@pytest.mark.parametrize("name", RECURRENT)
def test_recurrent_synapses_are_the_same_in_onnx_and_nir_or_refused(name, tmp_path):
    pytest.importorskip("nir", reason="the extra nir is not installed")
    net, x = recurrent_network(name)
    if name in ("sparse", "two in a cell"):
        assert torch.equal(in_onnxruntime(net, x), net(x))
    else:
        with pytest.raises(Unsupported, match=r"layer '2': .*Recurrent.* has no ONNX form"):
            hb.convert.to_onnx(net, x)
    if name == "sparse":
        hb.nir.write(net[2:], tmp_path / "net.nir", dt=1e-3, input_shape=(20,))
        assert torch.equal(hb.nir.read(tmp_path / "net.nir")(net[:2](x)), net(x))


def test_a_large_recurrent_layer_needs_no_dense_matrix():
    synapses = hb.SparseLinear(8000, 8000, hb.connect.fixed_in_degree(5))
    program = hb.compile(hb.Recurrent(hb.LIFCell(), 8000, synapses), torch.rand(2, 1, 8000))
    operations = LAYERS["neurons"].operations(program.graph.nodes[1], torch.float32)
    assert operations.at_most < 20 * 8000 < operations.products == 8000**2
    assert program._native.weights.numel() < 1_000_000


@pytest.mark.parametrize("delays", [None, torch.randint(0, 4, (8, 9))])
@pytest.mark.parametrize("bias", [False, True])
def test_batch_normalization_is_folded_into_the_weights_of_synapses(delays, bias):
    norm = nn.BatchNorm1d(8, momentum=1.0)
    net, x = nn.Sequential(hb.SparseLinear(9, 8, 0.5, bias, delays), hb.EachStep(norm)), torch.rand(6, 5, 9)
    net(3 * x)
    folded = hb.fold_batchnorm(net)
    assert isinstance(folded[1].module, nn.Identity)
    torch.testing.assert_close(folded(x), net.eval()(x))


def test_a_relu_network_with_sparse_layers_becomes_spiking_unless_it_has_delays():
    torch.manual_seed(0)
    model = nn.Sequential(hb.SparseLinear(4, 16, 0.5), nn.ReLU(), hb.SparseLinear(16, 3, 0.5))
    x = torch.rand(20, 4)
    net, _ = hb.from_ann(model, x, 256, percentile=100)
    torch.testing.assert_close(net(x.expand(256, 20, 4))[-1] / 256, model(x), atol=0.02, rtol=0)
    model[2] = hb.SparseLinear(16, 3, 0.5, delays=1)
    with pytest.raises(ValueError, match=r"layer '2': DelayedSparseLinear cannot be converted"):
        hb.from_ann(model, x[None], 4)


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
def test_indices_outside_of_arrays_are_refused(change, monkeypatch):
    net = nn.Sequential(hb.SparseLinear(20, 20, 0.3, delays=torch.ones(20, 20)), hb.IF())
    change(net[0])
    monkeypatch.setattr(type(net[0]), "outputs_after", lambda layer, history, inputs: inputs)
    with pytest.raises(Unsupported, match=r"layer '0': (row_starts|targets|delays) must"):
        hb.compile(net, torch.rand(4, 1, 20))
