"""The autograd node of a compiled run, for prepared and for other calls."""

import sys
import threading

import pytest
import torch

import hibana as hb
from conformance.suite import CELLS, takes
from hibana.compiler import run_cell
from hibana.compiler.cpu import kernels as cpu
from hibana.compiler.cpu.launch import ALIASING_FROM
from hibana.compiler.cpu.row_loops import OUTPUT_OFFSET, PAGE

OLD_NAMES = {"emitted": "run_cell", "unrolled": "unroll_layer", "unrolled_whole": "unroll_compiled"}


@pytest.mark.parametrize("name", OLD_NAMES)
def test_functions_have_their_old_names_for_one_release(name):
    with pytest.warns(DeprecationWarning, match=f"use hibana.compiler.{OLD_NAMES[name]}"):
        assert getattr(hb.compiler, name) is getattr(hb.compiler, OLD_NAMES[name])


GRADIENTS = {
    "contiguous": lambda shape: torch.randn(shape),
    "expanded": lambda shape: torch.ones(()).expand(shape),
    "constant over time": lambda shape: torch.randn(shape[1:]).expand(shape),
    "transposed": lambda shape: torch.randn(shape[::-1]).permute(2, 1, 0),
    "every other step": lambda shape: torch.randn(2 * shape[0], *shape[1:])[::2],
    "negated": lambda shape: torch._neg_view(torch.randn(shape)),
}


def run(cell, inputs, grad_outputs, grad_last=None):
    """Outputs, last states and the gradient of the inputs, by the second of two equal calls."""
    for _ in range(2):
        x = inputs.detach().clone().requires_grad_()
        outputs, last = run_cell(cell, x, is_layer=grad_last is None)
    roots = [outputs] if grad_last is None else [outputs, *last]
    grads = [grad_outputs] if grad_last is None else [grad_outputs, *[grad_last] * len(last)]
    (grad,) = torch.autograd.grad(roots, x, grads)
    return outputs, last, grad


def is_prepared(outputs):
    return outputs.grad_fn.specification.prepared is not None


@pytest.mark.parametrize("kind", [kind for kind in CELLS if not list(kind().parameters())])
@pytest.mark.parametrize("ends", [False, True])
def test_prepared_calls_give_the_bits_of_other_calls(kind, ends, monkeypatch):
    torch.manual_seed(0)
    inputs, grad, at_end = 3 * torch.rand(9, 4, 5), torch.randn(9, 4, 5), torch.randn(4, 5) if ends else None
    options = {"surrogate": "ATan"} if takes(kind, "surrogate") else {}
    prepared = run(kind(**options), inputs, grad, at_end)
    assert is_prepared(prepared[0]) == kind().rests_at_zero()
    monkeypatch.setattr(cpu.CpuKernels, "prepare", lambda *arguments: None)
    expected = run(kind(**options), inputs, grad, at_end)
    assert not is_prepared(expected[0])
    assert torch.equal(prepared[0], expected[0])
    assert all(map(torch.equal, prepared[1], expected[1]))
    assert torch.equal(prepared[2], expected[2])
    assert prepared[2].any()


@pytest.mark.parametrize("name", GRADIENTS)
@pytest.mark.parametrize("shape", [(6, 4, 5), (16, 8, 8192)], ids=str)
def test_gradients_of_any_layout(name, shape):
    torch.manual_seed(0)
    inputs, grad = torch.rand(shape), GRADIENTS[name](shape)
    cell = hb.IFCell(surrogate="ATan")
    _, _, result = run(cell, inputs, grad)
    _, _, expected = run(cell, inputs, grad.clone(memory_format=torch.contiguous_format).resolve_neg())
    assert torch.equal(result, expected)


def test_only_the_last_state_has_a_gradient():
    inputs = torch.rand(9, 70, requires_grad=True)
    cell = hb.LIFCell()
    expected, *grads = (
        torch.autograd.grad(hb.unroll(cell, inputs, backend=name)[1][0].square().sum(), inputs)[0]
        for name in ("reference", "cpu", "cpu")
    )
    assert expected.count_nonzero() > 0
    for grad in grads:
        torch.testing.assert_close(grad, expected)


@pytest.mark.parametrize("shape", [(6, 70), (16, 65536)], ids=str)
def test_hooks_may_replace_saved_tensors(shape):
    def grad_with(pack):
        x = torch.rand(shape, generator=torch.Generator().manual_seed(1), requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            outputs, _ = run_cell(hb.IFCell(surrogate="ATan"), x, is_layer=True)
        outputs.sum().backward()
        return x.grad

    assert not torch.equal(grad_with(torch.clone), grad_with(torch.zeros_like))
    assert torch.equal(grad_with(torch.clone), grad_with(lambda tensor: tensor.t().contiguous().t()))


def test_computing_a_second_derivative_is_refused():
    inputs, weight = torch.rand(5, 70, requires_grad=True), torch.rand(5, 70, requires_grad=True)
    cell = hb.IFCell()
    for _ in range(2):
        outputs, _ = run_cell(cell, inputs)
        (grad,) = torch.autograd.grad((outputs * weight).sum(), inputs, create_graph=True)
        with pytest.raises(RuntimeError, match='backend="reference"'):
            torch.autograd.grad((grad * inputs).sum(), inputs)


class Squares(hb.Cell):
    def forward(self, input_, v_previous):
        return (v_previous + input_ * input_,)


def test_saved_inputs_must_not_be_written_to():
    copy = torch.rand(16, 70, requires_grad=True).clone()
    outputs, _ = run_cell(Squares(), copy)
    assert outputs.grad_fn.specification.kernels.plan.reads_input
    with torch.no_grad():
        copy.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        outputs.sum().backward()


def test_large_outputs_have_an_offset_to_their_inputs():
    inputs = torch.rand(8, 8192 + 128, requires_grad=True)
    outputs, _ = run_cell(hb.IFCell(), inputs)
    weight = torch.rand_like(outputs)
    (grad,) = torch.autograd.grad(outputs, inputs, weight)
    for written, read in ((outputs, inputs), (grad, weight)):
        assert inputs.numel() * inputs.element_size() >= ALIASING_FROM
        assert (written.data_ptr() - read.data_ptr() - OUTPUT_OFFSET) % PAGE < 64
        assert written._base is None
        assert written.data_ptr() % 64 == 0


def test_nodes_release_their_references_in_any_thread():
    cell = hb.IFCell()
    inputs = torch.rand(5, 70, requires_grad=True)
    run_cell(cell, inputs)
    specification = run_cell(cell, inputs)[0].grad_fn.specification
    before = sys.getrefcount(specification)
    outputs = [run_cell(cell, inputs)[0] for _ in range(10)]
    assert sys.getrefcount(specification) == before + 10
    thread = threading.Thread(target=outputs.clear)
    thread.start()
    thread.join()
    assert sys.getrefcount(specification) == before


def test_a_changed_setting_and_another_number_of_threads_are_used():
    inputs = torch.full((4, 3), 0.6, requires_grad=True)
    cell = hb.IFCell()
    for _ in range(2):
        assert run_cell(cell, inputs)[0][:, 0].tolist() == [0, 1, 0, 1]
    cell.threshold = 0.5
    assert run_cell(cell, inputs)[0][:, 0].tolist() == [1, 1, 1, 1]
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert run_cell(cell, inputs)[0][:, 0].tolist() == [1, 1, 1, 1]
    finally:
        torch.set_num_threads(threads)
