"""Rewiring: the number of synapses is constant, rows stay sorted, and optimizer state follows its synapse."""

import copy
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import hibana as hb
from hibana.learn.rewire import draw_absent
from hibana.spikes.sparse import Connections

OPTIMIZERS = {
    "Adam": lambda parameters: torch.optim.Adam(parameters, lr=0.02),
    "SGD": lambda parameters: torch.optim.SGD(parameters, lr=0.5, momentum=0.9),
}
RULES = {
    "DeepR": lambda *arguments, **options: hb.learn.DeepR(*arguments, l1=0.01, temperature=1e-3, **options),
    "SET": lambda *arguments, **options: hb.learn.SET(*arguments, every=1, fraction=0.2, **options),
    "RigL": lambda *arguments: hb.learn.RigL(*arguments, every=1, end=1000, fraction=0.2),
}


def network(*, delays=False, connectivity=0.3):
    torch.manual_seed(0)
    steps = torch.randint(0, 4, (9, 12)) if delays else None
    return nn.Sequential(
        hb.SparseLinear(12, 9, connectivity, delays=steps),
        hb.LIF(surrogate=hb.surrogate.ATan()),
        nn.Linear(9, 2),
    )


def optimize(net, optimizer, seed=0):
    """One step of the optimizer, with random inputs and targets."""
    generator = torch.Generator().manual_seed(seed)
    x = (torch.rand(6, 4, 12, generator=generator) < 0.5).float()
    optimizer.zero_grad()
    (net(x) - torch.rand(2, generator=generator)).square().mean().backward()
    optimizer.step()


def synapses(layer, values):
    """The value of each synapse, by source, delay and target."""
    delays = torch.zeros_like(layer.targets) if layer.delays is None else layer.delays
    keys = zip(layer.sources.tolist(), delays.tolist(), layer.targets.tolist(), strict=True)
    return dict(zip(keys, values.tolist(), strict=True))


def state_by_synapse(layer, optimizer):
    """The weights, gradients and moments of `layer`: for each, the value of each synapse."""
    moments = {name: value for name, value in optimizer.state[layer.weight].items() if name != "step"}
    values = {"weight": layer.weight, "grad": layer.weight.grad, **moments}
    return {name: synapses(layer, value) for name, value in values.items()}


@pytest.mark.parametrize(
    ("rule", "delays"), [*((rule, False) for rule in RULES), ("DeepR", True), ("SET", True)]
)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_rows_stay_sorted_and_state_follows_its_synapse(rule, optimizer, delays):
    net = network(delays=delays)
    layer = net[0]
    parameter, versions = layer.weight, (layer.targets._version, layer.row_starts._version)
    optimizer = OPTIMIZERS[optimizer](net.parameters())
    rule = RULES[rule](net, optimizer)
    count, delays_before = len(parameter), None if layer.delays is None else layer.delays.sort().values
    moved = 0
    for seed in range(8):
        optimize(net, optimizer, seed)
        before = state_by_synapse(layer, optimizer)
        rule.step()
        after = state_by_synapse(layer, optimizer)
        keys = list(after["weight"])
        assert layer.weight is parameter
        assert len(keys) == len(layer.targets) == layer.row_starts[-1] == count
        assert keys == sorted(keys)
        common, new = before["weight"].keys() & keys, keys - before["weight"].keys()
        moved += len(new)
        for name, values in after.items():
            assert all(values[key] == 0 for key in new)
            if name != "weight":  # DEEP R changes weights
                removed_and_added = {key for key in common if after["weight"][key] == 0}
                assert all(values[key] == before[name][key] for key in common - removed_and_added)
    assert moved > 0
    assert layer.targets._version > versions[0]
    assert layer.row_starts._version > versions[1]
    if delays_before is not None:
        assert torch.equal(layer.delays.sort().values, delays_before)


