"""Layer kinds registered by users are compiled, exported and counted; missing targets are named in errors."""

import pytest
import torch
from torch import nn

import hibana as hb
from c_programs import check_programs
from hibana.compiler.graph.ops import Unsupported
from hibana.network.layers import LAYERS, LayerKind, kind_of, register
from hibana.network.layers.arithmetic import Scale
from hibana.network.lowering import Activations


class PReLU(LayerKind):
    """``nn.PReLU``: ``x`` if positive, else ``weight * x``, with one weight or one per channel."""

    name = "prelu"
    types = (nn.PReLU,)
    elementwise = True

    def slopes(self, node):
        return node.module.weight.detach().view(-1, *[1] * (len(node.shape) - 1))

    def to_onnx(self, node, inputs, step):
        return step.op("PRelu", [*inputs, step.constant(self.slopes(node))])

    def lower(self, node, to):
        source = to.activations[node.inputs[0]]
        source_values, out = to.numbers(source), to.temporary(node.size)
        slopes = to.constant(self.slopes(node).expand(node.shape).flatten()[source.order])
        for at, width in to.vectors(node.size):
            x = (source_values + at).load(width)
            (out + at).store((x > 0).select(x, x * (slopes + at).load(width)))
        return Activations(node, source.order, out)


@pytest.fixture
def prelu():
    register(PReLU())
    yield
    del LAYERS["prelu"]


def dense_network():
    return nn.Sequential(nn.Linear(5, 40), nn.PReLU(), hb.LIF(threshold=0.1)), torch.randn(6, 2, 5)


def image_network():
    slopes = nn.PReLU(4)
    nn.init.uniform_(slopes.weight)
    layers = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), slopes)
    return nn.Sequential(hb.EachStep(layers), nn.Flatten(2), hb.LI()), torch.randn(6, 2, 1, 4, 5)


@pytest.mark.usefixtures("prelu")
@pytest.mark.parametrize("network", [dense_network, image_network])
def test_a_registered_kind_is_compiled_and_exported(network, tmp_path):
    torch.manual_seed(0)
    net, x = network()
    graph = check_programs(net, x, tmp_path)[0].graph
    node = graph.nodes[2]
    row = next(line.split() for line in str(graph).splitlines() if line.startswith(node.name))
    assert row[1] == "prelu"
    assert int(row[-2]) == node.size


@pytest.mark.usefixtures("prelu")
@pytest.mark.parametrize("network", [dense_network, image_network])
def test_a_registered_kind_is_written_as_onnx(network):
    pytest.importorskip("onnx", reason="onnx is not installed")
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    torch.manual_seed(0)
    net, x = network()
    model = hb.convert.to_onnx(net, x).SerializeToString()
    session = runtime.InferenceSession(model, providers=["CPUExecutionProvider"])
    (outputs,) = session.run(None, {"input": x.numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(outputs), net(x))


@pytest.mark.usefixtures("prelu")
def test_a_target_that_a_kind_does_not_define_is_named():
    net, x = dense_network()
    with pytest.raises(Unsupported, match=r"layer '1': PReLU has no integer form"):
        hb.quantize(net, x)
    pytest.importorskip("nir", reason="the extra nir is not installed")
    with pytest.raises(ValueError, match=r"layer '1': PReLU has no NIR form"):
        hb.nir.write(net)


def test_unregistered_layers_and_duplicate_names_are_refused():
    net, x = dense_network()
    net[1] = nn.Softsign()
    with pytest.raises(Unsupported, match=r"layer '1': Softsign is not a supported layer"):
        hb.compile(net, x)
    with pytest.raises(ValueError, match="name must be new among kinds of layers, got 'sum'"):
        register(LAYERS["sum"])


def test_a_kind_of_a_subclass_comes_before_the_kind_of_its_base():
    class DoubleLinear(nn.Linear):
        def forward(self, inputs):
            return 2 * super().forward(inputs)

    class DoubleLinearKind(LayerKind):
        name, types = "doubling", (DoubleLinear,)

    register(DoubleLinearKind())
    try:
        assert kind_of(DoubleLinear(2, 3)) is LAYERS["doubling"]
        assert kind_of(nn.Linear(2, 3)) is LAYERS["linear"]
        with pytest.raises(Unsupported, match="layer '0': DoubleLinear has no native form"):
            hb.compile(nn.Sequential(DoubleLinear(5, 3), hb.IF()), torch.rand(4, 1, 5))
    finally:
        del LAYERS["doubling"]


@pytest.mark.parametrize("shape", [(), (4, 1, 1), (1, 4, 4, 5)])
def test_a_product_with_a_tensor_is_compiled_as_in_pytorch(shape, tmp_path):
    torch.manual_seed(0)
    convolution = hb.EachStep(nn.Conv2d(1, 4, 3, padding=1))
    net, x = nn.Sequential(convolution, Scale(torch.rand(shape)), hb.LI()), torch.randn(6, 2, 1, 4, 5)
    check_programs(net, x, tmp_path)
