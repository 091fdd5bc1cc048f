"""Gradients that are absent are no zeros: nothing of them is multiplied by a derivative that is infinite.

Each loss uses some of what is emitted and of the last states; the others have no gradient. The inputs and the
states begun with hold zeros, where the derivatives of these steps are infinite, or NaN.
"""

from itertools import chain, combinations

import pytest
import torch
from torch import nn

import hibana as hb
from conformance.suite import CELLS, CPU, each_backend
from hibana.compiler.checks import SlowPathWarning
from hibana.compiler.graph.bounds import takes_zeros
from hibana.compiler.graph.trace import trace

spike = hb.surrogate.ATan()


class Root(hb.Cell):
    def forward(self, input_, e, v, s):
        v = 0.5 * v * (1 - s) + input_
        return torch.sqrt(v.abs()), v, spike(v - 0.6)


class RootFedBack(hb.Cell):
    def forward(self, input_, e, v, s):
        v = 0.5 * v + input_ - 0.1 * e * s
        return torch.sqrt(v.abs()), v, spike(v - 0.6)


class RootOfPrevious(hb.Cell):
    def forward(self, input_, a, b, s):
        a = input_ + 0.5 * a
        b = (a * b).abs() ** 0.5
        return a, b, spike(b + a - 0.5)


class EmitsRoot(hb.Cell):
    def forward(self, input_, v, e):
        v = 0.5 * v + input_
        return v, torch.sqrt(v.abs())


class EmitsRootFedBack(hb.Cell):
    def forward(self, input_, v, e):
        v = 0.5 * v + input_ - 0.25 * e
        return v, torch.sqrt(v.abs())


class Logarithm(hb.Cell):
    def forward(self, input_, e, v, s):
        v = 0.5 * v * (1 - s) + input_
        return torch.exp(torch.log(v.abs())), v, spike(v - 0.6)


class Sign(hb.Cell):
    def forward(self, input_, e, v, s):
        v = 0.5 * v * (1 - s) + input_
        return v / v.abs().clamp(min=0.0), v, spike(v - 0.6)


class Norm(hb.Cell):
    def forward(self, input_, e, v, s):
        v = 0.5 * v * (1 - s) + input_
        return (v * v) ** 0.5, v, spike(v - 0.6)


class Chosen(hb.Cell):
    def forward(self, input_, e, v, s):
        v = 0.5 * v * (1 - s) + input_
        return torch.where(v > 0, torch.sqrt(v), 0 * v), v, spike(v - 0.6)


class Chain(hb.Cell):
    """Four steps until all gradients are there."""

    def forward(self, input_, a, b, c, s):
        a, b, c, s = 0.5 * a + input_, torch.sqrt((a + b).abs()), torch.sqrt(b.abs()), c * s + input_
        return a, b, c, s


class Swapped(hb.Cell):
    """A gradient that is there at every other step."""

    def forward(self, input_, a, b, s):
        return torch.sqrt((b * input_).abs()), a * 1.0, input_ * 1.0


class Rounded(hb.Cell):
    """Beside a slope of zero, derivatives that are finite."""

    def forward(self, input_, e, v, s):
        v = 0.5 * v + input_
        return torch.where(e > 0, torch.floor(v), v), v, spike(v.clamp(min=0) - torch.trunc(v) - 0.6)


class Learned(hb.Cell):
    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.tensor([0.0, 0.7, 1.0, 1.5]))
        self.decay = nn.Parameter(torch.tensor(0.0))

    def forward(self, input_, e, v, s):
        v = 0.5 * v * (1 - s) + input_
        return torch.sqrt((v * self.gain).abs()) + v * torch.sqrt(self.decay), v, spike(v - 0.6)


class Quotient(hb.Cell):
    """What is infinite or NaN is a state."""

    def forward(self, input_, e, v, s):
        n = ((v > 0.3) + (v > 0.3)).to(v.dtype) / input_
        return n, 0.5 * v + input_, spike(n - 0.6)


class Reciprocal(hb.Cell):
    """Of a state begun with, which is infinite at once."""

    def forward(self, input_, e, v, s):
        return v.reciprocal(), input_ * 1.0, spike(v - 0.4)


class Overflows(hb.Cell):
    """A number that float32 does not hold."""

    def forward(self, input_, e, v, s):
        v = 0.5 * v + input_
        return e + v * s, v, spike(1e300 * s - 0.6)


class OverflowsInTwo(hb.Cell):
    def forward(self, input_, e, v, s):
        v = 0.5 * v + input_
        return e + v * s, v, spike(s * ((1e30 * (v > 0).to(v.dtype)) * 1e30) - 0.6)


class Scaled(hb.Cell):
    """What it returns is infinite or NaN in float32."""

    def forward(self, input_, e, v, s):
        return e * 1e300, 0.5 * v + input_, spike(v - 0.6)


