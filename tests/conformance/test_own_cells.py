"""User-defined cells: any pointwise step with any kind of hyper-parameters."""

import copy
import inspect
import pickle
import re
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

import hibana as hb
from conformance.compare import (
    assert_conforms,
    assert_same_gradients,
    assert_same_values,
    on_its_device,
)
from conformance.suite import CPU, SHAPE, drive, each_backend
from hibana.cells.base import CellCache
from hibana.cells.surrogate import ATan, Box, Sigmoid

NEURONS = SHAPE[-1]


class Spread(hb.Cell):
    """Four states that feed one another."""

    def forward(self, input_, fast_previous, slow_previous, trace_previous, s_previous):
        fast = 0.5 * fast_previous + input_
        slow = 0.9 * slow_previous + 0.1 * (fast - trace_previous)
        trace = 0.8 * trace_previous + s_previous
        return fast, slow, trace, ATan()(fast - slow - 0.3 * trace - 0.4)


class Words(hb.Cell):
    """where, exp, tanh, abs, min and max, clamp, powers."""

    def forward(self, input_, u_previous, v_previous, s_previous):
        rested = torch.where(s_previous > 0, torch.exp(-v_previous.abs()), v_previous)
        u = torch.tanh(u_previous + input_) ** 3 + torch.minimum(rested, input_) ** 2
        v = torch.maximum(rested * 0.7, u.clamp(-0.5, 0.8)) + (1 + u * u) ** 0.5 * input_
        return u, v, ATan()(v / (1 + v.abs()) - (2 + v * v) ** -1)


class Logic(hb.Cell):
    """Comparisons and boolean logic; a countdown in place of a time constant."""

    def forward(self, input_, wait_previous, v_previous, s_previous):
        spiked = s_previous != 0
        wait = torch.where(spiked, 3.0, (wait_previous - 1).clamp(min=0))
        awake = (wait <= 0) | ((input_ > 1.5) & ~spiked)
        loud = torch.logical_xor(input_ >= 0.25, v_previous < 0.1)
        v = torch.where(awake, v_previous * ~spiked + input_, 0.5 * v_previous) + 0.05 * loud
        return wait, v, Box()(v - 0.6) * awake


class InPlace(hb.Cell):
    """In-place operations on tensors that the step created."""

    def forward(self, input_, v_previous, s_previous):
        v = v_previous * 0.5
        v += input_
        v.mul_(1 - s_previous).add_(0.05).clamp_(max=2.0)
        x = v.clone()
        x -= 0.7
        return v, ATan()(x)


class Rate(hb.Cell):
    """Emits a smooth rate."""

    def forward(self, input_, r_previous):
        return (r_previous + 0.2 * (torch.tanh(input_) - r_previous),)


class NamedLikeARow(hb.Cell):
    """States with names that a kernel uses internally."""

    def forward(self, i, x, p0, c, x_grad, kept0, a_before, n):
        new = i - x * 0.5 + torch.tanh(p0) * c
        spikes = ATan()(new + a_before * x_grad - 0.3)
        rest = (torch.tanh(c + x_grad), x - torch.tanh(kept0 * kept0), a_before * 0.9 + new)
        return new, torch.tanh(i * x), p0 * 0.5 + i, *rest, spikes * (1 - n * 0.1)


class Dictionary(hb.Cell):
    """Settings in a dictionary that may change, a module of torch, and a learned tensor per neuron."""

    def __init__(self):
        super().__init__()
        self.settings = {"gain": 0.7, "bounds": [-2.0, 2.0]}
        self.squash = nn.Tanh()
        self.weight = nn.Parameter(torch.linspace(0.5, 1.0, NEURONS))

    def forward(self, input_, a, h):
        low, high = self.settings["bounds"]
        x = torch.clamp(input_ * self.weight + a.abs() ** 0.5, low, high)
        x *= self.settings["gain"]
        gate = (x > 0.1) & ~(h >= 0.9) | (a == 0)
        grown = torch.where(gate, torch.exp(-x), torch.minimum(x, h) ** 2)
        return torch.maximum(grown, a) / (1 + h**3).abs().clamp(min=0.5), self.squash(grown + h / 2)


class Nested(hb.Cell):
    """Contains pointwise modules; one of them has a parameter."""

    def __init__(self):
        super().__init__()
        self.shape = nn.Sequential(nn.Softsign(), nn.Tanh(), nn.ReLU())
        self.gain = Gain()

    def forward(self, input_, v_previous, s_previous):
        v = self.gain(self.shape(v_previous + input_)) - 0.4 * s_previous
        return v, ATan()(v - 0.5)


class Gain(nn.Module):
    def __init__(self):
        super().__init__()
        self.value = nn.Parameter(torch.tensor(1.3))

    def forward(self, x):
        return x * self.value


