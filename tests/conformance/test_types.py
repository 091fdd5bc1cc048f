"""Truth values and numbers: type promotion as in PyTorch, or an error that names the operation."""

import math

import pytest
import torch
from torch.nn import functional

import hibana as hb
from conformance.compare import assert_conforms
from conformance.suite import CPU, each_backend
from hibana.compiler.graph.ops import Unsupported

SURROGATE = hb.surrogate.ATan()


class Step(hb.Cell):
    def __init__(self, operation):
        super().__init__()
        self.operation = operation

    def forward(self, input_, v_previous, s_previous):
        v = self.operation(input_, v_previous, s_previous)
        return v, SURROGATE(v - 1)


SERVED = {
    "a truth value of a number": lambda x, v, s: x.bool().float() + 0.5 * v,
    "a number times its truth value": lambda x, v, s: x * x.bool() + v * s.bool(),
    "a sum of truth values is or": lambda x, v, s: ((x > 0) + (v > 0)).float() + x,
    "a product of truth values is and": lambda x, v, s: ((x > 0) * (v > 0)).float() + x,
    "the larger truth value is or": lambda x, v, s: torch.maximum(x > 0, v > 0).float() + x,
    "the smaller truth value is and": lambda x, v, s: torch.minimum(x > 0, v > 0).float() + x,
    "equal truth values": lambda x, v, s: x * ((x > 0) == (s > 0)),
    "ordered truth values": lambda x, v, s: x * ((x > 0) < (v > 0.3)) + v * ((x > 0) >= (v > 0.3)),
    "a truth value is one": lambda x, v, s: x * ((x > 0) == 1) + v * ((v > 0) != True),  # noqa: E712
    "a truth value beside a half": lambda x, v, s: x * ((x > 0) > 0.5) + 0.1 * v,
    "a truth value beside a number": lambda x, v, s: x * ((v > 0) < x),
    "a truth value beside almost one": lambda x, v, s: x * ((x > 0) >= 1.00000001),
    "a truth value plus a number": lambda x, v, s: ((x > 0) + 0.25).to(x.dtype) + x + v * 0.1,
    "one of two truth values": lambda x, v, s: torch.where(x > 0, v > 0, x < -0.5).to(x.dtype) * x,
    "a truth value filled": lambda x, v, s: (x > 0).masked_fill(v > 0.2, True).to(x.dtype) * x,
    "truth values of truth": lambda x, v, s: torch.ones_like(x > 0).to(x.dtype) * x + (x > 0).bool() * v,
    "changed in place": lambda x, v, s: (x > 0).logical_or_(v > 0).to(x.dtype) * x,
    "added in place": lambda x, v, s: (x > 0).add_(v > 0).to(x.dtype) * x,
    "a whole number between": lambda x, v, s: x * 16777217 + v * 0.1,
    "a large whole number": lambda x, v, s: x * 10**18 - x * (10**18 + 2**36 + 1) + 0.1 * v,
    "a large power of two": lambda x, v, s: x * 2**40 + 0.1 * v,
    "minus zero": lambda x, v, s: torch.where(v > 100, v, -0.0) * x.abs() + torch.full_like(x, -0.0),
    "the reciprocal of minus zero": lambda x, v, s: (1 / torch.full_like(x, -0.0)).clamp(-1, 1) + x,
    "infinity": lambda x, v, s: torch.minimum(x, torch.full_like(x, math.inf)) + 0.1 * v,
    "filled with infinity": lambda x, v, s: x.masked_fill(x > 1, -math.inf).clamp(min=-2) + 0.1 * v,
    "not a number": lambda x, v, s: torch.where(x > 5, math.nan, x) + 0.1 * v,
}


@each_backend
@pytest.mark.parametrize("name", SERVED)
def test_types_are_promoted_as_pytorch_does(run, name):
    assert_conforms(run, Step(SERVED[name]), 2 * torch.randn(5, 3, 23), uses=["outputs and states"])


FLOAT32_ALONE = {
    "a truth value of a number",
    "a sum of truth values is or",
    "a product of truth values is and",
}
FLOAT32_ALONE |= {
    "the larger truth value is or",
    "the smaller truth value is and",
    "a truth value plus a number",
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.exhaustive if i % 4 else ())
        for i, name in enumerate(SERVED)
        if name not in FLOAT32_ALONE
    ],
)
def test_types_are_promoted_as_pytorch_does_in_float64(name):
    inputs = 2 * torch.randn(5, 3, 23, dtype=torch.float64)
    assert_conforms(CPU, Step(SERVED[name]), inputs, uses=["outputs and states"])


REFUSED = {
    "int": lambda x, v, s: x + v.int(),
    "long": lambda x, v, s: x * v.long(),
    "a truth value times two": lambda x, v, s: x + (v > 0) * 2,
    "a truth value squared": lambda x, v, s: x + (v > 0) ** 2,
    "a quotient rounded down": lambda x, v, s: x // 2 + v,
    "double": lambda x, v, s: (x.double() * 0.1).float() + v,
}


@pytest.mark.parametrize("name", REFUSED)
def test_unsupported_types_are_refused_by_name_and_run_by_the_reference(name):
    inputs = 2 * torch.randn(5, 7)
    with pytest.raises(Unsupported, match=r"aten::|torch\."):
        hb.unroll(Step(REFUSED[name]), inputs, backend="cpu")
    outputs, _ = hb.unroll(Step(REFUSED[name]), inputs)
    assert torch.equal(outputs, hb.unroll(Step(REFUSED[name]), inputs, backend="reference")[0])


def test_minus_zero_keeps_its_sign():
    inputs = torch.zeros(3, 5)
    cell = Step(lambda x, v, s: torch.full_like(x, -0.0))
    _, (v, _) = hb.unroll(cell, inputs, backend="cpu")
    assert v.signbit().all()


BOUNDED = {
    "clamp from 0": lambda x: x.clamp(min=0),
    "clamp from -0": lambda x: x.clamp(min=-0.0),
    "clamp to 0": lambda x: x.clamp(max=0),
    "clamp to -0": lambda x: x.clamp(max=-0.0),
    "clamp between": lambda x: x.clamp(0, 1) + x.clamp(-1, -0.0),
    "clamp_min": lambda x: x.clamp_min(0.0),
    "clamp_max": lambda x: x.clamp_max(0.0),
    "relu": torch.relu,
    "relu6": functional.relu6,
    "hardtanh": lambda x: functional.hardtanh(x, 0.0, 1.0),
    "clamp from no number": lambda x: x.clamp(min=math.nan),
    "clamp to no number": lambda x: x.clamp(max=math.nan),
}


@pytest.mark.cover(1)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", BOUNDED)
def test_a_zero_within_its_bounds_keeps_its_sign(name, dtype):
    if "no number" in name and not torch.ones(64).clamp(min=math.nan).isnan().all():
        pytest.skip("this torch (2.10) ignores bounds that are no numbers")
    inputs = torch.tensor([0.0, -0.0, 1.0, -1.0, math.nan], dtype=dtype).repeat_interleave(7)[None]
    cell = Step(lambda x, v, s: BOUNDED[name](x))
    (_, (result, _)), (_, (expected, _)) = (hb.unroll(cell, inputs, backend=b) for b in ("cpu", "reference"))
    assert torch.equal(result.isnan(), expected.isnan())
    numbers = ~expected.isnan()
    assert torch.equal(result[numbers], expected[numbers])
    assert torch.equal(result[numbers].signbit(), expected[numbers].signbit())
