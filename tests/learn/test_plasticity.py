"""Plasticity: each rule compared with dense formulas; weights change within the sequence."""

import pytest
import torch
from torch import nn

import hibana as hb
from hibana.compiler.graph.ops import Unsupported

RULE = {"tau_pre": 8.0, "tau_post": 5.0, "a_plus": 0.004, "a_minus": 0.005}


class WinnerTakeAll(hb.Cell):
    """A threshold that grows with each spike, and inhibition of all other neurons by a matrix product."""

    def __init__(self, neurons):
        super().__init__()
        self.others = 0.4 * (1 - torch.eye(neurons))

    def forward(self, input_, v_previous, theta_previous, s_previous):
        v = 0.9 * v_previous * (1 - s_previous) + input_ - s_previous @ self.others
        spikes = hb.spike(v - 1 - theta_previous)
        return v, 0.99 * theta_previous + 0.05 * spikes, spikes


class Exponential(hb.Cell):
    """A step that calls a vector function (exp), with a threshold for each neuron."""

    def __init__(self, neurons):
        super().__init__()
        self.threshold = torch.linspace(0.6, 1.4, neurons)

    def forward(self, input_, v_previous, s_previous):
        v = 0.9 * v_previous * (1 - s_previous) + input_ + 0.01 * torch.exp(v_previous.clamp(max=2.0))
        return v, hb.spike(v - self.threshold)


CELLS = {
    "IF": lambda neurons: hb.IFCell(),
    "LIF": lambda neurons: hb.LIFCell(tau=5.0, reset="subtract"),
    "CubaLIF": lambda neurons: hb.CubaLIFCell(),
    "a product": WinnerTakeAll,
    "a function": Exponential,
}


def spikes(*shape, rate=0.2, seed=0, dtype=torch.float32):
    return (torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < rate).to(dtype)


def layer(inputs, outputs, *, bias=False, dtype=torch.float32, seed=0):
    torch.manual_seed(seed)
    linear = nn.Linear(inputs, outputs, bias=bias, dtype=dtype)
    nn.init.uniform_(linear.weight, 0.0, 3.0 / inputs)
    return linear


def simulate(
    linear,
    cell,
    x,
    *,
    tau_pre,
    tau_post,
    a_plus,
    a_minus,
    bounds=None,
    soft=False,
    nearest=False,
    changing=True,
    reward=None,
    tau_eligibility=None,
):
    """The weights (their change if not `changing`), spikes and state of a sequence, by dense formulas."""
    weight = linear.weight.detach().clone()
    total_change = torch.zeros_like(weight)
    state = cell.initial_state(x.new_zeros(x.shape[1], len(weight)))
    pre, post = torch.zeros_like(x[0]), torch.zeros_like(state[-1])
    eligibility, emitted = x.new_zeros(x.shape[1], *weight.shape), []
    for t, sent in enumerate(x):
        state = cell(nn.functional.linear(sent, weight, linear.bias), *state)
        spikes = state[-1].detach()
        if nearest:
            pre = torch.where(sent > 0, 1.0, pre - pre / tau_pre)
            post = torch.where(spikes > 0, 1.0, post - post / tau_post)
        else:
            pre = pre - pre / tau_pre + sent
            post = post - post / tau_post + spikes
        plus = a_plus * (bounds[1] - weight) if soft else torch.full_like(weight, a_plus)
        minus = a_minus * (weight - bounds[0]) if soft else torch.full_like(weight, a_minus)
        change = plus * spikes[:, :, None] * pre[:, None, :] - minus * post[:, :, None] * sent[:, None, :]
        if reward is not None:
            if tau_eligibility:
                eligibility = eligibility - eligibility / tau_eligibility + change / tau_eligibility
            else:
                eligibility = change
            change = eligibility * reward[t][:, None, None]
        total_change += change.sum(0)
        if changing:
            weight = weight + change.sum(0)
            if bounds is not None:
                weight = weight.clamp(*bounds)
        emitted.append(spikes)
    return (weight if changing else total_change), torch.stack(emitted), (*state, pre, post)


def assert_close(result, expected):
    torch.testing.assert_close(result.detach(), expected.detach(), rtol=1e-4, atol=1e-5)


OPTIONS = {
    "additive": {},
    "nearest": {"nearest": True},
    "hard": {"bounds": (0.02, 0.09)},
    "below": {"bounds": (0.0, float("inf"))},
    "soft": {"bounds": (0.0, 0.6), "soft": True},
    "soft nearest": {"bounds": (-0.1, 0.6), "soft": True, "nearest": True},
}


