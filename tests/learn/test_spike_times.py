"""Gradients of spike times, compared with finite differences of a simulation that is smooth in time."""

import math

import pytest
import torch
from torch import nn

import hibana as hb
from hibana.learn import EventPropCell, SpikeTimeCell, first_spike_times, spikes_at

DOUBLE = torch.float64


def smooth_spikes(weights, x, tau_synapse, tau):
    """The spikes of layers of neurons; a spike between two steps is divided among both steps.

    `weights` are ``[networks, outputs, inputs]``, and `x` ``[T, networks, batch, inputs]``.
    """
    for weight in weights:
        drive = torch.einsum("tkbi,koi->tkbo", x, weight)
        i = v = s = overshoot = torch.zeros_like(drive[0])
        emitted = []
        for step in drive:
            rested = v * (1 - s) + s * overshoot * i
            i = i * (1 - 1 / tau_synapse) + step
            v = rested * (1 - 1 / tau) + i
            late = s * (1 - overshoot)
            s = (v > 1).to(DOUBLE)
            overshoot = torch.where(v > 1, (v - 1) / (v - rested), 0)
            emitted.append(s * overshoot + late)
        x = torch.stack(emitted)
    return x


def weighted_times(spikes, coefficients):
    """The sum of spike times times `coefficients`, for `spikes` ``[T, ..., batch, neurons]``."""
    steps = torch.arange(len(spikes), dtype=spikes.dtype)
    return (torch.tensordot(steps, spikes, 1) * coefficients).sum((-1, -2))


def network(steps):
    """Weights of two layers, inputs ``[steps, 2, 8]`` for which most neurons spike, and 3 coefficients."""
    generator = torch.Generator().manual_seed(0)
    weights = [0.9 + 0.5 * torch.rand(6, 8, generator=generator, dtype=DOUBLE) for _ in range(2)]
    weights[1] = weights[1][:3, :6]
    times = (torch.rand(2, 8, generator=generator, dtype=DOUBLE) * 0.3 * steps).long()
    x = torch.zeros(steps, 2, 8, dtype=DOUBLE)
    x.scatter_(0, times[None], 1.0)
    scale = 2.5 / steps
    return [weight * scale for weight in weights], x, torch.randn(3, generator=generator, dtype=DOUBLE)


def eventprop_gradients(steps, **options):
    weights, x, coefficients = network(steps)
    weights = [weight.requires_grad_() for weight in weights]
    cell = EventPropCell(tau_synapse=steps / 6, tau=steps / 3, limit=1e6)
    for weight in weights:
        x, _ = hb.unroll(cell, nn.functional.linear(x, weight), **options)
    weighted_times(x, coefficients).backward()
    return [weight.grad for weight in weights], x


def finite_differences(steps):
    weights, x, coefficients = network(steps)
    gradients = []
    for layer, weight in enumerate(weights):
        count, ends = weight.numel(), []
        inputs = x[:, None].expand(-1, count, -1, -1)
        for sign in (1, -1):
            shifted = [w.expand(count, *w.shape) for w in weights]
            shifted[layer] = weight + sign * 1e-7 * torch.eye(count, dtype=DOUBLE).view(count, *weight.shape)
            ends.append(weighted_times(smooth_spikes(shifted, inputs, steps / 6, steps / 3), coefficients))
        gradients.append(((ends[0] - ends[1]) / 2e-7).view(weight.shape))
    return gradients


def test_gradients_equal_those_of_spike_times():
    errors = []
    for steps in (200, 800):
        (first, second), spikes = eventprop_gradients(steps, backend="cpu")
        expected = finite_differences(steps)
        assert spikes.sum(0).min() >= 1
        errors.append(
            [((g - e).norm() / e.norm()).item() for g, e in zip((first, second), expected, strict=True)]
        )
    assert max(errors[1]) < 0.05
    assert max(errors[1]) < 0.5 * max(errors[0])  # errors shrink with the length of a step


def test_compiled_gradients_equal_those_of_the_reference():
    compiled, reference = (eventprop_gradients(200, backend=name)[0] for name in ("cpu", "reference"))
    for actual, expected in zip(compiled, reference, strict=True):
        torch.testing.assert_close(actual, expected)


def test_spikes_equal_those_of_a_current_based_neuron():
    x = torch.rand(50, 2, 9, generator=torch.Generator().manual_seed(0)) * 0.4
    spikes = hb.OverTime(EventPropCell(tau_synapse=4.0, tau=9.0))(x)
    assert 0 < spikes.mean() < 1
    assert torch.equal(spikes, hb.CubaLIF(tau_synapse=4.0, tau=9.0)(x))


def exact_loss(steps, **options):
    """A loss of two layers with spikes and inputs between steps, and its arguments (times and weights)."""
    weights, _, coefficients = network(steps)
    times = torch.rand(2, 8, generator=torch.Generator().manual_seed(1), dtype=DOUBLE) * 0.3 * steps
    cell = SpikeTimeCell(tau_synapse=steps / 6, tau=steps / 3, limit=1e6)

    def loss(times, *weights):
        x = spikes_at(times, steps)
        for weight in weights:
            x, _ = hb.unroll(cell, nn.functional.linear(x, weight), **options)
        return (first_spike_times(x) * coefficients).sum()

    return loss, [leaf.requires_grad_() for leaf in (times, *weights)]


def test_gradients_between_steps_equal_finite_differences():
    loss, arguments = exact_loss(60, backend="cpu")
    assert torch.autograd.gradcheck(loss, arguments, eps=1e-7, atol=1e-4, rtol=1e-5)
    assert all(grad.abs().max() > 0.01 for grad in torch.autograd.grad(loss(*arguments), arguments))


