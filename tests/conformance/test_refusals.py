"""Steps that can't be compiled: an error with the reason, or by default the reference loop."""

import pytest
import torch

import hibana as hb
from conformance.compare import on_its_device, reference
from conformance.suite import CPU, each_backend


class Product(hb.Cell):
    def forward(self, input_, v):
        return (torch.tanh(v @ torch.eye(3, device=v.device) + input_),)


class Branch(hb.Cell):
    def forward(self, input_, v):
        return (v + input_ if bool((input_ > 0).all()) else v,)


class Noise(hb.Cell):
    def forward(self, input_, v):
        return (v + torch.normal(input_, 0.5),)


class Crowd(hb.Cell):
    def forward(self, input_, v):
        return (v - 0.1 * v.sum() + input_,)


class Contiguous(hb.Cell):
    def forward(self, input_, v):
        doubled = input_ * 2
        doubled.contiguous().neg_()
        return (v + doubled,)


class ReshapedOut(hb.Cell):
    def forward(self, input_, v):
        doubled = input_ * 2
        same = doubled.reshape(doubled.shape)
        torch.neg(input_, out=doubled)
        return (v + same,)


REASONS = {
    Contiguous: "contiguous",
    ReshapedOut: "out=|contiguous",
    Product: "matmul|mm|cannot be multiplied",
    Branch: "reads a number of a tensor",
    Noise: "random",
    Crowd: "sum",
}


@pytest.mark.parametrize("write", ["no", "before"])
def test_operations_that_may_copy_are_compiled_if_no_write_follows(write):
    class Copied(hb.Cell):
        def forward(self, input_, v):
            doubled = input_ * 2
            if write == "before":
                doubled.neg_()
            return (v + torch.reshape(input=doubled.contiguous(), shape=v.shape),)

    for inputs in (torch.rand(4, 2, 3), torch.rand(4, 3, 2).mT):
        outputs, _ = hb.unroll(Copied(), inputs, backend="cpu")
        assert torch.equal(outputs, reference(Copied(), inputs, None)[0])


def test_a_write_to_a_possible_copy_agrees_in_every_layout():
    for inputs in (torch.rand(4, 2, 3), torch.rand(4, 3, 2).mT):
        outputs, _ = hb.unroll(Contiguous(), inputs)
        assert torch.equal(outputs, reference(Contiguous(), inputs, None)[0])


@each_backend
@pytest.mark.parametrize("kind", REASONS)
def test_unsupported_steps_are_refused_and_run_by_the_reference(run, kind):
    cell, (inputs,) = on_its_device(run, kind(), torch.rand(4, 2, 3))
    with pytest.raises(RuntimeError, match=REASONS[kind]):
        run(cell, inputs, None)
    torch.manual_seed(0)
    outputs, _ = hb.unroll(cell, inputs)
    torch.manual_seed(0)
    assert torch.equal(outputs, reference(cell, inputs, None)[0])


@each_backend
def test_a_transform_of_torch_func(run):
    cell, (inputs,) = on_its_device(run, hb.IFCell(), torch.rand(5, 4, 3))
    with pytest.raises(RuntimeError, match=r"transforms of torch\.func"):
        torch.func.vmap(lambda x: run(cell, x, None)[0], 1, 1)(inputs)
    outputs = torch.func.vmap(lambda x: hb.unroll(cell, x)[0], 1, 1)(inputs)
    assert torch.equal(outputs, reference(cell, inputs, None)[0])


def test_a_device_that_no_backend_supports():
    inputs = torch.empty(4, 3, device="meta")
    for name, reason in {"cpu": "it serves cpu, not meta", "triton": "Triton"}.items():
        with pytest.raises(RuntimeError, match=rf"backend '{name}' can't serve this call: .*{reason}"):
            hb.unroll(hb.IFCell(), inputs, backend=name)
    assert hb.unroll(hb.IFCell(), inputs)[0].device.type == "meta"


def test_a_tensor_of_the_cell_on_another_device():
    cell = hb.IFCell(torch.ones(3)).to("meta")
    with pytest.raises(RuntimeError, match="threshold of IFCell is on meta, inputs on cpu"):
        CPU(cell, torch.rand(4, 3), None)