@pytest.mark.cover(2)
@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_weights_equal_the_formula(options, batch, backend):
    linear, x = layer(37, 21), spikes(50, batch, 37)
    if "bounds" in options:
        linear.weight.data.clamp_(*options["bounds"])
    expected, emitted, state = simulate(linear, hb.LIFCell(tau=5.0), x, **RULE, **options)
    rule = hb.learn.STDP(linear, hb.LIF(tau=5.0), backend=backend, **RULE, **options)
    result, last = rule(x, return_state=True)
    assert 0.02 < result.mean() < 0.8
    torch.testing.assert_close(result, emitted)
    assert_close(linear.weight, expected)
    if options == OPTIONS["hard"]:
        limits = {round(value, 6) for value in expected.flatten().tolist()}
        assert {*options["bounds"][batch > 1 :]} <= limits
    for actual, value in zip(last, state, strict=True):
        assert_close(actual, value)


@pytest.mark.cover(1)
@pytest.mark.parametrize("kind", CELLS)
@pytest.mark.parametrize(("inputs", "outputs", "batch"), [(5, 3, 2), (70, 48, 1), (33, 65, 4), (9, 17, 35)])
def test_any_cell_and_size(kind, inputs, outputs, batch):
    linear, x = layer(inputs, outputs, bias=True), spikes(40, batch, inputs)
    linear.bias.data.abs_().mul_(0.3)
    cell = CELLS[kind](outputs)
    expected, emitted, state = simulate(linear, cell, x, **RULE)
    result, last = hb.learn.STDP(linear, hb.OverTime(cell), backend="cpu", **RULE)(x, return_state=True)
    assert 0 < result.mean() < 1
    torch.testing.assert_close(result, emitted)
    assert_close(linear.weight, expected)
    for actual, value in zip(last, state, strict=True):
        assert_close(actual, value)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_inputs_with_the_negative_bit_are_read_correctly(backend):
    results = []
    for inputs in (spikes(30, 2, 20), torch._neg_view(-spikes(30, 2, 20))):
        linear = layer(20, 5)
        emitted = hb.learn.STDP(linear, hb.LIF(tau=5.0), **RULE, backend=backend)(inputs)
        results.append((emitted, linear.weight))
    assert all(map(torch.equal, *results))


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_a_sequence_in_two_calls(backend, batch):
    x = spikes(40, batch, 20)
    at_once, in_two = layer(20, 9), layer(20, 9)
    expected = hb.learn.STDP(at_once, hb.LIF(tau=5.0), backend=backend, **RULE)(x)
    rule = hb.learn.STDP(in_two, hb.LIF(tau=5.0), backend=backend, **RULE)
    first, state = rule(x[:15], return_state=True)
    before = [tensor.clone() for tensor in state]
    second = rule(x[15:], state)
    assert all(map(torch.equal, state, before))
    torch.testing.assert_close(torch.cat([first, second]), expected)
    assert_close(in_two.weight, at_once.weight)


def test_only_weights_of_active_inputs_change():
    linear, x = layer(30, 8), spikes(40, 1, 30, rate=0.3)
    x[..., 10:] = 0
    before = linear.weight.detach().clone()
    hb.learn.STDP(linear, hb.LIF(tau=20.0), **RULE)(x)
    assert torch.equal(linear.weight[:, 10:], before[:, 10:])
    assert not torch.equal(linear.weight[:, :10], before[:, :10])


def test_double_precision_runs_in_pytorch():
    linear, x = layer(20, 9, dtype=torch.float64), spikes(40, 2, 20, dtype=torch.float64)
    expected, emitted, _ = simulate(linear, hb.LIFCell(), x, **RULE)
    assert torch.equal(hb.learn.STDP(linear, hb.LIF(), **RULE)(x), emitted)
    torch.testing.assert_close(linear.weight.detach(), expected)
    with pytest.raises(Unsupported, match=r"float32 on the CPU, got torch\.float64"):
        hb.learn.STDP(linear, hb.LIF(), backend="cpu", **RULE)(x)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_gradient_is_minus_the_change_of_constant_weights(options):
    linear, x = layer(20, 9), spikes(40, 3, 20)
    if "bounds" in options:
        linear.weight.data.clamp_(*options["bounds"])
    before = linear.weight.detach().clone()
    expected, emitted, _ = simulate(linear, hb.LIFCell(), x, changing=False, **RULE, **options)
    rule = hb.learn.STDP(linear, hb.LIF(), **RULE, **options)
    assert torch.equal(rule.gradient(x), emitted)
    assert_close(linear.weight.grad, -expected)
    rule.gradient(x)  # adds to the gradient
    assert_close(linear.weight.grad, -2 * expected)
    assert torch.equal(linear.weight, before)


