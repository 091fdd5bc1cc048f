"""Networks as Verilog: a simulated testbench compares every spike and output with PyTorch."""

import shutil
import subprocess
from dataclasses import replace

import pytest
import torch
from torch import nn

import hibana as hb
from hibana.convert import quantize, to_verilog
from hibana.network.verilog.circuit import Array
from hibana.network.verilog.statements import Machine
from hibana.runtime import loops
from hibana.runtime.kernels import INT, Code, Ints
from network.test_quantize import SUMS

needs_simulator = pytest.mark.skipif(
    shutil.which("iverilog") is None, reason="no Verilog simulator, iverilog"
)


class RecurrentLIF(hb.Cell):
    """A user-defined cell with synapses inside the step."""

    def __init__(self, neurons):
        super().__init__()
        self.synapses = nn.Linear(neurons, neurons, bias=False)

    def forward(self, input_, v_previous, s_previous):
        v = 0.75 * v_previous * (1 - s_previous) + input_ + self.synapses(s_previous)
        return v, hb.spike(v - 0.5)


NETWORKS = {
    "fully connected": (
        lambda: nn.Sequential(
            nn.Linear(8, 12), hb.LIF(3.0), nn.Linear(12, 10), hb.IF(), nn.Linear(10, 3), hb.LI()
        ),
        (8,),
    ),
    "images": (
        lambda: nn.Sequential(
            hb.EachStep(nn.Conv2d(2, 4, 3, padding=1, stride=2)),
            hb.IF(0.25),
            hb.EachStep(nn.MaxPool2d(2)),
            nn.Flatten(2),
            nn.Linear(36, 3),
            hb.LIF(4.0, threshold=0.25),
        ),
        (2, 11, 11),
    ),
    "recurrent": (
        lambda: nn.Sequential(nn.Linear(5, 6), hb.Recurrent(hb.LIFCell(4.0, threshold=0.2), 6)),
        (5,),
    ),
    "user-defined cell": (lambda: nn.Sequential(nn.Linear(5, 6), hb.OverTime(RecurrentLIF(6))), (5,)),
    "delays and windows": (
        lambda: nn.Sequential(
            hb.Window(3, 4, 3), hb.IF(0.2), hb.Delay(2.0), hb.DelayedLinear(4, 3, 3), hb.IF(0.2)
        ),
        (3,),
    ),
    "sparse synapses": (
        lambda: nn.Sequential(
            hb.SparseLinear(6, 9, 0.5), hb.IF(0.2), hb.SparseLinear(9, 4, 0.5, delays=2), hb.IF(0.2)
        ),
        (6,),
    ),
    "average": (
        lambda: nn.Sequential(
            hb.IF(0.5), hb.EachStep(nn.AvgPool2d(2)), nn.Flatten(2), nn.Linear(9, 2), hb.LI()
        ),
        (1, 6, 6),
    ),
    **SUMS,
}


def simulate(program, folder):
    """The last line that the testbench prints, and the class of each sample."""
    path, bench = program.write(folder / "net.v")
    subprocess.run(["iverilog", "-g2005", "-o", folder / "net", path, bench], check=True)
    result = subprocess.run([folder / "net"], check=True, capture_output=True, text=True)
    lines = [line.split() for line in result.stdout.splitlines()]
    classes = [int(line[3]) for line in lines if line[:1] == ["sample"]]
    return next(" ".join(line) for line in lines if line[-1] == "equal"), classes


@needs_simulator
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("adders", [1, 4])
def test_every_spike_and_output_equals_pytorch(name, adders, tmp_path):
    torch.manual_seed(0)
    make, shape = NETWORKS[name]
    inputs = (torch.rand(10, 3, *shape) < 0.5).float() * torch.rand(10, 3, *shape)
    net, _ = quantize(make().eval(), inputs)
    assert net(inputs).any()
    program = to_verilog(net, inputs, samples=3, adders=adders)
    assert simulate(program, tmp_path)[0] == "3 of 3 equal"
    if shutil.which("verilator"):
        subprocess.run(["verilator", "--lint-only", "-Wall", tmp_path / "net.v"], check=True)


