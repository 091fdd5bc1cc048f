"""``hb.Stimulus``, silenced neurons and trials: the spikes of a NumPy loop, however the work is divided."""

import functools

import numpy as np
import pytest
import torch
from torch import nn

import hibana as hb
from hibana.network import simulation

DELAY = 17  # a spike of step k arrives in step k + 18


def chain(weight=60.0, period=22.0, **options):
    """Two neurons; the first one excites the second."""
    synapses = hb.connect.Connections.from_pairs(
        torch.tensor([0]), torch.tensor([1]), (2, 2), torch.tensor([DELAY]), torch.tensor([weight])
    )
    cell = hb.ExactLIFCell(200.0, 50.0, 7.0, torch.full([2], period), **options)
    return hb.Recurrent(cell, 2, hb.SparseLinear(2, 2, synapses, bias=False)).double()


def random_network(neurons=60, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    sources, targets = torch.randint(0, neurons, (2, neurons * 8), generator=generator)
    weights = torch.randint(-4000, 9000, (len(sources),), generator=generator) / 256
    delays = torch.randint(0, 30, (len(sources),), generator=generator)
    synapses = hb.connect.Connections.from_pairs(sources, targets, (neurons, neurons), delays, weights)
    cell = hb.ExactLIFCell(200.0, 50.0, 7.0, torch.full([neurons], 22.0))
    return hb.Recurrent(cell, neurons, hb.SparseLinear(neurons, neurons, synapses, bias=False)).to(dtype)


def spikes_at(*pairs, neurons, steps):
    pairs = sorted(pairs)
    spike_steps, indices = (torch.tensor(part) for part in zip(*pairs, strict=True))
    return hb.SpikeTrains(spike_steps, indices, (steps, neurons))


def pairs_of(record):
    return list(zip(record.spikes.steps.tolist(), record.spikes.neurons.tolist(), strict=True))


def loop(net, steps, arrivals, period, silenced=()):
    """The spikes of the equations of Shiu et al. in Brian2's order; `arrivals` are (step, neuron, weight)."""
    a, c = np.exp(-1 / 200), np.exp(-1 / 50)
    b = 50 / (50 - 200) * (c - a)
    n = net.features
    v, g, free_at, spikes = np.zeros(n), np.zeros(n), np.zeros(n, int), []
    synapses = net.recurrent
    sources, targets = synapses.sources.numpy(), synapses.targets.numpy()
    weights, delays = synapses.weight.detach().numpy().astype(float), synapses.delays.numpy().astype(int)
    fired = np.zeros((steps, n))
    for k in range(steps):
        is_free = k >= free_at
        v, g = np.where(is_free, a * v + b * g, v), np.where(is_free, c * g, g)
        fires = is_free & (v > 7)
        fired[k] = fires
        spikes += [(k, int(i)) for i in np.flatnonzero(fires)]
        free_at = np.where(fires, k + period, free_at)
        before = k - 1 - delays
        heard = (before >= 0) & ~np.isin(sources, silenced)
        sums = np.zeros(n)
        np.add.at(sums, targets[heard], weights[heard] * fired[before[heard], sources[heard]])
        g = np.where(k >= free_at, g + sums, g)
        for step, neuron, weight in arrivals:
            if step == k and k >= free_at[neuron]:
                v[neuron] += weight
        v, g = np.where(fires, 0, v), np.where(fires, 0, g)
    return spikes


def test_spikes_of_the_published_constants():
    stimulus = hb.Stimulus(spikes=spikes_at((10, 0), neurons=2, steps=11), weight=68.75)
    record, _ = hb.simulate(chain(), 200, stimulus=stimulus)
    assert pairs_of(record) == [(40, 0), (95, 1)]


def test_a_stimulus_of_the_potential_fires_in_the_next_step():
    stimulus = hb.Stimulus(
        spikes=spikes_at((10, 0), (15, 0), (33, 0), neurons=2, steps=40), state="v", weight=68.75
    )
    record, _ = hb.simulate(chain(weight=0.0), 100, stimulus=stimulus)
    assert pairs_of(record) == [(11, 0), (34, 0)]  # lost in steps 11 to 32
    stimulus = hb.Stimulus(
        spikes=spikes_at((10, 0), (11, 0), (12, 0), neurons=2, steps=40), state="v", weight=68.75,
        parameters={"period": 1},
    )  # fmt: skip
    record, _ = hb.simulate(chain(weight=0.0), 100, stimulus=stimulus)
    assert pairs_of(record) == [(11, 0), (13, 0)]  # lost in step 11 only


def test_a_refractory_period_ends_with_the_last_lost_arrival():
    for last, expected in ((32, 1), (33, 2)):  # the neuron spikes in step 11
        spikes = spikes_at((10, 0), (last, 0), neurons=2, steps=40)
        stimulus = hb.Stimulus(spikes=spikes, state="v", weight=68.75)
        record, _ = hb.simulate(chain(weight=0.0), 100, stimulus=stimulus)
        assert len(record.spikes) == expected, last


def test_a_kept_current_goes_on_after_a_spike():
    stimulus = hb.Stimulus(spikes=spikes_at((10, 0), neurons=2, steps=11), weight=400.0)
    lost, _ = hb.simulate(chain(), 200, stimulus=stimulus)
    kept, _ = hb.simulate(chain(keeps_current=True), 200, stimulus=stimulus, neurons=torch.tensor([0]))
    first = lost.spikes.steps[0].item()
    assert lost.counts[0] == 1 < kept.counts[0]
    potential = kept.states["v"][:, 0]
    assert not potential[first + 1 : first + 22].any()  # held for 21 steps
    assert potential[first + 22] > 0
    assert kept.states["i"][first + 5] == pytest.approx(400 * np.exp(-(first + 5 - 10) / 50))


def test_spikes_of_a_loop_in_numpy():
    net = random_network()
    driven = torch.tensor([5, 3, 40])
    stimulus = hb.Stimulus(
        driven, rate=200.0, weight=68.75, state="v", dt=0.1, seed=3, parameters={"period": 1}
    )
    steps, neurons, _ = stimulus.events(0, 0, 1500, 3)
    arrivals = list(zip(steps.tolist(), neurons.tolist(), [68.75] * len(steps), strict=True))
    period = np.where(np.isin(np.arange(60), driven), 1, 22)
    record, _ = hb.simulate(net, 1500, stimulus=stimulus)
    assert pairs_of(record) == loop(net, 1500, arrivals, period)
    assert len(record.spikes) > 300
    silence = torch.tensor([3, 7])
    record, _ = hb.simulate(net, 1500, stimulus=stimulus, silence=silence)
    assert pairs_of(record) == loop(net, 1500, arrivals, period, [3, 7])
    assert record.counts[3] > 0
    record, _ = hb.simulate(net, 1500, stimulus=stimulus, silence=silence, silence_inputs=True)
    assert record.counts[7] == 0 < record.counts[3]


def test_events_are_functions_of_seed_trial_neuron_and_step():
    def events(neurons, trial, first, steps, seed=1):
        stimulus = hb.Stimulus(torch.tensor(neurons), rate=0.1)
        spike_steps, indices, _ = stimulus.events(trial, first, steps, seed)
        return {(k + first, i) for k, i in zip(spike_steps.tolist(), indices.tolist(), strict=True)}

    whole = events([2, 9, 4], 1, 0, 5000)
    assert whole == events([2, 9, 4], 1, 0, 1234) | events([2, 9, 4], 1, 1234, 5000 - 1234)
    assert {pair for pair in whole if pair[1] == 9} == events([9], 1, 0, 5000)
    others = [events([2, 9, 4], 2, 0, 5000), events([2, 9, 4], 1, 0, 5000, seed=2)]
    for other in others:  # independent: a tenth of the spikes are common
        assert len(whole & other) / len(whole) == pytest.approx(0.1, abs=0.03)
    assert len(whole) / 15000 == pytest.approx(0.1, abs=0.01)
    shifted = {(k + 1, i) for k, i in whole}
    assert len(whole & shifted) / len(whole) == pytest.approx(0.1, abs=0.03)


def test_rates_and_weights_differ_between_neurons():
    stimulus = hb.Stimulus(
        torch.tensor([1, 0]), rate=torch.tensor([0.0, 1.0]), weight=torch.tensor([5.0, 0.25]), state="v"
    )
    record, _ = hb.simulate(chain(), 3, stimulus=stimulus, neurons=torch.tensor([0, 1]))
    assert record.states["v"][0].tolist() == [0.25, 0.0]


def test_stimuli_of_one_call_add_up():
    pair = [
        hb.Stimulus(spikes=spikes_at((k, 0), neurons=2, steps=9), state="v", weight=w)
        for k, w in ((4, 1.0), (2, 0.5))
    ]
    record, _ = hb.simulate(chain(), 6, stimulus=pair, neurons=torch.tensor([0]))
    assert record.states["v"][2, 0] == 0.5
    assert record.states["v"][4, 0] == pytest.approx(1 + 0.5 * np.exp(-2 / 200))


@pytest.mark.parametrize("method", ["steps", "passive"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_trials_threads_chunks_and_continuing_are_equal(monkeypatch, dtype, method):
    net = random_network(200, dtype)
    simulate = functools.partial(hb.simulate, method=method)
    driven = torch.arange(0, 40)

    def stimulus(**options):
        return hb.Stimulus(
            driven, 300.0, weight=20.0, state="v", dt=0.1, seed=7, parameters={"period": 1}, **options
        )

    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        records, state = simulate(net, 700, stimulus=stimulus(), trials=4)
        single, _ = simulate(net, 700, stimulus=stimulus())
        torch.set_num_threads(1)
        fewer, _ = simulate(net, 700, stimulus=stimulus(), trials=3)
    finally:
        torch.set_num_threads(threads)
    assert [pairs_of(record) for record in records[:3]] == [pairs_of(record) for record in fewer]
    assert pairs_of(single) == pairs_of(records[0]) != pairs_of(records[1])
    assert min(len(record.spikes) for record in records) > 400
    monkeypatch.setattr(simulation, "LONGEST_CHUNK", 77)
    chunks, _ = simulate(net, 700, stimulus=stimulus(), trials=2)
    assert [pairs_of(record) for record in chunks] == [pairs_of(record) for record in records[:2]]
    _, halfway = simulate(net, 300, stimulus=stimulus(), trials=4, record="counts")
    rest, end = simulate(net, 400, stimulus=stimulus(first_step=300), state=halfway, trials=4)
    for record, part in zip(records, rest, strict=True):
        assert [pair for pair in pairs_of(record) if pair[0] >= 300] == [
            (k + 300, i) for k, i in pairs_of(part)
        ]
    equal = torch.equal if method == "steps" else torch.allclose  # a call brings passive neurons up to date
    assert all(equal(a, b) for a, b in zip(state[""], end[""], strict=True))
    assert [part.shape for part in end[""]] == [(4, 200)] * 4 + [(net.recurrent.reach, 4, 200)]


def test_random_numbers_of_the_cell_differ_between_trials():
    class Noisy(hb.Cell):
        def forward(self, input_, v, s):
            v = 0.5 * v + input_ + torch.randn_like(v)
            return v, hb.spike(v - 1)

    net = hb.Recurrent(Noisy(), 50, hb.SparseLinear(50, 50, 0.1, bias=False))
    torch.manual_seed(0)
    records, _ = hb.simulate(net, 100, trials=3)
    torch.manual_seed(0)
    single, _ = hb.simulate(net, 100)
    assert pairs_of(single) == pairs_of(records[0])
    assert len({str(pairs_of(record)) for record in records}) == 3


def test_arguments_are_checked():
    net, some = chain(), torch.tensor([0])
    cases = [
        (lambda: hb.Stimulus(some), "either a rate or spikes"),
        (lambda: hb.Stimulus(rate=0.5), "neurons must be the indices"),
        (lambda: hb.Stimulus([0], rate=0.5), "write torch.tensor"),
        (lambda: hb.Stimulus(torch.tensor([0, 0]), rate=0.5), "different indices"),
        (lambda: hb.Stimulus(some, rate=150.0), "give dt for spikes/s, got 150.0"),
        (lambda: hb.Stimulus(some, rate=20000.0, dt=0.1), "steps of 0.1 ms, got 20000.0"),
        (lambda: hb.Stimulus(some, rate=0.1, dt=0.0), "dt must be a positive number"),
        (lambda: hb.Stimulus(some, rate=0.1, weight=float("nan")), "weight must be finite"),
        (lambda: hb.Stimulus(spikes=[1, 2]), "spikes must be hb.SpikeTrains, got list"),
        (lambda: hb.simulate(net, 9, stimulus=[1.0]), "hb.Stimulus or a list of them, got float"),
        (lambda: hb.simulate(net, 9, stimulus=hb.Stimulus(some + 2, 0.1)), r"lie in \[0, 2\), got 2"),
        (lambda: hb.simulate(net, 9, stimulus=hb.Stimulus(some, 0.1, state="g")), "v, r, or None, got 'g'"),
        (
            lambda: hb.simulate(net, 9, stimulus=hb.Stimulus(some, 0.1, parameters={"tau": 2})),
            r"each of 2 neurons \(period\), got 'tau'",
        ),
        (lambda: hb.simulate(net, 9, silence=torch.tensor([7])), r"silence must lie in \[0, 2\), got 7"),
        (lambda: hb.simulate(net, 9, trials=0), "trials must be a whole number of at least 1"),
        (lambda: hb.simulate(nn.Sequential(hb.LIF()), 9, torch.ones(3), trials=2), "got Sequential"),
        (lambda: hb.ExactLIFCell(period=0.0), "period must lie in"),
        (lambda: hb.ExactLIFCell(2.0, 2.0), "tau_synapse must differ from tau, got 2.0"),
    ]  # fmt: skip
    for call, message in cases:
        with pytest.raises((TypeError, ValueError), match=message):
            call()
    _, state = hb.simulate(net, 9, trials=3)
    with pytest.raises(ValueError, match="batch of 1 or 2 trials, got 3"):
        hb.simulate(net, 9, state=state, trials=2)
