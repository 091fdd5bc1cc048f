"""``hb.simulate`` with passive neurons: the spikes of step by step, and of a NumPy loop."""

import copy
import math

import numpy as np
import pytest
import torch

import hibana as hb
from hibana.network import passive, simulate, simulation
from hibana.network.passive import PassiveSimulation


class Rises(hb.Cell):
    """A current that rises and decays, and a reset by subtraction."""

    def forward(self, input_, h_previous, g_previous, v_previous, s_previous):
        h = h_previous * 0.7 + input_
        g = g_previous * 0.9 + 0.3 * h
        v = (v_previous - s_previous) * 0.97 + 0.1 * g
        return h, g, v, hb.spike(v - 1)


class ResetInStep(hb.Cell):
    """The reset and a refractory counter in the step of the spike; arrivals are lost meanwhile."""

    def forward(self, input_, v_previous, r_previous, s_previous):
        free = r_previous <= 0
        v = torch.where(free, v_previous * 0.95 + input_, v_previous)
        s = hb.spike(torch.where(free, v - 1, -1.0))
        return torch.where(s > 0, -0.2, v), torch.where(s > 0, 5.0, (r_previous - 1).clamp(min=0)), s


class Rectified(hb.Cell):
    """The positive part of the potential drives a slow state."""

    def forward(self, input_, w_previous, v_previous, s_previous):
        v = torch.where(s_previous > 0, 0.0, v_previous)
        w = w_previous * 0.99 + 0.01 * torch.relu(v)
        v = v * 0.95 - 0.1 * w + input_
        return w, v, hb.spike(v - 1)


class Jumps(hb.Cell):
    """Grows above 0.6, decays below."""

    def forward(self, input_, v_previous, s_previous):
        v = v_previous * (1 - s_previous)
        v = torch.where(v > 0.6, v * 1.05, v * 0.9) + input_
        return v, hb.spike(v - 1)


class Biased(hb.Cell):
    """A constant current of each neuron."""

    def __init__(self, bias):
        super().__init__()
        self.bias = bias

    def forward(self, input_, v_previous, s_previous):
        v = v_previous * (1 - s_previous) * 0.95 + input_ + self.bias
        return v, hb.spike(v - 1)


class Each(hb.Cell):
    """Time constant, threshold and refractory period; all parameters differ between neurons."""

    def __init__(self, neurons):
        super().__init__()
        self.tau, self.level = 5 + 30 * torch.rand(neurons), 0.7 + 0.6 * torch.rand(neurons)

    def forward(self, input_, i_previous, v_previous, r_previous, s_previous):
        r = torch.where(s_previous > 0, 4.0, (r_previous - 1).clamp(min=0))
        i = i_previous * 0.85 + 0.15 * input_
        v = torch.where(r > 0, 0.0, v_previous * (1 - s_previous) * torch.exp(-1 / self.tau) + i)
        return i, v, r, hb.spike(v - self.level)


N = 90
CELLS = {  # the cell, and the scale of weights at which it fires
    "IF": (lambda: hb.IFCell(), 0.4),
    "IF, subtract": (lambda: hb.IFCell(reset="subtract"), 0.4),
    "LIF": (lambda: hb.LIFCell(20.0), 1.0),
    "LIF, lower bound": (lambda: hb.LIFCell(20.0, lower_bound=-0.3), 1.0),
    "LIF, rest and reset": (lambda: hb.LIFCell(20.0, rest=0.3, reset=-0.2), 0.8),
    "LIF of each neuron": (lambda: hb.LIFCell(torch.linspace(5.0, 40.0, N), learn="tau"), 1.0),
    "ALIF": (lambda: hb.ALIFCell(20.0, 100.0, 0.2), 1.2),
    "AdLIF": (lambda: hb.AdLIFCell(tau=20.0, coupling=0.5), 15.0),
    "CubaLIF": (lambda: hb.CubaLIFCell(5.0, 20.0), 0.3),
    "CubaLIF without leak": (lambda: hb.CubaLIFCell(5.0, math.inf), 0.12),
    "RefractoryLIF": (lambda: hb.RefractoryLIFCell(20.0, 5), 1.2),
    "exact LIF": (lambda: hb.ExactLIFCell(200.0, 50.0, 7.0, torch.full([N], 22.0)), 45.0),
    "resonate-and-fire": (lambda: hb.ResonateAndFireCell(), 1.0),
    "rise and decay": (Rises, 0.6),
    "reset in step": (ResetInStep, 1.2),
    "rectified": (Rectified, 1.0),
    "jumps": (Jumps, 0.8),
    "bias": (lambda: Biased(torch.linspace(-0.02, 0.06, N)), 0.5),
    "each neuron": (lambda: Each(N), 3.0),
}


