"""Sums on the processor's unit for matrices, where there is one: float32's, whatever lies around them."""

import random

import pytest
import torch
from torch import nn
from torch.nn import functional

import hibana as hb
from hibana.events import cost
from hibana.events.convolution import autograd
from hibana.events.convolution import layer as convolution_layer
from hibana.events.convolution import reckoned as of_convolutions
from hibana.events.convolution.amx import of_input, of_weights, sums
from hibana.events.convolution.geometry import Geometry
from hibana.events.planes import Planes, whole_numbers
from hibana.native import Bytes, Code, Value, kernel
from hibana.native import amx as unit

needs_it = pytest.mark.skipif(not unit.there(), reason="this processor has no unit for matrices (AMX)")


def _whole(shape, density, most, factor=1.0):
    numbers = (torch.rand(shape) < density) * torch.randint(1, most + 1, shape) * factor
    return numbers.contiguous(memory_format=torch.channels_last)


def _planes(images):
    found = whole_numbers(autograd.rows_of(images))
    assert found is not None
    return found


def _close(found, exact, torchs):
    """Whether `found` is about as near to what is `exact` as `torchs` is; a part less, and it is not."""
    assert found.shape == exact.shape
    tiny = 2.0**-21 * float(exact.norm())
    assert float((found - exact).norm()) <= 2 * float((torchs - exact).norm()) + tiny


def _drawn(seed):
    """Some convolution of so many images: the number, a geometry, a weight; skipped, if none fits."""
    draw = random.Random(seed).choice
    torch.manual_seed(seed)
    channels, outputs = draw([1, 3, 16, 32, 33, 70]), draw([1, 5, 16, 33, 64])
    kernel, stride = (draw([1, 2, 3, 5]), draw([1, 3])), (draw([1, 1, 2, 3]), draw([1, 1, 2]))
    padding, dilation = (draw([0, 1, 2, 4]), draw([0, 1, 2])), (draw([1, 1, 2]), draw([1, 1, 3]))
    images, size = draw([1, 2, 17, 20]), (draw([5, 8, 20]), draw([7, 8, 16, 17, 32]))
    geometry = Geometry(channels, size, kernel, stride, padding, dilation)
    if min(geometry.output) <= 0:
        pytest.skip("the window does not fit on the image")
    weight = torch.randn(outputs, channels, *kernel) * 2.0 ** torch.randint(-30, 30, (outputs, 1, 1, 1))
    if draw([False, True]):
        weight = weight.contiguous(memory_format=torch.channels_last)
    return images, geometry, weight, draw


@needs_it
@pytest.mark.parametrize("seed", range(40))
def test_sums_are_as_near_to_the_exact_ones_as_torchs(seed):
    count, geometry, weight, draw = _drawn(seed)
    shape = count, geometry.channels, *geometry.image
    images = _whole(shape, draw([0.0, 0.2, 1.0]), draw([1, 3, 15]), draw([1.0, 0.25]))
    bias = torch.randn(len(weight)) if draw([False, True]) else None
    how = geometry.stride, geometry.padding, geometry.dilation
    exact_bias = None if bias is None else bias.double()
    exact = functional.conv2d(images.double(), weight.double(), exact_bias, *how)
    torchs = functional.conv2d(images.contiguous(), weight, bias, *how)
    found = sums.forward(_planes(images), weight, bias, geometry)
    for output in range(len(weight)):
        _close(found[:, output], exact[:, output], torchs[:, output])


def _torchs(grad, images, weight, geometry):
    """Torch's gradients of the images and of the weight."""
    how = geometry.stride, geometry.padding, geometry.dilation
    last = False, [0, 0], 1, [True, True, False]
    return torch.ops.aten.convolution_backward(grad, images, weight, None, *how, *last)[:2]


def _gradient(count, geometry, weight, draw):
    """Of the output: a row a pixel, and as torch has it."""
    rows = torch.randn(count * geometry.output[0] * geometry.output[1], len(weight))
    rows *= torch.rand(rows.shape) < draw([0.2, 1.0])
    rows *= 2.0 ** torch.randint(-60, 30, (1,))
    return rows, rows.view(count, *geometry.output, -1).permute(0, 3, 1, 2).contiguous()


@needs_it
@pytest.mark.parametrize("seed", range(60))
def test_an_inputs_gradient_is_as_near_to_the_exact_one_as_torchs(seed):
    count, geometry, weight, draw = _drawn(seed)
    rows, grad = _gradient(count, geometry, weight, draw)
    weight = weight / weight.abs().amax((1, 2, 3), keepdim=True)
    images = grad.new_zeros(count, geometry.channels, *geometry.image)
    exact = _torchs(grad.double(), images.double(), weight.double().contiguous(), geometry)[0]
    found = of_input.input_gradient(rows, weight, count, geometry)
    _close(found, exact, _torchs(grad, images, weight.contiguous(), geometry)[0])


