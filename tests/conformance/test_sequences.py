"""Sequences of every shape, length and layout, and a current that stays the same."""

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
    monkeypatch.setattr(programs, "_SHARED", {})  # what is ready for a shape was made with the other
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
    begun = tuple(torch.rand_like(inputs[0]) for _ in cell.state_names())
    weights = torch.randn(inputs.shape).to(inputs)
    seen = []
    for call in (run, reference):
        given = inputs.detach().requires_grad_()
        outputs, last = call(cell, given, begun)
        (gradient,) = torch.autograd.grad(outputs, given, weights)
        seen.append((outputs, *last, gradient))
    for found, expected in zip(*seen, strict=True):
        assert_same(found, expected, name)


@each_backend
def test_steps_apart_in_memory_are_not_copied(run, monkeypatch):
    def copied(tensor):
        raise AssertionError(f"a copy of {tuple(tensor.shape)}")

    cell, (whole,) = on_its_device(run, hb.IFCell(), torch.rand(12, 20))
    expected, _ = reference(cell, whole[::2], None)
    monkeypatch.setattr(torch.Tensor, "contiguous", copied)
    for inputs in (whole[::2], whole[:1].expand(6, 20)):
        run(cell, inputs, None)
    assert torch.equal(run(cell, whole[::2], None)[0], expected)


def constant(run, steps=6):
    """One step of input and what it is spread to over time."""
    (once,) = on_its_device(run, hb.IFCell(), 0.8 * torch.rand(3, 21))[1]
    once.requires_grad_()
    return once, once.expand(steps, 3, 21)


@each_backend
@pytest.mark.parametrize("asked", ["backward", "grad", "grad of both"])
def test_the_gradient_of_a_constant_current_however_it_is_asked_for(run, asked):
    cell, _ = on_its_device(run, hb.IFCell(surrogate=ATan()))
    seen = []
    once, _ = constant(run)
    for leaf in (True, False):
        for call in (run, reference):
            source = once if leaf else once * 1
            inputs = source.expand(6, 3, 21)
            outputs, _ = call(cell, inputs, None)
            if asked == "backward":
                once.grad = None
                outputs.sum().backward()
                seen.append(once.grad)
            else:
                other = [inputs] if asked == "grad of both" else []
                seen.append(torch.autograd.grad(outputs.sum(), [source, *other])[0])
    torch.testing.assert_close(seen[0], seen[1])
    torch.testing.assert_close(seen[2], seen[3])


@each_backend
@pytest.mark.parametrize("detach", [False, True])
def test_a_constant_current(run, detach):
    cell, _ = on_its_device(run, hb.LIFCell(surrogate=ATan(), detach_reset=detach))
    seen = []
    once, inputs = constant(run)
    weights = torch.randn(inputs.shape).to(once)
    for call in (run, reference):
        outputs, last = call(cell, inputs, None)
        (gradient,) = torch.autograd.grad((outputs * weights).sum() + last[0].sum(), once)
        seen.append((outputs, last, gradient))
    (found, _, ours), (expected, _, theirs) = seen
    assert_same(found, expected, "what is emitted")
    for one, other in zip(seen[0][1], seen[1][1], strict=True):
        assert_same(one, other, "last state")
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
