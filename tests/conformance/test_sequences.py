"""Sequences of every shape, length and layout, and constant currents."""

import pytest
import torch

import hibana as hb
from conformance.compare import assert_conforms, assert_same, assert_same_values, on_its_device, reference
from conformance.suite import CELLS, CPU, drive, each_backend
from hibana import surrogate
from hibana.cells.surrogate import ATan
from hibana.compiler import programs
from hibana.compiler.cpu import kernels as cpu
from hibana.compiler.cpu import vector_functions

SHAPES = [(5,), (3, 1), (3, 7), (2, 63), (2, 64), (2, 1025), (3, 2, 1500), (300, 3), (4, 0), (3, 2, 2, 3)]


@each_backend
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_each_shape(run, shape):
    cell = hb.IFCell(detach_reset=True)
    inputs = torch.rand(shape) * 0.9
    assert_same_values(run, cell, inputs)
    assert_conforms(run, cell, inputs, uses=["outputs and states"])


@each_backend
@pytest.mark.parametrize("kind", CELLS)
def test_a_single_step_of_each_cell(run, kind):
    cell = kind()
    assert_conforms(run, cell, drive(cell)[:1], uses=["outputs and states"])


@pytest.mark.cover(1)
@pytest.mark.parametrize("kind", CELLS)
@pytest.mark.parametrize("steps", [3, 4, 5, 11])
@pytest.mark.parametrize("nontemporal_from", [0, cpu.NONTEMPORAL_FROM])
def test_several_steps_at_once(kind, steps, nontemporal_from, monkeypatch):
    monkeypatch.setattr(cpu, "NONTEMPORAL_FROM", nontemporal_from)
    monkeypatch.setattr(programs, "_SHARED", {})  # cached programs used the other limit
    cell = kind()
    inputs = drive(cell, (steps, 2, 64))
    assert_same_values(CPU, cell, inputs)
    assert_conforms(CPU, cell, inputs, uses=["outputs only", "outputs and states"])


@pytest.mark.cover(1)
@pytest.mark.parametrize("shape", [(5, 64), (4, 33)])
@pytest.mark.parametrize(
    "kind", [surrogate.Gaussian, surrogate.Sigmoid, surrogate.Erfc], ids=lambda k: k.__name__
)
def test_the_c_library_stands_in_for_vector_functions(kind, shape, monkeypatch):
    monkeypatch.setattr(vector_functions, "_exact_function", lambda op, dtype: 0)
    monkeypatch.setattr(programs, "_SHARED", {})
    cell = hb.IFCell(1.0, kind())
    assert_conforms(CPU, cell, drive(cell, shape), uses=["outputs and states"])


LAYOUTS = {
    "batch first": lambda: torch.rand(4, 6, 9).transpose(0, 1),
    "channels last": lambda: torch.rand(3, 2, 5, 5, 4).permute(0, 1, 4, 2, 3),
    "every third neuron": lambda: torch.rand(6, 20)[::2, ::3],
    "every second step": lambda: torch.rand(12, 20)[::2],
    "backwards": lambda: torch.rand(6, 20).flip(0),
}


@each_backend
@pytest.mark.parametrize("name", LAYOUTS)
def test_each_layout(run, name):
    cell, (inputs,) = on_its_device(run, hb.IFCell(detach_reset=True), 0.9 * LAYOUTS[name]())
    initial = tuple(torch.rand_like(inputs[0]) for _ in cell.state_names())
    weights = torch.randn(inputs.shape).to(inputs)
    results = []
    for call in (run, reference):
        leaf = inputs.detach().requires_grad_()
        outputs, last = call(cell, leaf, initial)
        (gradient,) = torch.autograd.grad(outputs, leaf, weights)
        results.append((outputs, *last, gradient))
    for result, expected in zip(*results, strict=True):
        assert_same(result, expected, name)


@each_backend
def test_steps_apart_in_memory_are_not_copied(run, monkeypatch):
    def refuse_copy(tensor):
        raise AssertionError(f"a copy of {tuple(tensor.shape)}")

    cell, (full,) = on_its_device(run, hb.IFCell(), torch.rand(12, 20))
    expected, _ = reference(cell, full[::2], None)
    monkeypatch.setattr(torch.Tensor, "contiguous", refuse_copy)
    for inputs in (full[::2], full[:1].expand(6, 20)):
        run(cell, inputs, None)
    assert torch.equal(run(cell, full[::2], None)[0], expected)


def constant(run, steps=6):
    """One step of input, and its expansion over time."""
    (step,) = on_its_device(run, hb.IFCell(), 0.8 * torch.rand(3, 21))[1]
    step.requires_grad_()
    return step, step.expand(steps, 3, 21)


@each_backend
@pytest.mark.parametrize("way", ["backward", "grad", "grad of both"])
def test_the_gradient_of_a_constant_current_in_every_way_to_request_it(run, way):
    cell, _ = on_its_device(run, hb.IFCell(surrogate=ATan()))
    grads = []
    step, _ = constant(run)
    for leaf in (True, False):
        for call in (run, reference):
            source = step if leaf else step * 1
            inputs = source.expand(6, 3, 21)
            outputs, _ = call(cell, inputs, None)
            if way == "backward":
                step.grad = None
                outputs.sum().backward()
                grads.append(step.grad)
            else:
                other = [inputs] if way == "grad of both" else []
                grads.append(torch.autograd.grad(outputs.sum(), [source, *other])[0])
    torch.testing.assert_close(grads[0], grads[1])
    torch.testing.assert_close(grads[2], grads[3])


@each_backend
@pytest.mark.parametrize("detach", [False, True])
def test_a_constant_current(run, detach):
    cell, _ = on_its_device(run, hb.LIFCell(surrogate=ATan(), detach_reset=detach))
    results = []
    step, inputs = constant(run)
    weights = torch.randn(inputs.shape).to(step)
    for call in (run, reference):
        outputs, last = call(cell, inputs, None)
        (gradient,) = torch.autograd.grad((outputs * weights).sum() + last[0].sum(), step)
        results.append((outputs, last, gradient))
    (outputs_, _, grad), (expected, _, expected_grad) = results
    assert_same(outputs_, expected, "outputs")
    for one, other in zip(results[0][1], results[1][1], strict=True):
        assert_same(one, other, "last state")
    torch.testing.assert_close(grad, expected_grad, rtol=1e-5, atol=1e-5)
