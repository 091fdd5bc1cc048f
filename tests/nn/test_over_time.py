"""Cells over time: `unroll`, `run` and `record`, and their errors."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import article
import hibana as hb


class Trace(hb.Cell):
    """A user-defined cell that emits a potential."""

    def forward(self, input_, u_previous, v_previous):
        u = 0.5 * u_previous + input_
        return u, v_previous + u


def network():
    """A network with weights of few bits, so that matrix products are exact for any batch size."""
    torch.manual_seed(2)
    net = nn.Sequential(
        nn.Linear(3, 6), hb.IF(threshold=0.3), nn.Linear(6, 4), hb.LIF(tau=3.0, threshold=0.2), hb.LI()
    )
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_((parameter * 64).round() / 64)
    return net


def coarse_inputs():
    return torch.randint(0, 17, (12, 2, 3)) / 16


@given(cuts=st.lists(st.integers(1, 11), unique=True, max_size=4).map(sorted))
def test_a_network_run_in_pieces_is_the_network_run_at_once(cuts):
    net, inputs = network(), coarse_inputs()
    whole, last = hb.run(net, inputs)
    assert torch.equal(whole, net(inputs))
    outputs, state = [], None
    for piece in torch.tensor_split(inputs, cuts):
        output, state = hb.run(net, piece, state)
        outputs.append(output)
    assert torch.equal(torch.cat(outputs), whole)
    assert state.keys() == last.keys() == {"1", "3", "4"}
    assert all(torch.equal(a, b) for name in last for a, b in zip(state[name], last[name], strict=True))


def test_every_call_starts_at_rest():
    net, inputs = network(), torch.rand(12, 2, 3)
    first = net(inputs)
    hb.run(net, inputs)
    assert torch.equal(net(inputs), first)


def test_gradients_flow_through_the_state():
    cell, inputs = Trace(), torch.rand(6, 2, requires_grad=True)
    outputs, _ = hb.unroll(cell, inputs)
    (expected,) = torch.autograd.grad(outputs.sum(), inputs)
    first, state = hb.unroll(cell, inputs[:2])
    second, _ = hb.unroll(cell, inputs[2:], state)
    (in_pieces,) = torch.autograd.grad(first.sum() + second.sum(), inputs)
    torch.testing.assert_close(in_pieces, expected)


def test_a_layer_called_twice_has_two_states():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.neuron = hb.IF()

        def forward(self, inputs):
            return self.neuron(self.neuron(inputs) * 0.7)

    inputs = torch.rand(9, 2)
    full, state = hb.run(Twice(), inputs)
    assert state.keys() == {"neuron", "neuron#1"}
    first, state = hb.run(Twice(), inputs[:4])
    second, _ = hb.run(Twice(), inputs[4:], state)
    assert torch.equal(torch.cat([first, second]), full)


def test_record_returns_every_state_by_name():
    inputs = torch.rand(15, 3, 2)
    states = hb.record(hb.IFCell(), inputs)
    potentials, spikes = article.over_time(inputs)
    assert list(states) == ["v", "s"]
    assert torch.equal(states["v"], potentials)
    assert torch.equal(states["s"], spikes)
    assert list(hb.record(Trace(), inputs)) == ["u", "v"]


def test_the_last_state_is_emitted():
    inputs = torch.rand(5, 2)
    assert torch.equal(hb.unroll(Trace(), inputs)[0], hb.record(Trace(), inputs)["v"])


def test_float64_stays_float64():
    outputs, state = hb.unroll(hb.IFCell(), torch.rand(4, 3, dtype=torch.float64))
    assert {outputs.dtype, *(value.dtype for value in state)} == {torch.float64}


def test_hyperparameters_may_be_tensors_and_change():
    cell = hb.IFCell(threshold=torch.tensor([0.5, 2.0]))
    inputs = torch.full([1, 2], 1.0)
    assert hb.unroll(cell, inputs)[0].tolist() == [[1.0, 0.0]]
    assert "threshold" in cell.state_dict()
    cell.threshold = 3.0
    assert hb.unroll(cell, inputs)[0].tolist() == [[0.0, 0.0]]
    assert "threshold" not in cell.state_dict()
    cell.threshold = torch.tensor([2.0, 0.5])
    assert hb.unroll(cell, inputs)[0].tolist() == [[0.0, 1.0]]
    cell.threshold = nn.Parameter(torch.tensor([0.5, 0.5]))
    hb.unroll(cell, inputs)[0].sum().backward()
    assert cell.threshold.grad.tolist() == [-1.0, -1.0]


def test_uninitialised_memory_is_nan_while_testing():
    assert torch.empty(1000).isnan().all()


@pytest.mark.parametrize("steps", [1, 50])
def test_nan_and_infinity_propagate_as_ieee_says(steps):
    inputs = torch.full([steps, 4], 0.4)
    inputs[0] = torch.tensor([math.nan, math.inf, -math.inf, 0.4])
    potentials, spikes = article.over_time(inputs)
    states = hb.record(hb.IFCell(), inputs)
    torch.testing.assert_close(states["v"], potentials, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(states["s"], spikes)
    assert states["s"][0].tolist() == [0.0, 1.0, 0.0, 0.0]
    assert states["v"][:, 0].isnan().all()
    assert torch.equal(hb.IF()(inputs), spikes)


def state(*shape, **options):
    return torch.zeros(*shape, **options)


@pytest.mark.parametrize(
    ("inputs", "error", "message"),
    [
        (torch.zeros([]), ValueError, r"inputs must have time first, \[T, ...\]"),
        (torch.zeros(0, 3), ValueError, r"inputs must have at least one time step, got shape \(0, 3\)"),
        (torch.zeros(4, 3).int(), TypeError, r"inputs must be floating point, got torch.int32"),
        (torch.zeros(4, 3).bool(), TypeError, r"inputs must be floating point, got torch.bool"),
        (torch.zeros(4, 3).cfloat(), TypeError, r"inputs must be floating point, got torch.complex64"),
        ([[0.0]], TypeError, r"inputs must be a tensor \[T, ...\], got list"),
    ],
)
def test_invalid_inputs_are_refused(inputs, error, message):
    for call in (lambda: hb.unroll(hb.IFCell(), inputs), lambda: hb.record(hb.IFCell(), inputs)):
        with pytest.raises(error, match=message):
            call()
    with pytest.raises(error, match=message):
        hb.IF()(inputs)
    with pytest.raises(error, match=message):
        hb.run(hb.IF(), inputs)


@pytest.mark.parametrize(
    ("initial", "error", "message"),
    [
        ((state(3), state(4)), ValueError, r"state s must have the shape .*, \(3,\), got \(4,\)"),
        ((state(2, 3), state(3)), ValueError, r"state v must have the shape .*, \(3,\), got \(2, 3\)"),
        ((state(3, device="meta"), state(3)), ValueError, "state v must be on cpu like inputs, got meta"),
        ((state(3),), ValueError, r"state must be the tensors \(v, s\) of IFCell, got 1 tensors"),
        (state(3), ValueError, r"state must be the tensors \(v, s\) of IFCell, got Tensor"),
        ((state(3), 0.0), TypeError, "state s must be a tensor, got float"),
        ((state(3).long(), state(3)), TypeError, "state v must be floating point, got torch.int64"),
    ],
)
def test_invalid_states_are_refused(initial, error, message):
    with pytest.raises(error, match=message):
        hb.unroll(hb.IFCell(), torch.zeros(4, 3), initial)


def test_run_refuses_a_state_of_another_network():
    net, inputs = network(), torch.rand(4, 2, 3)
    _, first = hb.run(net, inputs)
    with pytest.raises(ValueError, match="state has no entry for layer '4'; it has 1, 3"):
        hb.run(net, inputs, {name: first[name] for name in ("1", "3")})
    with pytest.raises(ValueError, match="state has entries for layers that were not called: other"):
        hb.run(net, inputs, {**first, "other": first["1"]})
    assert torch.equal(net(inputs), hb.run(net, inputs)[0])


@pytest.mark.parametrize("value", [0.0, -1.0, math.inf, -math.inf, math.nan, torch.tensor([1.0, 0.0])])
@pytest.mark.parametrize("kind", [hb.IFCell, hb.LIFCell, hb.IF, hb.LIF, hb.IzhikevichCell])
def test_invalid_thresholds_are_refused(kind, value):
    with pytest.raises(ValueError, match="threshold must be positive and finite, got"):
        kind(threshold=value)


@pytest.mark.parametrize("value", ["1", True, None])
def test_thresholds_that_are_not_numbers_are_refused(value):
    with pytest.raises(TypeError, match="threshold must be a float or a tensor, got"):
        hb.IFCell(threshold=value)


def test_other_modules_and_backends_are_refused():
    with pytest.raises(TypeError, match=r"cell must be a hibana.Cell, one step of a neuron, got ReLU"):
        hb.OverTime(nn.ReLU())
    with pytest.raises(TypeError, match=r"cell must be a hibana.Cell, one step of a neuron, got IF"):
        hb.unroll(hb.IF(), torch.zeros(3, 2))
    with pytest.raises(ValueError, match=r"backend must be one of .*; got 'fastest'"):
        hb.unroll(hb.IFCell(), torch.zeros(3, 2), backend="fastest")
