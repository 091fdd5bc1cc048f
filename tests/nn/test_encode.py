"""Input codings against their closed forms."""

import math

import pytest
import torch

from hibana import encode


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_a_constant_current_is_a_view_with_stride_zero():
    values = torch.rand(3, 4)
    currents = encode.constant(values, 7)
    assert currents.shape == (7, 3, 4)
    assert currents.stride(0) == 0
    assert currents.data_ptr() == values.data_ptr()
    assert torch.equal(currents.sum(0), sum(values for _ in range(7)))


def test_the_gradient_of_a_constant_current_is_summed_over_time():
    values = torch.rand(3, requires_grad=True)
    encode.constant(values, 5).sum().backward()
    assert torch.equal(values.grad, torch.full([3], 5.0))


def test_poisson_counts_are_binomial():
    steps, neurons, rate = 50, 20_000, 0.3
    counts = encode.poisson(torch.full([1, neurons], rate), steps, generator=seeded()).sum(0)
    deviation = math.sqrt(steps * rate * (1 - rate))
    assert counts.mean().item() == pytest.approx(steps * rate, abs=5 * deviation / math.sqrt(neurons))
    assert counts.std().item() == pytest.approx(deviation, rel=0.03)


def test_poisson_steps_are_independent():
    spikes = encode.poisson(torch.full([1, 50_000], 0.5), 2, generator=seeded())
    both = (spikes[0] * spikes[1]).mean().item()
    assert both == pytest.approx(0.25, abs=5 * math.sqrt(0.25 * 0.75 / 50_000))


def test_poisson_repeats_with_the_seed_and_only_with_it():
    values = torch.rand(4, 100)
    first, again, other = (encode.poisson(values, 9, generator=seeded(s)) for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_poisson_at_zero_and_one_is_certain():
    spikes = encode.poisson(torch.tensor([[0.0, 1.0]]), 100, generator=seeded())
    assert torch.equal(spikes.sum(0), torch.tensor([[0.0, 100.0]]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("code", [encode.constant, encode.poisson, encode.latency, encode.population])
def test_shape_and_dtype_follow_the_input(code, dtype):
    coded = code(torch.rand(2, 3, dtype=dtype), 6)
    assert coded.shape[:3] == (6, 2, 3)
    assert coded.dtype == dtype


def test_linear_latency_orders_by_value():
    values = torch.tensor([[1.0, 0.75, 0.5, 0.25, 0.01, 0.0]])
    spikes = encode.latency(values, 5)
    times = [spikes[:, 0, i].nonzero().flatten().tolist() for i in range(6)]
    assert times == [[0], [1], [2], [3], [4], []]


def test_latency_of_a_leaky_membrane_is_its_time_to_threshold():
    tau, threshold, steps = 6.0, 0.2, 40
    values = torch.linspace(0.0, 1.0, 101)[None]
    spikes = encode.latency(values, steps, tau=tau, threshold=threshold)
    for i, value in enumerate(values[0].tolist()):
        time = round(tau * math.log(value / (value - threshold))) if value > threshold + 1e-6 else steps
        assert spikes[:, 0, i].nonzero().flatten().tolist() == ([time] if time < steps else [])


def test_delta_reconstructs_a_slow_signal_to_its_threshold():
    threshold = 0.1
    time = torch.arange(200, dtype=torch.float64)
    signal = torch.stack([torch.sin(time / 20), torch.cos(time / 13)], dim=1)[:, None]  # [T, 1, 2]
    assert (signal[1:] - signal[:-1]).abs().max() < threshold
    spikes = encode.delta(signal, threshold)
    assert spikes.shape == (200, 1, 2, 2)
    rebuilt = signal[0] + threshold * (spikes[:, :, 0] - spikes[:, :, 1]).cumsum(0)
    assert (rebuilt - signal).abs().max() <= threshold + 1e-12
    assert spikes.sum() > 50


def test_delta_of_a_constant_signal_is_silent_and_on_and_off_exclude_each_other():
    assert encode.delta(torch.full([5, 2, 3], 4.0), 0.1).sum() == 0
    spikes = encode.delta(torch.randn(100, 2, 3, generator=seeded()), 0.5)
    assert (spikes[:, :, 0] * spikes[:, :, 1]).sum() == 0


def test_population_fields_peak_at_their_centres():
    neurons = 5
    centres = torch.tensor([(2 * i - 1) / 2 / (neurons - 2) for i in range(neurons)])
    activations = encode.population(centres[:, None], 1, neurons=neurons, coding=encode.constant)[0, :, 0]
    assert torch.allclose(activations.diagonal(), torch.ones(neurons))
    assert torch.equal(activations.argmax(1), torch.arange(neurons))
    neighbour = math.exp(-0.5 * 1.5**2)
    assert torch.allclose(activations.diagonal(1), torch.full([neurons - 1], neighbour))


def test_population_scales_with_the_interval():
    unit = encode.population(torch.tensor([[0.3]]), 6)
    scaled = encode.population(torch.tensor([[-1.0 + 0.3 * 4]]), 6, low=-1.0, high=3.0)
    assert torch.equal(unit, scaled)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: encode.constant(torch.ones(2, dtype=torch.int64), 3), TypeError, "values.float()"),
        (lambda: encode.constant([1.0], 3), TypeError, "got list"),
        (lambda: encode.constant(torch.ones(2), 0), ValueError, "steps must be an integer of at least 1"),
        (lambda: encode.constant(torch.ones(2), 2.5), ValueError, "got 2.5"),
        (lambda: encode.poisson(torch.tensor([1.5]), 3), ValueError, r"\[0, 1\]"),
        (lambda: encode.poisson(torch.tensor([math.nan]), 3), ValueError, r"\[0, 1\]"),
        (lambda: encode.latency(torch.tensor([-0.5]), 3), ValueError, r"\[0, 1\]"),
        (lambda: encode.latency(torch.tensor([0.5]), 3, tau=0.0), ValueError, "tau must be positive"),
        (lambda: encode.delta(torch.ones(4), 0.1), ValueError, r"\[T, batch, ...\]"),
        (lambda: encode.delta(torch.ones(4, 1), -1.0), ValueError, "threshold must be positive"),
        (lambda: encode.delta(torch.ones(4, 1).long(), 1.0), TypeError, "floating-point"),
        (lambda: encode.population(torch.ones(1), 3, neurons=2), ValueError, "at least 3"),
        (lambda: encode.population(torch.ones(1), 3, low=1.0), ValueError, "low < high"),
        (lambda: encode.named("morse"), ValueError, "constant, poisson, latency, population; got 'morse'"),
    ],
)
def test_invalid_arguments_are_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_named_returns_a_coding():
    assert encode.named("poisson") is encode.poisson
