"""Sparse synapses in a step: compiled, checked, and read again after a change."""

import copy

import pytest
import torch
from torch import nn

import hibana as hb
from hibana.compiler.graph.ops import Unsupported


class Spiking(hb.Cell):
    """A neuron with sparse recurrent synapses from `n` to `outputs` neurons."""

    def __init__(self, n, outputs):
        super().__init__()
        self.synapses = hb.SparseLinear(n, outputs, 0.3, bias=False)

    def forward(self, x, v, s):
        v = 0.5 * v * (1 - s) + x + self.synapses(s)
        return v, hb.spike(v - 1)


def on_grid(layer):
    with torch.no_grad():
        layer.weight.copy_((layer.weight * 256).round() / 64)
    return layer


def dense_outputs(layer, x):
    """The outputs of a recurrent layer, computed by the reference loop with a dense matrix."""
    n = layer.features
    dense = hb.Recurrent(layer.cell, n, nn.Linear(n, n), backend="reference")
    with torch.no_grad():
        dense.recurrent.weight.copy_(layer.recurrent.to_dense())
        dense.recurrent.bias.copy_(layer.recurrent.bias)
    return dense(x)


def test_the_step_is_compiled_and_explained():
    layer = hb.Recurrent(hb.LIFCell(), 30, hb.SparseLinear(30, 30, 0.2))
    text = hb.explain(layer)
    assert "cpu: one native kernel forward and one back" in text
    assert "synapses   M0: sparse" in text
    assert hb.explain(Spiking(9, 9)).count("@ M0") == 2


def test_rewired_synapses_are_used_at_the_next_call():
    torch.manual_seed(0)
    layer = hb.Recurrent(hb.LIFCell(), 20, on_grid(hb.SparseLinear(20, 20, 0.2)))
    x = torch.randint(0, 32, (8, 3, 20)) / 16
    assert torch.equal(layer(x), dense_outputs(layer, x))
    with torch.no_grad():
        layer.recurrent.targets.copy_((layer.recurrent.targets + 7) % 20)
    assert torch.equal(layer(x), dense_outputs(layer, x))
    other = on_grid(hb.SparseLinear(20, 20, 0.4))
    layer.recurrent.targets, layer.recurrent.row_starts = other.targets, other.row_starts
    layer.recurrent.weight = other.weight
    assert torch.equal(layer(x), dense_outputs(layer, x))
    copied = copy.deepcopy(layer)
    copied.load_state_dict(layer.state_dict())
    assert torch.equal(copied(x), layer(x))


def test_rewiring_between_forward_and_backward_is_an_error():
    layer = hb.Recurrent(hb.LIFCell(), 20, hb.SparseLinear(20, 20, 0.2))
    outputs = layer(torch.rand(4, 2, 20))
    layer.recurrent.targets.add_(0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        outputs.sum().backward()


@pytest.mark.parametrize(
    ("name", "index", "number", "message"),
    [
        ("targets", 3, 20, r"targets must lie in \[0, 20\)"),
        ("targets", 0, -1, r"targets must lie in \[0, 20\)"),
        ("row_starts", -1, 1 << 40, "row_starts must rise from 0"),
        ("row_starts", 5, 1 << 40, "falling in between"),
        ("row_starts", 0, 1, "row_starts must rise from 0"),
    ],
)
def test_an_index_out_of_range_is_an_error(name, index, number, message):
    layer = hb.Recurrent(hb.LIFCell(), 20, hb.SparseLinear(20, 20, 0.2), backend="cpu")
    layer(torch.rand(4, 2, 20))
    getattr(layer.recurrent, name)[index] = number
    with pytest.raises(ValueError, match=message):
        layer(torch.rand(4, 2, 20))


def test_weights_must_be_one_for_each_synapse():
    layer = hb.Recurrent(hb.LIFCell(), 20, hb.SparseLinear(20, 20, 0.2), backend="cpu")
    layer.recurrent.weight.data = layer.recurrent.weight.data[1:]
    with pytest.raises(ValueError, match="weights must have one number for each of"):
        layer(torch.rand(4, 2, 20))


@pytest.mark.parametrize(
    "write", [lambda tensor: tensor.data, lambda tensor: torch.from_numpy(tensor.numpy())]
)
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_writes_that_torch_does_not_count_are_noticed(write, backend):
    torch.manual_seed(0)
    layer, x = hb.Recurrent(hb.LIFCell(), 20, on_grid(hb.SparseLinear(20, 20, 0.2))), torch.rand(8, 3, 20)
    layer.backend = backend
    layer(x)
    write(layer.recurrent.targets).copy_((layer.recurrent.targets + 7) % 20)
    assert torch.equal(layer(x), dense_outputs(layer, x))
    write(layer.recurrent.row_starts)[1:-1] = 0
    layer(x).sum().backward()
    assert torch.equal(layer(x), dense_outputs(layer, x))
    write(layer.recurrent.targets)[0] = 1 << 30
    with pytest.raises(ValueError, match=r"targets must lie in \[0, 20\)"):
        layer(x)


@pytest.mark.parametrize(("outputs", "dtype"), [(12, torch.float32), (9, torch.bfloat16)])
def test_other_sizes_and_dtypes_are_unsupported_by_the_kernels(outputs, dtype):
    cell, x = Spiking(9, outputs), torch.rand(4, 2, 9)
    cell.synapses.weight.data = cell.synapses.weight.data.to(dtype)
    with pytest.raises(Unsupported, match="sparse synapses from 9 to"):
        hb.unroll(cell, x, backend="cpu")


def test_with_delays_the_state_is_the_cells_and_earlier_spikes():
    delays = torch.randint(0, 4, (20, 20))
    delays[0, 0] = 3
    synapses = hb.SparseLinear(20, 20, torch.ones(20, 20, dtype=torch.bool), delays=delays)
    layer = hb.Recurrent(hb.LIFCell(), 20, synapses)
    x = torch.rand(9, 2, 20)
    outputs, state = hb.run(layer, x)
    ((*cell_state, spikes),) = state.values()
    assert len(cell_state) == 2
    assert torch.equal(spikes, outputs[-4:-1])
    with pytest.raises(ValueError, match="state must end in the spikes before the last"):
        hb.run(layer, x, {"": (*cell_state, spikes[1:])})
    with pytest.raises(ValueError, match="layer over time"):
        hb.Recurrent(hb.LIFCell(), 20, nn.Sequential(synapses))
