"""The tensors that a run saves for its backward, and the support of its derivative."""

import pytest
import torch

import hibana as hb
from conformance.compare import on_its_device
from conformance.suite import CPU, each_backend
from hibana.cells.surrogate import ATan, Box, Step, Triangle


@each_backend
@pytest.mark.parametrize(("kind", "bits"), [(Step(), 1), (Box(), 2), (ATan(), 32)], ids=str)
def test_the_number_of_saved_bits(run, kind, bits):
    sizes = []

    def count(tensor):
        sizes.append(tensor.numel() * tensor.element_size() * 8)
        return tensor

    cell, (inputs,) = on_its_device(run, hb.IFCell(surrogate=kind, detach_reset=True), torch.rand(25, 512))
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        run(cell, inputs.requires_grad_(), None)
    assert sum(sizes) == bits * inputs.numel()


@each_backend
@pytest.mark.parametrize("kind", [Step(), Box(), Triangle()], ids=lambda kind: type(kind).__name__)
def test_support_is_where_the_derivative_is_not_zero(run, kind):
    cell, (inputs,) = on_its_device(
        run, hb.IFCell(surrogate=kind, detach_reset=True), 0.8 * torch.rand(6, 77)
    )
    outputs, _ = run(cell, inputs.requires_grad_(), None)
    v = hb.record(cell, inputs.detach())["v"]
    bits = outputs.grad_fn.support.cpu()
    assert bits.shape == (6, 10)
    places = torch.arange(77)
    unpacked = (bits[:, places // 8] >> (places % 8)) & 1
    assert torch.equal(unpacked.bool(), (kind.derivative(v - 1.0) != 0).cpu())
    assert not (bits[:, -1] >> (77 % 8)).any()


@each_backend
@pytest.mark.parametrize("kind", [Step(), Box(), Triangle(), ATan()], ids=lambda kind: type(kind).__name__)
def test_the_support_of_step_is_the_bits_of_the_spikes(run, kind):
    cell, (inputs,) = on_its_device(
        run, hb.IFCell(surrogate=kind, detach_reset=True), 0.8 * torch.rand(6, 77)
    )
    outputs, _ = run(cell, inputs.requires_grad_(), None)
    node = outputs.grad_fn
    assert node.specification.kernels.plan.support_is_spikes == isinstance(kind, Step)
    if not isinstance(kind, Step):
        return
    places = torch.arange(77)
    unpacked = (node.support.cpu()[:, places // 8] >> (places % 8)) & 1
    assert torch.equal(unpacked.float(), outputs.detach().cpu())
    assert 0 < unpacked.sum() < unpacked.numel()


@pytest.mark.parametrize("requires_grad", [True, False])
def test_outputs_are_no_views_and_have_version_zero(requires_grad):
    cell = hb.IFCell(detach_reset=True)
    outputs, (last, _) = CPU(cell, torch.rand(4, 40_000, requires_grad=requires_grad), None)
    memory = outputs.untyped_storage().nbytes()
    assert memory > outputs.nbytes, "too small for a chosen offset in memory"
    for tensor in (outputs, last):
        assert tensor._version == 0
        assert tensor._base is None
        assert not tensor._is_view()


def test_one_thread_gives_the_same_bits():
    inputs = torch.rand(50, 20_000, requires_grad=True)
    cell, threads, results = hb.LIFCell(surrogate=ATan()), torch.get_num_threads(), []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            outputs, _ = CPU(cell, inputs, None)
            results.append((outputs, torch.autograd.grad(outputs.sum(), inputs)[0]))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
