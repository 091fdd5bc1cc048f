"""Gradients of spike times, against finite differences of a simulation that is smooth in time."""

import pytest
import torch
from torch import nn

import hibana as hb
from hibana.learn import EventPropCell, first_spike_times

DOUBLE = torch.float64


def smooth(weights, x, tau_synapse, tau):
    """Layers of neurons whose spikes lie between steps: what each emits is shared by two steps.

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


def moment(spikes, coefficients):
    """A sum of spike times, of ``[T, ..., batch, neurons]``."""
    steps = torch.arange(len(spikes), dtype=spikes.dtype)
    return (torch.tensordot(steps, spikes, 1) * coefficients).sum((-1, -2))


def network(steps):
    """Two layers, and input spikes of which most neurons spike; `steps` is how fine time is."""
    generator = torch.Generator().manual_seed(0)
    weights = [0.9 + 0.5 * torch.rand(6, 8, generator=generator, dtype=DOUBLE) for _ in range(2)]
    weights[1] = weights[1][:3, :6]
    times = (torch.rand(2, 8, generator=generator, dtype=DOUBLE) * 0.3 * steps).long()
    x = torch.zeros(steps, 2, 8, dtype=DOUBLE)
    x.scatter_(0, times[None], 1.0)
    scale = 2.5 / steps
    return [weight * scale for weight in weights], x, torch.randn(3, generator=generator, dtype=DOUBLE)


def adjoint(steps, **options):
    weights, x, coefficients = network(steps)
    weights = [weight.requires_grad_() for weight in weights]
    cell = EventPropCell(tau_synapse=steps / 6, tau=steps / 3, limit=1e6)
    for weight in weights:
        x, _ = hb.unroll(cell, nn.functional.linear(x, weight), **options)
    moment(x, coefficients).backward()
    return [weight.grad for weight in weights], x


def by_differences(steps):
    weights, x, coefficients = network(steps)
    found = []
    for layer, weight in enumerate(weights):
        count, ends = weight.numel(), []
        inputs = x[:, None].expand(-1, count, -1, -1)
        for sign in (1, -1):
            each = [one.expand(count, *one.shape) for one in weights]
            each[layer] = weight + sign * 1e-7 * torch.eye(count, dtype=DOUBLE).view(count, *weight.shape)
            ends.append(moment(smooth(each, inputs, steps / 6, steps / 3), coefficients))
        found.append(((ends[0] - ends[1]) / 2e-7).view(weight.shape))
    return found


def test_gradients_are_those_of_spike_times():
    errors = []
    for steps in (200, 800):
        (first, second), spikes = adjoint(steps, backend="cpu")
        expected = by_differences(steps)
        assert spikes.sum(0).min() >= 1
        errors.append(
            [((g - e).norm() / e.norm()).item() for g, e in zip((first, second), expected, strict=True)]
        )
    assert max(errors[1]) < 0.05
    assert max(errors[1]) < 0.5 * max(errors[0])  # and they get as exact as time gets fine


def test_compiled_gradients_are_those_of_the_reference():
    for found, expected in zip(
        adjoint(200, backend="cpu")[0], adjoint(200, backend="reference")[0], strict=True
    ):
        torch.testing.assert_close(found, expected)


def test_spikes_are_those_of_a_current_based_neuron():
    x = torch.rand(50, 2, 9, generator=torch.Generator().manual_seed(0)) * 0.4
    spikes = hb.OverTime(EventPropCell(tau_synapse=4.0, tau=9.0))(x)
    assert 0 < spikes.mean() < 1
    assert torch.equal(spikes, hb.CubaLIF(tau_synapse=4.0, tau=9.0)(x))


def test_first_spike_times():
    spikes = torch.tensor([[0, 0, 0, 1], [1, 0, 0, 1], [1, 0, 0, 0], [0, 0, 1, 0.0]]).requires_grad_()
    times = first_spike_times(spikes)
    assert times.tolist() == [1, 4, 3, 0]
    times.sum().backward()
    # one at the last step has no step to move to
    assert spikes.grad.T.tolist() == [[0, 1, 2, 0], [0] * 4, [0] * 4, [0, 1, 0, 0]]


@pytest.mark.parametrize("name", ["tau_synapse", "tau", "threshold", "limit"])
def test_arguments_that_are_refused(name):
    with pytest.raises(ValueError, match=f"{name} must be .* got -1.0"):
        EventPropCell(**{name: -1.0})
    with pytest.raises(TypeError, match=r"spikes must be a floating-point tensor, got torch\.int64"):
        first_spike_times(torch.ones(3, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"spikes must be \[T, ...\], T at least 1, got shape \(0, 2\)"):
        first_spike_times(torch.ones(0, 2))
