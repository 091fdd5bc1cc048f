"""``hb.SparseLinear``: the forms of its arguments, its state, copies, files, and the ways to call it."""

import copy
import pickle
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

import hibana as hb


def _spikes(*shape: int) -> Tensor:
    return (torch.rand(*shape) < 0.3).float()


def _pruned() -> nn.Linear:
    linear = nn.Linear(6, 4)
    prune.random_unstructured(linear, "weight", amount=0.5)
    return linear


def _scipy(dense: Tensor) -> Any:
    return pytest.importorskip("scipy.sparse").csr_matrix(dense.numpy())


DENSE = torch.tensor([[0.0, 1, 0, 2, 0, 0], [3, 0, 0, 0, 0, 0], [0] * 6, [0, 0, 4, 0, 0, 5]])


@pytest.mark.parametrize("form", ["mask", "coo", "csr", "csc", "scipy", "pruned", "connections", "layer"])
def test_forms_of_connectivity(form: str) -> None:
    torch.manual_seed(0)
    pruned = _pruned()
    connectivity: Any = {
        "mask": lambda: DENSE != 0,
        "coo": lambda: DENSE.to_sparse(),
        "csr": lambda: DENSE.to_sparse(layout=torch.sparse_csr),
        "csc": lambda: DENSE.to_sparse(layout=torch.sparse_csc),
        "scipy": lambda: _scipy(DENSE),
        "pruned": lambda: pruned,
        "connections": lambda: hb.SparseLinear(6, 4, DENSE.to_sparse()).connections,
        "layer": lambda: hb.SparseLinear(6, 4, DENSE.to_sparse()),
    }[form]()
    layer = hb.SparseLinear(6, 4, connectivity)
    expected = pruned.weight.detach() if form == "pruned" else DENSE
    if form == "mask":
        assert torch.equal(layer.to_dense() != 0, connectivity)
    else:
        assert torch.equal(layer.to_dense(), expected)
    assert layer.weight.requires_grad


def test_a_rule_or_a_probability_draws_synapses_without_a_dense_matrix() -> None:
    torch.manual_seed(0)
    layer = hb.SparseLinear(300_000, 300_000, 1e-6, bias=False)  # dense: 360 GB
    assert 80_000 < layer.weight.numel() < 100_000
    assert hb.SparseLinear(9, 5, [hb.connect.fixed_in_degree(k) for k in (1, 2)]).weight.shape == (15,)
    assert hb.SparseLinear(9, 5, 0.0)(_spikes(3, 9)).shape == (3, 5)


