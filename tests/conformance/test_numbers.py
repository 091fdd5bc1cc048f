"""Numbers of every kind: half precision, NaN and infinity, tensors as hyper-parameters."""

import pytest
import torch
from torch import nn

import hibana as hb
from conformance.compare import assert_conforms, assert_same, on_its_device, reference
from conformance.suite import CELLS, drive, each_backend
from hibana.cells.surrogate import ATan, Box, Triangle

HALVES = [torch.float16, torch.bfloat16]


@pytest.mark.cover(1)
@each_backend
@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("kind", CELLS)
def test_half_precision_carries_state_in_float32(run, kind, dtype):
    cell = kind()
    cell, (inputs,) = on_its_device(run, cell, drive(cell).to(dtype))
    initial = tuple(value.detach() for value in reference(cell, inputs.flip(0), None)[1])
    for state in (None, initial):
        result, expected = (call(cell, inputs, state) for call in (run, reference))
        assert result[0].dtype == dtype
        assert {value.dtype for value in result[1]} == {torch.float32}
        assert_same(result[0], expected[0], "outputs")
        for one, other in zip(result[1], expected[1], strict=True):
            assert_same(one, other, "last state")


@each_backend
@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("make", [hb.LICell, lambda: hb.PLIFCell(surrogate=ATan())], ids=["LI", "PLIF"])
def test_gradients_in_half_precision(run, make, dtype):
    cell, (inputs,) = on_its_device(run, make(), torch.rand(9, 30).to(dtype))
    initial = [torch.rand(30).to(inputs.device) for _ in cell.state_names()]
    weights = [torch.randn(shape).to(inputs.device) for shape in [(9, 30), *[(30,)] * len(initial)]]
    grads = []
    for call in (run, reference):
        leaves = [tensor.clone().requires_grad_() for tensor in (inputs, *initial)]
        outputs, last = call(cell, leaves[0], tuple(leaves[1:]))
        loss = sum((w * end.float()).sum() for w, end in zip(weights, (outputs, *last), strict=True))
        grads.append(torch.autograd.grad(loss, [*leaves, *cell.parameters()]))
    for grad, expected in zip(*grads, strict=True):
        assert grad.dtype == expected.dtype
        one_ulp = torch.finfo(grad.dtype).eps if grad.dtype == dtype else 1e-5
        torch.testing.assert_close(grad, expected, rtol=2 * one_ulp, atol=2e-5)


@each_backend
@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("end", ["outputs", "state"])
def test_half_precision_gradients_through_outputs_or_states_alone(run, dtype, end):
    cell, (inputs,) = on_its_device(run, hb.IFCell(surrogate=ATan()), torch.rand(9, 30).to(dtype))
    grads = []
    for call in (run, reference):
        leaf = inputs.clone().requires_grad_()
        outputs, last = call(cell, leaf, None)
        loss = outputs.float().sum() if end == "outputs" else sum(value.sum() for value in last)
        grads.append(torch.autograd.grad(loss, leaf)[0])
    torch.testing.assert_close(*grads, rtol=2 * torch.finfo(dtype).eps, atol=1e-5)


@each_backend
def test_nan_infinity_and_subnormal_numbers(run):
    inputs = torch.tensor([[0.4, float("nan"), float("inf"), -float("inf"), 1e-42]]).repeat(5, 1)
    for cell in (hb.IFCell(surrogate=ATan()), hb.LIFCell(), hb.IFCell(surrogate=Box(), detach_reset=True)):
        assert_conforms(run, cell, inputs)


HYPER = {
    "threshold per neuron": lambda: hb.IFCell(nn.Parameter(torch.linspace(0.5, 1.5, 21)), ATan()),
    "one threshold": lambda: hb.IFCell(nn.Parameter(torch.tensor(0.9)), ATan()),
    "tensor per neuron": lambda: hb.LIFCell(torch.linspace(1.5, 4.0, 21), reset="subtract"),
    "per sample": lambda: hb.LIFCell(nn.Parameter(torch.full((3, 1), 2.5)), surrogate=Triangle()),
}


@each_backend
@pytest.mark.parametrize("name", HYPER)
def test_tensors_as_hyper_parameters(run, name):
    cell, inputs = HYPER[name](), 0.8 * torch.rand(7, 3, 21)
    assert_conforms(run, cell, inputs)
    cell_, (inputs_,) = on_its_device(run, cell, inputs)
    run(cell_, inputs_.requires_grad_(), None)[0].sum().backward()
    assert all(parameter.grad is not None for parameter in cell_.parameters())


@pytest.mark.cover(1)
@each_backend
@pytest.mark.parametrize("reset", [0.0, 0.25, "subtract"], ids=str)
@pytest.mark.parametrize("detach", [False, True])
def test_each_way_to_reset(run, reset, detach):
    cell = hb.LIFCell(surrogate=Box(), detach_reset=detach, reset=reset)
    assert_conforms(run, cell, 0.8 * torch.rand(9, 67), uses=["outputs and states"])