OWN = [Root, RootFedBack, RootOfPrevious, EmitsRoot, EmitsRootFedBack, Logarithm, Sign, Norm, Chosen, Chain]
OWN += [Swapped, Rounded, Learned, Quotient, Reciprocal, Overflows, OverflowsInTwo, Scaled]


def numbers(dtype: torch.dtype) -> torch.Tensor:
    torch.manual_seed(0)
    inputs = torch.randn(7, 3, 4, dtype=dtype)
    inputs[:, 0] = torch.tensor([0, 1, 0.5, 0, 0, 0.25, -0.25])[:, None]
    inputs[:, 1, :2] = 0
    return inputs


def gradients(cell, inputs, state, used, backend):
    """Of a loss of what is `used`: of the input, of the states begun with, of the cell's tensors."""
    cell.zero_grad()
    x = inputs.clone().requires_grad_()
    begun = None if state is None else tuple(value.clone().requires_grad_() for value in state)
    outputs, last = hb.unroll(cell, x, begun, backend=backend)
    values = [outputs, *last]
    loss = sum((values[i] * (1 + i + torch.arange(4, dtype=x.dtype))).sum() for i in used)
    if loss.requires_grad:
        loss.backward()
    return {
        "input": x.grad,
        **{name: value.grad for name, value in zip(cell.state_names(), begun or (), strict=False)},
        **{name: value.grad for name, value in cell.named_parameters()},
    }


def assert_same(found, expected, what):
    for name, wanted in expected.items():
        if wanted is None:
            nothing = found[name] is None or not found[name].any()
            assert nothing, f"{what}: a gradient of {name} that the reference does not have"
        else:
            assert found[name] is not None, f"{what}: no gradient of {name}"
            torch.testing.assert_close(
                found[name], wanted, equal_nan=True, msg=lambda m, name=name: f"{what}, {name}: {m}"
            )


@pytest.mark.cover(1)
@each_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("kind", OWN)
def test_whatever_a_loss_uses_its_gradients_are_those_of_the_reference(kind, dtype, run):
    cell = kind().to(dtype)
    inputs = numbers(dtype)
    count = len(cell.state_names())
    begun = tuple((inputs[i] * 0.5).clone() for i in range(count))
    all_of_them = run is CPU and dtype == torch.float32  # the plan and its passes are those of the others too
    sizes = range(1, 2 + count) if all_of_them else {1, count, 1 + count}
    losses = chain.from_iterable(combinations(range(1 + count), size) for size in sizes)
    for used in losses:
        for state in (None, begun):
            what = f"{kind.__name__}, a loss of {used}, {'at rest' if state is None else 'from a state'}"
            expected = gradients(cell, inputs, state, used, "reference")
            assert_same(gradients(cell, inputs, state, used, run.name), expected, what)


@pytest.mark.parametrize("used", [(0,), (2,), (0, 2)])
def test_a_parameter_that_the_loss_does_not_reach_has_no_gradient(used):
    class RootOfLearned(hb.Cell):
        """Its derivatives are finite, but for that of what it makes of its parameter before the loop."""

        def __init__(self):
            super().__init__()
            self.decay = nn.Parameter(torch.tensor([0.0, 0.25, 0.5, 1.0]))

        def forward(self, input_, e, v, s):
            return torch.sqrt(self.decay) * e + input_, 0.5 * v + input_, spike(v - 0.6)

    cell, inputs = RootOfLearned(), numbers(torch.float32)
    found = gradients(cell, inputs, None, used, "cpu")
    assert found["decay"] is None
    assert_same(found, gradients(cell, inputs, None, used, "reference"), f"a loss of {used}")


class Cubed(hb.Cell):
    """Its derivatives are finite as long as its states are; of large ones the cube is infinite."""

    def forward(self, input_, u, v, e):
        return 0.5 * u, 2 * (e * 1e18) ** 3 + input_, 1e5 * (input_ > v).to(input_.dtype)


@each_backend
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_a_state_that_the_loss_does_not_reach_has_no_gradient_beside_an_infinite_derivative(steps, run):
    inputs, begun = torch.rand(steps, 2, 4), tuple(torch.full((2, 4), 1e5) for _ in range(3))
    for used in ((1,), (0,), (0, 1)):
        found = gradients(Cubed(), inputs, begun, used, run.name)
        assert_same(found, gradients(Cubed(), inputs, begun, used, "reference"), f"a loss of {used}")
        assert (found["v"], found["e"], found["input"]) == (None, None, None)


def test_steps_that_lie_in_another_order_have_the_same_gradients():
    cell = RootFedBack()
    inputs = numbers(torch.float32).transpose(1, 2)
    weights = torch.arange(12.0).reshape(4, 3)
    grads = []
    for backend in ("reference", "cpu"):
        x = inputs.detach().requires_grad_()
        outputs, (_, v, _) = hb.unroll(cell, x, backend=backend)
        ((outputs * weights).sum() + (v * weights).sum()).backward()
        grads.append(x.grad)
    torch.testing.assert_close(*grads, equal_nan=True)


