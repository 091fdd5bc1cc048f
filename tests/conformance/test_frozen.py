"""Values that a trace could freeze: sizes, counters, random numbers, aliases, and attributes."""

import random

import numpy
import pytest
import torch

import hibana as hb
from conformance.compare import assert_conforms
from conformance.suite import CPU, each_backend
from hibana.compiler.graph.dependencies import Dependencies
from hibana.compiler.graph.ops import Unsupported
from hibana.compiler.graph.trace import trace

SURROGATE = hb.surrogate.ATan()


class Step(hb.Cell):
    def __init__(self, operation):
        super().__init__()
        self.operation = operation

    def forward(self, input_, v_previous, s_previous):
        v = self.operation(input_, v_previous, s_previous)
        return v, SURROGATE(v - 1)


SIZED = {
    "shape": lambda x, v, s: v + (x * 2 if x.shape[-1] > 4 else x),
    "size": lambda x, v, s: v + (x * 2 if x.size(0) > 4 else x),
    "numel": lambda x, v, s: v + (x * 2 if x.numel() > 30 else x),
    "len": lambda x, v, s: v + (x * 2 if len(x) > 4 else x),
    "a mean": lambda x, v, s: v + x / x.shape[-1],
}


@pytest.mark.cover(1)
@each_backend
@pytest.mark.parametrize("name", SIZED)
@pytest.mark.parametrize("shape", [(3, 2, 3), (3, 5, 7), (3, 9, 2)], ids=str)
def test_a_step_that_looks_at_a_size(run, name, shape):
    assert_conforms(run, Step(SIZED[name]), torch.rand(shape))


def test_a_step_that_looks_at_no_size_is_one_program_for_all():
    assert trace(hb.LIFCell(), torch.Size([7]), torch.float32).any_size
    assert not trace(Step(SIZED["numel"]), torch.Size([7]), torch.float32).any_size


class Counts(hb.Cell):
    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, input_, v):
        self.calls += 1
        return (0.5 * v + (input_ if self.calls < 5 else 2 * input_),)


class Appends(hb.Cell):
    def __init__(self):
        super().__init__()
        self.calls = []

    def forward(self, input_, v):
        self.calls.append(1)
        return (0.5 * v + (input_ if len(self.calls) < 5 else 2 * input_),)


COUNT = 0


class CountsGlobally(hb.Cell):
    def forward(self, input_, v):
        global COUNT
        COUNT += 1
        return (0.5 * v + (input_ if COUNT % 100 < 50 else 2 * input_),)


class Draws(hb.Cell):
    def forward(self, input_, v):
        return (0.5 * v + (input_ if random.random() < 0.999 else 2 * input_),)


class DrawsByNumPy(hb.Cell):
    def forward(self, input_, v):
        return (0.5 * v + (input_ if numpy.random.random_sample() < 0.999 else 2 * input_),)  # noqa: NPY002 - the global generator


@pytest.mark.parametrize("kind", [Counts, Appends, CountsGlobally, Draws, DrawsByNumPy])
def test_a_step_that_changes_something_else_is_refused(kind):
    with pytest.raises(Unsupported, match=r"changes what it holds|may call Random\.random|can change unseen"):
        hb.unroll(kind(), torch.ones(9, 4), backend="cpu")


@pytest.mark.parametrize("kind", [Counts, Appends])
def test_a_trace_leaves_the_cell_as_it_was(kind):
    inputs = torch.ones(9, 4)
    assert torch.equal(hb.unroll(kind(), inputs)[0], hb.unroll(kind(), inputs, backend="reference")[0])


def writes_through(alias):
    def operation(x, v, s):
        u = 0.5 * v + x
        alias(u).mul_(2)
        return u + 0.1 * x

    return operation


ALIASES = {
    "detached": writes_through(lambda u: u.detach()),
    "data": writes_through(lambda u: u.data),
    "a view": writes_through(lambda u: u.view_as(u.detach())),
    "twice": writes_through(lambda u: u.detach().data),
}


@pytest.mark.parametrize("name", ALIASES)
def test_a_write_through_an_alias_is_followed_or_refused(name):
    inputs = torch.rand(5, 7)
    expected = hb.unroll(Step(ALIASES[name]), inputs, backend="reference")[0]
    assert torch.equal(hb.unroll(Step(ALIASES[name]), inputs)[0], expected)


