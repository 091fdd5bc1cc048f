"""Circuits on boards: the serial port of the top level, and the report."""

import shutil
import subprocess

import pytest
import torch
from torch import nn

import hibana as hb
from hibana.convert import quantize, to_verilog
from hibana.network.verilog import board as boards

needs_simulator = pytest.mark.skipif(
    shutil.which("iverilog") is None, reason="no Verilog simulator, iverilog"
)
HOST = """
module host;
reg clk = 0, rx = 1;
wire tx;
top #(.CLOCK(16), .BAUD(1), .INPUTS({inputs})) board (.clk(clk), .rx(rx), .tx(tx));
always #1 clk = ~clk;
reg [7:0] answer;
integer i, k;
task send(input [7:0] data); begin
    rx = 0; repeat (16) @(posedge clk);
    for (i = 0; i < 8; i = i + 1) begin rx = data[i]; repeat (16) @(posedge clk); end
    rx = 1; repeat (16) @(posedge clk);
end endtask
task receive(input integer count); for (k = 0; k < count; k = k + 1) begin
    while (tx) @(posedge clk);
    repeat (8) @(posedge clk);
    for (i = 0; i < 8; i = i + 1) begin repeat (16) @(posedge clk); answer[i] = tx; end
    repeat (16) @(posedge clk);
    $display("%0d", answer);
end endtask
initial begin
    repeat (400) @(posedge clk);
{commands}
    $finish(0);
end
endmodule
"""


def circuit(inputs=5):
    torch.manual_seed(1)
    x = torch.rand(1, 3, inputs).expand(6, 3, inputs)
    net, _ = quantize(nn.Sequential(nn.Linear(inputs, 9), hb.IF(0.3), nn.Linear(9, 3), hb.LI()), x)
    return net, x, to_verilog(net, x)


@needs_simulator
def test_the_serial_port_answers_with_the_outputs_and_the_class(tmp_path):
    net, x, program = circuit()
    integers = net.integer_input(x).int()
    path, _ = program.write(tmp_path / "net.v")
    top, _ = boards.write_top(program, path, boards.BOARDS["ice40-up5k"])
    commands = []
    for sample in integers.unbind(1):
        commands += ['send("r"); receive(1);', 'send("i");']
        commands += [f"send(8'd{number});" for number in sample[0].tolist()]
        commands += ["receive(13);", *['send("s"); receive(13);'] * 5]
    (tmp_path / "host.v").write_text(HOST.format(inputs=5, commands="\n".join(commands)))
    files = [path, top, tmp_path / "host.v"]
    subprocess.run(["iverilog", "-g2005", "-s", "host", "-o", tmp_path / "host", *files], check=True)
    result = subprocess.run([tmp_path / "host"], check=True, capture_output=True, text=True, timeout=60)
    received = torch.tensor([int(word) for word in result.stdout.split()]).view(3, -1)
    assert not received[:, 0].any()  # the class at rest
    steps = received[:, 1:].reshape(3, 6, 13)
    numbers = steps[..., :12].reshape(3, 6, 3, 4) * torch.tensor([1, 1 << 8, 1 << 16, 1 << 24])
    outputs = net.net(net.integer_input(x)).transpose(0, 1).long()
    assert torch.equal(numbers.sum(-1).int().long(), outputs)
    assert outputs.any()
    assert torch.equal(steps[..., 12], outputs.cumsum(1).argmax(-1))


@needs_simulator
@pytest.mark.skipif(shutil.which("verilator") is None, reason="no verilator")
@pytest.mark.parametrize("name", boards.BOARDS)
def test_the_top_level_has_no_warnings(name, tmp_path):
    _, _, program = circuit()
    path, _ = program.write(tmp_path / "net.v")
    top, constraints = boards.write_top(program, path, boards.BOARDS[name])
    subprocess.run(["verilator", "--lint-only", "-Wall", "--top", "top", path, top], check=True)
    assert "INPUTS = 5" in top.read_text()
    assert all(port in constraints.read_text() for port in ("clk", "rx", "tx"))


@needs_simulator
@pytest.mark.skipif(
    shutil.which("yosys") is None or shutil.which("nextpnr-ice40") is None, reason="no yosys or nextpnr"
)
def test_the_report_states_size_speed_and_equal_samples():
    x = (torch.rand(6, 3, 2) < 0.5).float()
    program = to_verilog(quantize(nn.Sequential(nn.Linear(2, 2), hb.IF(0.3)), x)[0], x)
    lines = boards.report(program, boards.BOARDS["ice40-up5k"]).splitlines()
    assert "of 5,280 cells" in lines[0]
    assert "the board's clock has 12 MHz" in lines[1]
    assert lines[2].endswith("3 of 3 equal to PyTorch")
    assert "for the 6 steps of a sample" in lines[3]


def test_the_report_names_missing_programs(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(FileNotFoundError, match="--report needs yosys, nextpnr-ecp5, iverilog; install with"):
        boards.report(None, boards.BOARDS["ecp5-85k"])
