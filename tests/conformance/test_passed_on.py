"""Steps that forward or swap states, or whose state is only an input, a number or a parameter."""

import pytest
import torch
from torch import nn

import hibana as hb
from conformance.compare import assert_conforms
from conformance.suite import CPU, each_backend

SURROGATE = hb.surrogate.ATan()


class Held(hb.Cell):
    def forward(self, input_, k_previous, v_previous, s_previous):
        v = v_previous * k_previous + input_
        return k_previous, v, SURROGATE(v - 1)


class Swapped(hb.Cell):
    def forward(self, input_, a_previous, b_previous, s_previous):
        v = a_previous * b_previous + input_
        return b_previous, a_previous, SURROGATE(v - 1 + a_previous)


class Turned(hb.Cell):
    def forward(self, input_, a, b, c, s):
        return b, c, a * c + input_, SURROGATE(a * b * c - 0.1 + s)


class Delay(hb.Cell):
    def forward(self, input_, a, b, c, s):
        return input_, a, b, SURROGATE(c * input_ - 0.2)


class InputTwice(hb.Cell):
    def forward(self, input_, a, b, s):
        return input_, b * a, SURROGATE(input_ * a * s - 0.3 + b)


class Unchanged(hb.Cell):
    def forward(self, input_, a):
        return (a,)


class EmitsInput(hb.Cell):
    def forward(self, input_, a, s):
        return a * 0.5 + input_ * s, input_


class EmitsState(hb.Cell):
    def forward(self, input_, a, s):
        return input_ * a * s, a


class EmitsItself(hb.Cell):
    def forward(self, input_, a, s):
        return input_ * a * s, s


class Detached(hb.Cell):
    def forward(self, input_, a, s):
        return a.detach(), SURROGATE(input_ * a - 1)


class Number(hb.Cell):
    def forward(self, input_, a, s):
        return torch.ones_like(input_), SURROGATE(input_ * a - 1)


class Constant(hb.Cell):
    def forward(self, input_, a, s):
        return torch.full_like(input_, 0.3), SURROGATE(input_ * a - 1)


class EmitsZero(hb.Cell):
    def forward(self, input_, a, s):
        return a * s + input_, torch.zeros_like(input_)


class Parameters(hb.Cell):
    def __init__(self):
        super().__init__()
        self.one = torch.nn.Parameter(torch.tensor(0.3))
        self.each = torch.nn.Parameter(torch.linspace(0.2, 1, 6))

    def forward(self, input_, a, b, s):
        return self.one.expand_as(input_), self.each.expand_as(input_), SURROGATE(input_ * a * b - 1 + s)


class Unread(hb.Cell):
    """A step that does not read its input."""

    def forward(self, input_, a, s):
        return a * 0.9, SURROGATE(a - 1)


KINDS = [Held, Swapped, Turned, Delay, InputTwice, Unchanged, EmitsInput, EmitsState, EmitsItself]
KINDS += [Detached, Number, Constant, EmitsZero, Parameters, Unread]


@each_backend
@pytest.mark.parametrize("kind", KINDS)
def test_a_forwarded_state(run, kind):
    """Forward and backward, from rest and from a state, with outputs and last states used."""
    torch.manual_seed(1)
    assert_conforms(run, kind(), 2 * torch.rand(9, 6))


@pytest.mark.cover(1)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(1, 6), (5, 64, 6)], ids=str)
def test_a_forwarded_state_over_one_step_and_several_rows(kind, shape):
    """Only on the CPU: Triton's programs treat neither case separately."""
    torch.manual_seed(1)
    assert_conforms(CPU, kind(), 2 * torch.rand(shape))


class Delayed(hb.Cell):
    """Synapses that read the spikes of two or three steps earlier."""

    def __init__(self, states):
        super().__init__()
        self.synapses = nn.Linear(8, 8, bias=False)
        with torch.no_grad():
            self.synapses.weight.copy_((self.synapses.weight * 64).round() / 64)
        self.names = tuple(f"s{i}" for i in range(states))
        self._create_cache()

    def forward(self, input_, *state):
        spikes = hb.surrogate.ATan()(input_ + self.synapses(state[0]) - 0.5)
        return *state[1:], spikes

    def state_names(self):
        return self.__dict__.get("names", ())


@pytest.mark.parametrize("states", [2, 3])
@pytest.mark.parametrize("with_state", [False, True])
def test_a_matrix_multiplies_a_forwarded_state(states, with_state):
    torch.manual_seed(0)
    cell, inputs = Delayed(states), (torch.rand(12, 3, 8) * 64).round() / 64
    first = [(torch.rand(3, 8) * 4).round() / 4 for _ in range(states if with_state else 0)]
    results = []
    for backend in ("reference", "cpu"):
        x, state = inputs.clone().requires_grad_(), [value.clone().requires_grad_() for value in first]
        outputs, last = hb.unroll(cell, x, tuple(state) or None, backend=backend)
        loss = (outputs * torch.arange(8.0)).sum() + last[0].sum()
        results.append(((outputs, *last), torch.autograd.grad(loss, [x, *state, *cell.parameters()])))
    (values, grads), (compiled, compiled_grads) = results
    assert 0.1 < values[0].mean() < 0.9
    assert all(map(torch.equal, compiled, values))
    for one, other in zip(compiled_grads, grads, strict=True):
        torch.testing.assert_close(one, other)