class Settings(hb.Cell):
    """Hyper-parameters of any kind: a number, a tensor, a parameter; for all neurons or one each."""

    def __init__(self, threshold, tau, offset):
        super().__init__()
        self.threshold = threshold
        self.tau = tau
        self.offset = offset

    def forward(self, input_, v_previous, s_previous):
        v = (v_previous - s_previous * self.threshold) * (1 - 1 / self.tau) + input_ - self.offset**2
        return v, Sigmoid()(v - self.threshold)


def each(low, high):
    return torch.linspace(low, high, NEURONS)


def learned(value):
    return nn.Parameter(torch.as_tensor(value))


CELLS = {
    "four states": Spread,
    "words": Words,
    "logic": Logic,
    "in place": InPlace,
    "smooth": Rate,
    "internal names of kernels": NamedLikeARow,
    "a dictionary": Dictionary,
    "modules inside": Nested,
    "numbers": lambda: Settings(0.6, 3.0, 0.1),
    "tensors per neuron": lambda: Settings(each(0.4, 0.8), each(1.5, 9.0), each(-0.2, 0.2)),
    "tensors of one number": lambda: Settings(torch.tensor(0.6), torch.tensor([3.0]), torch.tensor([[0.1]])),
    "learned numbers": lambda: Settings(learned(0.6), learned(3.0), learned([0.1])),
    "learned per neuron": lambda: Settings(
        learned(each(0.4, 0.8)), learned(each(1.5, 9.0)), learned(each(-0.2, 0.2)[None])
    ),
    "learned per row": lambda: Settings(
        0.6, learned([[2.0], [3.0], [4.0]]), learned(torch.zeros(3, NEURONS))
    ),
    "frozen": lambda: Settings(learned(0.6).requires_grad_(False), learned(each(1.5, 9.0)), 0.0),
}


@each_backend
@pytest.mark.parametrize("name", CELLS)
def test_a_user_defined_cell(run, name):
    cell = CELLS[name]()
    inputs = 1.5 * torch.rand(SHAPE) - 0.2
    assert_conforms(run, cell, inputs)


@each_backend
def test_a_changed_entry_of_a_dictionary_is_used(run):
    cell, inputs = Dictionary(), torch.ones(4, NEURONS)
    assert_same_values(run, cell, inputs)
    cell_, (inputs_,) = on_its_device(run, cell, inputs)
    before, _ = run(cell_, inputs_, None)
    cell_.settings["gain"] = 0.2
    assert_same_values(run, cell_, inputs)
    assert not torch.equal(run(cell_, inputs_, None)[0], before)


@each_backend
@pytest.mark.parametrize("name", ["words", "learned per neuron"])
def test_a_user_defined_cell_in_float64(run, name):
    cell = CELLS[name]().double()
    assert_same_values(run, cell, 1.5 * torch.rand(SHAPE).double() - 0.2)
    assert_conforms(run, cell, 1.5 * torch.rand(SHAPE).double() - 0.2)


def test_the_cells_spike_sometimes():
    for name in CELLS.keys() - {"smooth", "a dictionary"}:
        make = CELLS[name]
        outputs, _ = hb.unroll(make(), 1.5 * torch.rand(SHAPE) - 0.2, backend="reference")
        share = (outputs > 0).float().mean()
        assert 0.02 < share < 0.98, f"{name}: {share}"


def cell_of(operation):
    class Applied(hb.Cell):
        def forward(self, input_, v_previous, s_previous):
            v = 0.5 * v_previous * (1 - s_previous) + operation(input_, v_previous)
            return v, ATan()(v - 0.5)

    return Applied()


OPERATIONS = {
    "sin and cos": lambda x, v: torch.sin(3 * x) + torch.cos(v),
    "log": lambda x, v: torch.log(x.abs() + 0.5),
    "log2": lambda x, v: torch.log2(v.square() + 0.5),
    "atan": lambda x, v: torch.atan(2 * x) + 0.1 * v,
    "erf": lambda x, v: torch.erf(x) - torch.erfc(v),
    "root": lambda x, v: (x * x + v * v + 1) ** 0.5,
    "sqrt": lambda x, v: torch.sqrt(x.abs() + 0.1),
    "powers": lambda x, v: (x.abs() + 1) ** 0.5 + (v.abs() + 1) ** -1 + x**3 - v**2 + x**1 + v**0,
    "rounding": lambda x, v: torch.floor(4 * x) / 4 + torch.ceil(v) - torch.trunc(v),
    "sign": lambda x, v: torch.sign(x) * v.abs(),
    "reciprocal": lambda x, v: torch.reciprocal(v.abs() + 1) * x,
    "relu": lambda x, v: torch.relu(x) - torch.relu(-v),
    "masks": lambda x, v: x.masked_fill(v > 0.4, -0.1) + torch.zeros_like(v) + torch.full_like(v, 0.25),
    "choice": lambda x, v: torch.where(x > v, x, torch.where(v == 0, 0.3, v)),
    "numbers on the left": lambda x, v: 1.5 - x + 2 / (1 + v.abs()) - 1,
    "comparison as a number": lambda x, v: (x > v).float() + (x >= 0.2) * x - (v != 0).to(x),
    "softplus by hand": lambda x, v: torch.log(1 + torch.exp(-x.abs())) + x.clamp_min(0),
    "detached": lambda x, v: x * v.detach() + x.detach(),
    "weighted": lambda x, v: torch.rsub(x, v) + torch.sub(x, v),
    "a size": lambda x, v: x + v / v.shape[-1],
}


