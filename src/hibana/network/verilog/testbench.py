"""The testbench of a circuit: plays recorded samples, and compares all spikes with those of PyTorch."""

from importlib.resources import files as package_files

import torch
from torch import Tensor

from hibana.network.c.unit import Unit
from hibana.network.integer_network import Quantized
from hibana.network.report import sum_outputs

__all__ = ["testbench"]


def testbench(unit: Unit, net: Quantized, inputs: Tensor, spike_arrays: dict[str, str]) -> tuple[str, str]:
    """The module ``net_tb`` for `inputs`, ``[T, samples, ...]``, and the recording that it reads.

    Each line of the recording is one step of a sample, as a hexadecimal number: from the lowest bits on, the
    inputs (8 bits each), the spikes of the layers (8 bits each), and the outputs (32 bits each).

    Args:
        unit: the statements of the circuit.
        net: the network in PyTorch.
        inputs: the inputs of the float network.
        spike_arrays: the name of the array of spikes of each spiking layer.
    """
    numbers = net.integer_input(inputs)
    steps, samples = numbers.shape[:2]
    layers = [node for node in unit.network.nodes if node.name in spike_arrays]
    with torch.no_grad(), sum_outputs(net.net, spike_arrays) as spikes:
        results = net.net(numbers)
    in_memory = [spikes[node.name].flatten(2)[..., unit.activations[node].order] for node in layers]
    parts = [*((part, torch.uint8) for part in (numbers, *in_memory)), (results, torch.int32)]
    columns = [
        part.transpose(0, 1)
        .reshape(samples * steps, -1)
        .long()
        .to(kind, memory_format=torch.contiguous_format)  # also of a single column, which may have any stride
        .view(torch.uint8)
        for part, kind in parts
    ]
    rows = torch.cat(columns, 1).flip(1).numpy()
    recording = "".join(f"{row.tobytes().hex()}\n" for row in rows)
    comparisons, first = list[str](), 8 * unit.network.input.size
    for node in layers:
        spike, expected = f"{{7'd0, dut.m_{spike_arrays[node.name]}[i]}}", f"row[{first} + 8 * i +: 8]"
        loop = f"for (i = 0; i < {node.size}; i = i + 1)"
        comparisons.append(f"{loop} if ({spike} !== {expected}) equal = 0;")
        first += 8 * node.size
    text = (package_files("hibana.network.verilog") / "testbench.v").read_text(encoding="utf-8")
    constants = {"SAMPLES": samples, "STEPS": steps, "INPUTS": unit.network.input.size}
    constants |= {"NEURONS": sum(node.size for node in layers), "OUTPUTS": unit.network.output.size}
    for name, number in constants.items():
        text = text.replace(f"{name} = 1", f"{name} = {number}")
    return text.replace("// compare the spikes", f"\n{12 * ' '}".join(comparisons)), recording
