"""``hb.simulate``: the same spikes as a loop in PyTorch, for any number of threads and chunks."""

import importlib.util
import json
import os
import signal
from pathlib import Path

import pytest
import torch
from torch import nn

import hibana as hb
from hibana.cells.surrogate import ATan
from hibana.compiler import draws, reference
from hibana.compiler.graph.trace import trace
from hibana.network import simulate_kernel, simulation

EXAMPLES = Path(__file__).parents[2] / "examples"


class Refractory(hb.Cell):
    """Neurons with Poisson input and a refractory period."""

    def __init__(self, neurons):
        super().__init__()
        self.rate = torch.linspace(0.1, 3, neurons)

    def forward(self, input_, v, countdown, spikes):
        is_active = countdown == 0
        v = torch.where(is_active, 0.875 * v + input_ + 0.125 * torch.poisson(self.rate.expand_as(v)), v)
        spikes = (v >= 1).to(v.dtype)
        return torch.where(spikes > 0, 0, v), torch.where(spikes > 0, 3, torch.relu(countdown - 1)), spikes


class SurrogateLIF(hb.Cell):
    """Neurons with a surrogate gradient and an initial potential."""

    def forward(self, input_, v, spikes):
        v = 0.75 * v * (1 - spikes) + input_
        return v, ATan()(v - 1)

    def initial_state(self, input_):
        return torch.full_like(input_, 0.5), torch.zeros_like(input_)


def network(neurons, longest_delay=None, *, cell=Refractory, bias=True, dtype=torch.float32, seed=0):
    torch.manual_seed(seed)
    delays = None if longest_delay is None else torch.randint(0, longest_delay + 1, (neurons, neurons))
    synapses = hb.SparseLinear(neurons, neurons, 0.1, bias, delays)
    with torch.no_grad():
        synapses.weight.copy_((torch.randn_like(synapses.weight) * 8).round() / 64)
        if bias:
            synapses.bias.copy_((torch.rand(neurons) * 16).round() / 128)
    return hb.Recurrent(cell(neurons) if cell is Refractory else cell(), neurons, synapses).to(dtype)


def expected(net, steps, inputs=None):
    """All spikes, all potentials and the last state, by a loop in PyTorch with one seed."""
    synapses, drawing = net.recurrent, draws.Drawing("test")
    delays = synapses.delays if synapses.delays is not None else torch.zeros_like(synapses.targets)
    shape = synapses.reach + 1, net.features, net.features
    dense = torch.zeros(shape, dtype=synapses.weight.dtype)
    indices = (delays.long(), synapses.targets.long(), synapses.sources)
    dense.index_put_(indices, synapses.weight.detach(), accumulate=True)
    zeros = dense.new_zeros(1, net.features)
    cell_state = net.cell.initial_state(zeros)
    spikes, potentials = [zeros] * (len(dense) - 1) + [cell_state[-1]], []
    with torch.no_grad():
        for t in range(steps):
            feedback = sum(spikes[-1 - d] @ dense[d].T for d in range(len(dense)))
            feedback = feedback if synapses.bias is None else feedback + synapses.bias
            current = feedback if inputs is None else feedback + (inputs if inputs.ndim == 1 else inputs[t])
            _, cell_state = reference.unroll(net.cell, current[None], tuple(cell_state), drawing)
            spikes.append(cell_state[-1])
            potentials.append(cell_state[0][0])
    last = torch.stack(spikes[-len(dense) : -1]) if len(dense) > 1 else zeros[:0, None]
    end = (*cell_state, last) if synapses.delays is not None else tuple(cell_state)
    return torch.cat(spikes[-steps:]), torch.stack(potentials), end


def dense(record):
    spikes = torch.zeros(record.spikes.shape)
    spikes[record.spikes.steps, record.spikes.neurons.long()] = 1
    return spikes