@needs_it
@pytest.mark.parametrize("seed", range(60))
def test_a_weights_gradient_is_as_near_to_the_exact_one_as_torchs(seed):
    count, geometry, weight, draw = _drawn(seed)
    shape = count, geometry.channels, *geometry.image
    images = _whole(shape, draw([0.0, 0.2, 1.0]), draw([1, 3, 15]), draw([1.0, 0.25]))
    rows, grad = _gradient(count, geometry, weight, draw)
    weight = weight.contiguous()
    exact = _torchs(grad.double(), images.double(), weight.double(), geometry)[1]
    found = of_weights.weight_gradient(_planes(images), rows, geometry)
    _close(found, exact, _torchs(grad, images.contiguous(), weight, geometry)[1])


@needs_it
@pytest.mark.parametrize("threads", [1, 3, 5])
@pytest.mark.parametrize("stride", [1, 2])
def test_gradients_are_torchs_on_any_number_of_threads(threads, stride):
    geometry = Geometry(40, (16, 20), (3, 3), (stride, stride), (1, 1), (1, 1))
    images, weight = _whole((7, 40, 16, 20), 0.3, 3), torch.randn(24, 40, 3, 3)
    rows = torch.randn(7 * geometry.output[0] * geometry.output[1], 24)
    grad = rows.view(7, *geometry.output, -1).permute(0, 3, 1, 2).contiguous()
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        to_input = of_input.input_gradient(rows, weight, 7, geometry)
        to_weight = of_weights.weight_gradient(_planes(images), rows, geometry)
    finally:
        torch.set_num_threads(before)
    exact = _torchs(grad.double(), images.double(), weight.double(), geometry)
    torchs = _torchs(grad, images.contiguous(), weight, geometry)
    _close(to_input, exact[0], torchs[0])
    _close(to_weight, exact[1], torchs[1])


@needs_it
@pytest.mark.parametrize("number", [float("inf"), -float("inf"), float("nan"), 3.4e38])
@pytest.mark.parametrize("where", ["gradient", "weight"])
def test_what_has_no_parts_is_left_to_torch(where, number):
    geometry = Geometry(20, (6, 5), (3, 3), (1, 1), (1, 1), (1, 1))
    rows, weight = torch.randn(2 * 30, 40), torch.randn(40, 20, 3, 3)
    planes = _planes(_whole((2, 20, 6, 5), 0.3, 3))
    assert of_input.input_gradient(rows, weight, 2, geometry) is not None
    assert of_weights.weight_gradient(planes, rows, geometry) is not None
    (rows if where == "gradient" else weight).view(-1)[-1] = number
    assert of_input.input_gradient(rows, weight, 2, geometry) is None
    assert (of_weights.weight_gradient(planes, rows, geometry) is None) == (where == "gradient")


@needs_it
@pytest.mark.parametrize("side", [4, 9, 20])
def test_an_image_has_the_same_bits_alone_among_others_and_on_any_number_of_threads(side):
    geometry = Geometry(40, (side, side), (3, 3), (1, 1), (1, 1), (1, 1))
    images, weight = _whole((19, 40, side, side), 0.3, 3), torch.randn(24, 40, 3, 3)
    together = sums.forward(_planes(images), weight, None, geometry)
    planes = _planes(images)
    for k in range(len(images)):
        one = Planes(planes.bits[:, side * k : side * (k + 1)].contiguous(), planes.density)
        assert torch.equal(sums.forward(one, weight, None, geometry)[0], together[k])
    threads = torch.get_num_threads()
    torch.set_num_threads(3 - min(2, threads))
    try:
        assert torch.equal(sums.forward(planes, weight, None, geometry), together)
    finally:
        torch.set_num_threads(threads)


@needs_it
def test_weights_that_are_no_finite_numbers_stay_what_they_are():
    geometry = Geometry(1, (1, 1), (1, 1), (1, 1), (0, 0), (1, 1))
    weight = torch.tensor([float("inf"), -float("inf"), float("nan"), 3.0e38, 1.0]).view(-1, 1, 1, 1)
    found = sums.forward(_planes(torch.ones(1, 1, 1, 1)), weight, None, geometry)
    torch.testing.assert_close(found.flatten(), weight.flatten(), rtol=0, atol=0, equal_nan=True)


@kernel
def _told(code: Code, begin: Value, end: Value, *, sizes: Bytes) -> None:
    code.writer.do(f"call void @llvm.x86.ldtilecfg(ptr {sizes.text})")


@kernel
def _asked(code: Code, begin: Value, end: Value, *, sizes: Bytes) -> None:
    code.writer.do(f"call void @llvm.x86.sttilecfg(ptr {sizes.text})")


@needs_it
def test_tiles_are_afterwards_as_large_as_another_library_made_them():
    images, weight = torch.rand(2, 64, 9, 9).bfloat16(), torch.randn(48, 64, 3, 3).bfloat16()
    geometry = Geometry(33, (8, 8), (3, 3), (1, 1), (1, 1), (1, 1))
    ours = _planes(_whole((3, 33, 8, 8), 0.3, 1)), torch.randn(20, 33, 3, 3), None, geometry
    torchs, own = functional.conv2d(images, weight), sums.forward(*ours)
    told, asked = torch.zeros(64, dtype=torch.uint8), torch.zeros(64, dtype=torch.uint8)
    told[0], told[16], told[48] = 1, 32, 7  # a tile of 7 rows of 32 bytes
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # so that all of it is this thread's
    try:
        for sizes in (told, told.new_zeros(64)):
            _told(1, sizes=sizes)
            assert torch.equal(sums.forward(*ours), own)
            _asked(1, sizes=asked)
            assert torch.equal(asked, sizes)
            torch.testing.assert_close(functional.conv2d(images, weight), torchs)
    finally:
        torch.set_num_threads(threads)