@pytest.mark.cover(1)
@pytest.mark.parametrize("tau_eligibility", [None, 6.0])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_reward_modulates_eligibility(options, tau_eligibility):
    linear, x = layer(20, 9), spikes(40, 3, 20)
    if "bounds" in options:
        linear.weight.data.clamp_(*options["bounds"])
    reward = torch.randn(40, 3, generator=torch.Generator().manual_seed(1))
    reward_args = {"reward": reward, "tau_eligibility": tau_eligibility}
    change, emitted, _ = simulate(linear, hb.LIFCell(), x, changing=False, **RULE, **options, **reward_args)
    expected = linear.weight.detach() + change
    if "bounds" in options:
        expected = expected.clamp(*options["bounds"])
    rule = hb.learn.RewardModulatedSTDP(linear, hb.LIF(), tau_eligibility=tau_eligibility, **RULE, **options)
    assert torch.equal(rule(x), emitted)
    rule.reward(reward)
    assert_close(linear.weight, expected)


def test_oja_equals_its_equation():
    linear, x = layer(20, 9), spikes(40, 3, 20)
    before = linear.weight.detach().clone()
    emitted = hb.unroll(hb.LIFCell(), linear(x))[0].detach()
    pre, post, change = torch.zeros(3, 20), torch.zeros(3, 9), torch.zeros(9, 20)
    for presynaptic, postsynaptic in zip(x, emitted, strict=True):
        pre, post = pre * (1 - 1 / 5) + presynaptic, post * (1 - 1 / 3) + postsynaptic
        for a, b in zip(pre, post, strict=True):
            change += b[:, None] * (a - b[:, None] * before)
    rule = hb.learn.Oja(linear, hb.LIF(), tau_pre=5.0, tau_post=3.0, rate=0.2)
    assert torch.equal(rule(x), emitted)
    assert_close(linear.weight.detach(), before + 0.2 * change / (40 * 3))
    assert (linear.weight - before).abs().max() > 1e-3


def test_oja_normalizes_at_any_rate():
    """Weights converge to a balance of growth and decay; inputs that spike together have the largest."""
    synchronous = spikes(400, 1, 1, rate=0.2).expand(-1, -1, 8)
    x, result = torch.cat([synchronous, spikes(400, 1, 8, rate=0.2, seed=1)], 2), []
    for rate in (0.5, 1.0):
        linear = layer(16, 3)
        nn.init.uniform_(linear.weight, 0.1, 0.4)
        rule = hb.learn.Oja(linear, hb.LIF(tau=2.0), tau_pre=2.0, tau_post=2.0, rate=rate)
        for _ in range(200):
            rule(x)
        result.append(linear.weight.detach())
    torch.testing.assert_close(*result, atol=0.02, rtol=0.02)
    assert result[0][:, :8].min() > 1.05 * result[0][:, 8:].max()
    assert result[0].norm(dim=1).max() < 5


def test_oja_refuses_invalid_arguments():
    for options, message in [
        ({"rate": -1.0}, "rate must be finite and at least 0, got -1.0"),
        ({"rate": float("nan")}, "rate must be finite and at least 0, got nan"),
        ({"tau_pre": 0.5}, "tau_pre is in time steps and must be at least 1, got 0.5"),
    ]:
        with pytest.raises(ValueError, match=message):
            hb.learn.Oja(layer(4, 3), hb.LIF(), **{"tau_pre": 2.0, "tau_post": 2.0, **options})
    with pytest.raises(ValueError, match="inputs must be spikes, 0 or 1"):
        hb.learn.Oja(layer(4, 3), hb.LIF(), tau_pre=2.0, tau_post=2.0)(torch.full((5, 1, 4), 0.5))


@pytest.mark.parametrize("reward", [0.5, torch.tensor([1.0, -1.0, 0.0]), torch.rand(12, 1)])
def test_rewards_broadcast(reward):
    x, result = spikes(12, 3, 20), []
    for value in (reward, torch.as_tensor(reward).expand(12, 3)):
        linear = layer(20, 9)
        rule = hb.learn.RewardModulatedSTDP(linear, hb.LIF(), tau_eligibility=6.0, **RULE)
        rule(x)
        rule.reward(value)
        result.append(linear.weight.detach())
    assert torch.equal(*result)
    assert not torch.equal(result[0], layer(20, 9).weight)


