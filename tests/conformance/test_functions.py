"""Each supported function: PyTorch's bits, or within two units in the last place of the exact value."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

import hibana as hb
from conformance.accuracy import EXTENDED, TRUTH, Alone, apply, distance, function_address, sample
from conformance.compare import USES, assert_conforms, reference
from conformance.functions import FUNCTIONS, ONE, Applied, refusals
from conformance.suite import CPU
from hibana.compiler.cpu.vector_functions import _row, approximate
from hibana.compiler.cpu.vector_math import exp_of_float32
from hibana.compiler.graph.analysis import reachable
from hibana.compiler.graph.ops import OPERATIONS, Unsupported, row_of
from hibana.compiler.graph.trace import trace
from hibana.network import to_c

SERVED = list(FUNCTIONS)
CONFORMING = [
    # functions of one argument are also compiled alone in a step, below; here every fourth is a default case
    pytest.param(name, marks=pytest.mark.exhaustive if i % 4 and name in ONE else ())
    for i, name in enumerate(SERVED)
]
DTYPES = [torch.float32, torch.float64]


@pytest.mark.exhaustive  # the tests per function fail too
def test_all_listed_functions_are_compiled():
    assert refusals() == {}
    assert len(FUNCTIONS) >= 60


@pytest.mark.cover(1)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CONFORMING)
def test_each_function_conforms(name, dtype):
    cell = Applied(FUNCTIONS[name])
    inputs = torch.rand((5, 3, 23), generator=torch.Generator().manual_seed(3), dtype=dtype)
    step = trace(cell, torch.Size([23]), dtype)
    if not approximate(step, dtype):
        assert_conforms(CPU, cell, inputs, uses=list(USES)[:1])
        return
    assert "not PyTorch's own bits" in hb.explain(cell, dtype=dtype)
    weights = torch.rand(inputs.shape, generator=torch.Generator().manual_seed(4), dtype=dtype)
    results = []
    for run in (CPU, reference):
        x = inputs.clone().requires_grad_()
        outputs, _ = run(cell, x, None)
        results.append((outputs, *torch.autograd.grad(outputs, x, weights)))
    tolerance = 2e-5 if dtype == torch.float32 else 1e-10
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


def test_every_row_of_the_table_is_compiled_in_one_of_the_functions():
    """Thus each was compared with PyTorch; test_types compares truth values."""
    compiled = set()
    for name in SERVED:
        compiled |= {
            value.op
            for value in reachable(trace(Applied(FUNCTIONS[name]), torch.Size([5]), torch.float32).nexts)
        }
    assert set(OPERATIONS) - compiled <= {"not", "poisson"}  # tests/compiler/test_poisson.py


@pytest.mark.parametrize("name", sorted(OPERATIONS.keys() - {"to_bool", "to_float"}))
def test_every_operation_has_a_function_of_pytorch(name):
    row = OPERATIONS[name]
    takes_booleans = name in ("and", "or", "xor", "not")
    are_boolean = [takes_booleans or (name == "where" and i == 0) for i in range(row.arity)]
    arguments = [torch.rand(3) < 0.5 if boolean else torch.rand(3) + 1 for boolean in are_boolean]
    result = row.function(*arguments)
    assert result.shape == (3,)
    assert (result.dtype == torch.bool) == row.boolean


def test_exp_of_gradients_is_within_one_ulp():
    row = _row("exp", torch.float32, 16, lambda code, x: exp_of_float32(x))
    special = torch.tensor([math.nan, math.inf, -math.inf, 0.0, -0.0, 88.71, 88.73, -86.59, -86.61, -1e30])
    x = torch.cat([*sample("exp", 400_000, torch.float32), torch.linspace(-90, 90, 100_001), special])
    result, exact = apply(row, x), x.double().exp()
    assert (result.isnan() == x.isnan()).all()
    assert (result[x < -86.61] == 0).all()
    assert (result[x > 88.73] == math.inf).all()
    between = (x >= -86.59) & (x <= 88.69)
    unit = 2.0 ** (exact[between].log2().floor() - 23)
    assert ((result[between].double() - exact[between]).abs() / unit).max() < 1


@pytest.mark.parametrize("kind", ["Sigmoid", "Gaussian", "PiecewiseExponential"])
def test_derivatives_with_exp_vanish_far_from_the_threshold(kind):
    x = torch.tensor([-1e30, -300.0, -90.0, -3.0, 0.5, 2.0, 90.0, 300.0, 1e30])
    grads = []
    for run in (CPU, reference):
        inputs = x[None, :, None].clone().requires_grad_()
        outputs, _ = run(hb.IFCell(surrogate=kind), inputs, None)
        grads.append(torch.autograd.grad(outputs.sum(), inputs)[0].flatten())
    torch.testing.assert_close(*grads, rtol=1e-5, atol=1e-37)
    assert (grads[0][[0, -1]] == 0).all()


def test_computing_in_64_bits_is_refused_by_name():
    class Wide(hb.Cell):
        def forward(self, x, v):
            return ((x.double() + v).to(x.dtype),)

    class Power(hb.Cell):
        def forward(self, x, v):
            return (torch.float_power(x, v).to(x.dtype),)

    for cell in (Wide(), Power()):
        with pytest.raises(Unsupported, match=r"computes in torch\.float64, not in torch\.float32"):
            hb.unroll(cell, torch.rand(3, 4), backend="cpu")


def test_an_operation_is_added_by_one_row(monkeypatch):
    columns = {"aten": ("lgamma",), "text": "lgamma({0})", "libm": "lgamma"}
    row = replace(OPERATIONS["sinh"], name="lgamma", sleef="", onnx="", **columns)
    monkeypatch.setitem(OPERATIONS, "lgamma", row)

    class Gamma(hb.Cell):
        def forward(self, x, v):
            return (torch.lgamma(x.detach() + 1.5) + 0.5 * v,)

    inputs = torch.rand(5, 3, 23)
    result, expected = (run(Gamma(), inputs, None)[0] for run in (CPU, reference))
    torch.testing.assert_close(result, expected, rtol=1e-6, atol=1e-6)
    assert "lgamma((x + 1.5))" in hb.explain(Gamma())
    program = to_c(nn.Sequential(nn.Linear(3, 2), hb.OverTime(Gamma())), torch.rand(2, 1, 3))
    assert "lgammaf(" in program.source


def test_a_gap_in_the_table_is_named():
    with pytest.raises(Unsupported, match="operation 'softplus' has no libm implementation"):
        row_of("softplus", "libm")


@pytest.mark.parametrize("name", TRUTH)
def test_32_bits_are_within_two_units_in_the_last_place(name):
    assert distance(name, *sample(name, 1 << 20, torch.float32)) <= 2


@pytest.mark.skipif(not EXTENDED, reason="numpy has no numbers of more than 64 bits here")
@pytest.mark.parametrize("name", TRUTH)
def test_64_bits_are_within_two_units_in_the_last_place(name):
    assert distance(name, *sample(name, 1 << 18, torch.float64)) <= 2


@pytest.mark.cover(1)
@pytest.mark.parametrize("name", TRUTH)
@pytest.mark.parametrize("count", [1, 7, 8, 9, 31])
def test_a_row_of_any_length_is_computed_without_writing_beyond_it(name, count):
    import ctypes

    inputs = [x[-64:].clone() for x in sample(name, 4096, torch.float32)]
    target = torch.full((64,), 77.0)
    pointers = [ctypes.c_void_p] * (len(inputs) + 1)
    function = ctypes.CFUNCTYPE(None, ctypes.c_int32, *pointers, ctypes.c_int64)(
        function_address(name, torch.float32)
    )
    function(count, *(x.data_ptr() for x in inputs), target.data_ptr(), 0)
    full = target.clone()
    function(64, *(x.data_ptr() for x in inputs), full.data_ptr(), 0)
    assert torch.equal(target[:count].nan_to_num(), full[:count].nan_to_num())
    assert (target[count:] == 77).all()


class PerNeuron(hb.Cell):
    """A step with a parameter per neuron on either side of an operation."""

    def __init__(self, order, dtype=torch.float32):
        super().__init__()
        self.order = order
        self.d = nn.Parameter(torch.linspace(0.1, 0.9, 6).to(dtype))

    def forward(self, x, v):
        return (self.order(x, v, self.d),)


ORDERS = {
    "v d + x (1 - d)": lambda x, v, d: v * d + x * (1 - d),
    "x (1 - d) + v d": lambda x, v, d: x * (1 - d) + v * d,
    "1 - d after d - v": lambda x, v, d: (d - v) * x + (1 - d),
    "d ** x": lambda x, v, d: d ** x.clamp(0, 2) + 0.1 * v,
    "x ** d": lambda x, v, d: (x.abs() + 0.1) ** d + 0.1 * v,
    "2 ** v": lambda x, v, d: 2 ** (v * d) + x,
    "atan2 of d": lambda x, v, d: torch.atan2(d, x + 2) + 0.1 * v,
}


@pytest.mark.cover(1)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("order", ORDERS)
def test_operands_per_neuron_on_either_side(order, dtype):
    cell = PerNeuron(ORDERS[order], dtype)
    inputs = torch.rand(4, 3, 6, generator=torch.Generator().manual_seed(1), dtype=dtype)
    results = []
    for run in (CPU, reference):
        source = inputs.clone().requires_grad_()
        outputs, _ = run(cell, source, None)
        results.append((outputs, *torch.autograd.grad((outputs * outputs).sum(), (source, cell.d))))
    tolerance = 2e-5 if dtype == torch.float32 else 1e-10
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)
    if "**" not in order and "atan" not in order:
        assert torch.equal(results[0][0], results[1][0])


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("batch", [(), (3,)])
def test_half_precision_with_a_half_parameter_compiles(half, batch):
    cell = PerNeuron(ORDERS["v d + x (1 - d)"], half)
    inputs = torch.rand((5, *batch, 6), generator=torch.Generator().manual_seed(1)).to(half)
    results = []
    for run in (CPU, reference):
        source = inputs.clone().requires_grad_()
        outputs, _ = run(cell, source, None)
        results.append((outputs, *torch.autograd.grad(outputs.float().sum(), (source, cell.d))))
    assert torch.equal(results[0][0], results[1][0])
    assert [g.dtype for g in results[0]] == [half] * 3
    for ours, theirs in zip(results[0][1:], results[1][1:], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0.03, atol=0.03)


EXTREMES = (0.0, 0.1, 0.5, 1.0, 3.0, 6.0, 20.0, 88.0, 100.0, 1e38, 3e38, 1e-40, 1e-45, torch.inf, torch.nan)


@pytest.mark.parametrize("name", ONE)
def test_a_single_function_equals_pytorchs_at_extreme_numbers(name):
    """Repeats each number, because PyTorch's gradients of NaN differ in the tail of a vector."""
    function = ONE[name].of
    numbers = [n for number in EXTREMES for n in (number, -number)]
    results = []
    for run in (lambda x: hb.unroll(Alone(function), x[None], backend="cpu")[0][0], function):
        x = torch.tensor(numbers).repeat_interleave(64).requires_grad_()
        y = run(x)
        results.append((y, *torch.autograd.grad(y.sum(), x)))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2e-5, atol=2e-6, equal_nan=True)