def random_layer(cell, neurons, scale, seed, per_neuron=6, longest=9, bias=False):
    """A layer with random synapses of which two thirds excite, also to the neuron itself, some twice."""
    generator = torch.Generator().manual_seed(seed)
    sources, targets = torch.randint(0, neurons, (2, neurons * per_neuron), generator=generator)
    delays = torch.randint(0, longest + 1, (len(sources),), generator=generator)
    weights = (torch.rand(len(sources), generator=generator, dtype=torch.float64) - 0.3) * scale
    synapses = hb.connect.Connections.from_pairs(sources, targets, (neurons, neurons), delays, weights)
    layer = hb.Recurrent(cell, neurons, hb.SparseLinear(neurons, neurons, synapses, bias=bias))
    return layer.double()


def pulses(neurons, steps, weight, seed=0, rate=0.02):
    return hb.Stimulus(torch.arange(0, neurons, 3), rate, weight=weight, seed=seed)


def pairs_of(record):
    return list(zip(record.spikes.steps.tolist(), record.spikes.neurons.tolist(), strict=True))


def compare(layer, steps, **options):
    """The record of passive neurons, equal to that of step by step."""
    expected, last = hb.simulate(layer, steps, method="steps", **options)
    record, state = hb.simulate(layer, steps, method="passive", **options)
    assert pairs_of(record) == pairs_of(expected)
    assert torch.equal(record.counts, expected.counts)
    for name, values in expected.states.items():
        torch.testing.assert_close(record.states[name], values, rtol=1e-9, atol=1e-11)
    for part, other in zip(state[""], last[""], strict=True):
        torch.testing.assert_close(part, other, rtol=1e-9, atol=1e-11)
    return record


@pytest.mark.parametrize("name", CELLS)
def test_spikes_of_each_cell_equal_those_of_step_by_step(name):
    torch.manual_seed(0)
    create, scale = CELLS[name]
    for seed in range(3):
        layer = random_layer(create(), N, scale, seed)
        record = compare(layer, 700, stimulus=pulses(N, 700, 1.5 * scale, seed))
        assert len(record.spikes) > 100


def test_potentials_of_some_neurons_are_recorded():
    layer = random_layer(hb.CubaLIFCell(5.0, 20.0), N, 0.3, 1)
    options = {"neurons": torch.tensor([0, 3, 64, 89]), "every": 7}
    record = compare(layer, 500, stimulus=pulses(N, 500, 0.6), **options)
    assert record.states["v"].shape == (71, 4)
    assert record.states["v"].any()


def test_constant_inputs_and_a_bias_are_part_of_the_step():
    inputs = torch.linspace(-0.02, 0.06, N, dtype=torch.float64)
    layer = random_layer(hb.LIFCell(20.0), N, 1.0, 2, bias=True)
    with torch.no_grad():
        layer.recurrent.bias.copy_(torch.linspace(0.03, 0.0, N))
    record = compare(layer, 600, inputs=inputs)
    assert len(record.spikes) > 100


def test_a_stimulus_of_each_state_moves_it_after_the_step():
    layer = random_layer(Rises(), N, 0.6, 3)
    stimuli = [
        hb.Stimulus(torch.arange(i, N, 5), 0.03, weight=0.5, state=state, seed=i)
        for i, state in enumerate((None, "h", "g", "v"))
    ]
    record = compare(layer, 500, stimulus=stimuli)
    assert len(record.spikes) > 100


