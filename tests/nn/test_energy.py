"""Energy of an inference: every count by hand on small networks; prices, memory levels, counters."""

import re

import pytest
import torch
from torch import nn

pytest.importorskip("torchmetrics", reason="the extra train is not installed")

import hibana as hb
from hibana.nn.energy import LEVELS
from hibana.nn.metrics import SynOps, energy

SMALL = "8 KiB SRAM"


def spikes(*shape, rate=0.3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(shape, generator=generator) < rate).float()


def network(*, bias=True):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 5, bias=bias), hb.IF(), nn.Linear(5, 2, bias=bias), hb.LI())
    return net.requires_grad_(False)


def test_a_spiking_network_by_hand():
    net, x = network(), spikes(4, 6, 3)
    net[0].weight.abs_().mul_(4)
    result = energy(net, x).network
    hidden = net[1](net[0](x))
    first, second, emitted = (int(tensor.sum()) for tensor in (x, hidden, hidden))
    assert emitted > 0
    acs = first * 5 + second * 2
    steps = 4 * 6
    biases = steps * 7
    # IF: 1 - s, times v, plus the input; less the threshold; LI: v times its decay, plus the input
    of_neurons = {"additions": 3 * 5 + 1 * 2, "multiplications": 1 * 5 + 1 * 2}
    assert result.additions == pytest.approx((acs + biases + steps * of_neurons["additions"]) / 6)
    assert result.multiplications == pytest.approx(steps * of_neurons["multiplications"] / 6)
    assert result.reads == pytest.approx(
        {
            ("weights", SMALL): (acs + biases) / 6,
            ("states", SMALL): (acs + steps * 7) / 6,
            ("activations", SMALL): (first + second + steps * 7) / 6,
        }
    )
    assert result.writes == pytest.approx(
        {("states", SMALL): (acs + steps * 7) / 6, ("activations", SMALL): emitted / 6}
    )
    accesses = sum(result.reads.values()) + sum(result.writes.values())
    assert result.memory == pytest.approx(accesses * 10e-12 / 2)
    assert result.arithmetic == pytest.approx(result.additions * 0.9e-12 + result.multiplications * 3.7e-12)
    assert sum(result.layers.values()) == pytest.approx(result.joules)
    assert set(result.layers) == {"0", "1", "2", "3"}
    assert result.uncounted == ()


def test_a_dense_network_by_hand():
    dense = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2))
    x = torch.rand(6, 3)
    result = energy(network(), x.expand(4, 6, 3), against=(dense, x[None])).against
    assert (result.multiplications, result.additions) == (25, 25 + 7)
    assert result.reads == {("weights", SMALL): 32, ("activations", SMALL): 8}
    assert result.writes == {("activations", SMALL): 7}
    assert result.uncounted == ("ReLU",)


def test_zeros_and_ones_are_values_to_a_dense_network():
    dense = nn.Sequential(nn.Linear(3, 5))
    x = spikes(1, 6, 3)
    result = energy(dense, x, against=dense)
    assert result.against.multiplications == 15
    assert result.network.multiplications == 0
    same = x.expand(4, 6, 3)
    assert energy(dense, same, against=dense).against.multiplications == 15


def test_a_constant_current_is_multiplied_once():
    net, x = network(), torch.rand(6, 3)
    once, copies = energy(net, x.expand(4, 6, 3)).network, energy(net, x.repeat(4, 1, 1)).network
    assert copies.multiplications - once.multiplications == 3 * 15
    key = ("activations", SMALL)
    assert copies.writes[key] - once.writes[key] == 3 * 5
    assert copies.reads[key] - once.reads[key] == 3 * 3


def test_a_convolution_by_hand():
    net = nn.Sequential(hb.EachStep(nn.Conv2d(2, 3, 3, stride=2, padding=1, bias=False)), hb.IF())
    net.requires_grad_(False)
    x = spikes(4, 2, 2, 7, 6)
    result = energy(net, x).network
    count = SynOps()
    with count.watch(net):
        outputs = net(x)
    acs = count.compute()["acs"].item()
    assert outputs.shape[2:] == (3, 4, 3)
    assert result.reads[("weights", SMALL)] == acs
    updates = 4 * 36
    assert result.additions == acs + 3 * updates
    assert result.reads[("states", SMALL)] == acs + updates
    values = energy(net, x + 0.5).network
    taps = 3 * sum(
        1
        for row in range(4)
        for column in range(3)
        for i in range(3)
        for j in range(3)
        if 0 <= 2 * row - 1 + i < 7 and 0 <= 2 * column - 1 + j < 6
    )
    assert values.multiplications == 4 * taps * 2 + updates
    assert values.reads[("weights", SMALL)] == 4 * taps * 2
    assert values.writes[("activations", SMALL)] == 4 * 36 + spike_count(net, x + 0.5) / 2


def spike_count(net, x):
    return int(net(x).sum())


@pytest.mark.parametrize("padding", ["same", "valid", 2])
def test_each_output_of_a_convolution_is_written_once(padding):
    line, image = nn.Conv1d(2, 3, 3, padding=padding), nn.Conv2d(2, 3, 3, padding=padding, dilation=2)
    for layer, shape in ((line, (2, 9)), (image, (2, 9, 8))):
        x = torch.rand(5, 4, *shape)
        net = hb.EachStep(layer).requires_grad_(False)
        assert energy(net, x).network.writes == {("activations", SMALL): net(x).numel() / 4}


