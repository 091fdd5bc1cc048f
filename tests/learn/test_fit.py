"""hb.learn.fit_cell: values of neurons from generated recordings, the gamma factor, and messages."""

import copy

import pytest
import torch

import hibana as hb
from hibana.learn.fit import _recording
from hibana.learn.likelihood import Likelihood
from hibana.learn.quasi_newton import minimize, newton


class OwnCell(hb.Cell):
    """A leaky neuron with a rest at -70 and a conductance that each spike raises."""

    def __init__(self, tau=20.0, jump=0.02, rest=-70.0, threshold=-55.0):
        super().__init__()
        self.tau, self.jump, self.rest, self.threshold = tau, jump, rest, threshold
        self.surrogate = hb.surrogate.ATan()

    def forward(self, input_, g_previous, v_previous, s_previous):
        g = 0.98 * g_previous + self.jump * s_previous
        v = torch.where(s_previous > 0, self.rest, v_previous)
        v = v + (self.rest - v) / self.tau + (self.rest - v) * g + input_
        return g, v, self.surrogate(v - self.threshold)

    def initial_state(self, input_):
        zeros = torch.zeros_like(input_)
        return zeros, zeros + self.rest, zeros


CELLS = {
    "IF": (hb.IFCell(threshold=20.0), 1.0, {"threshold": (10.0, 40.0), "gain": (0.3, 3.0)}),
    "LIF": (hb.LIFCell(tau=20.0, threshold=15.0), 2.0, {"tau": (5.0, 60.0), "gain": (0.5, 6.0)}),
    "AdLIF": (
        hb.AdLIFCell(tau=15.0, tau_adaptation=80.0, coupling=0.01, jump=1.5, threshold=15.0, reset=0.0),
        30.0,
        {"tau": (5.0, 40.0), "tau_adaptation": (20.0, 200.0), "gain": (10.0, 60.0)},
    ),
    "Izhikevich": (
        hb.IzhikevichCell(dt=0.5),
        15.0,
        {"a": (0.01, 0.05), "d": (4.0, 14.0), "gain": (8.0, 25.0)},
    ),
    "own": (OwnCell(), 2.0, {"tau": (5.0, 60.0), "rest": (-80.0, -60.0), "gain": (0.5, 6.0)}),
}


