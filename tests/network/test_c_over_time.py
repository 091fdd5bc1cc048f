"""Windows and delays as C: rings of steps that give what PyTorch does, bit for bit."""

import subprocess
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import hibana as hb
from c_programs import compiled, needs_cc, outputs_of
from hibana import loss
from hibana.cli import convert, main
from hibana.network import quantize, to_c
from hibana.train import activity, load
from ordered import in_order
from selection import examples


def each(module):
    return hb.EachStep(module)


NETWORKS = {
    "windows": (
        lambda: nn.Sequential(
            hb.Window(3, 8, 4, dilation=2), hb.IF(0.2), hb.Window(8, 6, 3, groups=2), hb.LIF(threshold=0.2),
            hb.Window(6, 6, 2, groups=6, bias=False), hb.LI(),
        ),
        (3,),
    ),
    "a window of one step": (
        lambda: nn.Sequential(hb.Window(3, 8, 1, dilation=7), hb.IF(0.2), nn.Linear(8, 3)),
        (3,),
    ),
    "windows at each pixel": (
        lambda: nn.Sequential(
            hb.Window(2, 4, 3), hb.IF(0.2), each(nn.MaxPool2d(2)), hb.Window(4, 6, 2, dilation=3, groups=2),
            hb.IF(0.1), nn.Flatten(2), hb.Window(24, 6, 2, groups=2), hb.IF(0.1), nn.Linear(6, 3),
        ),
        (2, 5, 4),
    ),
    "windows on what lies in another order": (
        lambda: nn.Sequential(
            each(nn.Conv2d(2, 4, 2)), hb.IF(0.2), nn.Flatten(2), hb.Window(48, 6, 2, groups=2), hb.IF(0.1),
            nn.Linear(6, 3),
        ),
        (2, 5, 4),
    ),
    "synapses with delays": (
        lambda: nn.Sequential(
            hb.DelayedLinear(5, 9, 4), hb.IF(0.2), hb.Delay(torch.rand(9) * 3), hb.DelayedLinear(9, 7, 300),
            hb.Delay(2.0), nn.Linear(7, 3), hb.LI(),
        ),
        (5,),
    ),
    "an image in the order of neither a convolution nor PyTorch": (
        lambda: nn.Sequential(
            each(nn.Conv2d(1, 2, 2)), hb.IF(0.2), nn.Flatten(2), nn.Unflatten(2, (1, 24)), hb.Window(1, 1, 2),
            hb.IF(1.0), nn.Flatten(2), nn.Linear(24, 3),
        ),
        (1, 5, 4),
    ),
    "delays": (
        lambda: nn.Sequential(
            hb.Delay(torch.rand(2, 4, 4) * 3), each(nn.Conv2d(2, 3, 2)),
            hb.Delay(torch.tensor([0.0, 1, 2]).view(3, 1, 1)), hb.IF(0.1), hb.Delay(1.0),
            each(nn.MaxPool2d(2)), hb.Delay(1.0), nn.Flatten(2), hb.DelayedLinear(3, 4, 3, bias=False),
        ),
        (2, 4, 4),
    ),
}  # fmt: skip


def check(net, inputs, folder, **how):
    """The program's outputs are those of `net`, of which each spiking layer spikes, and not always."""
    for layer, rate in activity(net, inputs)[1].rates().items():
        assert 0 < rate < 1, layer
    for made, twin in ((net, in_order(net, inputs)), _whole(net, inputs)):
        program = to_c(made, inputs)
        given_ = made.integer_input(inputs) if made is not net else inputs
        with torch.no_grad():
            wanted = twin(given_).flatten(2).double()
        (folder / program.kind).mkdir()
        binary = compiled(program, folder / program.kind, len(inputs), **how)
        outputs, scores, _ = outputs_of(binary, program, given_)
        assert torch.equal(outputs, wanted)
        torch.testing.assert_close(scores, wanted.sum(0), atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(
            in_order(net, inputs)(inputs).mean(), net(inputs).mean(), atol=0.05, rtol=0.05
        )


def _whole(net, inputs):
    small, _ = quantize(net, inputs)
    return small, small.net


@pytest.mark.cover(1)
@pytest.mark.slow
@needs_cc
@pytest.mark.parametrize("numbers", [True, False], ids=["numbers", "events"])
@pytest.mark.parametrize("name", NETWORKS)
def test_windows_and_delays_are_the_same_in_c(name, numbers, tmp_path):
    make, shape = NETWORKS[name]
    torch.manual_seed(1)
    inputs = torch.rand(9, 3, *shape)
    check(make().eval(), inputs if numbers else (inputs < 0.4).float(), tmp_path, events=not numbers)


@settings(max_examples=examples(3))
@given(st.data())
def test_windows_and_delays_of_all_sizes_are_the_same_in_c(tmp_path_factory, data):
    torch.manual_seed(data.draw(st.integers(0, 99)))
    inputs, groups = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 3))
    hidden = groups * data.draw(st.integers(1, 4))
    delay = torch.rand(hidden) * data.draw(st.integers(0, 6))
    net = nn.Sequential(
        data.draw(st.sampled_from((hb.Linear(inputs, hidden), hb.DelayedLinear(inputs, hidden, 5)))),
        hb.IF(0.15), hb.Delay(delay),
        hb.Window(hidden, 6 * groups, data.draw(st.integers(1, 4)), data.draw(st.integers(1, 3)), groups),
        hb.LIF(threshold=0.1), nn.Linear(6 * groups, 3),
    )  # fmt: skip
    x = torch.rand(data.draw(st.integers(1, 12)), 2, inputs)
    folder = tmp_path_factory.mktemp("c")
    program, twin = to_c(net.eval(), x), in_order(net, x)
    outputs, *_ = outputs_of(compiled(program, folder, len(x)), program, x)
    with torch.no_grad():
        assert torch.equal(outputs.float(), twin(x))


