"""The testbench of a circuit: plays recorded samples, and compares all spikes with those of PyTorch."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from hibana.network.c.unit import Unit
from hibana.network.graph import Node
from hibana.network.integer_network import Quantized

__all__ = ["testbench"]


def testbench(unit: Unit, net: Quantized, inputs: Tensor) -> str:
    """The module ``net_tb`` for `inputs`, ``[T, samples, ...]``, of the circuit of `unit`."""
    numbers = net.integer_input(inputs)
    steps, samples = numbers.shape[:2]
    outputs = _outputs(unit, net, numbers)
    names = {spiking.name: spiking.array.replace(".", "->").split("->")[-1] for spiking in unit.spiking}
    layers = [node for node in unit.network.nodes if node.name in names]
    none = numbers.new_zeros(steps, samples, 1)  # Verilog has no numbers of zero bits
    spikes = torch.cat([outputs[node] for node in layers], -1) if layers else none
    size, width, count = unit.network.input.size, spikes.shape[-1], unit.network.output.size
    results = outputs[unit.network.output][..., unit.activations[unit.network.output].order.argsort()]
    tables = [
        ("inputs", 8, numbers.reshape(steps, samples, size)),
        ("expected", 1, spikes),
        ("results", 32, results),
    ]
    rows = [
        f"    {name}[{k}] = {bits * row.numel()}'h{_hex(row, bits)};"
        for name, bits, table in tables
        for k, row in enumerate(table.transpose(0, 1).flatten(0, 1).to(torch.int64))
    ]
    compared, first = [], 0
    for node in layers:
        compared.append(
            f"            for (i = 0; i < size + {node.size - size}; i = i + 1) "
            f"if (dut.m_{names[node.name]}[i][0] !== wanted[{first} + i]) equal = 0;"
        )
        first += node.size
    return f"""\
// Plays {samples} samples of {steps} steps, and compares every spike and output of every step with PyTorch's.
`timescale 1ns / 1ps
module net_tb;
reg clk = 0, rst = 1, start = 0, clear = 0, tvalid = 0;
reg [7:0] tdata = 0;
wire ready, s_tready, m_valid, m_last;
wire [31:0] m_data, class_index;
net dut (.clk(clk), .rst(rst), .start(start), .clear(clear), .ready(ready), .s_axis_tdata(tdata),
    .s_axis_tvalid(tvalid), .s_axis_tready(s_tready), .m_axis_tdata(m_data), .m_axis_tvalid(m_valid),
    .m_axis_tready(1'b1), .m_axis_tlast(m_last), .class_index(class_index));
always #5 clk = ~clk;
reg [{8 * size - 1}:0] inputs [0:{samples * steps - 1}];
reg [{width - 1}:0] expected [0:{samples * steps - 1}];
reg [{32 * count - 1}:0] results [0:{samples * steps - 1}];
reg [{32 * count - 1}:0] received;
reg [{width - 1}:0] wanted;
reg [{8 * size - 1}:0] bytes;
integer s, t, i, equal, right = 0, cycles = 0;
integer steps = {steps}, size = {size};  // variables, so that simulators do not unroll the loops
always @(posedge clk) if (!ready && !rst) cycles = cycles + 1;
wire [{32 * count + 31}:0] shifted = {{m_data, received}};
always @(posedge clk) if (m_valid) received = shifted[{32 * count + 31}:32];
initial begin
{chr(10).join(rows)}
    repeat (3) @(negedge clk);
    rst = 0;
    for (s = 0; s < {samples}; s = s + 1) begin
        @(negedge clk) clear = 1;
        @(negedge clk) clear = 0;
        while (!ready) @(negedge clk);
        equal = 1;
        if (s == 0) cycles = 0;
        for (t = 0; t < steps; t = t + 1) begin
            bytes = inputs[s * {steps} + t];
            if (t == 0 || inputs[s * {steps} + t] != inputs[s * {steps} + t - 1]) begin
                for (i = 0; i < size; i = i + 1) begin
                    tvalid = 1;
                    tdata = bytes[7:0];
                    bytes = bytes >> 8;
                    @(negedge clk);
                end
                tvalid = 0;
            end
            start = 1;
            @(negedge clk) start = 0;
            while (!ready) @(negedge clk);
            wanted = expected[s * {steps} + t];
            if (received !== results[s * {steps} + t]) equal = 0;
{chr(10).join(compared)}
        end
        $display("sample %0d class %0d", s, class_index);
        right = right + equal;
    end
    $display("%0d cycles per step", cycles / {samples * steps});
    $display("%0d of %0d equal", right, {samples});
    $finish;
end
endmodule
"""


def _outputs(unit: Unit, net: Quantized, numbers: Tensor) -> dict[Node, Tensor]:
    """The output of each layer of `net` for integer inputs, ``[T, samples, numbers in memory order]``."""
    results: dict[nn.Module, Any] = {}
    hook = register_module_forward_hook(lambda module, args, result: results.update({module: result}))
    try:
        with torch.no_grad():
            net.net(numbers)
    finally:
        hook.remove()
    outputs = {}
    for node in unit.network.nodes:
        if node.module is not None:
            values = results[net.net.get_submodule(node.name)].reshape(*numbers.shape[:2], -1)
            outputs[node] = values[..., unit.activations[node].order]
    return outputs


def _hex(numbers: Tensor, bits: int) -> str:
    """Integers as one hexadecimal number, the first integer in the lowest `bits` bits."""
    mask = (1 << bits) - 1
    return f"{sum((n & mask) << (bits * i) for i, n in enumerate(numbers.tolist())):x}"