def test_float32_weights_have_the_states_of_float64():
    torch.manual_seed(0)
    layer = random_layer(hb.LIFCell(20.0), N, 1.0, 4).float()
    stimulus = pulses(N, 400, 1.5)
    record, state = hb.simulate(layer, 400, stimulus=stimulus)
    assert {part.dtype for part in state[""]} == {torch.float64}
    expected, _ = hb.simulate(layer.double(), 400, stimulus=stimulus, method="steps")
    assert pairs_of(record) == pairs_of(expected)
    assert len(record.spikes) > 100


def numpy_loop(layer, steps, arrivals):
    """The spikes of ``v' = a v (1 - s) + input`` with delays; `arrivals` are (step, neuron, weight)."""
    synapses, n = layer.recurrent, layer.features
    leak = float(1 - 1 / layer.cell.tau)
    sources, targets = synapses.sources.numpy(), synapses.targets.numpy()
    weights, delays = synapses.weight.detach().numpy(), synapses.delays.numpy().astype(int)
    v, fired = np.zeros(n), np.zeros((steps + 1, n))
    for k in range(steps):
        heard = k - 1 - delays >= 0
        input_ = np.zeros(n)
        before = (k - 1 - delays)[heard]
        np.add.at(input_, targets[heard], weights[heard] * fired[before, sources[heard]])
        for step, neuron, weight in arrivals:
            if step == k:
                input_[neuron] += weight
        v = v * (1 - fired[k - 1]) * leak + input_
        fired[k] = v > 1
    return [(int(k), int(i)) for k, i in np.argwhere(fired[:steps])]


def test_spikes_equal_those_of_a_numpy_loop_on_random_graphs():
    """Weights are multiples of 1/1024, so that sums do not depend on their order."""
    generator, total = np.random.default_rng(0), 0
    for case in range(200):
        n = int(generator.choice([1, 2, 3, 63, 64, 65, 130]))
        count = int(generator.integers(0, 5 * n + 1))
        pairs = torch.from_numpy(
            generator.integers(0, n, (2, count))
        )  # some rows are empty, some pairs equal
        longest = int(generator.choice([0, 1, 7, 255]))
        delays = torch.from_numpy(generator.integers(0, longest + 1, count))
        weights = torch.from_numpy(generator.integers(-900, 1500, count) / 1024)
        synapses = hb.connect.Connections.from_pairs(*pairs, (n, n), delays, weights)
        cell = hb.LIFCell(float(2 ** generator.integers(1, 6)))
        layer = hb.Recurrent(cell, n, hb.SparseLinear(n, n, synapses, bias=False)).double()
        steps = int(generator.integers(1, 300))
        driven = generator.integers(0, 2) * generator.integers(0, 60)
        times, neurons = np.sort(generator.integers(0, steps, driven)), generator.integers(0, n, driven)
        trains = hb.SpikeTrains(torch.from_numpy(times), torch.from_numpy(neurons), (steps, n))
        stimulus = hb.Stimulus(spikes=trains, weight=1.25)
        arrivals = [(k, i, 1.25) for k, i in zip(times.tolist(), neurons.tolist(), strict=True)]
        record, _ = hb.simulate(layer, steps, stimulus=stimulus, method="passive")
        assert pairs_of(record) == numpy_loop(layer, steps, arrivals), case
        total += len(record.spikes)
    assert total > 5000


