"""Export of networks to C: the same spikes as PyTorch, bit for bit, and errors for unsupported operations."""

import math
import re
import subprocess

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import hibana as hb
from c_programs import check_programs, compiled, needs_cc, outputs_of
from hibana import EachStep, events
from hibana.compiler.graph.ops import Unsupported
from hibana.network import quantize, to_c
from ordered import in_order
from selection import examples


def flattened(*layers):
    return nn.Sequential(*layers, nn.Flatten(2))


class FastSynapses(hb.Cell):
    """Synapses inside the step: on spikes of this step, and on the potential of the previous step."""

    def __init__(self, neurons):
        super().__init__()
        self.synapses = nn.Linear(neurons, neurons, bias=False)
        self.gaps = nn.Linear(neurons, neurons)
        self.gain = nn.Parameter(torch.rand(neurons))

    def forward(self, input_, v_previous, s_previous):
        u = 0.75 * v_previous * (1 - s_previous) + input_ + 0.125 * self.gaps(v_previous)
        fast = hb.Heaviside.apply(u - 0.5)
        v = u + self.gain * self.synapses(fast)
        return v, hb.Heaviside.apply(v - 1)


class IeeeOperations(hb.Cell):
    """Operations whose results IEEE 754 determines, and Boolean values in the state."""

    def forward(self, input_, slow_previous, v_previous, s_previous):
        slow = torch.where(s_previous > 0, slow_previous + 0.25, slow_previous * 0.5).clamp(0, 2)
        v = torch.maximum(v_previous * (1 - s_previous), -input_.abs()) + input_ / 3 + torch.sqrt(slow)
        awake = ((slow < 1.5) | (v > 3)).to(v.dtype)
        return slow, v, hb.Heaviside.apply(v - slow.floor() - 0.5) * awake


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.if1 = EachStep(nn.Conv2d(2, 4, 3, padding=1)), hb.IF(0.25)
        self.conv2, self.if2 = EachStep(nn.Conv2d(4, 4, 3, padding=1, bias=False)), hb.IF(0.25)
        self.pool, self.out = EachStep(nn.AvgPool2d(2)), nn.Linear(4 * 3 * 3, 3)

    def forward(self, x):
        x = self.if1(self.conv1(x))
        x = self.if2(self.conv2(x)) + x
        return self.out(torch.flatten(self.pool(x), 2))


class Means(nn.Module):
    """Means over all pixels of images, and modules that do nothing in evaluation mode."""

    def __init__(self):
        super().__init__()
        self.conv, self.pool = EachStep(nn.Conv2d(2, 4, 3, padding=1)), EachStep(nn.AdaptiveAvgPool2d(1))
        self.neurons, self.out = (
            hb.Checkpointed(nn.Sequential(hb.StepsDropout(), hb.IF(0.25))),
            nn.Linear(4, 3),
        )

    def forward(self, x):
        x = self.neurons(self.conv(x))
        return self.out(x.mean((-2, -1))) + self.out(torch.mean(self.pool(x), dim=(3, 4)))


