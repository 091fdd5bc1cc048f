"""Values that a cell learns: in their range by construction, per layer or per neuron."""

import inspect

import pytest
import torch
from torch import nn

import hibana as hb
from conformance.suite import CELLS, drive, few_values, takes

RANGES = {
    "tau": (1.0, None),
    "tau_synapse": (1.0, None),
    "tau_adaptation": (1.0, None),
    "threshold": (0.0, None),
}
RANGES |= {"sharpness": (0.0, None), "dt": (0.0, None), "coupling": (0.0, 1.0), "jump": (0.0, 2.0)}
LEARNABLE = [
    (kind, name)
    for kind in CELLS
    for name in inspect.signature(kind).parameters
    if name in RANGES and (kind, name) != (hb.PLIFCell, "tau")
]
every_value = pytest.mark.parametrize(("kind", "name"), LEARNABLE)
some_values = pytest.mark.parametrize(("kind", "name"), few_values(LEARNABLE))


def build_cell(kind, name, size=None):
    value = inspect.signature(kind).parameters[name].default
    value = min(value, 4.0) if name == "tau" else value
    surrogate = {"surrogate": hb.surrogate.ATan()} if takes(kind, "surrogate") else {}
    return kind(**{**surrogate, name: value if size is None else torch.full([size], value)}, learn=name)


@every_value
def test_any_parameter_gives_a_learned_value_in_its_range(kind, name):
    cell, (low, high) = build_cell(kind, name), RANGES[name]
    (parameter,) = (p for key, p in cell.named_parameters() if key.endswith(name))
    for value in (-30.0, 0.3, 20.0):
        with torch.no_grad():
            parameter.fill_(value)
        assert low <= getattr(cell, name).item() <= (high or float("inf"))
        assert getattr(cell, name).item() > 0


@some_values
def test_a_learned_value_acts_as_the_fixed_one_and_has_a_gradient(kind, name):
    first = next(n for k, n in LEARNABLE if k is kind)
    for size in (None, 5) if name == first else (5,):  # one value broadcasts alike for all names
        cell = build_cell(kind, name, size)
        fixed = kind(**{"surrogate": cell.surrogate} if hasattr(cell, "surrogate") else {})
        setattr(fixed, name, getattr(cell, name).detach())
        x = drive(fixed, (12, 3, 5))
        for backend in ("auto", "reference"):
            outputs = hb.unroll(cell, x, backend=backend)[0]
            assert torch.equal(outputs, hb.unroll(fixed, x, backend=backend)[0])
            (gradient,) = torch.autograd.grad(outputs.square().sum(), [*cell.parameters()][-1:])
            assert gradient.any()
            assert gradient.shape == ((1,) if size is None else (5,))


def test_several_values_can_be_learned_and_one_replaced():
    layer = hb.ALIF(tau=torch.linspace(2, 9, 4), learn=("tau", "tau_adaptation", "threshold"))
    names = {name: p.shape for name, p in layer.cell.named_parameters()}
    assert names == {"log_tau": (4,), "log_tau_adaptation": (1,), "log_threshold": (1,)}
    torch.testing.assert_close(layer.cell.tau, torch.linspace(2, 9, 4))
    layer.cell.tau = 5.0
    assert "log_tau" not in layer.state_dict()
    assert layer.cell.tau == 5.0


def test_training_recovers_a_time_constant():
    layer, x = hb.LI(tau=3.0, learn="tau"), torch.rand(40, 8, 1)
    expected = hb.LI(tau=20.0)(x)
    optimizer = torch.optim.Adam(layer.parameters(), 0.1)
    for _ in range(100):
        optimizer.zero_grad()
        (layer(x) - expected).square().mean().backward()
        optimizer.step()
    assert layer.cell.tau.item() == pytest.approx(20.0, rel=0.05)


