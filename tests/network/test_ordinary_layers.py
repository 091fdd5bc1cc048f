"""Layers of ordinary networks between spikes: rectifiers, normalization, concatenation, upsampling."""

import shutil

import pytest
import torch
from torch import nn
from torch.nn import functional

import hibana as hb
from c_programs import check_programs
from hibana.compiler.graph.ops import Unsupported
from network.test_quantize import check
from network.test_verilog import simulate


class Concatenated(nn.Module):
    """The spikes of two layers side by side, along `dim`, before a third layer."""

    def __init__(self, first, second, third, dim):
        super().__init__()
        self.first, self.second, self.third, self.dim = first, second, third, dim

    def forward(self, inputs):
        return self.third(torch.cat([self.first(inputs), self.second(inputs)], self.dim))


class Functions(nn.Module):
    """A rectifier that is a function."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.neurons = nn.Linear(5, 9), nn.Linear(9, 3), hb.LI()

    def forward(self, inputs):
        return self.neurons(self.second(functional.relu6(4 * self.first(inputs).relu())))


def spiking(*layers):
    return nn.Sequential(*layers, hb.IF(0.2))


def image_layer(layer, channels=4, size=1):
    image = nn.Sequential(nn.Conv2d(2, channels, 3, padding=1), layer)
    return nn.Sequential(
        hb.EachStep(image), hb.IF(0.2), nn.Flatten(2), nn.Linear(channels * size * size, 3), hb.LI()
    )


def prelu(channels):
    layer = nn.PReLU(channels)
    nn.init.uniform_(layer.weight, -0.5, 1.5)
    return layer


def normalized(layer):
    nn.init.uniform_(layer.weight, 0.5, 1.5)
    if layer.bias is not None:
        nn.init.uniform_(layer.bias)
    return layer


def concatenated_images(dim):
    def part(channels, height):
        return spiking(hb.EachStep(nn.Sequential(nn.Conv2d(2, channels, (height, 3), padding=(0, 1)))))

    shapes = {-3: (3, 4, 3, 3), -2: (4, 4, 3, 1)}
    first, second, low, high = shapes[dim]
    joined = spiking(hb.EachStep(nn.Conv2d(first + second if dim == -3 else 4, 3, 2)), nn.Flatten(2))
    return Concatenated(part(first, low), part(second, high), joined, dim)


BOTH = {
    "ReLU": (lambda: nn.Sequential(nn.Linear(5, 40), nn.ReLU(), nn.Linear(40, 6), hb.LI()), (5,)),
    "ReLU6": (
        lambda: spiking(nn.Linear(5, 9), hb.IF(0.2), nn.Linear(9, 7), nn.ReLU6(), nn.Linear(7, 4)),
        (5,),
    ),
    "PReLU": (lambda: nn.Sequential(nn.Linear(5, 9), prelu(1), nn.Linear(9, 4), hb.LI()), (5,)),
    "PReLU of channels": (lambda: image_layer(prelu(4), size=6), (2, 6, 6)),
    "concatenation": (
        lambda: Concatenated(spiking(nn.Linear(5, 6)), spiking(nn.Linear(5, 7)), nn.Linear(13, 3), -1),
        (5,),
    ),
    "channels": (lambda: concatenated_images(-3), (2, 6, 6)),
    "rows": (lambda: concatenated_images(-2), (2, 6, 6)),
    "global pooling": (lambda: image_layer(nn.AdaptiveAvgPool2d(1)), (2, 6, 6)),
    "upsampling of numbers": (
        lambda: nn.Sequential(
            hb.EachStep(nn.Sequential(nn.Conv2d(2, 3, 3), nn.Upsample(scale_factor=(2, 3)))), hb.IF(0.2)
        ),
        (2, 5, 5),
    ),
    "upsampling of spikes": (
        lambda: nn.Sequential(
            hb.EachStep(nn.Conv2d(2, 8, 3)),
            hb.IF(0.2),
            hb.EachStep(nn.Upsample(scale_factor=2)),
            hb.EachStep(nn.Conv2d(8, 3, 3)),
            hb.IF(0.2),
        ),
        (2, 5, 5),
    ),
}
FLOATS = {
    "functions": (Functions, (5,)),
    "LayerNorm": (
        lambda: nn.Sequential(nn.Linear(5, 9), normalized(nn.LayerNorm(9)), nn.Linear(9, 4), hb.LI()),
        (5,),
    ),
    "LayerNorm of rows": (lambda: nn.Sequential(normalized(nn.LayerNorm(6, bias=False)), hb.LI()), (2, 4, 6)),
    "LayerNorm without weights": (
        lambda: nn.Sequential(nn.LayerNorm((4, 6), elementwise_affine=False, eps=0.1), hb.LI()),
        (2, 4, 6),
    ),
    "GroupNorm": (
        lambda: nn.Sequential(
            hb.EachStep(nn.Sequential(nn.Conv2d(2, 6, 3), normalized(nn.GroupNorm(3, 6)))), hb.LI()
        ),
        (2, 5, 5),
    ),
}
ALL = BOTH | FLOATS


def network(name):
    torch.manual_seed(0)
    build, shape = ALL[name]
    inputs = torch.rand(8, 3, *shape)
    if name not in ("global pooling", "upsampling of spikes"):
        inputs = inputs - 0.25
    return build().eval(), inputs


@pytest.mark.parametrize("name", ALL)
def test_a_layer_equals_pytorch_in_native_code_and_in_c(name, tmp_path):
    net, inputs = network(name)
    with torch.no_grad():
        expected = net(inputs)
    assert expected.count_nonzero()
    native = hb.compile(net, inputs)(inputs)
    torch.testing.assert_close(native, expected)
    # PyTorch takes the sums of a normalization in another order, so its last bits differ
    check_programs(net, inputs, tmp_path, expected=native if "Norm" in name else None)


@pytest.mark.parametrize("name", ALL)
def test_a_layer_equals_pytorch_in_onnx(name):
    pytest.importorskip("onnx", reason="onnx is not installed")
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    net, inputs = network(name)
    model = hb.convert.to_onnx(net, inputs).SerializeToString()
    session = runtime.InferenceSession(model, providers=["CPUExecutionProvider"])
    (outputs,) = session.run(None, {"input": inputs.numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(outputs), net(inputs))


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
@pytest.mark.parametrize("name", BOTH)
def test_a_layer_in_integers_is_the_same_in_c(name, tmp_path):
    net, inputs = network(name)
    _, report, _ = check(net, inputs, tmp_path)
    assert report.layers[-1].agreement > 0.9


@pytest.mark.skipif(shutil.which("iverilog") is None, reason="no Verilog simulator, iverilog")
@pytest.mark.parametrize("name", BOTH)
def test_a_layer_in_integers_is_the_same_as_a_circuit(name, tmp_path):
    net, inputs = network(name)
    quantized, _ = hb.quantize(net, inputs)
    program = hb.convert.to_verilog(quantized, inputs, samples=3, adders=4)
    assert simulate(program, tmp_path)[0] == "3 of 3 equal"


@pytest.mark.parametrize("name", BOTH)
def test_training_in_integers_has_the_gradient_of_the_float_network(name):
    net, inputs = network(name)
    aware = hb.convert.quantization_aware(net, inputs)
    first, expected = (next(iter(n.parameters())) for n in (aware.plain, net))
    aware(inputs).pow(2).sum().backward()
    net(inputs).pow(2).sum().backward()
    similarity = functional.cosine_similarity(first.grad.flatten(), expected.grad.flatten(), 0)
    assert similarity > 0.9


def test_layers_without_an_integer_form_and_settings_without_loops_are_named():
    cases = [
        (FLOATS["LayerNorm"], hb.quantize, r"layer '1': LayerNorm has no integer form"),
        (
            FLOATS["functions"],
            hb.quantize,
            r"rectifier in a forward has no integer form; call one of ReLU, ReLU6",
        ),
        (
            (lambda: image_layer(nn.Upsample(scale_factor=2, mode="bilinear")), (2, 1, 1)),
            hb.compile,
            "bilinear",
        ),
        ((lambda: image_layer(nn.Upsample(size=(3, 5))), (2, 2, 2)), hb.compile, "is not supported"),
    ]
    for (build, shape), target, message in cases:
        with pytest.raises((Unsupported, RuntimeError), match=message):
            target(build(), torch.rand(4, 2, *shape))
    nir_net, inputs = network("ReLU")
    pytest.importorskip("nir", reason="the extra nir is not installed")
    with pytest.raises(ValueError, match=r"layer '1': ReLU has no NIR form"):
        hb.nir.write(nir_net, inputs)


def test_a_rectifier_that_is_called_twice_has_no_integer_form():
    shared = nn.ReLU()
    net = nn.Sequential(nn.Linear(3, 4), shared, nn.Linear(4, 4), shared, nn.Linear(4, 2), hb.LI())
    with pytest.raises(Unsupported, match=r"layer '1' is called several times; use one module per call"):
        hb.quantize(net, torch.rand(4, 2, 3))


def test_a_concatenation_of_time_is_refused():
    net = Concatenated(nn.Linear(3, 4), nn.Linear(3, 4), hb.LI(), 0)
    with pytest.raises(Unsupported, match="cat"):
        hb.compile(net, torch.rand(4, 2, 3))
