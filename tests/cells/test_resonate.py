"""Resonate-and-fire and state-space neurons: equations in complex numbers, ranges, programs in C."""

import math

import pytest
import torch
from torch import Tensor, nn

import hibana as hb
from c_programs import compiled, needs_cc, outputs_of


def noise(steps: int = 60, neurons: int = 5, size: float = 1.0) -> Tensor:
    return size * torch.randn(steps, 2, neurons, generator=torch.Generator().manual_seed(0)).double()


def test_resonate_and_fire_is_the_papers_recurrence() -> None:
    """In the paper's units, with a step of 0.01."""
    step, offset, refractory, threshold = 0.01, 0.8, 0.9, 1.0
    omega = torch.tensor([5.0, 10, 20, 40, 80]).double()
    inputs = noise(size=60.0)
    state, q, expected = torch.zeros(2, 5, dtype=torch.complex128), torch.zeros(2, 5).double(), []
    for current in inputs:
        bound = (-1 + (1 - (step * omega).square()).sqrt()) / step
        state = state + step * (torch.complex(bound - offset - q, omega.expand(2, 5)) * state + current)
        spikes = (state.real > threshold + q).double()
        q = refractory * q + spikes
        expected.append(spikes)
    cell = hb.ResonateAndFireCell(step * omega, step * offset, step, 1 / (1 - refractory), threshold)
    outputs, _ = hb.unroll(cell, step * inputs)
    assert 0.05 < float(outputs.mean()) < 0.5
    assert torch.equal(outputs, torch.stack(expected))


@pytest.mark.parametrize("omega", [0.05, 0.5, 0.95])
def test_without_damping_an_oscillation_stays(omega: float) -> None:
    cell = hb.ResonateAndFireCell(omega, damping=0.0, threshold=1e9)
    inputs = torch.zeros(400, 1, 1).double()
    inputs[0] = 1.0
    traces = hb.record(cell, inputs)
    time = torch.arange(400).double()[:, None, None]
    torch.testing.assert_close(traces["v"], torch.cos(math.asin(omega) * time))
    torch.testing.assert_close(traces["w"], torch.sin(math.asin(omega) * time))


def test_a_spike_raises_the_threshold_and_dampens() -> None:
    inputs = torch.zeros(200, 1, 1)
    inputs[0] = 3.0
    traces = hb.record(hb.ResonateAndFireCell(0.1, damping=0.0), inputs)
    assert 0 < float(traces["s"].sum()) < 30
    assert float(traces["v"][100:].abs().max()) < 3.0
    assert float(traces["q"][1]) == 1.0


@pytest.mark.parametrize("cell", [hb.ResonateAndFireCell, hb.SiLIFCell])
def test_the_response_is_largest_at_the_resonance_frequency(cell: type) -> None:
    frequencies = torch.tensor([0.1, 0.2, 0.4])
    time = torch.arange(400.0)[:, None, None]
    neuron = cell(omega=frequencies, threshold=1e9, **({"tau": 100.0} if cell is hb.SiLIFCell else {}))
    for index in range(3):
        wave = torch.cos(frequencies[index] * time).expand(400, 1, 3)
        sizes = hb.record(neuron, wave)["v"][200:].abs().amax(dim=(0, 1))
        assert int(sizes.argmax()) == index


def test_silif_is_a_complex_recurrence() -> None:
    tau, omega, inputs = torch.tensor([2.0, 5, 10, 30, 90]).double(), torch.rand(5).double() * 3, noise()
    factor = torch.exp(torch.complex(-1 / tau, omega))
    state, spikes = torch.zeros(2, 5, dtype=torch.complex128), 0
    states = hb.record(hb.SiLIFCell(tau, omega), inputs)
    assert 0.05 < float(states["s"].mean()) < 0.6
    for step, current in enumerate(inputs):
        state = factor * (state - 0.5 * spikes) + 0.5 * current  # one of a pair of conjugate states
        torch.testing.assert_close(states["v"][step], 2 * state.real)
        torch.testing.assert_close(states["w"][step], 2 * state.imag)
        spikes = states["s"][step]


