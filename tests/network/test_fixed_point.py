"""Quantized user-defined cells: ten cells with recurrent synapses, bit for bit the same in PyTorch and C."""

import math
import warnings

import pytest
import torch
from torch import nn

import hibana as hb
from c_programs import compiled as compiled_in_c
from c_programs import needs_cc, outputs_of
from hibana.network import to_c

N = 7
spike = hb.surrogate.ATan()


def synapses(scale=0.8):
    return nn.Parameter(torch.randn(N, N) * scale / math.sqrt(N))


class WithSynapses(hb.Cell):
    """A cell with a recurrent matrix, in its step."""

    def __init__(self, scale=0.8):
        super().__init__()
        self.w = synapses(scale)


class Current(WithSynapses):
    """A synaptic current that decays, from the input and from the other neurons."""

    def forward(self, input_, i_previous, v_previous, s_previous):
        i = i_previous * 0.7 + input_ + s_previous @ self.w
        v = v_previous * (1 - s_previous) * 0.9 + i
        return i, v, spike(v - 1)


class DoubleExponential(WithSynapses):
    """A current with a rise and a decay."""

    def forward(self, input_, rise, fall, v_previous, s_previous):
        drive = input_ + s_previous @ self.w
        rise = rise * 0.5 + drive
        fall = fall * 0.8 + drive
        v = 0.9 * v_previous - s_previous * 0.6 + 0.7 * (fall - rise)
        return rise, fall, v, spike(v - 0.6)


class Conductance(WithSynapses):
    """Conductances that multiply the distance to their reversal potentials."""

    def forward(self, input_, g_previous, v_previous, s_previous):
        g = g_previous * 0.6 + torch.relu(s_previous @ self.w) + torch.relu(input_)
        v0 = torch.where(s_previous > 0, -0.2, v_previous)
        v = v0 + 0.1 * (g * (1.5 - v0) - v0)
        return g, v, spike(v - 0.8)


class AdaptiveThreshold(WithSynapses):
    """A threshold that rises with each spike, and synapses of excitation and of slow inhibition."""

    def forward(self, input_, a_previous, slow_previous, v_previous, s_previous):
        a = a_previous * 0.95 + s_previous
        slow = slow_previous * 0.9 + s_previous @ self.w.abs()
        v = (v_previous - s_previous * 0.5) * 0.8 + input_ - 0.2 * slow
        return a, slow, v, spike(v - (0.5 + 0.3 * a))


class Adaptive(WithSynapses):
    """A current that follows the potential, with one time constant for each neuron."""

    def __init__(self):
        super().__init__()
        self.tau = torch.linspace(2.0, 30.0, N)

    def forward(self, input_, w_previous, v_previous, s_previous):
        w = w_previous + (0.3 * v_previous - w_previous) / self.tau + 0.2 * s_previous
        v = v_previous + (input_ + s_previous @ self.w - v_previous - w) / 3 - s_previous * 0.7
        return w, v, spike(v - 0.7)


class Exponential(WithSynapses):
    """An upstroke and a saturating synapse: exp and tanh, which have no integer operation."""

    def forward(self, input_, i_previous, v_previous, s_previous):
        i = torch.tanh(i_previous * 0.8 + s_previous @ self.w + input_)
        u = v_previous * (1 - s_previous)
        v = u + (torch.exp((u - 0.7) / 0.3) * 0.3 - u) / 5 + i
        return i, v, spike(v - 1.2)


class Quadratic(WithSynapses):
    """A quadratic upstroke, and a potential that does not fall below its bound."""

    def forward(self, input_, i_previous, v_previous, s_previous):
        i = i_previous / 2 + input_ + s_previous @ self.w
        u = torch.maximum(torch.where(s_previous > 0, 0.1, v_previous), -torch.ones_like(input_))
        return i, u + 0.3 * u * (u - 0.6) + i, spike(u + i - 0.9)


class Graded(WithSynapses):
    """Neurons that pass on their potentials besides their spikes."""

    def forward(self, input_, v_previous, s_previous):
        passed = torch.sigmoid(v_previous * 4) @ self.w * 0.3
        v = v_previous * (1 - s_previous) * 0.85 + input_ + passed + s_previous @ self.w
        return v, spike(v - 0.8)


class Depressing(WithSynapses):
    """Synapses whose resource each spike uses up."""

    def forward(self, input_, r_previous, v_previous, s_previous):
        r = r_previous + (1 - r_previous) * 0.1 - 0.4 * r_previous * s_previous
        v = v_previous * 0.8 * (1 - s_previous) + input_ + (r_previous * s_previous) @ self.w
        return r, v, spike(v - 0.8)

    def initial_state(self, input_):
        zeros = torch.zeros_like(input_)
        return zeros + 1, zeros, zeros


class Refractory(WithSynapses):
    """A counter of steps at rest, and a spike that counts twice if the potential is high."""

    def forward(self, input_, wait_previous, v_previous, s_previous):
        wait = torch.where(s_previous > 0, 2.0, torch.clamp(wait_previous - 1, min=0))
        v = (v_previous * 0.75 + input_ + s_previous @ self.w) * (wait == 0).to(input_.dtype)
        return wait, v, spike(v - 0.5) + spike(v - 1.0)


