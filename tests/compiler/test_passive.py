"""Passive forms: their maps, guards and bounds agree with the steps from which they are derived."""

import math

import pytest
import torch

import hibana as hb
from hibana.compiler.analysis.passive import BASE_BITS, LEVELS, grouped_form, passive_form
from hibana.compiler.graph.ops import Unsupported
from hibana.compiler.graph.trace import trace
from hibana.compiler.tensors import tensors_of

NEURONS = 6


class Refractory(hb.Cell):
    """A current and a potential, whose input is lost for four steps after a spike."""

    def forward(self, input_, i_previous, v_previous, r_previous, s_previous):
        counter = torch.where(s_previous > 0, 4.0, (r_previous - 1).clamp(min=0))
        current = torch.where(counter > 0, 0.0, 0.8 * i_previous + input_)
        v = torch.where(counter > 0, 0.0, 0.95 * v_previous + 0.2 * current)
        return current, v, counter, hb.spike(v - 1)


class Rectified(hb.Cell):
    """A slow state follows the positive part of the potential."""

    def forward(self, input_, w_previous, v_previous, s_previous):
        v = torch.where(s_previous > 0, 0.0, v_previous)
        w = 0.98 * w_previous + 0.05 * v.clamp(min=0)
        v = 0.9 * v - 0.1 * w + input_
        return w, v, hb.spike(v - 1)


