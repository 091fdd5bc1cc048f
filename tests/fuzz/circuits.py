"""Random small networks in integers: circuits in a simulator, and C programs, equal PyTorch in every output.

The testbench of a circuit also compares every spike.
"""

import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from fuzz.differ import Counts
from fuzz.sizes import Net, compare_in_c, drawn, outputs_of
from hibana.compiler.graph.ops import Unsupported
from hibana.network import CProgram, quantize, to_c, to_verilog
from hibana.network.verilog import VerilogProgram

__all__ = ["run"]


def run(number: int, count: int, counts: Counts, state: Callable[[Net], None]) -> list[str]:
    """Compares `count` networks from that of `number` on; `state` is told each network before it runs."""
    findings, programs = list[str](), list[tuple[Net, CProgram, torch.Tensor]]()
    for seed in range(number * count, (number + 1) * count):
        net = drawn(seed)
        state(net)
        if outputs_of(net.layers, net.example) is None:
            counts.invalid += 1
            continue
        try:
            integers, _ = quantize(net.layers, net.example)
            program = to_c(integers, net.example, name=f"net{seed}")
            circuit = to_verilog(integers, net.example, adders=(1, 2, 4)[seed % 3])
        except Unsupported:
            counts.refused += 1
            continue
        counts.compared += 1
        inputs = integers.integer_input(net.example)
        with torch.no_grad():
            programs.append((replace(net, example=inputs), program, integers.net(inputs)))
        findings += [f"circuit: {finding}: {net}" for finding in _simulate(circuit, net.example.shape[1])]
    return findings + compare_in_c(programs)


def _simulate(circuit: VerilogProgram, samples: int) -> list[str]:
    """The last lines of the testbench, unless it finds all `samples` equal."""
    with tempfile.TemporaryDirectory() as name:
        target, bench = circuit.write(Path(name) / "net.v")
        command = ["iverilog", "-g2005", "-o", f"{name}/net", target, bench]
        compiled = subprocess.run(command, capture_output=True, text=True, check=False)
        if compiled.returncode:
            return [compiled.stderr[-1000:]]
        ran = subprocess.run([f"{name}/net"], capture_output=True, text=True, check=False, timeout=300)
    return [] if f"{samples} of {samples} equal\n" in ran.stdout else [ran.stdout[-500:]]