def test_plif_may_have_a_time_constant_per_neuron():
    layer = hb.PLIF(tau=torch.tensor([2.0, 5.0, 30.0]))
    torch.testing.assert_close(layer.cell.tau, torch.tensor([2.0, 5.0, 30.0]))
    x = 3 * torch.rand(20, 2, 3)
    for n, tau in enumerate([2.0, 5.0, 30.0]):
        assert torch.equal(layer(x)[..., n], hb.PLIF(tau=tau)(x[..., n]))
    layer.cell.reset_parameters()
    torch.testing.assert_close(layer.cell.tau, torch.tensor([2.0, 5.0, 30.0]))
    with pytest.raises(ValueError, match="tau must be finite and above 1"):
        hb.PLIF(tau=torch.tensor([2.0, 1.0]))


def test_log_uniform_values_have_uniform_logarithms():
    values = hb.log_uniform(2, 200, 4000)
    assert 2 <= values.min() < 2.1
    assert 190 < values.max() <= 200
    assert ((values < 20).float().mean() - 0.5).abs() < 0.05
    with pytest.raises(ValueError, match="least and most must be 0 < least <= most"):
        hb.log_uniform(0, 3, 5)


def test_adlif_follows_its_equations():
    cell = hb.AdLIFCell.spread(6, surrogate=hb.surrogate.ATan())
    x = drive(cell, (25, 3, 6))
    alpha, beta = 1 - 1 / cell.tau, 1 - 1 / cell.tau_adaptation
    u = w = s = torch.zeros(3, 6)
    outputs = hb.unroll(cell, x)[0]
    for step, emitted in zip(x, outputs, strict=True):
        w = beta * w + cell.coupling * u + cell.jump * s
        u = alpha * (u - s) + (1 - alpha) * (step - w)
        s = (u > 1).float()
        assert torch.equal(emitted, s)
    assert outputs.any()
    assert 5 <= cell.tau.min() <= cell.tau.max() <= 25.001
    assert len(list(cell.parameters())) == 4


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: hb.LIF(learn="reset"), "learn must name values among tau, threshold; got 'reset'"),
        (lambda: hb.LIF(tau=1.0, learn="tau"), "tau must be finite and above 1.0 to be learned"),
        (lambda: hb.LI(learn="tau"), "tau must be finite and above 1.0 to be learned, got tensor"),
        (lambda: hb.AdLIF(coupling=-0.5), r"coupling must lie in \[0.0, 1.0\], got -0.5"),
        (lambda: hb.AdLIF(jump=2.0, learn="jump"), "jump must lie between 0.0 and 2.0 to be learned"),
        (lambda: hb.LIF(most_spikes=0), "most_spikes must be a whole number of at least 1, got 0"),
        (
            lambda: hb.LIF(leak_first=True),
            'reset must be "subtract", without a lower_bound, where leak_first is True',
        ),
        (lambda: hb.LIF(most_spikes=2), 'reset must be "subtract" where most_spikes is above 1, got 0.0'),
    ],
)
def test_invalid_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_parameter_beyond_either_bound_is_reflected():
    cell = hb.AdLIFCell(coupling=nn.Parameter(torch.tensor([0.25, 0.5, 0.75])))
    with torch.no_grad():
        cell._parameters["coupling"].copy_(torch.tensor([-0.25, 0.5, 1.25]))
    torch.testing.assert_close(cell.coupling, torch.tensor([0.25, 0.5, 0.75]))
    (gradient,) = torch.autograd.grad(cell.coupling.sum(), cell._parameters["coupling"])
    assert gradient.tolist() == [-1.0, 1.0, -1.0]


def test_adlif_remembers_a_spike_for_hundreds_of_steps():
    torch.manual_seed(0)
    cell = hb.AdLIFCell.spread(200)
    x = torch.zeros(300, 1, 200)
    x[0] = 100.0
    w = hb.record(cell, x)["w"][:, 0].detach()
    remaining = w[250] / w[20]
    assert (remaining > 0.3).float().mean() > 0.2