def test_from_linear_keeps_weights_bias_and_synapses_of_the_mask() -> None:
    linear, mask = nn.Linear(6, 4), DENSE != 0
    with torch.no_grad():
        linear.weight[mask.nonzero()[0][0], mask.nonzero()[0][1]] = 0
    layer = hb.SparseLinear.from_linear(linear, mask)
    assert layer.weight.numel() == 5
    assert torch.equal(layer.to_dense(), (linear.weight * mask).detach())
    assert torch.equal(layer.bias, linear.bias)
    assert hb.SparseLinear.from_linear(linear).weight.numel() == 23
    layer.bias.data.zero_()
    assert linear.bias.any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            (6, 4, DENSE.T != 0),
            r"connectivity must be \[out_features, in_features\] = \(4, 6\), got \(6, 4\)",
        ),
        ((6, 4, DENSE), r"a dense matrix must be a boolean mask, got torch.float32"),
        ((6, 4, "half"), "connectivity must be a probability"),
        ((6, 4, 1.5), r"connectivity must be a probability in \[0, 1\], got 1.5"),
        ((6, 4, 0.5, True, 300), r"delays must be whole numbers of steps in \[0, 255\], got 300"),
        ((0, 4), "in_features"),
        ((6, 4, 0.5, True, 256), r"whole numbers of steps in \[0, 255\]"),
        ((6, 4, DENSE != 0, True, torch.zeros(3)), "delays must have one number for each of 5"),
        ((6, 4, hb.connect.fixed_in_degree(1, delay=1), True, 2), "delays must be None"),
    ],
)
def test_wrong_arguments(arguments: Any, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        hb.SparseLinear(*arguments)


@pytest.mark.parametrize("delays", [3, hb.connect.uniform(-0.5, 4.5), torch.randint(0, 5, (4, 6))])
def test_delays_are_whole_steps_and_continue_in_pieces(delays: Any) -> None:
    torch.manual_seed(0)
    layer = hb.SparseLinear(6, 4, torch.ones(4, 6, dtype=torch.bool), delays=delays)
    x = _spikes(20, 2, 6)
    weight, steps = torch.zeros(4, 6), torch.zeros(4, 6, dtype=torch.long)
    weight[layer.targets.long(), layer.sources] = layer.weight.detach()
    steps[layer.targets.long(), layer.sources] = layer.delays.long()
    if isinstance(delays, Tensor):
        assert torch.equal(steps, delays)
    expected = torch.zeros(20, 2, 4)
    for t in range(20):
        earlier = (t - steps).clamp(min=-1)
        past = torch.where(earlier[..., None] >= 0, x[earlier, :, torch.arange(6)], 0)  # [out, in, batch]
        expected[t] = (weight[..., None] * past).sum(1).T
    expected = (expected + layer.bias).detach()
    torch.testing.assert_close(layer(x), expected)
    gradients = []
    for lengths in ([20], [1, 2, 17], [9, 11]):
        pieces, state = [], None
        for piece in x.requires_grad_().split(lengths):
            out, state = hb.run(layer, piece, state)
            pieces.append(out)
        torch.testing.assert_close(torch.cat(pieces), expected)
        gradients.append(torch.autograd.grad(torch.cat(pieces).square().sum(), [x, layer.weight]))
    for other in gradients[1:]:
        torch.testing.assert_close(other, gradients[0])


LAYERS = {"plain": {}, "one delay": {"delays": 3}, "delays": {"delays": hb.connect.uniform(0, 5)}}


@pytest.mark.parametrize("kind", LAYERS)
def test_other_ways_to_call(kind: str) -> None:
    torch.manual_seed(0)
    layer, x = hb.SparseLinear(20, 10, 0.4, **LAYERS[kind]), _spikes(6, 3, 20)
    expected = layer(x)
    layer(x).square().sum().backward()
    gradients = torch.func.grad(lambda p: torch.func.functional_call(layer, p, (x,)).square().sum())
    torch.testing.assert_close(gradients(dict(layer.named_parameters()))["weight"], layer.weight.grad)
    torch.testing.assert_close(torch.vmap(layer, 2, 2)(x[:, :, None].expand(6, 3, 2, 20))[:, :, 1], expected)
    torch.testing.assert_close(torch.compile(layer, fullgraph=True, backend="eager")(x), expected)
    torch.testing.assert_close(torch.export.export(layer, (x,)).module()(x), expected)
    assert torch.equal(torch.fx.symbolic_trace(nn.Sequential(layer))(x), expected)
    assert torch.equal(pickle.loads(pickle.dumps(layer))(x), expected)
    assert torch.equal(copy.deepcopy(layer)(x), expected)
    with torch.inference_mode():
        assert torch.equal(layer(x), expected)
    for dtype in (torch.bfloat16, torch.float16):
        torch.testing.assert_close(layer(x.to(dtype)), expected.to(dtype))
        half = copy.deepcopy(layer).to(dtype)
        out = half(x.to(dtype))
        out.sum().backward()
        assert out.dtype == half.weight.grad.dtype == dtype
        torch.testing.assert_close(out.float(), expected, atol=0.05, rtol=0.05)


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("assign", [False, True])
def test_loads_other_synapses(kind: str, assign: bool, tmp_path: Any) -> None:
    torch.manual_seed(0)
    saved, layer = hb.SparseLinear(20, 10, 0.4, **LAYERS[kind]), hb.SparseLinear(20, 10, 0.1)
    weight = layer.weight
    torch.save(saved.state_dict(), tmp_path / "layer.pt")
    layer.load_state_dict(torch.load(tmp_path / "layer.pt", weights_only=True), assign=assign)
    x = _spikes(6, 3, 20)
    assert torch.equal(layer(x), saved(x))
    assert type(layer) is type(saved)
    assert assign or layer.weight is weight
    with pytest.raises(RuntimeError, match="size mismatch"):
        layer.load_state_dict(hb.SparseLinear(21, 10).state_dict())


def test_the_optimizer_keeps_the_weight_when_another_number_of_synapses_is_loaded() -> None:
    layer = hb.SparseLinear(20, 10, 0.1)
    optimizer, loss = torch.optim.SGD(layer.parameters(), 0.1), layer(_spikes(3, 20)).sum()
    layer.load_state_dict(hb.SparseLinear(20, 10, 0.4).state_dict())
    with pytest.raises(RuntimeError, match="invalid gradient"):
        layer(_spikes(3, 20)).sum().backward()
    del loss
    before = layer.weight.detach().clone()
    layer(torch.ones(3, 20)).sum().backward()
    optimizer.step()
    assert not torch.equal(layer.weight, before)


def test_an_input_that_is_constant_over_time_costs_one_step() -> None:
    layer, x = hb.SparseLinear(20, 10, 0.4), torch.rand(3, 20)
    out = layer(x.expand(7, 3, 20))
    assert out.stride(0) == 0
    assert torch.equal(out[5], layer(x))


@pytest.mark.skipif(sys.maxsize < 2**32, reason="needs a 64-bit system")
def test_too_many_delayed_outputs_raise() -> None:
    outputs = (1 << 31) // 100
    connections = hb.connect.Connections(*(torch.tensor(x) for x in ([0, 1], [5], [99])))
    connections = connections._replace(targets=connections.targets.int(), delays=connections.delays.byte())
    layer = hb.SparseLinear(1, outputs + 1, connections, bias=False)
    with pytest.raises(ValueError, match=r"out_features \* \(longest delay \+ 1\) must be below 2\^31"):
        layer(torch.ones(1, 1, 1))


@pytest.mark.parametrize("delays", [None, 3])
def test_a_frozen_weight_leaves_the_gradients_of_bias_and_input(delays: int | None) -> None:
    torch.manual_seed(0)
    layer, x = hb.SparseLinear(20, 10, 0.4, delays=delays), _spikes(6, 3, 20).requires_grad_()
    layer.weight.requires_grad_(False)
    layer.mode = "events"
    out = layer(x)
    grad = torch.randn(6, 3, 10)
    to_bias, to_input = torch.autograd.grad(out, (layer.bias, x), grad, retain_graph=True)
    assert torch.allclose(to_bias, grad.sum((0, 1)), atol=1e-5)
    later = grad[delays or 0 :] @ layer.to_dense()  # the gradient of the last steps arrives too late
    assert torch.allclose(to_input[: len(later)], later, atol=1e-5)