@needs_simulator
def test_inputs_that_are_constant_over_time(tmp_path):
    torch.manual_seed(0)
    inputs = torch.rand(1, 3, 1, 6, 6).expand(8, 3, 1, 6, 6)
    layers = [hb.EachStep(nn.Conv2d(1, 2, 3)), hb.IF(0.3), nn.Flatten(2), nn.Linear(32, 3)]
    assert (
        simulate(to_verilog(quantize(nn.Sequential(*layers), inputs)[0], inputs), tmp_path)[0]
        == "3 of 3 equal"
    )


@needs_simulator
def test_the_class_of_the_largest_of_negative_outputs(tmp_path):
    torch.manual_seed(3)
    inputs = torch.rand(8, 12, 6)
    layers = nn.Sequential(nn.Linear(6, 12), hb.LIF(3.0, threshold=0.1), nn.Linear(12, 4), hb.LI())
    with torch.no_grad():
        layers[2].bias.fill_(-2)
    net, _ = quantize(layers, inputs)
    outputs = net.net(net.integer_input(inputs))
    assert outputs.max() < 0
    expected = outputs.amax(0).argmax(-1)
    assert len(expected.unique()) > 1
    assert simulate(to_verilog(net, inputs, scores="max"), tmp_path) == ("12 of 12 equal", expected.tolist())


@needs_simulator
def test_one_step_with_one_output(tmp_path):
    inputs = torch.rand(1, 2, 2)
    net, _ = quantize(nn.Sequential(hb.LIF(2.0, threshold=0.2), hb.Window(2, 1, 1)), inputs)
    assert simulate(to_verilog(net, inputs), tmp_path)[0] == "2 of 2 equal"


@needs_simulator
def test_the_testbench_finds_a_changed_weight(tmp_path):
    torch.manual_seed(0)
    inputs = torch.rand(10, 2, 4)
    net, _ = quantize(nn.Sequential(nn.Linear(4, 6), hb.IF()), inputs)
    assert simulate(to_verilog(net, inputs), tmp_path)[0] == "2 of 2 equal"
    recording = to_verilog(net, inputs).recording
    with torch.no_grad():
        net.net[0].weight.mul_(-1)
    changed = replace(to_verilog(net, inputs), recording=recording)
    assert simulate(changed, tmp_path)[0] == "0 of 2 equal"


def machine_of(build):
    """The circuit of the statements that `build` adds to a loop over j, for arrays v and s."""
    code = Code()
    v, s = (Ints(code.builder, loops.Array(None, name=name, kind="int32_t")) for name in "vs")
    with code.loop(0, 4, name="j") as j:
        build(v, s, j)
    machine = Machine([Array("v", 0, 3, 4), Array("s", 0, 3, 4)], {}, largest=3)
    machine.run(code.builder.take())
    return machine.circuit


def test_an_element_that_a_pass_writes_is_read_two_states_later():
    def build(v, s, j):
        v[j] = j.to(INT)
        s[j] = v[j]

    circuit = machine_of(build)
    (written, *_), (read, *_) = (circuit.signals[signal].assignments[0] for signal in ("w_v_e", "r_v_e"))
    assert all(len(circuit.signals[signal].assignments) == 1 for signal in ("w_v_e", "r_v_e"))
    assert read == written + 2


def test_the_next_pass_reads_an_element_that_a_pass_writes_two_states_later():
    def build(v, s, j):
        a = v[0].named("a")
        s[0] = a
        v[0] = a + j.to(INT)

    circuit = machine_of(build)
    ((last, (_, first)),) = circuit.jumps.items()
    assert circuit.read_arrays[first] == {"v"}
    assert circuit.written[last - 1] == {"s", "v"}
    assert not circuit.written[last]


def test_floats_are_refused():
    with pytest.raises(TypeError, match=r"net must be the result of hb\.quantize, got Sequential"):
        to_verilog(nn.Sequential(nn.Linear(4, 3), hb.IF()), torch.rand(4, 1, 4))
