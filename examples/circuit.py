"""Cycles per step of a circuit at several input rates, and with 1, 4 and 16 adders, in a simulator.

    python examples/circuit.py

A network with two hidden layers, in integers of 8 bits, becomes Verilog. Icarus Verilog (`apt install
iverilog`) runs the testbench, which compares every spike with PyTorch, and counts the cycles. A spike adds
one row of weights, so the cycles grow with the firing rate. A dense network of this shape adds all weights.
The numbers are printed, and drawn in examples/results/circuit.png.
"""

import re
import subprocess
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import matplotlib.pyplot as plt
import torch
from torch import nn

import hibana as hb
from hibana.convert import quantize, to_verilog

SIZES = (64, 256, 256, 10)
STEPS = 4
RATES = (0.0, 0.05, 0.1, 0.2, 0.4)
"""Fractions of the inputs that spike at a step."""
ADDERS = (1, 4, 16)


def network() -> nn.Sequential:
    """A network of random weights, whose hidden neurons fire about as often as its inputs."""
    torch.manual_seed(0)
    layers = [layer for m, n in pairwise(SIZES[:-1]) for layer in (nn.Linear(m, n, bias=False), hb.IF(0.4))]
    return nn.Sequential(*layers, nn.Linear(*SIZES[-2:]), hb.LI())


def firing_rate(net: nn.Module, inputs: torch.Tensor) -> float:
    """The fraction of the inputs and hidden neurons that spike at a step."""
    layers = [inputs]
    hooks = [
        module.register_forward_hook(lambda module, args, spikes: layers.append(spikes))
        for module in net.modules()
        if isinstance(module, hb.IF)
    ]
    net(inputs)
    for hook in hooks:
        hook.remove()
    return sum(layer.sum().item() for layer in layers) / sum(layer.numel() for layer in layers)


def cycles_per_step(net: hb.convert.Quantized, inputs: torch.Tensor, adders: int) -> int:
    """Cycles per step in the simulator; raises RuntimeError if a spike differs from PyTorch."""
    with TemporaryDirectory() as folder:
        files = to_verilog(net, inputs, adders=adders).write(f"{folder}/net.v")
        subprocess.run(["iverilog", "-g2005", "-o", f"{folder}/net", *files], check=True)
        text = subprocess.run([f"{folder}/net"], check=True, capture_output=True, text=True).stdout
    if f"{inputs.shape[1]} of {inputs.shape[1]} equal" not in text:
        raise RuntimeError(f"the circuit differs from PyTorch:\n{text}")
    return int(re.findall(r"(\d+) cycles per step", text)[0])


def main() -> None:
    """Prints and draws the cycles of all rates and adders."""
    net = network()
    inputs = [(torch.rand(STEPS, 1, SIZES[0]) < rate).float() for rate in RATES]
    integers, _ = quantize(net, torch.cat(inputs, 1))
    rates = [100 * firing_rate(net, x) for x in inputs]
    weights = sum(m * n for m, n in pairwise(SIZES))
    _, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for color, adders in enumerate(ADDERS):
        cycles = [cycles_per_step(integers, x, adders) for x in inputs]
        results = zip(rates, cycles, strict=True)
        print(f"{adders:2} adders: " + ", ".join(f"{count:,} at {rate:.1f}%" for rate, count in results))
        label = f"{adders} adder{'s' * (adders > 1)}"
        axes.plot(rates, cycles, "o-", color=f"C{color}", label=label)
        axes.axhline(weights / adders, color=f"C{color}", linestyle=":")
    axes.set(
        yscale="log",
        xlabel="inputs and hidden neurons that spike at a step (%)",
        ylabel="cycles per step",
        title="-".join(map(str, SIZES)) + "; dotted: all weights, as in a dense network",
    )
    axes.legend()
    plt.savefig(Path(__file__).parent / "results" / "circuit.png", dpi=120)


if __name__ == "__main__":
    main()
