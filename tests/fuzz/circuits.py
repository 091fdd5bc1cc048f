"""Compares random small integer networks in Verilog and C with PyTorch; all outputs must be equal.

The testbench of a circuit also compares every spike.
"""

import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from fuzz.differ import Counts
from fuzz.sizes import Net, compare_in_c, outputs_of, random_net
from hibana.compiler.graph.ops import Unsupported
from hibana.network import CProgram, quantize, to_c, to_verilog
from hibana.network.verilog import VerilogProgram
from verifier import unproved

__all__ = ["run"]


def run(batch: int, count: int, counts: Counts, record: Callable[[Net], None]) -> list[str]:
    """Compares the `count` networks of a batch; calls `record` with each network before it runs."""
    findings, programs = list[str](), list[tuple[Net, CProgram, torch.Tensor]]()
    for seed in range(batch * count, (batch + 1) * count):
        net = random_net(seed)
        record(net)
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
        findings += [f"{access}: {net}" for access in unproved(integers, net.example)]
        inputs = integers.integer_input(net.example)
        with torch.no_grad():
            programs.append((replace(net, example=inputs), program, integers.net(inputs)))
        findings += [f"circuit: {finding}: {net}" for finding in _simulate(circuit, net.example.shape[1])]
    return findings + compare_in_c(programs)


def _simulate(circuit: VerilogProgram, samples: int) -> list[str]:
    """The end of the testbench's output as a finding, unless all `samples` are equal."""
    with tempfile.TemporaryDirectory() as folder:
        target, bench = circuit.write(Path(folder) / "net.v")
        command = ["iverilog", "-g2005", "-o", f"{folder}/net", target, bench]
        compiled = subprocess.run(command, capture_output=True, text=True, check=False)
        if compiled.returncode:
            return [compiled.stderr[-1000:]]
        result = subprocess.run([f"{folder}/net"], capture_output=True, text=True, check=False, timeout=300)
    return [] if f"{samples} of {samples} equal\n" in result.stdout else [result.stdout[-500:]]