@pytest.mark.parametrize("name", ["detached", "data"])
def test_a_write_through_an_alias_is_compiled(name):
    inputs = torch.rand(5, 7)
    expected = hb.unroll(Step(ALIASES[name]), inputs, backend="reference")[0]
    assert torch.equal(CPU(Step(ALIASES[name]), inputs, None)[0], expected)


def set_data(target):
    def operation(x, v, s):
        w = x * 1
        (w if target == "new" else v).data = 2 * x + v
        return 0.5 * w + v

    return operation


@pytest.mark.parametrize("target", ["new", "a state"])
def test_a_tensor_whose_data_is_set_is_refused(target):
    cell, inputs = Step(set_data(target)), torch.rand(5, 7)
    with pytest.raises(Unsupported, match=r"by `\.data =`"):
        hb.unroll(cell, inputs, backend="cpu")
    expected = hb.unroll(cell, inputs, backend="reference")[0]
    assert torch.equal(hb.unroll(cell, inputs)[0], expected)


def test_data_of_a_state_is_no_constant():
    assert_conforms(CPU, Step(lambda x, v, s: 0.5 * v + x * v.data), torch.rand(5, 7))


class Holds(hb.Cell):
    def __init__(self, held):
        super().__init__()
        self.held = held

    def forward(self, input_, v):
        return (v + (input_ if self.held is True else 2 * input_ if type(self.held) is int else 3 * input_),)


def test_one_and_true_and_one_point_zero_are_three_programs():
    results = [hb.unroll(Holds(held), torch.ones(1, 2))[0][0, 0].item() for held in (True, 1, 1.0)]
    assert results == [1, 2, 3]


def test_minus_zero_is_distinguished_from_zero():
    assert Dependencies(Holds(0.0)).key != Dependencies(Holds(-0.0)).key
    assert Dependencies(Holds(float("nan"))).key == Dependencies(Holds(float("nan"))).key


class Adjustable(hb.surrogate.Surrogate):
    """A surrogate whose slope changes during training."""

    def __init__(self, slope):
        object.__setattr__(self, "slope", slope)

    def derivative(self, x):
        return torch.full_like(x, self.slope)


def annealed_surrogate():
    surrogate = Adjustable(1.0)
    return surrogate, lambda slope: object.__setattr__(surrogate, "slope", slope)


def annealed_formula():
    slope = 1.0

    def formula(x):
        return torch.full_like(x, slope)

    def change(to):
        nonlocal slope
        slope = to

    return hb.surrogate.Formula(formula), change


@pytest.mark.parametrize("build", [annealed_surrogate, annealed_formula])
def test_a_surrogate_that_changes_is_followed(build):
    surrogate, change = build()
    cell = hb.IFCell(surrogate=surrogate)
    slopes = []
    for slope in (1.0, 1.0, 3.0):
        change(slope)
        inputs = torch.full([1, 4], 0.5, requires_grad=True)
        hb.unroll(cell, inputs)[0].sum().backward()
        slopes.append(inputs.grad[0, 0].item())
    assert slopes == [1, 1, 3]


def negated_view(tensor):
    """A view equal to `tensor` whose memory holds its negation."""
    view = torch._neg_view(-tensor)
    assert view.is_neg()
    return view


@each_backend
@pytest.mark.parametrize("cell", [hb.LIFCell(), hb.PLIFCell()], ids=["bare", "with a parameter"])
def test_negated_views_are_read_correctly(run, cell):
    inputs, v = 2 * torch.rand(5, 3, 7), torch.rand(3, 7)
    state = (v, (v > 0.5).to(v.dtype))
    grad = torch.randn(5, 3, 7)

    def run_all(inputs, state, grad):
        inputs = inputs.detach().requires_grad_()
        outputs, last = run(cell, inputs, state)
        grads = torch.autograd.grad([outputs, last[0]], inputs, [grad, grad[0]])
        return outputs, *last, *grads

    expected = run_all(inputs, state, grad)
    result = run_all(negated_view(inputs), tuple(map(negated_view, state)), negated_view(grad))
    assert all(map(torch.equal, result, expected))
    plain, negated = run(cell, inputs, None), run(cell, negated_view(inputs), None)
    assert torch.equal(plain[0], negated[0])


def test_a_negated_buffer_is_read_correctly():
    inputs = 2 * torch.rand(5, 7)
    threshold = torch.linspace(0.5, 1, 7)
    cell = hb.IFCell(threshold=threshold)
    expected = CPU(cell, inputs, None)[0]
    cell._buffers["threshold"] = negated_view(threshold)
    assert torch.equal(CPU(cell, inputs, None)[0], expected)