CELLS = {
    "IF": lambda: hb.IF(0.3, reset="subtract", initial=0.15),
    "LIF": lambda: hb.LIF(tau=3.0, threshold=0.3, reset=-0.1),
    "PLIF": lambda: hb.PLIF(tau=3.0, threshold=0.2),
    "CubaLIF": lambda: hb.CubaLIF(tau=torch.rand(9) + 1.5, threshold=0.3),
    "ALIF": lambda: hb.ALIF(threshold=0.2),
    "RefractoryLIF": lambda: hb.RefractoryLIF(threshold=0.2),
    "QIF": lambda: hb.QIF(threshold=0.5),
    "Izhikevich": lambda: hb.Izhikevich(dt=0.5),
    "LI": lambda: hb.LI(4.0),
    "Recurrent": lambda: hb.Recurrent(hb.LIFCell(threshold=0.2), 9, nn.Linear(9, 9)),
    "FastSynapses": lambda: hb.OverTime(FastSynapses(9)),
    "IeeeOperations": lambda: hb.OverTime(IeeeOperations()),
}
NETWORKS = {
    "convolutions": (
        lambda: flattened(
            EachStep(events.Conv2d(2, 6, 3, padding=1)), hb.IF(0.3), EachStep(events.MaxPool2d(2)),
            EachStep(nn.Conv2d(6, 4, 3, stride=2, padding=2, dilation=2, groups=2)), hb.LIF(threshold=0.2),
        ),
        (2, 9, 8),
    ),
    "pooling": (
        lambda: nn.Sequential(
            EachStep(nn.AvgPool2d(3, 2, padding=1)), EachStep(nn.MaxPool2d(2, 1)), hb.IF(0.4),
            EachStep(nn.MaxPool2d(3, 2, padding=1)), nn.Flatten(2), nn.Linear(8, 3, bias=False), hb.LI(),
        ),
        (2, 9, 7),
    ),
    "sequences": (
        lambda: flattened(
            EachStep(nn.Conv1d(3, 4, 3, padding="same")), hb.IF(0.2), EachStep(nn.AvgPool1d(2)),
            EachStep(nn.Conv1d(4, 2, 2)), hb.IF(0.2), EachStep(nn.MaxPool1d(2)),
        ),
        (3, 9),
    ),
    "residual": (Residual, (2, 6, 6)),
    "means": (Means, (2, 4, 4)),
    "only delays": (lambda: nn.Sequential(hb.Delay(2.0), hb.Delay(1.0)), (3,)),
    "only neurons": (lambda: nn.Sequential(hb.IF(0.5)), (5,)),
    "delayed recurrent": (
        lambda: nn.Sequential(nn.Linear(6, 9), hb.DelayedRecurrent(hb.LIFCell(threshold=0.2), 9, 5), hb.LI()),
        (6,),
    ),
    "double": (lambda: nn.Sequential(nn.Linear(5, 4), hb.LIF()).double(), (5,)),
}  # fmt: skip


def normalized():
    net = nn.Sequential(
        nn.Unflatten(2, (1, 6)), EachStep(nn.Sequential(nn.Conv2d(1, 3, 3, bias=False), nn.BatchNorm2d(3))),
        hb.IF(0.5), nn.Flatten(2), nn.Dropout(0.5), nn.Linear(12, 4), hb.LI(),
    )  # fmt: skip
    nn.init.uniform_(net[1].module[1].weight, 0.5, 2)
    net(torch.rand(3, 8, 6, 3))
    return net.eval()


NETWORKS["normalized"] = (normalized, (6, 3))


@pytest.mark.parametrize("cell", CELLS)
def test_programs_of_every_cell_spike_as_in_pytorch(cell, tmp_path):
    net = nn.Sequential(nn.Linear(6, 9), CELLS[cell](), nn.Linear(9, 3), hb.LI())
    if cell == "Izhikevich":
        net[0].weight.data *= 60
    check_programs(net.eval(), torch.rand(12, 3, 6), tmp_path)


@pytest.mark.parametrize("name", NETWORKS)
def test_programs_of_every_layer_return_the_outputs_of_pytorch(name, tmp_path):
    make, shape = NETWORKS[name]
    net = make().eval()
    dtype = torch.float64 if name == "double" else torch.float32
    check_programs(net, (torch.rand(6, 2, *shape, dtype=dtype) - 0.2).relu(), tmp_path)


