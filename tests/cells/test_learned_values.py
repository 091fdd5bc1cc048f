"""Learned time constants and thresholds stay in their range, whatever an optimizer does."""

import inspect

import pytest
import torch
from torch import nn

import hibana as hb
from conformance.compare import assert_conforms
from conformance.suite import CELLS, CPU, drive, few_values, takes
from hibana.cells.surrogate import ATan

SHAPE = (8, 2, 5)
LOWER = {"tau": 1.0, "tau_synapse": 1.0, "tau_adaptation": 1.0, "threshold": 0.0, "sharpness": 0.0, "dt": 0.0}
BOUND = [
    (kind, name)
    for kind in CELLS
    for name in inspect.signature(kind).parameters
    if name in LOWER and (kind, name) != (hb.PLIFCell, "tau")
]
each_bound = pytest.mark.parametrize(("kind", "name"), BOUND)
some_bound = pytest.mark.parametrize(("kind", "name"), few_values(BOUND))


def build_cell(kind, name, value):
    """A cell of `kind` that learns `name`, with the initial value `value`."""
    surrogate = {"surrogate": ATan()} if takes(kind, "surrogate") else {}
    return kind(**{**surrogate, name: nn.Parameter(torch.as_tensor(value))})


def default(kind, name):
    value = inspect.signature(kind).parameters[name].default
    return value if value < 1e9 else 4.0


def test_there_are_learned_values():
    assert {name for _, name in BOUND} == set(LOWER)
    assert len(BOUND) >= 20


@pytest.mark.cover(1)
@some_bound
@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
def test_a_learned_value_stays_in_its_range(kind, name, optimizer):
    cell = build_cell(kind, name, default(kind, name))
    layer = hb.OverTime(cell)
    optimizer_ = optimizer(layer.parameters(), lr=0.3 * default(kind, name))
    inputs = drive(cell, SHAPE)
    for _ in range(12):
        optimizer_.zero_grad()
        (layer(inputs).sum() * 0.0 + 1.5 * getattr(cell, name).sum()).backward()  # decreases the value
        optimizer_.step()
        value = getattr(cell, name)
        assert bool((value > 0).all())
        assert bool((value >= LOWER[name]).all())
        assert bool(layer(inputs).isfinite().all())


@some_bound
def test_a_users_parameter_stays_and_its_exact_value_is_used(kind, name):
    for value in (default(kind, name) * 1.1, torch.linspace(1.3, 1.7, 5) * default(kind, name)):
        cell = build_cell(kind, name, value)
        parameter = dict(cell.named_parameters())[name]
        assert name in cell.state_dict()
        assert torch.equal(getattr(cell, name), parameter)
        as_buffer = build_cell(kind, name, value)
        del as_buffer._parameters[name]
        setattr(as_buffer, name, parameter.detach().clone())
        inputs = drive(cell, SHAPE)
        assert torch.equal(hb.OverTime(cell)(inputs), hb.OverTime(as_buffer)(inputs))
    parameter_ = nn.Parameter(torch.tensor(default(kind, name)))
    cell = kind(**{name: parameter_})
    assert dict(cell.named_parameters())[name] is parameter_
    assert getattr(cell, name) is parameter_  # the user can optimize, freeze and write it


@each_bound
def test_a_value_beyond_its_bound_is_reflected(kind, name):
    cell = build_cell(kind, name, 2.0)
    beyond = torch.tensor([0.5, 0.0, -0.25, -3.0])
    with torch.no_grad():
        for value in beyond - 1 + LOWER[name]:
            dict(cell.named_parameters())[name].fill_(value)
            used = getattr(cell, name)
            inside = value > LOWER[name]
            expected = value if inside else 2 * LOWER[name] - value
            assert used > 0
            torch.testing.assert_close(used, expected)


@some_bound
def test_a_learned_value_beyond_its_bound_conforms(kind, name):
    inside = build_cell(kind, name, default(kind, name))
    inputs = drive(inside, SHAPE)
    for value in (2 * LOWER[name] - default(kind, name), LOWER[name] - torch.rand(5)):
        cell = build_cell(kind, name, torch.full_like(torch.as_tensor(value), 2.0))
        with torch.no_grad():
            dict(cell.named_parameters())[name].copy_(torch.as_tensor(value))
        assert_conforms(CPU, cell, inputs, uses=["outputs and states"])


@each_bound
def test_the_gradient_changes_its_sign_beyond_the_bound(kind, name):
    cell = build_cell(kind, name, 2.0)
    parameter = dict(cell.named_parameters())[name]
    for value, slope in ((LOWER[name] + 0.5, 1.0), (LOWER[name] - 0.5, -1.0)):
        with torch.no_grad():
            parameter.fill_(value)
        (gradient,) = torch.autograd.grad(getattr(cell, name), parameter)
        assert gradient == slope