class Own(hb.Cell):
    """A step with one function, for refusals."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, input_, v_previous, s_previous):
        v = self.function(v_previous * (1 - s_previous)) + input_
        return v, hb.spike(v - 1)


class Turning(hb.Cell):
    """An undamped rotation, whose powers are bounded but never settle."""

    def forward(self, input_, w_previous, v_previous, s_previous):
        c, s = math.cos(0.1), math.sin(0.1)
        v = v_previous * (1 - s_previous)
        return v * s + w_previous * c, v * c - w_previous * s + input_, hb.spike(v * c - w_previous * s - 1)


AFFINE = {
    "IF": hb.IFCell(),
    "LIF": hb.LIFCell(20.0, reset="subtract"),
    "LIF with a rest": hb.LIFCell(20.0, rest=0.3, reset=-0.2),
    "LIF with a lower bound": hb.LIFCell(20.0, lower_bound=-0.3),
    "LIF of each neuron": hb.LIFCell(torch.linspace(3.0, 40.0, NEURONS)),
    "ALIF": hb.ALIFCell(20.0, 100.0, 0.2),
    "AdLIF": hb.AdLIFCell(tau=20.0, coupling=0.5),
    "CubaLIF": hb.CubaLIFCell(5.0, 20.0),
    "RefractoryLIF": hb.RefractoryLIFCell(20.0, 5),
    "SiLIF": hb.SiLIFCell(20.0, 0.1),
    "resonate-and-fire": hb.ResonateAndFireCell(),
    "exact LIF": hb.ExactLIFCell(200.0, 50.0, 7.0, torch.full([NEURONS], 22.0)),
    "exact LIF that keeps its current": hb.ExactLIFCell(200.0, 50.0, 7.0, 22.0, keeps_current=True),
    "refractory": Refractory(),
    "rectified": Rectified(),
}


def form_of(cell, input_=0.0):
    """The group of each neuron, the form, the step, and its numbers ``[neurons]``."""
    shape = torch.Size([1, NEURONS])
    cell = cell.double()
    step = trace(cell, shape, torch.float64, draws=True)
    rows = [row.expand(shape).flatten() for row in step.prologue(*tensors_of(cell).values())]
    example = torch.zeros(shape, dtype=torch.float64)
    inputs = example[0] + input_
    states = [state.expand(shape).flatten() for state in cell.initial_state(example)]
    with torch.no_grad():
        numbers = [row.detach() for row in rows[: step.parameters]]
        groups, form = grouped_form(cell, step, numbers, inputs, states)
    return groups, form, step, inputs


def is_passive(form, groups, states):
    """Whether each neuron is passive in `states`, ``[neurons]`` each."""
    passive = torch.ones(NEURONS, dtype=torch.bool)
    for i, value in form.fixed.items():
        passive &= states[i] == value[groups]
    gaps = torch.stack([states[i] for i in form.free], 1) - form.rest[groups]
    guards = form.guards[groups]  # [neurons, guards, 2 * free + 1]
    bounds = guards[..., -1] + torch.maximum(
        guards[..., :-1:2] * gaps[:, None], guards[..., 1:-1:2] * gaps[:, None]
    ).sum(2)
    return passive & (bounds <= 0).all(1)


def advanced(form, groups, states, steps):
    """The free states after `steps` steps by the tables of powers, ``[free][neurons]``."""
    gaps = torch.stack([states[i] for i in form.free], 1) - form.rest[groups]
    for level in range(LEVELS):
        digit = steps >> (BASE_BITS * level) & ((1 << BASE_BITS) - 1)
        if digit:
            map_ = form.powers[groups, level, digit - 1]
            gaps = (map_[..., :-1] @ gaps[..., None])[..., 0] + map_[..., -1]
    return (gaps + form.rest[groups]).unbind(1)


@pytest.mark.parametrize("name", AFFINE)
def test_passive_neurons_stay_silent_and_follow_the_powers(name):
    cell = AFFINE[name]
    groups, form, step, inputs = form_of(cell)
    varied = [i for i in form.free if step.states[i] != "r"]  # a counter is at rest or not
    generator, passive_cases = torch.Generator().manual_seed(0), 0
    with torch.no_grad():
        for _ in range(40):
            states = [row.expand(1, NEURONS).clone() for row in cell.initial_state(inputs[None])]
            for i in varied:
                scale = 1.5 * torch.rand(1, generator=generator, dtype=torch.float64)
                noise = torch.randn(NEURONS, generator=generator, dtype=torch.float64)
                states[i] = states[i] + noise * scale * (7 if name.startswith("exact") else 1)
            passive = is_passive(form, groups, [state[0] for state in states])
            passive_cases += int(passive.sum())
            start, ever = [state[0] for state in states], torch.zeros(NEURONS, dtype=torch.bool)
            for time in range(1, 200):
                states = list(cell(inputs[None], *states))
                ever |= states[-1][0] > 0
                if time in (1, 5, 64, 199):
                    rows = advanced(form, groups, start, time)
                    for i, row in zip(form.free, rows, strict=True):
                        expected = states[i][0][passive]
                        torch.testing.assert_close(row[passive], expected, rtol=1e-11, atol=1e-12)
                    for i, value in form.fixed.items():
                        assert torch.equal(states[i][0][passive], value[groups][passive])
            assert not (ever & passive).any()
    assert passive_cases > 20


@pytest.mark.parametrize("name", ["CubaLIF", "exact LIF"])
def test_bounds_of_a_current_are_those_of_its_powers(name):
    """A bound that is too low by half lets a neuron fire unseen; only currents show it."""
    groups, form, step, _ = form_of(AFFINE[name])
    row = form.guards[0, -1, :-1]  # the threshold
    potential, current = (form.free.index(step.states.index(state)) for state in ("v", "i"))
    for i in (potential, current):
        start = [torch.zeros(NEURONS, dtype=torch.float64) for _ in range(4)]
        start[form.free[i]] += 1.0
        potentials = [advanced(form, groups, start, n)[potential][0].item() for n in range(1, 3000)]
        least, most = min(0.0, *potentials), max(potentials)
        assert row[2 * i : 2 * i + 2].tolist() == pytest.approx([least, most], rel=1e-6, abs=1e-8)


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        (hb.IzhikevichCell(), "not affine: "),
        (hb.QIFCell(), "not affine: "),
        (hb.EIFCell(), "not affine: "),
        (Own(lambda v: v * v), "not affine: mul, of the states v"),
        (Own(torch.sin), "not affine: sin, of the states v"),
        (Own(lambda v: 0.9 * v + torch.randn_like(v)), "draws random numbers"),
        (Own(lambda v: 1.01 * v), "nothing bounds its states"),
        (Own(lambda v: 0.9 * v + 0.2), "fires by itself"),
        (Own(lambda v: v * math.nan), "not finite|fires by itself"),
        (Turning(), "nothing bounds its states"),
        (hb.LICell(), "does not emit spikes"),
    ],
)
def test_steps_without_a_passive_form_are_refused_with_the_reason(cell, message):
    with pytest.raises(Unsupported, match=message):
        form_of(cell)


def test_a_bias_above_the_threshold_is_never_passive_but_its_neighbours_are():
    inputs = torch.tensor([0.0, 0.01, 0.04, 0.049, 0.051, 0.2], dtype=torch.float64)  # times 20: the rest
    groups, form, _, _ = form_of(Own(lambda v: 0.95 * v), inputs)
    states = [torch.zeros(NEURONS, dtype=torch.float64)] * 2
    assert is_passive(form, groups, states).tolist() == [True] * 4 + [False] * 2
    assert form.rest[groups, 0].tolist() == pytest.approx((inputs * 20).tolist(), rel=1e-9)


def test_neurons_with_equal_parameters_form_a_group():
    cell = hb.LIFCell(torch.tensor([5.0, 9.0, 5.0, 7.0, 9.0, 5.0]))
    groups, form, _, _ = form_of(cell)
    assert len(form.rest) == 3
    assert len({(cell.tau[i].item(), groups[i].item()) for i in range(NEURONS)}) == 3


def test_a_tie_with_the_threshold_is_not_passive():
    """A potential that reaches the threshold exactly does not fire, but one above it by rounding does."""
    groups, form, _, _ = form_of(hb.IFCell())
    for potential, passive in ((1.0, False), (1 - 1e-14, False), (1 - 1e-8, True)):
        states = [torch.full([NEURONS], value, dtype=torch.float64) for value in (potential, 0.0)]
        assert is_passive(form, groups, states).tolist() == [passive] * NEURONS


def test_tables_of_many_groups_are_refused():
    step = trace(hb.LIFCell().double(), torch.Size([1, 3]), torch.float64, draws=True)
    rows = torch.linspace(0.5, 0.9, 50_000, dtype=torch.float64)
    numbers = [rows for _ in range(step.parameters)]
    zeros = torch.zeros_like(rows)
    with pytest.raises(Unsupported, match="50000 different sets of parameters"):
        passive_form(step, numbers, zeros, [zeros] * len(step.states))
