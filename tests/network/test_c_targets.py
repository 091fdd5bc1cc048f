"""Exported C programs on WebAssembly and ARM: the same outputs as PyTorch."""

import torch
from torch import nn

import hibana as hb
from c_targets import in_qemu, in_wasmtime, needs_qemu, needs_wasmtime, needs_zig
from hibana.network import to_c
from ordered import in_order


def network():
    return nn.Sequential(
        nn.Linear(7, 9), hb.LIF(tau=3.0, threshold=0.3), nn.Unflatten(2, (1, 9)),
        hb.EachStep(nn.Conv1d(1, 3, 3)), hb.IF(0.1), nn.Flatten(2), hb.Delay(torch.arange(21) % 3.0),
        hb.Window(21, 9, 2, groups=3), hb.IF(0.1), hb.DelayedLinear(9, 4, 3), hb.LI(),
    ).eval()  # fmt: skip


def float_and_integer_programs(net, inputs):
    """Yields (program, inputs, expected outputs) for `net` in floats, then in integers."""
    quantized, _ = hb.quantize(net, inputs)
    integers = quantized.integer_input(inputs)
    with torch.no_grad():
        yield to_c(net, inputs), inputs, in_order(net, inputs)(inputs).double()
        yield to_c(quantized, inputs), integers, quantized.net(integers).double()


@needs_zig
@needs_wasmtime
def test_webassembly_spikes_as_pytorch(tmp_path):
    for program, program_inputs, outputs in float_and_integer_programs(network(), torch.rand(6, 3, 7)):
        assert torch.equal(in_wasmtime(program, tmp_path, program_inputs), outputs)
        assert outputs.count_nonzero() > 0


@needs_zig
@needs_qemu
def test_a_cortex_m4_spikes_as_pytorch(tmp_path):
    for program, program_inputs, outputs in float_and_integer_programs(network(), torch.rand(6, 3, 7)):
        assert torch.equal(in_qemu(program, tmp_path, program_inputs, "cortex_m4+vfp4d16sp"), outputs)


@needs_zig
@needs_qemu
def test_a_cortex_m0_adds_and_compares_without_a_library(tmp_path):
    net = nn.Sequential(nn.Linear(7, 9), hb.IF(0.3), nn.Linear(9, 4), hb.LI())
    _, (program, program_inputs, outputs) = float_and_integer_programs(net, torch.rand(6, 3, 7))
    assert torch.equal(in_qemu(program, tmp_path, program_inputs, "cortex_m0", "eabi"), outputs)