@pytest.mark.parametrize(
    "layer",
    [
        hb.Window(3, 5, 4, dilation=2),
        hb.DelayedLinear(3, 5, max_delay=4),
        hb.SparseLinear(3, 5, 0.7),
        hb.SparseLinear(3, 5, 0.7, delays=torch.randint(0, 9, (5, 3))),
        hb.Recurrent(hb.LIFCell(), 3),
        hb.DelayedRecurrent(hb.LIFCell(), 3, max_delay=2),
        hb.EachStep(nn.Linear(3, 4)),
        hb.Linear(3, 4),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_synaptic_operations_equal_those_of_syn_ops(layer):
    net, x = nn.Sequential(layer, hb.LI()).requires_grad_(False).eval(), spikes(7, 2, 3, rate=0.6)
    count = SynOps()
    with count.watch(net):
        net(x)
    synapses = [module for module in net.modules() if getattr(module, "weight", None) is not None]
    biases = sum(module.bias is not None for module in synapses) * 7 * net(x).shape[2]
    result = energy(net, x).network
    words = sum(count for (kind, _), count in result.reads.items() if kind == "weights")
    assert words == count.compute()["acs"].item() + biases
    assert words > 0


def test_a_large_memory_costs_more():
    sizes = {40: (SMALL, 10), 80: ("32 KiB SRAM", 20), 500: ("1 MiB SRAM", 100), 600: ("DRAM", 1300)}
    for features, (level, joules) in sizes.items():
        layer = nn.Linear(features, features, bias=False).requires_grad_(False)
        result = energy(layer, spikes(2, 3, features)).network
        assert [memory for kind, memory in result.reads if kind == "weights"] == [level]
        (price,) = [e for name, (_, e) in LEVELS.items() if name == level]
        assert price == pytest.approx(joules * 1e-12)


def test_narrow_numbers_cost_less():
    net, x = network(), spikes(4, 6, 3)
    wide, narrow = (energy(net, x, arithmetic=each).network for each in ("float32", "int8"))
    assert (wide.additions, wide.reads) == (narrow.additions, narrow.reads)
    assert narrow.memory == pytest.approx(wide.memory / 4)
    assert narrow.arithmetic < wide.arithmetic / 10
    with pytest.raises(
        ValueError, match="arithmetic must be one of float32, float16, int32, int8, got 'bfloat'"
    ):
        energy(net, x, arithmetic="bfloat")


def test_batches_add_up_and_the_mode_stays():
    net, x = network().train(), spikes(4, 6, 3)
    net[1].eval()
    full = energy(net, x)
    parts = energy(net, [(x[:, :2], "labels"), x[:, 2:]])
    assert full.network.reads == pytest.approx(parts.network.reads)
    assert full.network.joules == pytest.approx(parts.network.joules)
    assert [module.training for module in net] == [True, False, True, True]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net)
    for empty in ([], x[:, :0], torch.ones(3)):
        with pytest.raises(ValueError, match=r"data must hold at least one sample, \[T, batch, ...\]"):
            energy(net, empty)


def test_uncounted_modules_are_named():
    class Doubling(nn.Module):
        def forward(self, x):
            return x * 2

    net = nn.Sequential(nn.Linear(3, 4), Doubling(), hb.IF()).requires_grad_(False)
    result = energy(net, spikes(4, 6, 3))
    assert result.network.uncounted == ("Doubling",)
    assert "- not counted: Doubling\n" in f"{result}\n"


def test_modules_with_weights_beside_inner_layers_are_named_as_uncounted():
    class Attending(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x):
            return self.attention(x, x, x)[0]

    net = nn.Sequential(nn.Linear(8, 8), hb.IF(), Attending())
    assert hb.metrics.energy(net, torch.rand(3, 2, 8)).network.uncounted == ("MultiheadAttention",)


def test_an_optimised_network_counts_as_the_plain_one():
    torch.manual_seed(0)
    plain = nn.Sequential(
        hb.EachStep(nn.Conv2d(2, 4, 3, padding=1)), hb.EachStep(nn.BatchNorm2d(4)), hb.IF(),
        hb.EachStep(nn.MaxPool2d(2)), nn.Flatten(2), nn.Linear(64, 3), hb.LI(),
    ).requires_grad_(False)  # fmt: skip
    x = spikes(4, 3, 2, 8, 8)
    before = energy(plain, x).network
    hb.optimize(plain, x, verbose=False)
    after = energy(plain, x).network
    assert after.reads == before.reads
    assert after.additions == before.additions


def test_the_table_has_a_column_for_each_network_and_lists_its_assumptions():
    dense = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2))
    x = torch.rand(6, 3)
    table, assumptions = str(energy(network(), x.expand(4, 6, 3), against=(dense, x[None]))).split("\n\n")
    head, *rows = table.splitlines()
    assert head.split() == ["network", "dense"]
    assert re.search(r"^additions +\d+ +32$", table, re.MULTILINE)
    assert re.search(r"^reads, weights in 8 KiB SRAM +\d+ +32$", table, re.MULTILINE)
    assert re.search(r"^energy, estimated +[\d.]+ [np]J +[\d.]+ [np]J$", table, re.MULTILINE)
    assert len({len(row) for row in rows}) == 1
    assert "0.9 pJ an addition, 3.7 pJ a multiplication (45 nm, Horowitz 2014)" in assumptions