@pytest.mark.parametrize("excess", [-1e-14, 0.0, 1e-14])
def test_a_peak_near_the_threshold_fires_as_step_by_step(excess):
    """The potential of a current peaks many steps after the spike that caused it."""
    cell = hb.CubaLIFCell(5.0, 20.0)
    synapses = hb.connect.Connections.from_pairs(torch.tensor([0]), torch.tensor([1]), (2, 2))
    layer = hb.Recurrent(cell, 2, hb.SparseLinear(2, 2, synapses, bias=False)).double()
    start = hb.SpikeTrains(torch.tensor([5]), torch.tensor([1]), (6, 2))

    def run(method, weight):
        stimulus = hb.Stimulus(spikes=start, weight=weight)
        return hb.simulate(layer, 200, stimulus=stimulus, method=method, neurons=torch.tensor([1]))[0]

    peak = run("steps", 1e-3).states["v"].max().item() / 1e-3
    for rounding in (0, 1, 2, 5):
        weight = (1 + excess) / peak * (1 + rounding * 2.0**-52)
        assert pairs_of(run("passive", weight)) == pairs_of(run("steps", weight))
    assert len(run("passive", 1.001 / peak).spikes) == 1
    assert len(run("passive", 0.999 / peak).spikes) == 0


def test_threads_chunks_and_trials_are_equal(monkeypatch):
    layer, threads = random_layer(hb.CubaLIFCell(5.0, 20.0), N, 0.3, 5), torch.get_num_threads()
    options = {"stimulus": pulses(N, 600, 0.6, seed=3), "neurons": torch.arange(N)}
    try:
        torch.set_num_threads(2)
        records, state = hb.simulate(layer, 600, method="passive", trials=4, **options)
        torch.set_num_threads(1)
        again, last = hb.simulate(layer, 600, method="passive", trials=4, **options)
    finally:
        torch.set_num_threads(threads)
    monkeypatch.setattr(simulation, "LONGEST_CHUNK", 7)
    monkeypatch.setattr(passive, "ROOM", 0)  # a chunk ends before the spikes of one more step might not fit
    chunks, _ = hb.simulate(layer, 600, method="passive", trials=4, **options)
    for record, *others in zip(records, again, chunks, strict=True):
        for other in others:
            assert pairs_of(record) == pairs_of(other)
            assert all(torch.equal(values, other.states[name]) for name, values in record.states.items())
    assert all(torch.equal(*pair) for pair in zip(state[""], last[""], strict=True))
    assert len({str(pairs_of(record)) for record in records}) == 4
    steps, _ = hb.simulate(layer, 600, method="steps", trials=4, **options)
    assert [pairs_of(record) for record in steps] == [pairs_of(record) for record in records]


def test_continuing_from_a_state():
    layer = random_layer(hb.ExactLIFCell(200.0, 50.0, 7.0, torch.full([N], 22.0)), N, 45.0, 6)
    inputs = torch.linspace(0.1, 0.4, N, dtype=torch.float64)
    whole, _ = hb.simulate(layer, 900, inputs, method="passive")
    first, state = hb.simulate(layer, 400, inputs, method="passive")
    rest, _ = hb.simulate(layer, 500, inputs, state, method="steps")
    pairs = pairs_of(first) + [(k + 400, i) for k, i in pairs_of(rest)]
    assert pairs == pairs_of(whole)
    assert len(rest.spikes) > 100


def test_many_active_neurons_go_on_step_by_step(monkeypatch):
    monkeypatch.setattr(simulation, "LONGEST_CHUNK", 50)
    monkeypatch.setattr(passive, "BUSY", 0.05)
    layer = random_layer(hb.LIFCell(20.0), N, 1.0, 7)
    options = {"stimulus": pulses(N, 300, 1.5, rate=0.1), "trials": 3, "neurons": torch.arange(N)}
    switched, switch = [], PassiveSimulation._switch

    def record_switch(self):
        switched.append((self.index_of_trial, self.time))
        switch(self)

    monkeypatch.setattr(PassiveSimulation, "_switch", record_switch)
    records, state = hb.simulate(layer, 300, **options)
    assert {trial for trial, _ in switched} == {0, 1, 2}
    expected, last = hb.simulate(layer, 300, method="steps", **options)
    assert [pairs_of(record) for record in records] == [pairs_of(record) for record in expected]
    for part, other in zip(state[""], last[""], strict=True):
        torch.testing.assert_close(part, other, rtol=1e-9, atol=1e-11)
    switched.clear()
    quiet = random_layer(hb.LIFCell(20.0), N, 0.01, 7)
    hb.simulate(quiet, 300, stimulus=pulses(N, 300, 0.01, rate=0.001))
    assert not switched