@needs_cc
def test_an_input_that_stays_still_goes_on_in_a_window(tmp_path):
    net = nn.Sequential(hb.Window(3, 4, 3), hb.LI()).eval()
    inputs = torch.rand(1, 2, 3).expand(6, 2, 3)
    program = to_c(net, inputs)
    outputs, *_ = outputs_of(compiled(program, tmp_path, 6, again=True), program, inputs)
    with torch.no_grad():
        assert torch.equal(outputs.float(), in_order(net, inputs)(inputs))


@needs_cc
def test_the_header_counts_rings(tmp_path):
    net = nn.Sequential(hb.DelayedLinear(5, 9, 300), hb.IF(), hb.Delay(torch.rand(9) * 5), hb.Window(9, 2, 3))
    program = to_c(net, torch.rand(2, 1, 5))
    program.write(tmp_path / "net.c")
    whole = (
        '#include "net.h"\n#include <stdio.h>\nint main(void) { printf("%zu", sizeof(net_state)); return 0; }'
    )
    (tmp_path / "size.c").write_text(whole)
    subprocess.run(["cc", "-std=c99", "-o", tmp_path / "size", tmp_path / "size.c"], check=True)
    said = subprocess.run([tmp_path / "size"], capture_output=True, text=True, check=True).stdout
    assert int(said) == program.changing_bytes
    longest, late = int(net[0].steps.max()), int(net[2].steps.max())
    weights, delays = 4 * (45 + 9 + 54 + 2), 2 * 45 + 9
    assert program.constant_bytes == weights + delays
    assert program.changing_bytes > 4 * (longest + 1) * 9 + (late + 1) * 9 + 4 * 3 * 2


def test_operations_of_windows_and_delays_follow_the_spikes():
    net = nn.Sequential(hb.Window(4, 6, 5), hb.IF(1e-9), hb.DelayedLinear(6, 2, 9), hb.IF(1e9))
    nn.init.ones_(net[0].weight)
    nn.init.zeros_(net[0].bias)
    net[0].weight.data[3:] = -1  # half of the neurons spike at each step
    inputs = torch.zeros(2, 1, 4)
    inputs[:, :, 0] = 0.5
    first, _, second, _ = to_c(net, inputs).costs
    assert (first.additions, first.at_rates, first.multiplies, first.dense) == (120, 30, True, 120)
    assert (second.additions, second.at_rates, second.multiplies) == (12, 6, False)


def test_a_window_without_bias_in_groups_is_bounded_group_by_group():
    net = nn.Sequential(hb.Window(64, 64, 3, groups=64, bias=False), hb.LI())
    inputs = torch.ones(2, 1, 64)
    small, _ = quantize(net, inputs)
    from hibana.network.c import program

    numbers = program.build_unit(small, inputs, "net", "sum").arithmetic
    window = next(node for node in numbers.bounds if node.kind == "window")
    low, high = numbers.bounds[window]
    assert -3 * 127 <= low < high <= 3 * 127


@pytest.mark.slow
@needs_cc
def test_the_network_that_sequences_get_by_default_decides_in_c_as_in_pytorch(tmp_path):
    target = tmp_path / "net.c"
    assert main(["train", "--data", "mnist-1d", "--epochs", "1", "--out", str(tmp_path)]) == 0
    assert main(["convert", str(tmp_path / "checkpoint.ckpt"), str(target)]) == 0
    model = load(tmp_path / "checkpoint.ckpt").eval()
    assert model.settings.loss == "membrane-last"
    samples = model.settings.samples(None)
    samples.setup()
    inputs = model.encode(torch.stack([samples.test[k][0] for k in range(50)]))
    program = replace(
        to_c(model.net, inputs), source=target.read_text(), header=target.with_suffix(".h").read_text()
    )
    binary = compiled(program, tmp_path, len(inputs), flags=("-O1",))
    _, scores, classes = outputs_of(binary, program, inputs)
    with torch.no_grad():
        wanted = model.objective.scores(in_order(model.net, inputs)(inputs))
        assert torch.equal(scores.float(), wanted)
        assert classes == model.objective.scores(model.net(inputs)).argmax(1).tolist()
    assert len(set(classes)) > 3


def test_c_decides_as_every_loss_that_a_command_can_name():
    assert set(convert._REDUCTIONS) == set(loss.NAMES)