def test_silif_without_rotation_is_leaky_integrate_and_fire() -> None:
    leak = 1 / (1 - math.exp(-1 / 8.0))
    inputs = noise()
    slow, plain = hb.SiLIF(8.0, omega=0.0), hb.LIF(leak, reset="subtract")
    assert torch.equal(slow(inputs), plain(inputs))


@pytest.mark.parametrize("cell", [hb.ResonateAndFireCell, hb.SiLIFCell])
def test_learned_values_stay_in_their_ranges(cell: type) -> None:
    neuron = cell.spread(6, surrogate="ATan")
    optimizer = torch.optim.SGD(neuron.parameters(), 1e4)
    for _ in range(5):
        loss = hb.unroll(neuron, torch.rand(30, 4, 6))[0].mean()
        optimizer.zero_grad()
        loss.backward()
        assert all(bool(parameter.grad.isfinite().all()) for parameter in neuron.parameters())
        optimizer.step()
    assert bool(((neuron.omega >= 0) & (neuron.omega <= math.pi)).all())
    _, state = hb.unroll(neuron, torch.rand(300, 4, 6))
    assert all(bool(part.isfinite().all()) for part in state)


@pytest.mark.parametrize("layer", [hb.ResonateAndFire, hb.SiLIF])
def test_streams_and_learns_in_a_network(layer: type) -> None:
    net = nn.Sequential(hb.Linear(3, 8), layer(surrogate="ATan", learn="omega"), nn.Linear(8, 2), hb.LI())
    inputs = torch.rand(20, 4, 3)
    outputs = net(inputs)
    first, state = hb.run(net, inputs[:9])
    second, _ = hb.run(net, inputs[9:], state)
    torch.testing.assert_close(torch.cat([first, second]), outputs)
    outputs.square().sum().backward()
    assert float(net[1].cell.logit_omega.grad.abs()) > 0


@needs_cc
@pytest.mark.parametrize("cell", [hb.ResonateAndFireCell, hb.SiLIFCell])
def test_the_c_program_computes_the_same_outputs(cell: type, tmp_path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 8), hb.OverTime(cell.spread(8)), nn.Linear(8, 2))
    inputs = 3 * torch.randn(40, 3, 3)
    program = hb.convert.to_c(net, inputs)
    outputs, _, _ = outputs_of(compiled(program, tmp_path, 40), program, inputs)
    torch.testing.assert_close(outputs, net(inputs).double(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: hb.ResonateAndFire(omega=1.5), r"omega must lie in \[0.0, 0.99\], got 1.5"),
        (lambda: hb.ResonateAndFire(damping=-0.1), r"damping must lie in \[0.0, 1.0\], got -0.1"),
        (lambda: hb.ResonateAndFire(tau_refractory=0.5), "tau_refractory is in time steps"),
        (lambda: hb.ResonateAndFire(threshold=0.0), "threshold must be positive"),
        (lambda: hb.ResonateAndFire(learn="gain"), "learn must name values among damping, omega"),
        (lambda: hb.SiLIF(omega=4.0), "omega must lie in"),
        (lambda: hb.SiLIF(tau=0.5), "tau is in time steps"),
        (lambda: hb.SiLIF(omega=0.0, learn="omega"), "omega must lie between 0.0"),
    ],
)
def test_refuses_values_out_of_range(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("layer", [hb.ResonateAndFire, hb.SiLIF])
def test_nir_refuses_these_neurons(layer: type) -> None:
    net = nn.Sequential(nn.Linear(3, 8), layer(), nn.Linear(8, 2))
    pytest.importorskip("nir")
    with pytest.raises(ValueError, match=f"NIR has no node for a {layer.__name__}Cell"):
        hb.nir.write(net)
