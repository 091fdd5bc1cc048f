"""Kernels use zeros for absent gradients, and zero times an unbounded derivative is zero.

Inputs and initial states contain zeros, at which the derivatives of these steps are infinite or NaN.
"""

from itertools import chain, combinations

import pytest
import torch
from torch import nn

import hibana as hb
from conformance.suite import each_backend

SURROGATE = hb.surrogate.ATan()


class Root(hb.Cell):
    def forward(self, input_, e, v, s):
        v = 0.5 * v * (1 - s) + input_
        return torch.sqrt(v.abs()), v, SURROGATE(v - 0.6)


class RootFedBack(hb.Cell):
    def forward(self, input_, e, v, s):
        v = 0.5 * v + input_ - 0.1 * e * s
        return torch.sqrt(v.abs()), v, SURROGATE(v - 0.6)


class EmitsRoot(hb.Cell):
    def forward(self, input_, v, e):
        v = 0.5 * v + input_ - 0.25 * e
        return v, torch.sqrt(v.abs())


class Logarithm(hb.Cell):
    def forward(self, input_, e, v, s):
        v = 0.5 * v * (1 - s) + input_
        return torch.exp(torch.log(v.abs())), v, SURROGATE(v - 0.6)


class Sign(hb.Cell):
    def forward(self, input_, e, v, s):
        v = 0.5 * v * (1 - s) + input_
        return v / v.abs().clamp(min=0.0), v, SURROGATE(v - 0.6)


class Chosen(hb.Cell):
    def forward(self, input_, e, v, s):
        v = 0.5 * v * (1 - s) + input_
        return torch.where(v > 0, torch.sqrt(v), 0 * v), v, SURROGATE(v - 0.6)


class Floored(hb.Cell):
    def forward(self, input_, e, v, s):
        v = 0.5 * v + input_
        return torch.floor(torch.sqrt(v.abs())), v, SURROGATE(v - 0.6)


class Learned(hb.Cell):
    """Derivatives of the parameters are infinite, within the step and before the loop."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.tensor([0.0, 0.7, 1.0, 1.5]))
        self.decay = nn.Parameter(torch.tensor(0.0))
        self.scale = nn.Parameter(torch.tensor([0.0, 0.5, 2.0, 1.0]))

    def forward(self, input_, e, v, s):
        v = 0.5 * v * (1 - s) + input_
        e = torch.sqrt((v * self.gain).abs()) + v * torch.sqrt(self.decay) + v * 3 / (self.scale + 1e-9)
        return e, v, SURROGATE(v - 0.6)


class Synapses(hb.Cell):
    def __init__(self):
        super().__init__()
        self.synapses = nn.Linear(4, 4, bias=False)

    def forward(self, input_, e, v, s):
        v = 0.5 * v + input_ + self.synapses(s)
        return torch.sqrt(v.abs()), v, SURROGATE(v - 0.6)


KINDS = [Root, RootFedBack, EmitsRoot, Logarithm, Sign, Chosen, Floored, Learned, Synapses]


def numbers(dtype: torch.dtype) -> torch.Tensor:
    torch.manual_seed(0)
    inputs = torch.randn(7, 3, 4, dtype=dtype)
    inputs[:, 0] = torch.tensor([0, 1, 0.5, 0, 0, 0.25, -0.25])[:, None]
    inputs[:, 1, :2] = 0
    return inputs


def gradients(cell, inputs, state, used, backend):
    """Gradients of the input, the initial states and the parameters, for a loss of the values `used`."""
    cell.zero_grad()
    x = inputs.clone().requires_grad_()
    first = () if state is None else tuple(value.clone().requires_grad_() for value in state)
    outputs, last = hb.unroll(cell, x, first or None, backend=backend)
    values = [outputs, *last]
    sum((values[i] * (1 + i + torch.arange(4, dtype=x.dtype))).sum() for i in used).backward()
    named = [*zip(cell.state_names(), first, strict=False), *cell.named_parameters()]
    return {"input": x.grad, **{name: value.grad for name, value in named}}


@pytest.mark.cover(1)
@each_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_the_references_or_zero_if_it_has_none(kind, dtype, run):
    torch.manual_seed(1)
    cell = kind().to(dtype)
    inputs = numbers(dtype)
    count = len(cell.state_names())
    first = tuple((inputs[i] * 0.5).clone() for i in range(count))
    special = 0
    losses = chain.from_iterable(combinations(range(1 + count), size) for size in {1, count, 1 + count})
    for used in losses:
        for state in (None, first):
            case = f"a loss of {used}, {'at rest' if state is None else 'from a state'}"
            grads, expected = (gradients(cell, inputs, state, used, name) for name in (run.name, "reference"))
            for name, target in expected.items():
                if target is None:
                    special += 1
                    assert not grads[name].any(), f"{case}: the gradient of {name} is not zero"
                    continue
                special += not target.isfinite().all()
                grad = torch.where(target.isnan(), target, grads[name])
                torch.testing.assert_close(
                    grad, target, equal_nan=True, msg=lambda m, name=name, case=case: f"{case}, {name}: {m}"
                )
    assert special > 0


def test_zero_times_an_infinite_derivative_is_zero_where_autograd_has_nan():
    inputs = torch.tensor([[0.0, 0.25], [0.0, 1.0]])
    result, expected = (gradient_of_first_state(Chosen(), inputs, name) for name in ("cpu", "reference"))
    assert expected[:, 0].isnan().all()
    assert result[:, 0].eq(0).all()
    assert result[:, 1].gt(0).all()
    torch.testing.assert_close(result[:, 1], expected[:, 1])


def gradient_of_first_state(cell, inputs, backend):
    x = inputs.clone().requires_grad_()
    hb.unroll(cell, x, backend=backend)[1][0].sum().backward()
    return x.grad


def test_a_nan_gradient_is_passed_on_beside_an_infinite_derivative():
    x = torch.tensor([[0.25, 0.25, 0.0]], requires_grad=True)
    outputs, _ = hb.unroll(EmitsRoot(), x, backend="cpu")
    (grad,) = torch.autograd.grad(outputs, x, torch.tensor([[torch.nan, 1.0, 0.0]]))
    assert grad[0, 0].isnan()
    assert grad[0, 1:].tolist() == [1.0, 0.0]


@pytest.mark.dynamo
def test_a_traced_graph_has_the_same_gradients():
    x = torch.tensor([[0.0, 1.0], [0.0, 0.5]], requires_grad=True)
    cell = Root()
    compiled = torch.compile(lambda x: hb.unroll(cell, x)[1][1], backend="aot_eager", fullgraph=True)
    compiled(x).sum().backward()
    assert x.grad.isfinite().all()
    assert x.grad[:, 0].tolist() == [0.5, 1.0]
