"""Networks as ONNX, including the loop over time: the same spikes if sums are exact."""

from importlib.util import find_spec

import pytest
import torch
from torch import nn

import hibana as hb
from hibana.compiler.graph.ops import Unsupported
from hibana.network import to_onnx

pytest.importorskip("onnx", reason="onnx is not installed")


def in_onnxruntime(model, inputs):
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    session = runtime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"input": inputs.numpy()})[0])


def in_openvino(model, inputs):
    import openvino

    core = openvino.Core()
    onnx_model = core.read_model(model.SerializeToString())
    compiled = core.compile_model(onnx_model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return torch.from_numpy(compiled([inputs.numpy()])[0])


def scale_weights(layer, factor):
    layer.weight.data *= factor
    return layer


NETWORKS = {
    "cells": (
        lambda: nn.Sequential(
            nn.Linear(6, 9), hb.LIF(tau=4.0, threshold=0.3), hb.Linear(9, 9), hb.Recurrent(hb.IFCell(0.3), 9),
            nn.Linear(9, 9), hb.RefractoryLIF(threshold=0.2), nn.Linear(9, 3), hb.LI(),
        ),
        (6,),
    ),
    "images": (
        lambda: nn.Sequential(
            hb.EachStep(nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4))), hb.IF(0.4),
            hb.EachStep(nn.MaxPool2d(2)), hb.EachStep(nn.Conv2d(4, 6, 3, padding="same", groups=2)),
            hb.EachStep(nn.AvgPool2d(2)), hb.LIF(tau=2.0, threshold=0.2),
            nn.Flatten(2), nn.Linear(24, 3), hb.LI(),
        ),
        (1, 8, 8),
    ),
    "all other cells": (
        lambda: nn.Sequential(
            nn.Linear(6, 9), hb.AdLIF(3.0, threshold=0.03), nn.Linear(9, 9), hb.ALIF(threshold=0.1),
            nn.Linear(9, 9), hb.LIF(3.0, 0.1, rest=0.02, lower_bound=-0.3), nn.Linear(9, 3), hb.LI(),
        ),
        (6,),
    ),
    "windows and delays": (
        lambda: nn.Sequential(
            hb.Window(6, 8, 3, dilation=2), hb.IF(0.2), hb.Delay(torch.rand(8) * 3),
            hb.Window(8, 8, 2, groups=2), hb.LIF(tau=2.0, threshold=0.2), hb.Window(8, 6, 1), hb.IF(0.2),
            hb.DelayedLinear(6, 5, 4), hb.IF(0.1), hb.Delay(0.0), hb.DelayedLinear(5, 3, 3, bias=False),
            hb.LI(),
        ),
        (6,),
    ),
    "windows of one pixel": (
        lambda: nn.Sequential(
            nn.Unflatten(2, (6, 1)), hb.Window(6, 4, 1), hb.IF(0.2), hb.Window(4, 3, 2), hb.LI()
        ),
        (6,),
    ),
    "windows and delays of images": (
        lambda: nn.Sequential(
            hb.Window(1, 4, 3), hb.IF(0.2), hb.Delay(torch.tensor([0.0, 1, 2, 1]).view(4, 1, 1)),
            hb.EachStep(nn.MaxPool2d(2)), hb.Window(4, 6, 2, dilation=3, groups=2),
            hb.LIF(tau=2.0, threshold=0.1), nn.Flatten(2), nn.Linear(96, 3), hb.LI(),
        ),
        (1, 8, 8),
    ),
}  # fmt: skip


without_openvino = pytest.mark.skipif(find_spec("openvino") is None, reason="openvino is not installed")


@pytest.mark.parametrize("outputs_of", [in_onnxruntime, pytest.param(in_openvino, marks=without_openvino)])
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name == "all other cells")) for name in NETWORKS]
)
def test_quantized_networks_are_the_same_in_onnx_for_any_time_and_batch(name, outputs_of):
    make, shape = NETWORKS[name]
    torch.manual_seed(0)
    inputs = torch.rand(7, 3, *shape)
    quantized, _ = hb.quantize(make().eval(), inputs)
    model = to_onnx(quantized, inputs[:2, :1])
    for part in (inputs, inputs[:4, :2]):
        integers = quantized.integer_input(part)
        with torch.no_grad():
            expected = quantized.net(integers)
        assert expected.count_nonzero() > 0
        assert torch.equal(outputs_of(model, integers), expected)


def test_a_float_network_is_the_same_up_to_rounding():
    net = nn.Sequential(nn.Linear(5, 4), hb.LI(3.0)).eval()
    inputs = torch.rand(6, 2, 5)
    with torch.no_grad():
        torch.testing.assert_close(in_onnxruntime(to_onnx(net, inputs), inputs), net(inputs))


@pytest.mark.parametrize("cell", [hb.IzhikevichCell(dt=0.5), hb.EIFCell(), hb.QIFCell()], ids=repr)
def test_float_neurons_with_an_upstroke_spike_the_same(cell):
    torch.manual_seed(0)
    net, scale = nn.Sequential(hb.OverTime(cell)), 40 if isinstance(cell, hb.IzhikevichCell) else 1
    inputs = torch.rand(30, 2, 8) * scale
    with torch.no_grad():
        expected = net(inputs)
    assert 0 < expected.mean() < 1
    assert torch.equal(in_onnxruntime(to_onnx(net, inputs), inputs), expected)


def test_the_models_size_does_not_grow_with_time():
    net = nn.Sequential(hb.Window(5, 4, 3), hb.CubaLIF(), hb.Delay(2.0), hb.DelayedLinear(4, 2, 2), hb.LI())
    short, long = (to_onnx(net, torch.rand(steps, 1, 5)).ByteSize() for steps in (1, 300))
    assert short == long


@pytest.mark.parametrize("name", ["windows and delays", "windows and delays of images"])
def test_float_windows_and_delays_are_the_same_up_to_rounding(name):
    make, shape = NETWORKS[name]
    torch.manual_seed(0)
    net, inputs = make().eval()[:1], torch.rand(9, 2, *shape)
    for layer in (net, nn.Sequential(hb.DelayedLinear(6, 5, 4)).eval())[: 1 + (shape == (6,))]:
        with torch.no_grad():
            torch.testing.assert_close(in_onnxruntime(to_onnx(layer, inputs[:2]), inputs), layer(inputs))


def test_operations_without_onnx_form_are_named_in_the_error():
    class Strange(hb.Cell):
        def forward(self, input_, v_previous):
            return (torch.log1p(v_previous.abs()) + input_,)

    with pytest.raises(Unsupported, match="layer '0': operation 'log1p' has no onnx implementation"):
        to_onnx(nn.Sequential(hb.OverTime(Strange())), torch.rand(2, 1, 3))
