"""Products of sparse synapses equal products with the masked dense matrix, forward and backward."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hibana as hb
from hibana.runtime.synapses import SynapseIndex
from hibana.spikes.sparse import Connections

SIZES = [(1, 1, 1), (5, 63, 65), (7, 130, 20), (33, 64, 257), (40, 200, 31)]
"""Rows, inputs and outputs."""


def _layer(inputs: int, outputs: int, density: float, delays: int = 0) -> Any:
    """A layer with random synapses, delays of up to `delays` steps, and weights that are multiples of 1/8."""
    mask = torch.rand(outputs, inputs) < density
    delay_matrix = torch.randint(0, delays + 1, (outputs, inputs)) if delays else None
    layer = hb.SparseLinear(inputs, outputs, mask, delays=delay_matrix)
    for parameter in layer.parameters():
        parameter.data = torch.randint(-8, 9, parameter.shape) / 8
    return layer


def _dense_sums(layer: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The sums over all synapses by dense matrices, one for each delay."""
    out = bias.expand(*x.shape[:-1], len(bias))
    delays = torch.zeros_like(layer.targets) if layer.delays is None else layer.delays
    for delay in range(int(delays.max()) + 1 if len(delays) else 1):
        matrix = weight.new_zeros(layer.in_features, layer.out_features)
        at = (delays == delay).nonzero()[:, 0]
        matrix = matrix.index_put((layer.sources[at], layer.targets[at].long()), weight[at], accumulate=True)
        shifted = x if delay == 0 else torch.cat([torch.zeros_like(x[:delay]), x])[: len(x)]
        out = out + shifted @ matrix
    return out


