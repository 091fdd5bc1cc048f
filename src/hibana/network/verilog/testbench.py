"""The testbench of a circuit: plays recorded samples, and compares all spikes with those of PyTorch."""

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
        .to(torch.int64)
        .to(kind)
        .contiguous()
        .view(torch.uint8)
        for part, kind in parts
    ]
    rows = torch.cat(columns, 1).flip(1).numpy()
    recording = "".join(f"{row.tobytes().hex()}\n" for row in rows)
    compared, first = [], 8 * unit.network.input.size
    for node in layers:
        compared.append(
            f"            for (i = 0; i < {node.size}; i = i + 1) "
            f"if (dut.m_{spike_arrays[node.name]}[i] !== row[{first} + 8 * i +: 8]) equal = 0;"
        )
        first += 8 * node.size
    return _module(unit, steps, samples, first, compared), recording


def _module(unit: Unit, steps: int, samples: int, spike_end: int, compared: list[str]) -> str:
    """The module ``net_tb``; `compared` compares spikes, and outputs start at bit `spike_end` of a row."""
    size, width = unit.network.input.size, spike_end + 32 * unit.network.output.size
    return f"""\
// Plays {samples} samples of {steps} steps, and compares every spike and output of every step with PyTorch's.
module net_tb;
reg clk = 0, rst = 1, start = 0, clear = 0, tvalid = 0;
reg [7:0] tdata = 0;
wire ready, s_tready, m_valid, m_last;
wire [31:0] m_data, class_index;
net dut (.clk(clk), .rst(rst), .start(start), .clear(clear), .ready(ready), .s_axis_tdata(tdata),
    .s_axis_tvalid(tvalid), .s_axis_tready(s_tready), .m_axis_tdata(m_data), .m_axis_tvalid(m_valid),
    .m_axis_tready(1'b1), .m_axis_tlast(m_last), .class_index(class_index));
always #5 clk = ~clk;
reg [{width - 1}:0] rows [0:{samples * steps - 1}];  // each the inputs, spikes and outputs of a step
reg [{width - 1}:0] row;
reg [{8 * size - 1}:0] inputs;  // of the step before
integer s, t, i, equal, right = 0, cycles = 0, received = 0;
always @(posedge clk) if (!ready && !rst) cycles = cycles + 1;
always @(posedge clk) if (m_valid) begin
    if (m_data !== row[{spike_end} + 32 * received +: 32]) equal = 0;
    received = m_last ? 0 : received + 1;
end
initial begin
    $readmemh("net_tb.hex", rows);
    repeat (3) @(negedge clk);
    rst = 0;
    for (s = 0; s < {samples}; s = s + 1) begin
        @(negedge clk) clear = 1;
        @(negedge clk) clear = 0;
        while (!ready) @(negedge clk);
        equal = 1;
        if (s == 0) cycles = 0;
        for (t = 0; t < {steps}; t = t + 1) begin
            row = rows[s * {steps} + t];
            if (t == 0 || row[{8 * size - 1}:0] !== inputs) begin
                inputs = row[{8 * size - 1}:0];
                for (i = 0; i < {size}; i = i + 1) begin
                    tvalid = 1;
                    tdata = row[8 * i +: 8];
                    @(negedge clk);
                end
                tvalid = 0;
            end
            start = 1;
            @(negedge clk) start = 0;
            while (!ready) @(negedge clk);
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
