"""Kernels of sparse and event-driven layers in the interpreter, which checks each access."""

import pytest
import torch

import hibana as hb
from hibana.runtime.kernels import Code, Floats, Value, kernel
from interpreter import checked


def _spikes(*shape, density=0.3):
    return (torch.rand(*shape) < density).float()


def _run(layer, inputs):
    """Runs `layer` forward and backward in the interpreter too; returns the names of its kernels."""
    inputs = inputs.requires_grad_()
    with checked() as names:
        outputs = layer(inputs)
        (outputs * torch.rand_like(outputs)).sum().backward()
    return set(names)


@pytest.mark.parametrize("longest", [0, 2])
def test_sparse_products(longest):
    torch.manual_seed(0)
    delays = {"delays": torch.randint(1, longest + 1, (60,))} if longest else {}
    layer = hb.SparseLinear(13, 9, hb.connect.fixed_total(60), **delays)
    assert len(_run(layer, _spikes(4, 3, 13))) >= 2


@pytest.mark.parametrize("density", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("sizes", [(5, 3), (70, 33), (130, 80)])
def test_event_driven_linear_products(sizes, density):
    torch.manual_seed(0)
    layer = hb.Linear(*sizes)
    layer.mode = "events"
    assert _run(layer, _spikes(3, 5, sizes[0], density=density))


@pytest.mark.parametrize(("stride", "padding", "channels"), [(1, 1, 3), (2, 0, 17)])
def test_event_driven_convolutions(stride, padding, channels):
    torch.manual_seed(0)
    layer = hb.Conv2d(2, channels, 3, stride=stride, padding=padding)
    layer.mode = "events"
    assert _run(layer, _spikes(4, 2, 7, 6))


def test_an_access_outside_of_its_array_raises():
    @kernel
    def shifted(code: Code, begin: Value, end: Value, *, source: Floats, target: Floats) -> None:
        with code.loop(begin, end) as i:
            target[i] = source[i + 1]

    with checked(), pytest.raises(IndexError, match=r"bytes 16 to 20 of a region of 16 bytes"):
        shifted(4, source=torch.zeros(4), target=torch.zeros(4))