@pytest.mark.parametrize("bounded", [lambda x: x.clamp(min=0), lambda x: x.clamp(max=0.0), torch.relu])
def test_a_zero_within_its_bounds_keeps_its_sign_in_the_gradient(bounded):
    class Quotient(hb.Cell):
        def forward(self, input_, e, v, s):
            return v / bounded(input_), v, spike(v + input_)

    inputs = torch.tensor([-0.0, 0.0, -0.0, 0.5]).repeat(3, 1)
    begun = (torch.zeros(4), torch.tensor([1.0, 1.0, -1.0, 1.0]), torch.zeros(4))
    found, expected = (gradients(Quotient(), inputs, begun, (1,), name) for name in ("cpu", "reference"))
    assert expected["v"].isinf().any()
    assert_same(found, expected, "a loss of the first state")


@pytest.mark.parametrize("used", [(0,), (1,), (2,), (0, 2)])
def test_inputs_that_stay_the_same_have_the_same_gradients(used):
    cell = RootFedBack()
    grads = []
    for backend in ("reference", "cpu"):
        one = torch.tensor([[0.0, 0.5, 1.0]], requires_grad=True)
        outputs, last = hb.unroll(cell, one.expand(6, 1, 3), backend=backend)
        sum([outputs, *last][i].sum() for i in used).backward()
        grads.append(one.grad)
    torch.testing.assert_close(*grads, equal_nan=True)


def test_half_precision_carries_the_last_states_and_their_gradients():
    cell = RootFedBack()
    grads = []
    for backend in ("reference", "cpu"):
        x = numbers(torch.float32).bfloat16().requires_grad_()
        outputs, last = hb.unroll(cell, x, backend=backend)
        assert len(last) == 3
        (outputs.sum() + last[1].sum()).backward()
        grads.append(x.grad)
    torch.testing.assert_close(*grads, equal_nan=True, rtol=2e-2, atol=1e-2)


def test_cells_that_differ_in_their_numbers_do_not_share_their_numbers():
    class Scaled(hb.Cell):
        def __init__(self, factor):
            super().__init__()
            self.factor = factor

        def forward(self, input_, e, v, s):
            v = self.factor * v + input_
            return torch.sqrt(v.abs()), v, spike(v - self.factor)

    for factor in (0.3, 0.9):
        cell, inputs = Scaled(factor), numbers(torch.float64)
        for used in ((0,), (0, 2)):
            expected = gradients(cell, inputs, None, used, "reference")
            assert_same(gradients(cell, inputs, None, used, "cpu"), expected, f"{factor}, {used}")


def test_what_can_not_be_served_is_refused_by_name_and_the_loop_gives_its_gradients():
    class Recurrent(hb.Cell):
        def __init__(self):
            super().__init__()
            self.synapses = nn.Linear(4, 4, bias=False)

        def forward(self, input_, e, v, s):
            v = 0.5 * v + input_ + self.synapses(s)
            return torch.sqrt(v.abs()), v, spike(v - 0.6)

    class Floored(hb.Cell):
        def forward(self, input_, e, v, s):
            v = 0.5 * v + input_
            return torch.floor(torch.sqrt(v.abs())), v, spike(v - 0.6)

    inputs = torch.zeros(3, 2, 4)
    for cell in (Recurrent(), Floored()):
        with pytest.raises(
            hb.compiler.graph.ops.Unsupported, match="a derivative of the step may be infinite"
        ):
            hb.unroll(cell, inputs, backend="cpu")
        with pytest.warns(SlowPathWarning, match="a derivative of the step may be infinite"):
            found = gradients(cell, inputs, None, (0,), "auto")
        assert_same(found, gradients(cell, inputs, None, (0,), "reference"), str(cell))


def test_a_traced_graph_has_no_zeros_for_absent_gradients():
    class Plain(hb.Cell):
        def forward(self, input_, e, v):
            v = 0.5 * v + input_
            return torch.sqrt(v.abs()), v

    cell = Plain()
    x = torch.tensor([[0.0], [1.0], [0.5]], requires_grad=True)
    compiled = torch.compile(lambda x: hb.unroll(cell, x)[0], backend="aot_eager", fullgraph=True)
    compiled(x).sum().backward()
    torch.testing.assert_close(x.grad, torch.tensor([[1.75], [1.5], [1.0]]))


@pytest.mark.parametrize("kind", CELLS)
def test_zeros_do_for_the_absent_gradients_of_every_neuron_of_the_package(kind):
    assert takes_zeros(trace(kind(), torch.Size([3, 4]), torch.float32))
    outputs, last = hb.unroll(kind(), torch.zeros(3, 3, 4, requires_grad=True), backend=CPU.name)
    specification = outputs.grad_fn.specification
    assert specification.program.takes_zeros
    assert len(last) == len(kind().state_names())
