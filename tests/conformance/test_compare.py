"""Tests of the suite: it detects each fault of a backend."""

import pytest
import torch
from torch import Tensor

import hibana as hb
from conformance.compare import assert_conforms, assert_same_gradients, reference
from conformance.suite import CELLS, SHAPE, drive
from hibana.cells.surrogate import ATan


class _Scaled(torch.autograd.Function):
    """The identity; `change` maps its gradient."""

    @staticmethod
    def forward(ctx, x, change):
        ctx.change = change
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return ctx.change(grad), None


def with_value(x, index, value):
    x = x.clone()
    x.view(-1)[index] = value
    return x


def first_spike(x):
    return int(x.flatten().nonzero()[0])


def changed_output(change):
    def run(cell, inputs, state):
        outputs, last = reference(cell, inputs, state)
        return change(outputs), last

    return run


def changed_state(change):
    def run(cell, inputs, state):
        outputs, last = reference(cell, inputs, state)
        return outputs, (change(last[0]), *last[1:])

    return run


def changed_gradient(change):
    def run(cell, inputs, state):
        return reference(cell, _Scaled.apply(inputs, change), state)

    return run


def changed_state_gradient(change):
    def run(cell, inputs, state):
        if state is not None:
            state = (_Scaled.apply(state[0], change), *state[1:])
        return reference(cell, inputs, state)

    return run


def changed_learned_gradient(change):
    def run(cell, inputs, state):
        tensors = {name: _Scaled.apply(p, change) for name, p in cell.named_parameters()}
        return torch.func.functional_call(
            _Module(cell), {f"cell.{k}": v for k, v in tensors.items()}, (inputs, state)
        )

    return run


class _Module(torch.nn.Module):
    def __init__(self, cell):
        super().__init__()
        self.cell = cell

    def forward(self, inputs, state):
        return reference(self.cell, inputs, state)


def lost_state_gradient(cell, inputs, state):
    return reference(cell, inputs, state and tuple(value.detach() for value in state))


def lost_last_gradient(cell, inputs, state):
    outputs, last = reference(cell, inputs, state)
    return outputs, tuple(value.detach() for value in last)


def ignored_state(cell, inputs, state):
    return reference(cell, inputs, None)


FAULTS = {
    "a spike too few": changed_output(lambda x: with_value(x, first_spike(x), 0)),
    "a spike too many": changed_output(lambda x: with_value(x, first_spike(1 - x), 1)),
    "a NaN": changed_output(lambda x: with_value(x, -1, torch.nan)),
    "another dtype": changed_output(Tensor.bfloat16),
    "another shape": changed_output(lambda x: x[..., :-1]),
    "a potential off by its last bit": changed_state(
        lambda x: with_value(x, 7, x.view(-1)[7].nextafter(x.new_tensor(9e9)).item())
    ),
    "a NaN in a state": changed_state(lambda x: with_value(x, 0, torch.nan)),
    "the initial state is ignored": ignored_state,
    "a gradient off by 1%": changed_gradient(lambda g: 1.01 * g),
    "one gradient off by 1%": changed_gradient(
        lambda g: with_value(g, int(g.abs().argmax()), 1.01 * g.flatten()[g.abs().argmax()])
    ),
    "a NaN in the gradient": changed_gradient(lambda g: with_value(g, 5, torch.nan)),
    "an infinite gradient": changed_gradient(lambda g: with_value(g, 5, torch.inf)),
    "a gradient of zero": changed_gradient(lambda g: 0 * g),
    "a gradient a step late": changed_gradient(lambda g: g.roll(1, 0)),
    "no gradient": changed_gradient(lambda g: None),
    "the first state's gradient off by 1%": changed_state_gradient(lambda g: 1.01 * g),
    "no gradient of the first state": lost_state_gradient,
    "no gradient through the last state": lost_last_gradient,
    "a parameter's gradient off by 1%": changed_learned_gradient(lambda g: 1.01 * g),
    "no gradient of a parameter": changed_learned_gradient(lambda g: None),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_detected(fault, dtype):
    cell = hb.PLIFCell(surrogate=ATan()).to(dtype)
    inputs = drive(cell, dtype=dtype)
    with pytest.raises(AssertionError, match="PLIFCell"):
        assert_conforms(FAULTS[fault], cell, inputs)


@pytest.mark.parametrize("kind", CELLS)
def test_a_gradient_error_of_one_percent_is_detected_in_each_cell(kind):
    cell = kind()
    with pytest.raises(AssertionError, match="gradient of the input"):
        assert_same_gradients(FAULTS["a gradient off by 1%"], cell, drive(cell), None, "outputs and states")


def test_a_nan_of_the_reference_must_be_reproduced():
    cell = hb.LIFCell(surrogate=ATan())
    inputs = with_value(drive(cell, SHAPE), 200, torch.nan)
    assert_conforms(reference, cell, inputs)
    hidden = changed_gradient(lambda g: g.nan_to_num())
    with pytest.raises(AssertionError, match="not finite"):
        assert_same_gradients(hidden, cell, inputs, None, "outputs and states")