class Sorting(hb.Cell):
    """A step that can't be compiled."""

    emits_spikes = True

    def forward(self, input_, s_previous):
        return (hb.spike(input_.sort().values - 0.3),)


def test_a_cell_that_cannot_be_compiled():
    linear, x = layer(20, 9), spikes(10, 2, 20)
    with pytest.raises(Unsupported):
        hb.learn.STDP(linear, hb.OverTime(Sorting()), backend="cpu", **RULE)(x)
    expected, emitted, _ = simulate(linear, Sorting(), x, **RULE)
    with pytest.warns(hb.SlowPathWarning, match="Sorting is run by the reference loop"):
        assert torch.equal(hb.learn.STDP(linear, hb.OverTime(Sorting()), **RULE)(x), emitted)
    assert_close(linear.weight, expected)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"linear": nn.Conv2d(1, 2, 3)}, TypeError, "linear must be a torch.nn.Linear or .*, got Conv2d"),
        ({"neurons": hb.LIFCell()}, TypeError, "neurons must be a layer of neurons, .* got LIFCell"),
        ({"neurons": hb.LI()}, ValueError, "neurons must emit spikes, 0 or 1, got LICell"),
        ({"tau_pre": 0.5}, ValueError, "tau_pre is in time steps and must be at least 1, got 0.5"),
        ({"tau_post": float("nan")}, ValueError, "tau_post must be .* got nan"),
        ({"a_plus": -0.1}, ValueError, "a_plus must be finite and at least 0, got -0.1"),
        ({"a_minus": float("inf")}, ValueError, "a_minus must be finite and at least 0, got inf"),
        ({"bounds": (1, 0)}, ValueError, r"bounds must be two numbers, the lower first, got \(1, 0\)"),
        ({"bounds": 1.0}, TypeError, r"bounds must be two numbers \(lower, upper\), or None, got 1.0"),
        ({"soft": True}, ValueError, "bounds must be two finite numbers where soft is True, got None"),
    ],
)
@pytest.mark.parametrize("kind", [hb.learn.STDP, hb.learn.RewardModulatedSTDP])
def test_invalid_arguments_are_refused(kind, options, error, message):
    arguments = {"linear": nn.Linear(4, 3), "neurons": hb.LIF(), **RULE, **options}
    with pytest.raises(error, match=message):
        kind(arguments.pop("linear"), arguments.pop("neurons"), **arguments)


def test_an_unknown_backend_is_refused():
    with pytest.raises(ValueError, match="backend must be one of auto, cpu, reference; got 'triton'"):
        hb.learn.STDP(nn.Linear(4, 3), hb.LIF(), backend="triton", **RULE)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_invalid_inputs_are_refused(backend):
    linear, x = layer(20, 9), spikes(10, 2, 20)
    before = linear.weight.detach().clone()
    rule = hb.learn.STDP(linear, hb.LIF(), backend=backend, **RULE)
    wrong = x.clone()
    wrong[9, 1, 19] = 0.5
    for call in (rule, rule.gradient):
        with pytest.raises(ValueError, match="inputs must be spikes, 0 or 1"):
            call(wrong)
        with pytest.raises(TypeError, match=r"inputs must be a tensor of the weights' dtype, torch\.float32"):
            call(x.double())
        with pytest.raises(ValueError, match=r"inputs must be \[T, batch, 20\], .* got shape \(10, 20\)"):
            call(x[:, 0])
    with pytest.raises(ValueError, match=r"state must be the tensors \(v, s, pre, post\) of shapes"):
        rule(x, (torch.zeros(2, 9),))
    bounded = hb.learn.STDP(linear, hb.LIF(), bounds=(0.1, 0.12), **RULE)
    with pytest.raises(ValueError, match=r"bounds must hold the weights, which lie in \[0.00.*begin within"):
        bounded(x)
    assert torch.equal(linear.weight, before)
    assert linear.weight.grad is None


def test_invalid_rewards_are_refused():
    rule = hb.learn.RewardModulatedSTDP(layer(20, 9), hb.LIF(), **RULE)
    with pytest.raises(RuntimeError, match="run a sequence first"):
        rule.reward(1.0)
    rule(spikes(10, 2, 20))
    with pytest.raises(
        ValueError, match=r"reward must broadcast to \[T, batch\], \(10, 2\), got shape \(3,\)"
    ):
        rule.reward(torch.ones(3))
    with pytest.raises(ValueError, match="reward must be finite"):
        rule.reward(float("nan"))
    rule.reward(1.0)
    with pytest.raises(RuntimeError, match="once for each reward"):
        rule.reward(1.0)