def _gradients(layer: Any, x: Tensor, out: Tensor, gradient: Tensor, *more: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(out, [x, *(more or (layer.weight, layer.bias))], gradient)


@pytest.mark.parametrize("density", [0.0, 0.02, 0.3, 1.0])
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("mode", ["events", "dense"])
def test_equals_the_dense_product_bit_by_bit(sizes: tuple[int, int, int], density: float, mode: str) -> None:
    torch.manual_seed(sum(sizes))
    rows, inputs, outputs = sizes
    layer = _layer(inputs, outputs, density)
    layer.mode = mode
    x = (torch.rand(rows, inputs) < 0.2).float().requires_grad_()
    expected = _dense_sums(layer, x, layer.weight, layer.bias)
    gradient = torch.randint(-8, 9, expected.shape) / 8
    out = layer(x)
    assert torch.equal(out, expected)
    assert layer.explain().startswith(mode)
    for grad, expected_grad in zip(
        _gradients(layer, x, out, gradient), _gradients(layer, x, expected, gradient), strict=True
    ):
        assert torch.equal(grad, expected_grad)


@pytest.mark.parametrize("surrogate", [hb.surrogate.Box(), hb.surrogate.Step()])
def test_input_gradient_below_a_surrogate(surrogate: Any) -> None:
    torch.manual_seed(0)
    layer = _layer(192, 70, 0.2)
    net = nn.Sequential(hb.IF(surrogate=surrogate), layer)
    x = (torch.rand(6, 8, 192) * 0.2).requires_grad_()
    gradient = torch.randint(-8, 9, (6, 8, 70)) / 8
    results = []
    for mode in ("events", "dense"):
        layer.mode, x.grad = mode, None
        net(x).backward(gradient)
        results.append(x.grad)
    assert torch.equal(*results)
    assert results[0].any()


def test_float64_has_all_derivatives() -> None:
    torch.manual_seed(0)
    for delays in (0, 3):
        layer = _layer(5, 4, 0.6, delays).double()
        x = torch.rand(4, 2, 5, dtype=torch.float64, requires_grad=True)
        values = [x, *[torch.rand_like(p, requires_grad=True) for p in (layer.weight, layer.bias)]]

        def call(x: Tensor, weight: Tensor, bias: Tensor, layer: Any = layer) -> Any:
            return torch.func.functional_call(layer, {"weight": weight, "bias": bias}, (x,))

        assert torch.allclose(call(*values), _dense_sums(layer, *values))
        assert torch.autograd.gradcheck(call, values)
        assert torch.autograd.gradgradcheck(call, values)


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_results_do_not_depend_on_threads(threads: int) -> None:
    before, results = torch.get_num_threads(), []
    try:
        for count in (1, threads):
            torch.manual_seed(0)
            torch.set_num_threads(count)
            layer = hb.SparseLinear(300, 500, 0.1, delays=hb.connect.uniform(0, 9) if threads > 2 else None)
            x = (torch.rand(90, 3, 300) < 0.1).float().requires_grad_()
            out = layer(x)
            results.append([out, *_gradients(layer, x, out, torch.randn_like(out))])
    finally:
        torch.set_num_threads(before)
    for one, many in zip(*results, strict=True):
        assert torch.equal(one, many)


@pytest.mark.parametrize("change", ["row_starts", "targets", "delays", "order"])
def test_wrong_indices_raise(change: str) -> None:
    c = Connections.from_pairs(
        torch.tensor([0, 2, 2]), torch.tensor([1, 0, 3]), (3, 4), torch.tensor([0, 2, 1])
    )
    tensors = {"row_starts": c.row_starts, "targets": c.targets, "delays": c.delays}
    SynapseIndex.check(*tensors.values(), 3, 4)
    if change == "order":
        tensors["row_starts"] = torch.tensor([0, 2, 1, 3])
    elif change == "targets":
        tensors["targets"] = torch.tensor([1, 0, 4], dtype=torch.int32)
    else:
        tensors[change] = tensors[change][:-1]
    with pytest.raises(ValueError, match="row_starts" if change == "order" else change):
        SynapseIndex.check(*tensors.values(), 3, 4)


def test_a_change_of_the_indices_is_checked_before_the_next_call() -> None:
    layer = _layer(20, 10, 0.5)
    x = (torch.rand(3, 20) < 0.5).float()
    before = layer(x)
    layer.targets[0] = 9 - layer.targets[0]
    assert not torch.equal(layer(x), before)
    layer.targets[0] = 10
    with pytest.raises(ValueError, match=r"targets must lie in \[0, 10\)"):
        layer(x)


WRITES = {"data": lambda tensor: tensor.data, "numpy": lambda tensor: torch.from_numpy(tensor.numpy())}
"""Ways to write that torch's version counter does not count."""


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("delays", [0, 3])
@pytest.mark.parametrize("values", ["spikes", "numbers", "float64"])
def test_writes_that_torch_does_not_count_are_noticed(write: str, delays: int, values: str) -> None:
    torch.manual_seed(0)
    layer, other = (_layer(40, 30, 0.5, delays) for _ in range(2))
    x = (torch.rand(8, 2, 40) < 0.3).float() * (1 if values == "spikes" else 0.5)
    if values == "float64":
        layer, other, x = layer.double(), other.double(), x.double()
    layer(x)
    count = min(layer.weight.numel(), other.weight.numel()) // 2  # of synapses that change
    names = ["targets", "row_starts"] + ["delays"] * bool(delays)
    for name in names:
        changed = WRITES[write](getattr(layer, name))
        if name == "row_starts":
            changed[1:-1] = changed[1:-1].flip(0).sort().values // 2
        else:
            changed[:count] = getattr(other, name)[:count]
        layer.weight.grad = None
        out = layer(x)
        expected = _dense_sums(layer, x, layer.weight, layer.bias)
        assert torch.equal(out, expected)
        gradient = torch.randint(-8, 9, out.shape).to(x.dtype) / 8
        for one, two in zip(
            torch.autograd.grad(out, (layer.weight, layer.bias), gradient),
            torch.autograd.grad(expected, (layer.weight, layer.bias), gradient),
            strict=True,
        ):
            assert torch.equal(one, two)


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize(
    ("name", "place", "number"),
    [("targets", 3, 30), ("targets", 0, -(1 << 30)), ("row_starts", -1, 1 << 40), ("row_starts", 5, 1 << 40)],
)
@pytest.mark.parametrize("delays", [0, 3])
@pytest.mark.parametrize("values", [1.0, 0.5])
def test_an_index_out_of_range_is_an_error_however_it_was_written(
    write: str, name: str, place: int, number: int, delays: int, values: float
) -> None:
    layer = _layer(40, 30, 0.5, delays)
    x = (torch.rand(8, 2, 40) < 0.3).float() * values
    layer(x)
    WRITES[write](getattr(layer, name))[place] = number
    with pytest.raises(ValueError, match=f"{name} must"):
        layer(x)


@pytest.mark.parametrize("delays", [0, 3])
@pytest.mark.parametrize("values", [1.0, 0.5])
def test_the_gradient_is_that_of_the_synapses_of_the_forward(delays: int, values: float) -> None:
    torch.manual_seed(0)
    layer = _layer(40, 30, 0.5, delays)
    x = ((torch.rand(8, 2, 40) < 0.3).float() * values).requires_grad_()
    expected, out = _dense_sums(layer, x, layer.weight, layer.bias), layer(x)
    gradient = torch.randint(-8, 9, out.shape) / 8
    before = _gradients(layer, x, expected, gradient)
    layer.targets.copy_(layer.targets.flip(0))
    layer.row_starts[1:-1] = 0
    for one, two in zip(_gradients(layer, x, out, gradient), before, strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("values", [1.0, 0.5])
def test_an_empty_batch_has_gradients_of_zero(values: float) -> None:
    for layer in (_layer(40, 30, 0.5, 3), hb.DelayedLinear(40, 30, 20).eval()):
        x = torch.full((8, 0, 40), values, requires_grad=True)
        out = layer(x)
        assert out.shape == (8, 0, 30)
        out.sum().backward()
        assert x.grad.shape == x.shape
        assert torch.equal(layer.weight.grad, torch.zeros_like(layer.weight))
        assert torch.equal(layer.bias.grad, torch.zeros_like(layer.bias))
        rest = hb.run(layer, x[3:], hb.run(layer, x[:3])[1])[0]
        torch.autograd.grad(rest.sum(), layer.weight)


def test_changed_delays_are_used_by_the_next_call() -> None:
    layer = _layer(20, 10, 0.5, delays=3)
    x = (torch.rand(8, 2, 20) < 0.5).float()
    layer(x)
    layer.delays.fill_(5)
    assert layer.reach == 5
    assert torch.equal(layer(x), _dense_sums(layer, x, layer.weight, layer.bias))


@pytest.mark.parametrize("mode", ["events", "dense"])
def test_duplicates_and_unsorted_synapses_add_up(mode: str) -> None:
    starts = torch.tensor([0, 4, 4, 6])
    targets = torch.tensor([3, 0, 3, 3, 1, 1], dtype=torch.int32)
    weights = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0, 32.0])
    layer = hb.SparseLinear(3, 5, Connections(starts, targets, None, weights), bias=False)
    layer.mode = mode
    out = layer(torch.eye(3))
    assert out.tolist() == [[2, 0, 0, 13, 0], [0] * 5, [0, 48, 0, 0, 0]]
    assert torch.equal(layer.to_dense().T, out)
    (gradient,) = torch.autograd.grad(out, layer.weight, torch.arange(15.0).view(3, 5))
    assert gradient.tolist() == [3, 0, 3, 3, 11, 11]