def recording(cell, gain, steps=3000, offset=0.0, seed=0):
    """Currents, noisy potentials and spikes of `cell`, which also gets a noisy current."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(3, steps, generator=generator, dtype=torch.float64)
    currents = 0.6 + hb.OverTime(hb.LICell(tau=10.0))(0.25 * noise[0][:, None])[:, 0]
    states = hb.record(copy.deepcopy(cell).double(), (gain * (currents + 0.1 * noise[1]))[:, None])
    return currents, states["v"][:, 0] + offset + 0.2 * noise[2], states["s"][:, 0]


@pytest.mark.parametrize("name", CELLS)
def test_values_are_recovered_from_potentials_and_spikes(name):
    cell, gain, bounds = CELLS[name]
    currents, voltage, spikes = recording(cell, gain)
    fit = hb.learn.fit_cell(
        cell, currents, voltage, spikes, dt=0.5, bounds=bounds, starts=3, evaluations=40, spike_width=0.5
    )
    for value in bounds:
        assert fit.values[value] == pytest.approx(gain if value == "gain" else getattr(cell, value), rel=0.05)
    assert type(fit.cell) is type(cell)
    assert getattr(fit.cell, next(iter(bounds))) == fit.values[next(iter(bounds))]
    scores = fit.scores()
    true_spikes = hb.OverTime(copy.deepcopy(cell).double())(gain * currents[:, None])[fit.step :, 0]
    true_gamma = hb.learn.gamma_factor(true_spikes, spikes[fit.step :], 8).item()
    assert scores["gamma factor, held out"] > 0.9 * true_gamma


def test_values_are_recovered_from_spikes_alone():
    currents, _, spikes = recording(*CELLS["LIF"][:2], steps=6000)
    times = spikes.nonzero()[:, 0] * 0.5
    bounds = {"tau": (5.0, 60.0), "gain": (0.5, 6.0)}
    fit = hb.learn.fit_cell(
        hb.LIFCell(threshold=15.0), currents, spikes=times, dt=0.5, bounds=bounds, starts=3, evaluations=40
    )
    assert fit.values == {"tau": pytest.approx(20, rel=0.1), "gain": pytest.approx(2, rel=0.05)}
    same = hb.learn.fit_cell(
        hb.LIFCell(threshold=15.0), currents, spikes=spikes, dt=0.5, bounds=bounds, starts=3, evaluations=40
    )
    assert same.values == fit.values  # times or zeros and ones, and the same seed


def test_a_recording_without_spikes_gives_the_passive_values():
    cell = hb.LICell(tau=20.0)
    noise = torch.randn(2, 2000, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    voltage = hb.record(cell, noise[0])["v"] - 65.0 + 0.1 * noise[1]
    bounds = {"tau": (5.0, 60.0), "gain": (0.1, 5.0), "offset": (-80.0, -50.0)}
    fit = hb.learn.fit_cell(hb.LICell(), noise[0], voltage, dt=0.5, bounds=bounds, starts=3, evaluations=40)
    assert fit.values["tau"] == pytest.approx(20, rel=0.03)
    assert fit.values["gain"] == pytest.approx(1, rel=0.02)
    assert fit.values["offset"] == pytest.approx(-65, abs=0.2)
    assert [*fit.scores()] == ["voltage error, fitted", "voltage error, held out"]
    potential, _ = fit.simulate(noise[0])
    assert (potential - voltage).std() < 0.2


def test_the_table_tells_which_value_the_recording_does_not_determine():
    currents, _, spikes = recording(*CELLS["LIF"][:2])
    bounds = {"tau": (5.0, 60.0), "threshold": (5.0, 45.0), "gain": (0.5, 6.0)}  # only threshold/gain matters
    fit = hb.learn.fit_cell(
        hb.LIFCell(), currents, spikes=spikes, dt=0.5, bounds=bounds, starts=3, evaluations=40
    )
    assert fit.errors["threshold"] > 0.1 * fit.values["threshold"]
    assert fit.errors["tau"] < 0.05 * fit.values["tau"]
    figure = hb.plot.fit(fit)
    above, below = figure.axes
    assert below.get_legend().get_texts()[-1].get_text() == "held out"
    assert len(above.collections[0].get_segments()) == spikes.sum()
    header, *rows = str(fit).splitlines()
    assert header.split() == ["value", "fitted", "error", "start", "bounds"]
    assert [row.split()[0] for row in rows[:3]] == [*bounds]
    assert rows[0].split()[-3:] == ["5", "to", "60"]
    assert rows[-1].startswith("gamma factor, held out")


def test_upward_crossings_of_a_level_are_spikes():
    voltage = torch.tensor([-60.0, 10, 20, -70, -60, 5, -60])
    spikes = _recording(torch.zeros(7), voltage, 0.0, 1.0).spikes
    assert spikes[:, 0].tolist() == [0, 1, 0, 0, 0, 1, 0]


def test_the_gradient_of_the_likelihood_is_that_of_finite_differences():
    cell, gain, bounds = CELLS["own"]
    likelihood = Likelihood(cell, _recording(*recording(cell, gain, 400), 0.5), bounds, 0.5, 0.3)
    values = torch.tensor([[20.0, 15], [-70, -68], [2, 2.5]], dtype=torch.float64)
    q = likelihood.parameters(values)
    assert torch.allclose(torch.stack([*likelihood.values(q).values()]), values)
    _, gradient = likelihood(q)
    for row in range(len(q)):
        step = torch.zeros_like(q)
        step[row] = 1e-6
        difference = (likelihood(q + step)[0] - likelihood(q - step)[0]) / 2e-6
        assert torch.allclose(gradient[row], difference, rtol=1e-4, atol=1e-4)


def test_the_cell_follows_the_recording():
    """With the full correction each potential is one step from the recorded one, after recorded resets."""
    currents, voltage, spikes = recording(hb.LIFCell(tau=20.0, threshold=15.0), 2.0, 300, offset=-70.0)
    record = _recording(currents, voltage, spikes, 0.5)
    likelihood = Likelihood(hb.LIFCell(threshold=15.0), record, {"offset": (-80.0, -60.0)}, 0.0, 0.0)
    q = likelihood.parameters(torch.tensor([[-70.0]], dtype=torch.float64))
    likelihood.follower.cell.tau, likelihood.follower.gain = 20.0, 2.0
    q[-2] = 40.0
    loss, _ = likelihood(q)
    previous = torch.where(spikes > 0, 0.0, (voltage + 70.0).clamp(max=99))[:-1] * 0.95
    errors = (previous + 2 * currents[1:] + -70.0 - voltage[1:])[spikes[1:] == 0]
    first = (2 * currents[0] - 70.0 - voltage[0])[None]
    mean = torch.cat([first, errors]).square().mean()
    z = torch.cat([2 * currents[:1], previous + 2 * currents[1:]]) - 15.0
    z = z / (0.3 * voltage.std())
    expected = mean.log() * (1 + len(errors)) / (2 * spikes.sum())
    expected += (torch.nn.functional.softplus(z) - spikes * z).sum() / spikes.sum()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)


def test_gamma_factor_of_equal_shifted_and_random_spikes():
    generator = torch.Generator().manual_seed(0)
    data = (torch.rand(50_000, generator=generator) < 0.01).double()
    other = (torch.rand(50_000, generator=generator) < 0.01).double()
    shifted = torch.stack([data, data.roll(3), data.roll(9), other], 1)
    gammas = hb.learn.gamma_factor(shifted, data[:, None], 4)
    assert gammas[:2].tolist() == pytest.approx([1, 1], abs=0.03)
    assert gammas[2:].tolist() == pytest.approx([0, 0], abs=0.06)
    assert hb.learn.gamma_factor(torch.zeros(50_000), data.float(), 4) == 0


def test_minimize_and_newton_reach_the_minimum_and_its_curvature():
    scale = torch.tensor([1.0, 100.0, 1e4], dtype=torch.float64)

    def function(x):
        """A stretched bowl around 1, which is not finite where the first parameter is below -0.5."""
        x = x.detach().requires_grad_()
        value = (scale[:, None] * (x - 1).square()).sum(0) / 2 + 0 * (x[0] + 0.5).sqrt()
        return value.detach(), torch.autograd.grad(value.sum(), x)[0]

    start = torch.tensor([[0.0, 3.0], [0.0, 2.0], [0.5, -3.0]], dtype=torch.float64)
    x, values = minimize(function, start, 60)
    assert values.max() < 1e-8
    assert torch.allclose(x, torch.ones_like(x), atol=1e-3)
    best, inverse = newton(function, start[:, 0], 3)
    assert torch.allclose(best, torch.ones_like(best))
    assert torch.allclose(inverse, torch.diag(1 / scale), rtol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bounds": {"tau": (5.0, 2.0)}}, r"a lower and a higher number, got \(5.0, 2.0\) for tau"),
        (
            {"bounds": {"speed": (1.0, 2.0)}},
            "bounds must name gain, bias, offset or numbers of LIFCell, got 'speed'",
        ),
        ({"bounds": {"detach_reset": (0.0, 1.0)}}, "numbers of LIFCell, got 'detach_reset'"),
        ({"dt": 0.0}, "dt must be the positive length of a step in milliseconds, got 0.0"),
        (
            {"currents": torch.zeros(3, 4, 5)},
            r"currents must be \[T\] or \[T, trials\], got shape \(3, 4, 5\)",
        ),
        ({"voltage": torch.zeros(9)}, r"voltage must have the shape of currents, \(10,\), got \(9,\)"),
        ({"voltage": torch.full((10,), torch.nan)}, "voltage must be finite"),
        ({"spikes": -20.0}, "spikes is the level -20.0 of the voltage, but voltage is None"),
        ({"spikes": torch.tensor([3.0, 99.0])}, "spikes must be times from 0 to 5.0 ms"),
        ({"spikes": None}, "voltage or spikes must be recorded"),
        ({"cell": hb.PLIFCell(), "bounds": {"tau": (2.0, 5.0)}, "held_out": 1.5}, "held_out must be"),
    ],
)
def test_wrong_arguments_get_a_message_with_the_fix(changes, message):
    arguments = {"cell": hb.LIFCell(), "currents": torch.zeros(10), "spikes": torch.ones(10), "dt": 0.5}
    with pytest.raises(ValueError, match=message):
        hb.learn.fit_cell(**{**arguments, "bounds": {"tau": (2.0, 5.0)}, **changes})


def test_a_cell_without_potential_or_soft_threshold_is_refused():
    class Hidden(hb.Cell):
        def forward(self, input_, x_previous, s_previous):
            x = x_previous * (1 - s_previous) + input_
            return x, hb.spike(x - 1)

    zeros = torch.zeros(10)
    options = {"dt": 1.0, "bounds": {"gain": (0.0, 1.0)}}
    with pytest.raises(
        ValueError, match="voltage needs a cell with a state v; the states of Hidden are x, s"
    ):
        hb.learn.fit_cell(Hidden(), zeros, zeros, **options)
    with pytest.raises(
        ValueError, match=r"calls self.surrogate\(v - threshold\); Hidden has no such attribute"
    ):
        hb.learn.fit_cell(Hidden(), zeros, spikes=zeros + 1, **options)
    with pytest.raises(TypeError, match=r"must be a hibana.Cell"):
        hb.learn.fit_cell(hb.LIF(), zeros, zeros, **options)