def test_deep_r_keeps_signs_and_removes_weights_that_cross_zero():
    net = network()
    layer = net[0]
    optimizer = torch.optim.SGD([layer.weight], lr=0.1)
    rule = hb.learn.DeepR(net, optimizer, temperature=0, l1=0.5)
    with torch.no_grad():
        layer.weight.copy_(torch.linspace(-1, 1, len(layer.weight)).roll(5))
        layer.weight[0], layer.weight[1] = -0.0, 0.0
    weight = layer.weight.detach().clone()
    gradient = torch.randn(len(weight), generator=torch.Generator().manual_seed(0))
    layer.weight.grad = gradient.clone()
    negative = weight.signbit()
    before = synapses(layer, weight)
    optimizer.step()
    rule.step()
    theta = torch.where(negative, -1, 1) * (weight - 0.1 * gradient) - 0.1 * 0.5
    expected = zip(before, torch.where(negative, -theta, theta).tolist(), theta.tolist(), strict=True)
    survivors = {key: weight for key, weight, magnitude in expected if magnitude >= 0}
    after = synapses(layer, layer.weight)
    assert 0 < len(survivors) < len(before)
    for key, value in survivors.items():
        assert after[key] == pytest.approx(value, abs=1e-7)
    zeros = layer.weight.detach() == 0
    assert zeros.sum() == len(before) - len(survivors)
    assert 0 < layer.weight[zeros].signbit().sum() < zeros.sum()  # both signs are drawn
    restored = copy.deepcopy(layer)
    restored.load_state_dict(layer.state_dict())
    assert torch.equal(restored.weight.signbit(), layer.weight.signbit())


def test_deep_r_without_a_gradient_and_l1_moves_nothing():
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    rule = hb.learn.DeepR(net, optimizer, temperature=0, l1=0)
    with torch.no_grad():
        net[0].weight[:6] = torch.tensor([0.0, -0.0] * 3)
    before = synapses(net[0], net[0].weight)
    for parameter in net.parameters():
        parameter.grad = -torch.zeros_like(parameter)  # -0.0 would turn -0.0 into +0.0 in SGD
    optimizer.step()
    rule.step()
    assert synapses(net[0], net[0].weight) == before
    assert net[0].weight[:6].signbit().tolist() == [False, True] * 3


def test_new_pairs_are_uniform():
    counts, generator = torch.zeros(20), np.random.default_rng(0)
    present = torch.tensor([0, 3, 4, 11, 19])
    for _ in range(4000):
        pairs = draw_absent(present, 3, 20, generator)
        assert pairs.unique().numel() == 3
        counts[pairs] += 1
    assert counts[present].sum() == 0
    absent = counts[counts > 0]
    assert len(absent) == 15
    assert ((absent - 800).square() / (800 * 0.8)).sum() < 36  # chi-squared: exceeded with probability 0.1%
    all_absent = draw_absent(present, 15, 20, generator)
    assert sorted([*all_absent.tolist(), *present.tolist()]) == list(range(20))