@settings(max_examples=examples(6))
@given(st.data())
def test_programs_of_random_networks_spike_as_in_pytorch(tmp_path_factory, data):
    torch.manual_seed(data.draw(st.integers(0, 99)))
    draw = lambda *choices: data.draw(st.sampled_from(choices))  # noqa: E731
    channels, side = draw(1, 2, 3, 8), data.draw(st.integers(4, 9))
    layers, shape = [], (channels, side, side)
    for _ in range(data.draw(st.integers(0, 2))):
        kernel, stride = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 2))
        conv = nn.Conv2d(shape[0], draw(1, 3, 8, 16), kernel, stride, kernel // 2, dilation=draw(1, 2))
        try:
            shape = tuple(conv(torch.zeros(1, *shape)).shape[1:])
        except RuntimeError:  # the kernel is larger than the image
            continue
        layers += [EachStep(conv), draw(hb.IF, hb.LIF, hb.ALIF)(threshold=0.2)]
        if shape[1] > 1 and data.draw(st.booleans()):
            pool = draw(nn.MaxPool2d, nn.AvgPool2d)(2, data.draw(st.integers(1, 2)), padding=draw(0, 1))
            layers.append(EachStep(pool))
            shape = tuple(pool(torch.zeros(1, *shape)).shape[1:])
    size, hidden = math.prod(shape), 2 * data.draw(st.integers(1, 4))
    bias = data.draw(st.booleans())
    dense = draw(nn.Linear(size, hidden, bias), hb.DelayedLinear(size, hidden, 4, bias))
    layers += [nn.Flatten(2), dense]
    recurrent = hb.Recurrent(hb.LIFCell(threshold=0.1), hidden)
    layers += [draw(hb.IF(0.1), recurrent, hb.Delay(torch.rand(hidden) * data.draw(st.integers(0, 6)), 6))]
    window = hb.Window(hidden, 4, data.draw(st.integers(1, 4)), data.draw(st.integers(1, 3)), draw(1, 2))
    layers += [draw(nn.Linear(hidden, 3), window, hb.DelayedLinear(hidden, 3, 4)), hb.LI(draw(math.inf, 3.0))]
    inputs = (torch.rand(7, 2, channels, side, side) < 0.5).float()
    events = data.draw(st.booleans())
    check_programs(nn.Sequential(*layers).eval(), inputs, tmp_path_factory.mktemp("c"), events=events)


@needs_cc
@pytest.mark.parametrize("integers", [False, True], ids=["floats", "integers"])
def test_programs_add_any_number_of_active_rows_exactly(integers, tmp_path):
    net = nn.Sequential(nn.Linear(11, 11), hb.IF(0.5), nn.Linear(11, 16), hb.LI()).eval()
    with torch.no_grad():
        net[0].weight.copy_(torch.eye(11) + 0.01 * torch.rand(11, 11))
    active = torch.arange(12)[:, None] > torch.arange(11)  # sample n has n inputs and n spikes
    inputs = (active * (0.7 + 0.3 * torch.rand(12, 11))).expand(1, 12, 11)
    reference = in_order(net, inputs)
    if integers:
        net, _ = quantize(net, inputs)
        inputs, reference = net.integer_input(inputs), net.net
    with torch.no_grad():
        assert reference[:2](inputs).sum(-1).flatten().tolist() == list(range(12))
        expected = reference(inputs).double()
    program = to_c(net, inputs if not integers else inputs.float() * net.input_scale)
    outputs, *_ = outputs_of(compiled(program, tmp_path, 1), program, inputs)
    assert torch.equal(outputs, expected)


class SumOfThree(nn.Module):
    """The sum of two layers, then of a third: all read the input, and run before the first sum."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 2) for _ in range(3))

    def forward(self, x):
        one, two, three = self.layers
        total = one(x) + two(x)
        return total + three(x)


@needs_cc
def test_layers_of_the_input_keep_their_outputs_until_they_are_added(tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(SumOfThree(), hb.IF(0.3)).eval()
    for parameter in net.parameters():
        parameter.data.copy_((parameter * 64).round() / 64)
    check_programs(net, torch.randint(0, 9, (8, 2, 8)) / 8, tmp_path)


@needs_cc
def test_event_lists_and_constant_inputs_give_the_same_outputs_as_dense_inputs(tmp_path):
    net = nn.Sequential(
        nn.Unflatten(2, (1, 6)), EachStep(nn.AvgPool2d(2)), nn.Flatten(2), nn.Linear(9, 4), hb.LI()
    )
    for n, part in enumerate((net, net[3:])):
        shape = (6, 6) if n == 0 else (9,)
        inputs = (torch.rand(1, 3, *shape) < 0.5).float().expand(4, 3, *shape)
        (tmp_path / str(n)).mkdir()
        _, program = check_programs(part, inputs, tmp_path / str(n), events=True)
        binary = compiled(program, tmp_path / str(n), 4, constant_input=True)
        with torch.no_grad():
            assert torch.equal(outputs_of(binary, program, inputs)[0].float(), in_order(part, inputs)(inputs))


@needs_cc
@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ("max", lambda o: o.amax(0)),
        ("last", lambda o: o[-1]),
        ("first", lambda o: -(o == 0).double().cumprod(0).sum(0)),
    ],
)
def test_scores_reduce_the_outputs_over_time(scores, expected, tmp_path):
    neurons = hb.IF(0.5) if scores == "first" else hb.LI(2.0)
    net, inputs = nn.Sequential(nn.Linear(3, 4), neurons), torch.randn(5, 2, 3)
    program = to_c(net, inputs, scores=scores)
    outputs, result, _ = outputs_of(compiled(program, tmp_path, 5), program, inputs)
    assert torch.equal(result, expected(outputs))


MEMORY = [
    (NETWORKS["convolutions"][0], (2, 9, 8), 4 * (108 + 6 + 108 + 4) + 2 * 16),  # weights, pixel order
    (lambda: [nn.Linear(6, 9), CELLS["FastSynapses"]()], (6,), 4 * (54 + 9 + 81 + 81 + 9 + 9)),
    (
        lambda: [hb.DelayedLinear(5, 9, 300), hb.IF(), hb.Delay(torch.rand(9) * 5), hb.Window(9, 2, 3)],
        (5,), 4 * (45 + 9 + 54 + 2) + 2 * 45 + 9 + 6,  # weights, delays, and starts of rows
    ),
]  # fmt: skip


@needs_cc
@pytest.mark.parametrize(("layers", "shape", "constants"), MEMORY)
def test_the_header_states_the_memory_use(layers, shape, constants, tmp_path):
    program = to_c(nn.Sequential(*layers()), torch.rand(2, 1, *shape))
    program.write(tmp_path / "net.c")
    main = 'int main(void) { printf("%zu", sizeof(net_state)); return 0; }'
    (tmp_path / "size.c").write_text(f'#include "net.h"\n#include <stdio.h>\n{main}')
    subprocess.run(["cc", "-std=c99", "-o", tmp_path / "size", tmp_path / "size.c"], check=True)
    size_text = subprocess.run([tmp_path / "size"], capture_output=True, text=True, check=True).stdout
    assert int(size_text) == program.changing_bytes
    assert program.constant_bytes == constants
    assert f"{constants:,} bytes of constants, {int(size_text):,} that change" in program.header


@pytest.mark.parametrize(
    ("first", "second", "most"), [(nn.Linear, nn.Linear, 24), (hb.Window, hb.DelayedLinear, 120)]
)
def test_costs_count_the_most_operations_and_those_at_the_measured_rates(first, second, most):
    layers = first(4, 6, *[5] * (first is hb.Window)), second(6, 2, *[9] * (second is hb.DelayedLinear))
    net = nn.Sequential(layers[0], hb.IF(1e-9), layers[1], hb.IF(1e9))
    nn.init.ones_(net[0].weight)
    nn.init.zeros_(net[0].bias)
    net[0].weight.data[3:] = -1  # half of the neurons spike at each step
    inputs = torch.zeros(2, 1, 4)
    inputs[:, :, 0] = 0.5
    one, _, two, last = to_c(net, inputs).costs
    assert (one.additions, one.at_rates, one.multiplies, one.dense) == (most, most / 4, True, most)
    assert (two.additions, two.at_rates, two.multiplies) == (12, 6, False)
    assert last.additions == 2 * 5  # v * (1 - s) + x, and v - threshold > 0


def test_unsupported_operations_and_layers_are_named_in_the_error():
    class Strange(hb.Cell):
        def forward(self, input_, v_previous):
            return (torch.erfinv(input_ * 0.1),)

    x = torch.rand(2, 1, 3)
    with pytest.raises(Unsupported, match="layer '1': operation 'erfinv' has no C implementation"):
        to_c(nn.Sequential(nn.Linear(3, 2), hb.OverTime(Strange())), x)
    with pytest.raises(Unsupported, match="layer '0': GELU is not a supported layer"):
        to_c(nn.Sequential(nn.GELU(), hb.IF()), x)
    with pytest.raises(Unsupported, match=r"'mean' in .*: mean must be over all sides"):
        to_c(Mean(), x)
    with pytest.raises(Unsupported, match=r"layer '0\.module': padding_mode='reflect'"):
        to_c(nn.Sequential(EachStep(nn.Conv1d(1, 1, 3, padding=1, padding_mode="reflect"))), x[:, :, None])
    with pytest.raises(Unsupported, match=r"float32 or float64, got torch.float16"):
        to_c(nn.Sequential(hb.IF()), x.half())


class Mean(nn.Module):
    def forward(self, x):
        return x.mean(0)


def test_arguments_are_checked():
    net, x = nn.Sequential(nn.Linear(3, 2), hb.IF()), torch.rand(2, 1, 3)
    for arguments, error, message in (
        ({"name": "1net"}, ValueError, "name must be letters.*'1net'"),
        ({"scores": "mean"}, ValueError, "scores must be one of sum, max, last, first, got 'mean'"),
        ({"example": x[0]}, ValueError, r"example must be \[T, batch, ...\].*\(1, 3\)"),
        ({"example": x.int()}, TypeError, "example must be a floating-point tensor.*int32"),
    ):
        with pytest.raises(error, match=message):
            to_c(net, **{"example": x, **arguments})
    net[0].weight.data[0, 0] = torch.nan
    with pytest.raises(ValueError, match="layer '0': its weights must be finite"):
        to_c(net, x)


def test_functions_that_no_standard_rounds_exactly_are_listed():
    program = to_c(nn.Sequential(hb.EIF()), torch.rand(2, 1, 3))
    assert program.functions == ("exp",)
    assert "exp: no standard defines" in program.header
    assert to_c(nn.Sequential(hb.OverTime(IeeeOperations())), torch.rand(2, 1, 3)).functions == ()


@needs_cc
def test_exponential_neurons_spike_as_in_pytorch_except_for_rounding(tmp_path):
    net = nn.Sequential(nn.Linear(6, 9), hb.EIF(threshold=0.5), nn.Linear(9, 9), hb.EIF()).eval()
    with torch.no_grad():
        for layer in net[::2]:
            layer.weight *= 3
    inputs = torch.rand(30, 8, 6)
    program = to_c(net, inputs)
    outputs, *_ = outputs_of(compiled(program, tmp_path, 30), program, inputs)
    with torch.no_grad():
        expected = in_order(net, inputs)(inputs)
    assert 0.02 < expected.mean() < 0.98
    assert (outputs.float() == expected).float().mean() > 0.99


@pytest.mark.parametrize(
    "text", ["*/ EVIL; /*", "*\\/ EVIL; /*", '"EVIL', "EVIL??/\n/", "*??/\n/ EVIL /*", "é\nEVIL"]
)
def test_names_of_classes_and_layers_stay_in_comments(text):
    kind = type(text, (hb.IFCell,), {"forward": hb.IFCell.forward, "extra_repr": lambda self: text})
    net = nn.Sequential()
    net.add_module(text, nn.Linear(3, 2))
    net.add_module(f"{text}2", hb.OverTime(kind()))
    program = to_c(net, torch.rand(2, 1, 3))
    for file in (program.source, program.header):
        assert "EVIL" in file
        spliced = file.replace("??/", "\\").replace("\\\n", "")  # a compiler's first step
        assert "EVIL" not in re.sub(r"/\*.*?\*/", "", spliced, flags=re.DOTALL)


@needs_cc
def test_a_program_includes_its_header_under_any_file_name(tmp_path):
    net = nn.Sequential(nn.Linear(3, 2), hb.IF())
    source, header = to_c(net, torch.rand(4, 1, 3), name="net2").write(tmp_path / "other.c")
    assert (source.name, header.name) == ("other.c", "other.h")
    subprocess.run(["cc", "-c", "-o", tmp_path / "other.o", source], check=True)


def test_costs_name_the_neurons_whose_spikes_a_layer_reads():
    net = nn.Sequential(
        nn.Linear(3, 4), hb.IF(), nn.Linear(4, 5), hb.DelayedRecurrent(hb.LIFCell(), 5, 3), nn.Linear(5, 2)
    )
    costs = to_c(net, torch.rand(2, 1, 3)).costs
    assert [cost.source for cost in costs] == ["input", "1", "1", "3", "3"]
