"""Windows and delays in C: the same outputs as PyTorch, bit for bit."""

import subprocess
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import hibana as hb
from c_programs import check_programs, compiled, needs_cc, outputs_of
from hibana import EachStep, loss
from hibana.cli import convert_source, main
from hibana.network import quantize, to_c
from hibana.train import activity, load
from network.test_quantize import check as check_integers
from ordered import in_order
from selection import examples

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
            hb.Window(2, 4, 3), hb.IF(0.2), EachStep(nn.MaxPool2d(2)),
            hb.Window(4, 6, 2, dilation=3, groups=2), hb.IF(0.1), nn.Flatten(2),
            hb.Window(24, 6, 2, groups=2), hb.IF(0.1), nn.Linear(6, 3),
        ),
        (2, 5, 4),
    ),
    "windows on a convolution's memory layout": (
        lambda: nn.Sequential(
            EachStep(nn.Conv2d(2, 4, 2)), hb.IF(0.2), nn.Flatten(2), hb.Window(48, 6, 2, groups=2),
            hb.IF(0.1), nn.Linear(6, 3),
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
    "an image in a third memory layout": (
        lambda: nn.Sequential(
            EachStep(nn.Conv2d(1, 2, 2)), hb.IF(0.2), nn.Flatten(2), nn.Unflatten(2, (1, 24)),
            hb.Window(1, 1, 2), hb.IF(1.0), nn.Flatten(2), nn.Linear(24, 3),
        ),
        (1, 5, 4),
    ),
    "delays": (
        lambda: nn.Sequential(
            hb.Delay(torch.rand(2, 4, 4) * 3), EachStep(nn.Conv2d(2, 3, 2)),
            hb.Delay(torch.tensor([0.0, 1, 2]).view(3, 1, 1)), hb.IF(0.1), hb.Delay(1.0),
            EachStep(nn.MaxPool2d(2)), hb.Delay(1.0), nn.Flatten(2), hb.DelayedLinear(3, 4, 3, bias=False),
        ),
        (2, 4, 4),
    ),
}  # fmt: skip


@pytest.mark.cover(1)
@pytest.mark.slow
@needs_cc
@pytest.mark.parametrize("dense", [True, False], ids=["dense", "events"])
@pytest.mark.parametrize("name", NETWORKS)
def test_windows_and_delays_are_the_same_in_c(name, dense, tmp_path):
    make, shape = NETWORKS[name]
    torch.manual_seed(1)
    net, inputs = make().eval(), torch.rand(9, 3, *shape)
    inputs = inputs if dense else (inputs < 0.4).float()
    for layer, rate in activity(net, inputs)[1].rates().items():
        assert 0 < rate < 1, layer
    check_programs(net, inputs, tmp_path, events=not dense)
    check_integers(net, inputs, tmp_path, events=not dense)


@needs_cc
@settings(max_examples=examples(3))
@given(st.data())
def test_windows_and_delays_of_random_sizes_are_the_same_in_c(tmp_path_factory, data):
    draw, size = data.draw, st.integers
    torch.manual_seed(draw(size(0, 99)))
    inputs, groups = draw(size(1, 5)), draw(size(1, 3))
    hidden, kernel_size, dilation = groups * draw(size(1, 4)), draw(size(1, 4)), draw(size(1, 3))
    synapses = draw(st.sampled_from((nn.Linear(inputs, hidden), hb.DelayedLinear(inputs, hidden, 5))))
    net = nn.Sequential(
        synapses, hb.IF(0.15), hb.Delay(torch.rand(hidden) * draw(size(0, 6))),
        hb.Window(hidden, 6 * groups, kernel_size, dilation, groups), hb.LIF(threshold=0.1),
        nn.Linear(6 * groups, 3),
    )  # fmt: skip
    x = torch.rand(draw(size(1, 12)), 2, inputs)
    check_programs(net.eval(), x, tmp_path_factory.mktemp("c"))


@needs_cc
def test_the_header_counts_the_memory_of_windows_and_delays(tmp_path):
    net = nn.Sequential(hb.DelayedLinear(5, 9, 300), hb.IF(), hb.Delay(torch.rand(9) * 5), hb.Window(9, 2, 3))
    program = to_c(net, torch.rand(2, 1, 5))
    program.write(tmp_path / "net.c")
    (tmp_path / "size.c").write_text(
        '#include "net.h"\n#include <stdio.h>\nint main(void) { printf("%zu", sizeof(net_state)); return 0; }'
    )
    subprocess.run(["cc", "-std=c99", "-o", tmp_path / "size", tmp_path / "size.c"], check=True)
    output = subprocess.run([tmp_path / "size"], capture_output=True, text=True, check=True).stdout
    assert int(output) == program.changing_bytes


@needs_cc
def test_a_constant_input_fills_the_window_in_c(tmp_path):
    net = nn.Sequential(hb.Window(3, 4, 3), hb.LI()).eval()
    inputs = torch.rand(1, 2, 3).expand(6, 2, 3)
    program = to_c(net, inputs)
    outputs, *_ = outputs_of(compiled(program, tmp_path, 6, constant_input=True), program, inputs)
    with torch.no_grad():
        assert torch.equal(outputs.float(), in_order(net, inputs)(inputs))


def test_a_grouped_window_without_bias_is_bounded_group_by_group():
    net = nn.Sequential(hb.Window(64, 64, 3, groups=64, bias=False), hb.LI())
    inputs = torch.ones(2, 1, 64)
    quantized, _ = quantize(net, inputs)
    from hibana.network.c import unit as program

    arithmetic = program.build_unit(quantized, inputs, "net", "sum").arithmetic
    window = next(node for node in arithmetic.bounds if node.kind == "window")
    low, high = arithmetic.bounds[window]
    assert -3 * 127 <= low < high <= 3 * 127


@pytest.mark.slow
@needs_cc
def test_the_default_network_for_sequences_classifies_in_c_as_in_pytorch(tmp_path):
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
        expected = model.objective.scores(in_order(model.net, inputs)(inputs))
        assert torch.equal(scores.float(), expected)
        assert classes == model.objective.scores(model.net(inputs)).argmax(1).tolist()
    assert len(set(classes)) > 3


def test_every_named_loss_has_a_reduction_in_c():
    assert set(convert_source._REDUCTIONS) == set(loss.NAMES)