@pytest.fixture(params=[1, 2, 4])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("neurons", "longest", "options"),
    [
        (1, 0, {}),
        (5, 7, {"dtype": torch.float64}),
        (64, None, {"bias": False}),
        (200, None, {"cell": SurrogateLIF}),
        (200, 3, {"cell": SurrogateLIF, "bias": False}),
        (260, 40, {"bias": False}),
        (70, 255, {}),
    ],
)
def test_spikes_and_states_of_the_loop(threads, neurons, longest, options):
    net, steps = network(neurons, longest, **options), 300
    dtype = net.recurrent.weight.dtype
    inputs = (torch.rand(steps, neurons) * 0.6).to(dtype) if neurons != 260 else None
    torch.manual_seed(3)
    spikes, potentials, state = expected(net, steps, inputs)
    torch.manual_seed(3)
    selected = torch.tensor(sorted({0, neurons // 2, neurons - 1}))
    record, last = hb.simulate(net, steps, inputs, neurons=selected, every=7)
    assert neurons == 1 or spikes.mean() > 0.02
    assert torch.equal(dense(record).to(dtype), spikes)
    assert torch.equal(record.counts, spikes.sum(0).long())
    assert torch.equal(record.states["v"], potentials[6::7, selected])
    assert all(torch.equal(left, right) for left, right in zip(last[""], state, strict=True))


@pytest.mark.parametrize("longest", [None, 0, 9])
def test_state_continues_in_simulate_and_in_run(longest):
    net, inputs = network(130, longest, cell=SurrogateLIF), torch.rand(60, 130) * 0.6
    spikes, last = hb.run(net, inputs[:, None])
    first, state = hb.simulate(net, 20, inputs[:20])
    second, state = hb.simulate(net, 20, inputs[20:40], state)
    third, state = hb.run(net, inputs[40:, None], state)
    assert torch.equal(torch.cat([dense(first), dense(second), third[:, 0]]), spikes[:, 0])
    assert all(torch.equal(left, right) for left, right in zip(state[""], last[""], strict=True))


def test_other_networks_run_in_chunks():
    torch.manual_seed(2)
    net = nn.Sequential(nn.Linear(6, 40), hb.LIF(), nn.Linear(40, 9), hb.IF())
    inputs = torch.rand(230, 6)
    spikes, last = hb.run(net, inputs[:, None])
    selected = torch.tensor([1, 8])
    record, state = hb.simulate(net, 230, inputs, neurons=selected, every=100)
    assert torch.equal(dense(record), spikes[:, 0])
    assert torch.equal(state["3"][0], last["3"][0])
    assert torch.equal(record.states["v"][1], hb.run(net, inputs[:200, None])[1]["3"][0][0, selected])
    constant, _ = hb.simulate(net, 20, inputs[0], state, record="counts")
    repeated, _ = hb.run(net, inputs[:1, None].expand(20, 1, 6), last)
    assert torch.equal(constant.counts, repeated.sum((0, 1)).long())


def test_interruption_returns_the_record_so_far(monkeypatch, capsys):
    monkeypatch.setattr(simulation, "LONGEST_CHUNK", 10)
    net, before = network(64, 3), signal.getsignal(signal.SIGINT)
    chunks = []

    def advance(self, steps, run=simulation.Simulation.advance):
        chunks.append(steps)
        if len(chunks) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return run(self, steps)

    torch.manual_seed(4)
    complete, _ = hb.simulate(net, 60)
    monkeypatch.setattr(simulation.Simulation, "advance", advance)
    torch.manual_seed(4)
    record, state = hb.simulate(net, 1000, progress=True)
    assert signal.getsignal(signal.SIGINT) is before
    assert record.steps == 30
    assert torch.equal(dense(record), dense(complete)[:30])
    assert torch.equal(state[""][-2][0], dense(complete)[29])
    assert "30 of 1,000 steps" in capsys.readouterr().err


def test_cells_without_a_program_warn_and_run():
    class Graded(SurrogateLIF):
        def forward(self, input_, v, spikes):
            v = 0.5 * v + input_
            return v, torch.where(v > 1, v / v, v * 0)

    net = network(70, cell=Graded)
    with pytest.warns(hb.SlowPathWarning, match="does not emit spikes that are 0 or 1"):
        record, _ = hb.simulate(net, 20, torch.full([70], 0.6))
    assert torch.equal(dense(record), hb.run(net, torch.full([20, 1, 70], 0.6))[0][:, 0])


def test_arguments_are_checked():
    net = network(70, 5)
    _, state = hb.simulate(net, 3)
    wrong = (*state[""][:-1], state[""][-1][1:])
    unsorted = network(70, 5)
    unsorted.recurrent.delays.copy_(unsorted.recurrent.delays.flip(0))
    outside = network(70, 5)
    outside.recurrent.targets[0] = 70
    sequence = nn.Sequential(nn.Linear(4, 3), hb.LI())
    for message, arguments in {
        "steps must be a whole number of at least 1, got 0": (net, 0),
        "every must be a whole number of at least 1, got 2.0": (net, 3, {"every": 2.0}),
        'record must be "spikes" or "counts"': (net, 3, {"record": "all"}),
        r"inputs must have the shape \[70\] or \[3, 70\]": (net, 3, {"inputs": torch.zeros(2, 70)}),
        "state must be v, countdown, spikes and": (net, 3, {"state": {"": wrong}}),
        "must be 0 or 1": (net, 3, {"state": {"": tuple(x + 0.5 for x in state[""])}}),
        "state must have the entry ''": (net, 3, {"state": {}}),
        r"neurons must lie in \[0, 70\)": (net, 3, {"neurons": torch.tensor([3, 70])}),
        "neurons must be ascending": (net, 3, {"neurons": torch.tensor([3, 3])}),
        "sorted by delay, then target": (unsorted, 3),
        "targets must lie in": (outside, 3),
        "inputs must be a tensor for this network": (sequence, 3),
        "net must return spikes": (sequence, 3, {"inputs": torch.rand(4)}),
    }.items():
        positional, options = arguments[:2], dict(*arguments[2:])
        with pytest.raises(ValueError, match=message):
            hb.simulate(*positional, **options)
    for layer, options in ((net, {}), (nn.Sequential(nn.Linear(4, 3), hb.IF()), {"inputs": torch.rand(4)})):
        with pytest.raises(TypeError, match=r"neurons must be a tensor of indices, got \[1, 2\]"):
            hb.simulate(layer, 3, neurons=[1, 2], **options)


def test_threads_that_sleep_at_each_barrier_give_the_same_spikes(monkeypatch):
    monkeypatch.setattr(simulate_kernel, "SPINS", 0)
    before, records = torch.get_num_threads(), []
    try:
        for threads in (1, 4):
            torch.set_num_threads(threads)
            torch.manual_seed(0)
            records.append(hb.simulate(network(700, 5), 50)[0].spikes)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(records[0].steps, records[1].steps)
    assert torch.equal(records[0].neurons, records[1].neurons)


@pytest.mark.skipif(simulate_kernel.SLEEPS is None, reason="threads sleep on Linux")
def test_waiting_threads_sleep_until_they_are_woken():
    step, dtype = trace(hb.LIFCell(), torch.Size([1, 70]), torch.float32), torch.float32
    source = simulate_kernel.Program(step, dtype, dtype)
    assert source.kernel.source.count("@syscall(") == 3  # a declaration, to sleep, and to wake
    assert "sched_yield" not in source.kernel.source


def test_rates_of_the_microcircuit_are_those_of_nest():
    """Each population within 15% of the mean of five seeds of NEST 3.10."""
    spec = importlib.util.spec_from_file_location("microcircuit", EXAMPLES / "microcircuit.py")
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    lines = (EXAMPLES / "results" / "microcircuit.jsonl").read_text().splitlines()
    nest = torch.tensor([json.loads(line)["rates"] for line in lines]).mean(0)
    net, sizes, potentials = example.microcircuit(0.1, seed=1)
    zeros = torch.zeros(1, net.features)
    state = {"": (potentials[None], zeros, zeros, zeros, zeros.expand(net.recurrent.reach, 1, -1))}
    torch.manual_seed(1)
    record, _ = hb.simulate(net, 15_000, state=state)
    trains = record.spikes.between(5000).split(sizes).values()
    rates = torch.tensor([float(train.rates(example.STEP).mean()) for train in trains])
    assert ((rates / nest - 1).abs() < 0.15).all(), rates / nest