def test_a_layer_learns_its_time_constant_past_the_bound_and_back():
    layer = hb.LI(tau=nn.Parameter(torch.tensor(1.2)))
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.05)
    inputs = torch.rand(20, 4, 1, generator=torch.Generator().manual_seed(1))
    for tau in (1.0, 4.0):
        with torch.no_grad():
            target = hb.LI(tau=tau)(inputs)
        for _ in range(300):
            optimizer.zero_grad()
            (layer(inputs) - target).square().mean().backward()
            optimizer.step()
            assert layer.cell.tau >= 1
        assert abs(layer.cell.tau - tau) < 0.1


@pytest.mark.dynamo
def test_a_frozen_and_a_compiled_layer_have_the_value_in_range():
    layer = hb.LIF(tau=nn.Parameter(torch.tensor(2.0)), surrogate=ATan())
    with torch.no_grad():
        next(layer.parameters()).fill_(0.4)
    inputs = torch.rand(8, 2, 5)
    expected = hb.LIF(tau=1.6, surrogate=ATan())(inputs)
    assert torch.allclose(layer(inputs), expected)
    assert torch.allclose(torch.compile(layer, backend="aot_eager", fullgraph=True)(inputs), expected)
    layer.requires_grad_(False)
    assert torch.allclose(layer(inputs), expected)


@pytest.mark.dynamo
def test_graphs_traced_within_the_range_reflect_values_beyond_it():
    cell = hb.LICell(tau=nn.Parameter(torch.tensor(2.0)))
    layer, inputs = hb.OverTime(cell), torch.rand(8, 2, 5)
    traced = [
        torch.compile(layer, backend="aot_eager", fullgraph=True),
        hb.convert.export(layer, inputs).module(),
        lambda x: torch.func.functional_call(layer, {"cell.tau": cell.state_dict()["tau"]}, x),
    ]
    for value in (2.0, 0.4):
        with torch.no_grad():
            dict(cell.named_parameters())["tau"].fill_(value)
        traced[1].load_state_dict({"cell.tau": torch.tensor(value)})
        expected = hb.unroll(hb.LICell(tau=value if value > 1 else 2 - value), inputs)[0]
        for run in traced:
            torch.testing.assert_close(run(inputs), expected)


def test_plif_has_its_time_constant_in_range():
    layer = hb.PLIF(tau=3.0)
    assert layer.cell.tau.item() == pytest.approx(3.0)
    (gradient,) = torch.autograd.grad(layer.cell.tau, layer.cell.w)
    assert gradient.item() == pytest.approx(-2.0)  # tau = 1 + exp(-w)
    with torch.no_grad():
        layer.cell.w.fill_(80.0)
    assert layer.cell.tau >= 1


def test_a_user_defined_cell_may_have_ranges():
    class UserCell(hb.Cell):
        decay_time = hb.cells.AtLeast(1.0)

        def __init__(self, decay_time):
            super().__init__()
            self.decay_time = decay_time

        def forward(self, input_, v_previous):
            return (v_previous * (1 - 1 / self.decay_time) + input_,)

    assert UserCell(3.0).decay_time == 3.0
    cell = UserCell(nn.Parameter(torch.tensor(3.0)))
    with torch.no_grad():
        cell._parameters["decay_time"].fill_(-1.0)
    assert cell.decay_time == 3.0
    cell.decay_time = nn.Parameter(torch.tensor(5.0))
    assert cell.decay_time == 5.0
    del cell.decay_time
    with pytest.raises(AttributeError, match="decay_time"):
        _ = cell.decay_time
    cell.decay_time = torch.tensor([2.0])
    assert torch.equal(cell.decay_time, torch.tensor([2.0]))
    assert [*cell.state_dict()] == ["decay_time"]


@pytest.mark.parametrize("backend", ["auto", "cpu"])
@pytest.mark.parametrize("value", [torch.tensor([1.5, 2.5]), nn.Parameter(torch.tensor([1.5, 2.5]))])
def test_a_value_of_a_wrong_size_is_refused_by_name(value, backend):
    cell = hb.LIFCell(tau=value)
    message = r"tau of LIFCell must be one number or broadcast .*, \[4, 3\], got shape \[2\]"
    with pytest.raises(ValueError, match=message):
        hb.unroll(cell, torch.rand(5, 4, 3), backend=backend)
    hb.unroll(cell, torch.rand(5, 4, 2), backend=backend)