TESTED_ALONE = (
    "sin and cos",
    "log",
    "log2",
    "atan",
    "erf",
    "root",
    "sqrt",
    "rounding",
    "sign",
    "reciprocal",
    "relu",
)
"""Operations that `test_functions.py` compiles one at a time."""


@each_backend
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.exhaustive if name in TESTED_ALONE else ()) for name in OPERATIONS],
)
def test_an_operation(run, name):
    cell = cell_of(OPERATIONS[name])
    inputs = 2 * torch.rand(8, 2, 19) - 0.6
    for initial in (None, (torch.randn(2, 19), torch.zeros(2, 19))):
        assert_same_gradients(run, cell, inputs, initial, "outputs and states")
    assert_same_values(run, cell, 3 * torch.rand(3, run.many) - 1)


def test_the_step_is_traced_in_any_autograd_mode():
    cell = hb.IFCell(surrogate=ATan())
    inputs = drive(cell)
    expected, _ = hb.unroll(cell, inputs, backend="reference")
    for context in (torch.no_grad, torch.inference_mode):
        for kind in (ATan(alpha=1.5), ATan(alpha=2.5)):  # each is traced again in this context
            with context():
                assert torch.equal(hb.unroll(hb.IFCell(surrogate=kind), inputs, backend="cpu")[0], expected)
            assert_same_gradients(CPU, hb.IFCell(surrogate=kind), inputs, None, "outputs only")


def test_states_are_named_after_the_parameters_of_forward():
    assert Spread.state_names() == ("fast", "slow", "trace", "s")
    assert list(inspect.signature(Spread.forward).parameters)[2] == "fast_previous"


SOURCES = Path(hb.__file__).parent.rglob("*.py")
PUT = re.compile(r'(?:__dict__|vars\(\w+\))(?:\.\w+\(|\[)"(\w+)"')
INTERNAL = {name for path in SOURCES for name in PUT.findall(path.read_text(encoding="utf-8"))}
OTHERS = {"called", "cell", "kept", "known", "log_tau", "made", "program", "step", "support", "uniform"}
NAMES = [name for name in sorted({*INTERNAL, *CellCache.__slots__, *OTHERS}) if not name.startswith("__")]


class Named(hb.Cell):
    """Reads a number from the attribute `name`."""

    def __init__(self, name, value):
        super().__init__()
        self.name = name
        setattr(self, name, value)

    def forward(self, input_, v_previous):
        return (v_previous * getattr(self, self.name) + input_,)


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


def test_a_parametrized_cell_keeps_attributes_of_any_name():
    inputs = torch.rand(5, 4)
    cell = Named("made", 0.5)
    expected = hb.unroll(cell, inputs)[0]
    cell.weight = nn.Parameter(torch.rand(4))
    parametrize.register_parametrization(cell, "weight", Doubled())
    assert torch.equal(hb.unroll(cell, inputs)[0], expected)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in vars(nn.Module())])
def test_an_attribute_may_have_any_name(name):
    inputs = torch.rand(5, 4)
    cell = Named(name, 0.5)
    for value in (0.5, 0.25, nn.Parameter(torch.tensor(0.75)), torch.tensor(0.5)):
        if not isinstance(value, float):
            cell = Named(name, value)
        setattr(cell, name, value)
        for one in (cell, copy.deepcopy(cell), pickle.loads(pickle.dumps(cell))):
            for _ in range(2):
                assert_same_values(CPU, one, inputs)
        assert len(hb.run(hb.OverTime(cell), inputs[:, None])[1][""]) == 1
        assert hb.record(cell, inputs).keys() == {"v"}
        assert name in vars(cell) or name in cell.state_dict()


def test_the_reserved_name_is_refused():
    with pytest.raises(AttributeError, match="_hibana is reserved for hibana"):
        Named("_hibana", 1.0)


def test_a_parameter_whose_name_begins_with_log_stays_unchanged():
    cell = Named("log_gain", nn.Parameter(torch.tensor(0.5)))
    cell.gain = 1.0
    assert [name for name, _ in cell.named_parameters()] == ["log_gain"]