def test_few_neurons_take_steps():
    layer = random_layer(hb.CubaLIFCell(5.0, 20.0), 500, 0.05, 8)
    runner = PassiveSimulation(
        layer,
        1000,
        None,
        None,
        None,
        1,
        simulate.Drive(pulses(500, 1000, 0.1, rate=1e-3)),
        None,
        torch.float64,
    )
    with torch.no_grad():
        runner.advance(1000)
    assert 500 < runner.updates < 0.02 * 500 * 1000


def test_methods_are_chosen_and_refused_by_name(monkeypatch):
    layer = random_layer(hb.IzhikevichCell(), N, 5.0, 9)
    with pytest.raises(
        ValueError, match=r"never passive: the step is not affine: .*write method=\"auto\" or"
    ):
        hb.simulate(layer, 10, method="passive")
    assert len(hb.simulate(layer, 100, torch.full([N], 9.0), stimulus=pulses(N, 10, 1.0))[0].spikes) > 0
    with pytest.raises(ValueError, match='method must be "auto", "steps" or "passive", got \'fast\''):
        hb.simulate(layer, 10, method="fast")
    with pytest.raises(ValueError, match="passive neurons need a "):
        hb.simulate(torch.nn.Sequential(hb.LIF()), 10, torch.ones(3), method="passive")
    lif = random_layer(hb.LIFCell(), N, 1.0, 9)
    with pytest.raises(ValueError, match="each step has inputs of its own"):
        hb.simulate(lif, 10, torch.ones(10, N), method="passive")
    created = []
    start = PassiveSimulation._start
    monkeypatch.setattr(
        PassiveSimulation, "_start", lambda self, *args: (created.append(self), start(self, *args))
    )
    hb.simulate(lif, 10)
    hb.simulate(lif.float(), 10, stimulus=pulses(N, 10, 1.0))
    assert len(created) == 2
    hb.simulate(lif, 10)  # float32 without a stimulus
    hb.simulate(lif.double(), 10, torch.ones(10, N))
    hb.simulate(lif, 10, method="steps", stimulus=pulses(N, 10, 1.0))
    assert len(created) == 2


@pytest.mark.parametrize("method", ["steps", "passive"])
def test_each_call_sees_what_changed_since_the_last(method):
    layer, steps = random_layer(hb.LIFCell(torch.full([N], 3.0)), N, 3.0, 4), 300
    synapses = layer.recurrent

    def run(layer):
        record, state = hb.simulate(layer, steps, stimulus=pulses(N, steps, 1.5), method=method)
        return pairs_of(record), [part.tolist() for part in state[""]]

    def set_target():
        synapses.targets.data[0] = (synapses.targets[0] + 1) % (synapses.targets[1] + 1)

    changes = [
        lambda: layer.cell.tau.data.fill_(5.0),
        lambda: setattr(layer.cell, "threshold", 0.5),
        lambda: setattr(
            layer.cell, "initial_state", lambda x: (torch.full_like(x, 0.3), torch.zeros_like(x))
        ),
        lambda: synapses.weight.data.mul_(1.3),
        set_target,
        lambda: setattr(layer, "cell", hb.IFCell()),
    ]
    last = run(layer)
    assert run(layer) == last
    for i, change in enumerate(changes):
        change()
        result = run(layer)
        assert result == run(copy.deepcopy(layer)), i  # a copy remembers nothing
        assert result != last, i
        last = result


def test_explain_names_the_program_of_the_simulation():
    net = random_layer(hb.CubaLIFCell(5.0, 20.0), N, 0.3, 0)
    assert "hb.simulate: passive neurons take no step, with float64 weights or a stimulus" in hb.explain(net)
    net = random_layer(hb.QIFCell(), N, 0.3, 0)
    reason = "hb.simulate: all neurons take each step, because the step is not affine: mul, of the states v"
    assert reason in hb.explain(net)
    assert "hb.simulate" not in hb.explain(hb.Recurrent(hb.LIFCell(), N))