def test_set_removes_the_weakest_of_each_sign():
    net = network()
    layer = net[0]
    rule = hb.learn.SET(net, torch.optim.SGD(net.parameters(), lr=0.1), fraction=0.5, every=2)
    before = synapses(layer, layer.weight)
    rule.step()
    assert synapses(layer, layer.weight) == before
    rule.step()
    after = synapses(layer, layer.weight)
    for sign in (-1, 1):
        by_strength = sorted((abs(w), key) for key, w in before.items() if w * sign > 0)
        remaining = {key for key in after if after[key] * sign > 0}
        assert remaining == {key for _, key in by_strength[len(by_strength) // 2 :]}


@pytest.mark.parametrize("block", [1 << 20, 20])
def test_rigl_adds_the_pairs_with_the_largest_gradients(block, monkeypatch):
    monkeypatch.setattr(hb.learn.rewire, "BLOCK", block)
    net = network().double()
    layer = net[0]
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-9)
    rule = hb.learn.RigL(net, optimizer, fraction=0.4, every=1, end=4)
    before = synapses(layer, layer.weight)
    dense = layer.to_dense().detach().requires_grad_()
    inputs = [(torch.rand(6, 4, 12) < 0.5).double() for _ in range(2)]  # gradients of two calls add up
    for x in inputs:
        net(x).square().sum().backward()
        current = nn.functional.linear(x, dense, layer.bias.detach())
        net[2](net[1](current)).square().sum().backward()
    optimizer.step()
    rule.step()
    count = int(0.4 / 2 * (1 + 2**-0.5) * len(before))  # cos(pi / 4)
    after = synapses(layer, layer.weight)
    removed = {key for _, key in sorted((abs(w), key) for key, w in before.items())[:count]}
    candidates = {
        (source, 0, target): dense.grad[target, source].abs().item()
        for source in range(12)
        for target in range(9)
        if (source, 0, target) not in before.keys() - removed
    }
    chosen = sorted(candidates, key=candidates.get)[-count:]
    assert after.keys() == (before.keys() - removed) | set(chosen)
    rule.steps = 3
    rule.step()  # at `end`, nothing moves
    assert synapses(layer, layer.weight).keys() == after.keys()


@pytest.mark.parametrize("rule", RULES)
def test_equal_seeds_give_equal_synapses_also_after_resuming(rule):
    def run(pieces, seed=0):
        net = network()
        optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
        options = {} if rule == "RigL" else {"seed": seed}
        rewiring = RULES[rule](net, optimizer, **options)
        for steps in pieces:
            resumed = network()
            resumed.load_state_dict(net.state_dict())
            other = torch.optim.Adam(resumed.parameters(), lr=0.02)
            other.load_state_dict(optimizer.state_dict())
            state, rewiring = rewiring.state_dict(), RULES[rule](resumed, other, **options)
            rewiring.load_state_dict(state)
            net, optimizer = resumed, other
            for _ in range(steps):
                optimize(net, optimizer, rewiring.steps)
                rewiring.step()
        return synapses(net[0], net[0].weight)

    assert run([4]) == run([4]) == run([1, 3])
    if rule != "RigL":  # draws no random numbers
        assert run([4]).keys() != run([4], seed=1).keys()


DISTRIBUTED = """
import os, sys, torch, hibana as hb
from torch import distributed, nn
rank, group = int(sys.argv[1]), sys.argv[2]
distributed.init_process_group("gloo", init_method=f"file://{group}", rank=rank, world_size=2)
torch.manual_seed(0)
hidden = hb.LIF(surrogate=hb.surrogate.ATan())
net = nn.Sequential(hb.SparseLinear(20, 30, 0.1), hidden, hb.SparseLinear(30, 5, 0.3))
copies, optimizer = nn.parallel.DistributedDataParallel(net), torch.optim.Adam(net.parameters(), lr=0.02)
rules = {"DeepR": {"l1": 0.01}, "SET": {"every": 3}, "RigL": {"every": 3, "end": 100}}
rule = getattr(hb.learn, sys.argv[3])(net, optimizer, **rules[sys.argv[3]])
before = net[0].targets.clone()
torch.manual_seed(rank)  # each process has other inputs
for _ in range(7):
    optimizer.zero_grad()
    (copies((torch.rand(6, 8, 20) < 0.3).float()) - torch.rand(5)).square().mean().backward()
    optimizer.step()
    rule.step()
assert not torch.equal(net[0].targets, before)
for name, value in net.state_dict().items():
    values = [torch.empty_like(value) for _ in range(2)]
    distributed.all_gather(values, value)
    assert torch.equal(*values), name
distributed.destroy_process_group()
os._exit(0)  # a thread of gloo may abort while Python ends: pytorch issue 190489
"""


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES)
def test_all_processes_move_the_same_synapses(rule, tmp_path):
    source = str(Path(hb.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": source, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", DISTRIBUTED]
    processes = [
        subprocess.Popen(
            [*command, str(rank), tmp_path / "group", rule], env=environment, stderr=subprocess.PIPE
        )
        for rank in range(2)
    ]
    for process in processes:
        errors = process.communicate(timeout=120)[1]
        assert process.returncode == 0, errors.decode()


def test_errors_name_the_layer():
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="net must hold a hibana"):
        hb.learn.DeepR(nn.Linear(2, 2), optimizer)
    with pytest.raises(ValueError, match="the weight of layer '0'"):
        hb.learn.SET(net, torch.optim.SGD(net[2].parameters(), lr=0.1))
    delayed = network(delays=True)
    with pytest.raises(ValueError, match="layer '0' has delays"):
        hb.learn.RigL(delayed, torch.optim.SGD(delayed.parameters(), lr=0.1), end=10)
    with pytest.raises(ValueError, match="l1 must be finite"):
        hb.learn.DeepR(net, optimizer, l1=-1)
    with pytest.raises(ValueError, match=r"fraction must lie in \(0, 1\)"):
        hb.learn.SET(net, optimizer, fraction=1.0)
    with pytest.raises(ValueError, match="every must be a number of steps"):
        hb.learn.SET(net, optimizer, every=0)
    with pytest.raises(RuntimeError, match="layer '0' has no output gradient"):
        hb.learn.RigL(net, optimizer, every=1, end=10).step()
    duplicates = Connections.from_pairs(
        torch.zeros(5, dtype=torch.int64), torch.zeros(5, dtype=torch.int64), (2, 2)
    )
    layer = hb.SparseLinear(2, 2, duplicates)
    with pytest.raises(ValueError, match="more synapses than pairs"):
        hb.learn.SET(layer, torch.optim.SGD(layer.parameters(), lr=0.1))