def test_compiled_gradients_between_steps_equal_those_of_the_reference():
    gradients = []
    for backend in ("cpu", "reference"):
        loss, arguments = exact_loss(60, backend=backend)
        gradients.append(torch.autograd.grad(loss(*arguments), arguments))
    for compiled, reference in zip(*gradients, strict=True):
        torch.testing.assert_close(compiled, reference)


def test_times_between_steps_converge_to_continuous_time():
    """The time of the first output spike, compared with the exact crossing (bisection of a formula)."""
    times = []
    for steps in (100, 400):
        tau_synapse, tau = steps / 6, steps / 3
        x = 16 / steps * spikes_at(torch.tensor([[0.3 * steps]], dtype=DOUBLE), steps)
        times.append(first_spike_times(hb.unroll(SpikeTimeCell(tau_synapse, tau), x)[0]).item() / steps)
    # v(t) = 16 (exp(-3 t) - exp(-6 t)) / 3 after the spike: current decays by 6, potential by 3
    low, high = 0.0, 0.2
    for _ in range(60):
        t = (low + high) / 2
        v = 16 * (math.exp(-3 * t) - math.exp(-6 * t)) / 3
        low, high = (low, t) if v > 1 else (t, high)
    errors = [abs(time - 0.3 - high) for time in times]
    assert errors[1] < 0.3 * errors[0] < 0.01


def test_potential_and_spike_between_steps_equal_the_formulas():
    drive = torch.full((3, 1, 1), 0.7, dtype=DOUBLE)
    spikes, (i, v, passed, last) = hb.unroll(SpikeTimeCell(tau_synapse=3.0, tau=2.0), drive)
    i2 = 0.7 * 2 / 3 + 0.7
    v2 = 0.35 + i2  # above the threshold: crossed within the second step
    left = (v2 - 1) / (v2 - 0.7)
    i3 = i2 * 2 / 3 + 0.7
    v3 = left * i2 / 2 + i3  # after the reset, a fraction `left` of the step remains
    left2 = (v3 - 1) / (v3 - left * i2)
    assert spikes.flatten().tolist() == pytest.approx([0, left, 1 - left + left2])
    assert [x.item() for x in (i, v, passed, last)] == pytest.approx([i3, v3, left2, 1 - left + left2])
    assert first_spike_times(spikes).item() == pytest.approx(2 - left)


@pytest.mark.parametrize("exact", [True, False])
def test_the_scores_of_first_spike_are_negative_times(exact):
    spikes = torch.tensor([[0, 0, 0, 1], [1, 0, 0, 1], [1, 0, 0, 0], [0, 0, 1, 0.0]])[:, None]
    objective = hb.loss.FirstSpike(tau=2.0, exact=exact)
    assert objective.scores(spikes).tolist() == [[-0.5, -2.0, -1.5, 0.0]]
    assert objective.scores(spikes, torch.tensor([3])).tolist() == [[-0.5, -1.5, -1.5, 0.0]]


def test_the_exact_loss_moves_spikes_in_time():
    _, (times, *weights) = exact_loss(60)
    x = spikes_at(times.detach(), 60)
    cell = SpikeTimeCell(tau_synapse=10.0, tau=20.0)

    def objective(*weights):
        spikes = x
        for weight in weights:
            spikes, _ = hb.unroll(cell, nn.functional.linear(spikes, weight))
        return hb.loss.FirstSpike(tau=4.0, exact=True)(spikes, torch.tensor([0, 2]))

    assert torch.autograd.gradcheck(objective, weights, eps=1e-7, atol=1e-5, rtol=1e-5)


def test_first_spike_times():
    spikes = torch.tensor([[0, 0, 0, 1], [0.25, 0, 0, 1], [0.75, 0, 0, 0], [0, 0, 1, 0.0]]).requires_grad_()
    times = first_spike_times(spikes)
    assert times.tolist() == [1.75, 4, 3, 0]
    times.sum().backward()
    assert spikes.grad.T.tolist() == [[0, -1, 0, 0], [0] * 4, [0, 0, 0, -1], [-1, 0, 0, 0]]


def test_spikes_at_times_and_back():
    times = torch.tensor([[0.0, 0.5, 3.0], [3.25, 9.0, -2.0]])
    spikes = spikes_at(times, 4)
    assert spikes.shape == (4, 2, 3)
    assert spikes.sum(0).tolist() == [[1, 1, 1], [0.75, 0, 0]]
    assert first_spike_times(spikes).tolist() == [[0.0, 0.5, 3.0], [3.25, 4.0, 4.0]]
    with pytest.raises(TypeError, match=r"times must be a floating-point tensor, got torch\.int64"):
        spikes_at(torch.ones(3, dtype=torch.int64), 4)
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        spikes_at(times, 0)


@pytest.mark.parametrize("name", ["tau_synapse", "tau", "threshold", "limit"])
def test_invalid_arguments_are_refused(name):
    with pytest.raises(ValueError, match=f"{name} must be .* got -1.0"):
        EventPropCell(**{name: -1.0})
    with pytest.raises(ValueError, match=f"{name} must be .* got -1.0"):
        SpikeTimeCell(**{name: -1.0})
    with pytest.raises(TypeError, match=r"spikes must be a floating-point tensor, got torch\.int64"):
        first_spike_times(torch.ones(3, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"spikes must be \[T, ...\], T at least 1, got shape \(0, 2\)"):
        first_spike_times(torch.ones(0, 2))