CELLS = [
    *(Current, DoubleExponential, Conductance, AdaptiveThreshold, Adaptive),
    *(Exponential, Quadratic, Graded, Depressing, Refractory),
]


class Comparisons(hb.Cell):
    """Every comparison with a constant: some multiples of the input's unit, some between two multiples."""

    def forward(self, input_, v_previous, s_previous):
        v = v_previous * (1 - s_previous) + input_
        low = ((v >= 0.3) & (v < 0.7)) | (v == 1.5)
        return v, (low | ((v > 0.95) & (v <= 1.35)) | (v != v.floor()) & (v < -0.25)).to(v.dtype)


def network(cell):
    torch.manual_seed(CELLS.index(cell))
    net = nn.Sequential(nn.Linear(5, N), hb.OverTime(cell()), nn.Linear(N, 3), hb.LI())
    with torch.no_grad():
        net[0].weight.copy_(torch.rand(N, 5) * 0.5 - 0.05)
    return net


@needs_cc
@pytest.mark.parametrize("cell", CELLS)
def test_cells_with_synapses_are_the_same_in_c(cell, tmp_path):
    net, inputs = network(cell).eval(), torch.rand(20, 12, 5)
    quantized, report = hb.quantize(net, inputs[:, :8])
    assert quantized.net[1].cell.m0.abs().max() == 127
    program = to_c(quantized, inputs)
    integers = quantized.integer_input(inputs)
    with torch.no_grad():
        states = hb.record(quantized.net[1].cell, quantized.net[0](integers))
        expected = torch.cat([quantized.net(integers), *states.values()], -1).double()
    path = compiled_in_c(program, tmp_path, len(inputs), fields=[f"{name}_2" for name in states])
    outputs, _, _ = outputs_of(path, program, integers)
    assert torch.equal(outputs, expected)
    assert torch.equal(expected, expected.round())
    assert 0.01 < states[next(reversed(states))].mean() < 0.9
    assert report.layers[1].agreement > 0.93


def test_comparisons_with_constants_are_exact():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 50, bias=False), hb.OverTime(Comparisons()))
    with torch.no_grad():
        net[0].weight.copy_(torch.randint(-6, 7, (50, 4)) / 8)
        net[0].weight[:, 0] = 7 / 8
    inputs = (torch.rand(30, 8, 4) < 0.5).float()
    expected = net(inputs)
    assert 0.1 < expected.mean() < 0.9
    assert torch.equal(hb.quantize(net, inputs, bits=4)[0](inputs), expected)


@pytest.mark.parametrize("cell", CELLS)
def test_every_state_follows_the_float_state(cell):
    """One step from the states of a float run changes all states correctly to a few units."""
    net, inputs = network(cell).eval(), torch.rand(20, 12, 5)
    aware = hb.convert.quantization_aware(net, inputs)
    fixed = aware.net[1].cell
    units = [fixed.get_buffer(f"u{i + 1}").double() for i in range(len(cell.state_names()))]
    layer, currents = aware.plain[1].cell.double(), net[0](inputs).double().detach()
    state = layer.initial_state(currents[0])
    for current in currents:
        after = layer(current, *state)
        integers = [(s / u).round() for s, u in zip(state, units, strict=True)]
        computed = fixed((current / fixed.u0).round(), *(n.to(aware.dtype) for n in integers))
        for name, real, n, u in zip(cell.state_names(), after, computed, units, strict=True):
            error = (real - n.double() * u).abs()
            if name != cell.state_names()[-1]:
                assert error.max() < 0.02 * real.abs().max() + 8 * u.max(), name
            else:
                assert (error > 0.01).double().mean() < 0.1
        state = after


@pytest.mark.parametrize("cell", CELLS)
def test_cells_with_synapses_learn_in_integers(cell):
    net, inputs = network(cell), torch.rand(12, 16, 5)
    aware = hb.convert.quantization_aware(net, inputs, bits=4)
    w = aware.plain[1].cell.w
    with warnings.catch_warnings():
        warnings.simplefilter("error", hb.SlowPathWarning)
        (compiled,) = torch.autograd.grad((aware(inputs) ** 2).sum(), w)
    aware.net[1].backend = "reference"
    (gradient,) = torch.autograd.grad((aware(inputs) ** 2).sum(), w)
    assert torch.allclose(compiled, gradient, rtol=1e-4, atol=1e-5 * gradient.abs().max())
    aware.net[1].backend = "auto"
    (real,) = torch.autograd.grad((net(inputs) ** 2).sum(), net[1].cell.w)
    assert torch.cosine_similarity(gradient.flatten(), real.flatten(), dim=0) > 0.5
    with torch.no_grad():
        w -= 0.05 * gradient / gradient.norm()
    quantized, _ = hb.quantize(aware, inputs)
    assert torch.equal(quantized(inputs), aware(inputs).detach())