@needs_it
def test_a_layer_takes_it_where_that_is_sooner_and_has_torchs_outputs_and_gradients(monkeypatch):
    sooner = cost.Product(1.0, lambda density: 0.6, matrix=cost.Matrix(0.1, lambda: 0.1))
    costs = cost.Costs(sooner, cost.Product(1.0, lambda density: 0.1), sooner, 0.0)
    monkeypatch.setattr(of_convolutions, "costs", lambda *sizes: costs)
    monkeypatch.setattr(convolution_layer, "SMALLEST_WORK", 0)
    for most in (1, 3):
        layer, dense = hb.Conv2d(16, 40, 3, 2, 1), nn.Conv2d(16, 40, 3, 2, 1)
        layer.load_state_dict(dense.state_dict())
        images = _whole((4, 16, 9, 8), 0.4, most).requires_grad_()
        factors = torch.randn(dense(images).shape)
        gradients = []
        for each in (layer, dense):
            images.grad = None
            out = each(images)
            out.mul(factors).sum().backward()
            gradients.append([out.detach(), images.grad, *(p.grad for p in each.parameters())])
        for got, wanted in zip(*gradients, strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)
        assert "multiplied on the processor's unit for matrices (AMX); forward 0.10" in layer.explain()
        with torch.no_grad():
            torch.testing.assert_close(layer(images), dense(images), rtol=1e-4, atol=1e-4)
        assert layer.explain().endswith("(AMX); forward 0.10 of the dense time")


@needs_it
@pytest.mark.parametrize("number", [1.0, float("inf")])
@pytest.mark.parametrize("kernel", [1, 3])
def test_a_layers_gradients_are_computed_on_it_and_torchs_unless_one_is_not_finite(
    monkeypatch, number, kernel
):
    sooner = cost.Product(1.0, lambda density: 0.6, matrix=cost.Matrix(0.1, lambda: 0.1))
    monkeypatch.setattr(of_convolutions, "costs", lambda *sizes: cost.Costs(sooner, sooner, sooner, 0.0))
    monkeypatch.setattr(convolution_layer, "SMALLEST_WORK", 0)
    found = []
    for module, name in ((of_input, "input_gradient"), (of_weights, "weight_gradient")):
        inner = getattr(module, name)
        spied = lambda *given, inner=inner: found.append(inner(*given)) or found[-1]  # noqa: E731
        monkeypatch.setattr(module, name, spied)
    layer, dense = hb.Conv2d(16, 40, kernel, 1, kernel // 2), nn.Conv2d(16, 40, kernel, 1, kernel // 2)
    layer.load_state_dict(dense.state_dict())
    images = _whole((4, 16, 9, 8), 0.4, 1)
    factors = torch.randn(4, 40, 9, 8)
    factors[0, 0, 0, 0] = number
    gradients = []
    for each in (layer, dense):
        there = images.clone().requires_grad_()
        each(there).backward(factors)
        gradients.append([there.grad, each.weight.grad, each.bias.grad])
    assert [each is None for each in found] == [number == float("inf")] * 2
    if number == float("inf"):  # times the spikes that are none: torch says NaN, where nothing is added
        gradients = [(of_input, of_weight[1:], of_bias) for of_input, of_weight, of_bias in gradients]
    for got, wanted in zip(*gradients, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4, equal_nan=True)


@needs_it
def test_with_fixed_costs_nothing_depends_on_whether_it_is_there(monkeypatch):
    sizes = 64, 64, Geometry(64, (16, 16), (3, 3), (1, 1), (1, 1), (1, 1))
    for said, there in (("fixed", False), ("measured", True)):
        monkeypatch.setenv("HIBANA_COSTS", said)
        of_convolutions._costs.cache_clear()
        assert (of_convolutions.costs(*sizes).forward.matrix is not None) == there
    of_convolutions._costs.cache_clear()


def test_no_kernel_is_written_for_a_unit_that_is_not_there(monkeypatch):
    monkeypatch.setattr(unit, "there", lambda: False)
    with pytest.raises(RuntimeError, match="no unit for matrices"), unit.tiles(Code()):
        pass


def test_nothing_is_reckoned_by_a_unit_that_is_not_there(monkeypatch):
    monkeypatch.setenv("HIBANA_COSTS", "measured")
    monkeypatch.setattr(of_convolutions, "there", lambda: False)
    of_convolutions._costs.cache_clear()
    costs = of_convolutions.costs(64, 64, Geometry(64, (16, 16), (3, 3), (1, 1), (1, 1), (1, 1)))
    of_convolutions._costs.cache_clear()
    assert costs.forward.matrix is None
