"""``hb.spike``: the derivative of a spike as any expression of the step."""

import pytest
import torch
from torch import nn

import hibana as hb
from conformance.suite import interpreted


class Rising(hb.Cell):
    """Current-based neuron; the derivative of a spike is the reciprocal of the rise of the potential."""

    def __init__(self, decay=0.8):
        super().__init__()
        self.decay = nn.Parameter(torch.tensor(decay))

    def forward(self, input_, i_previous, v_previous, s_previous):
        i = self.decay * i_previous + input_
        before = v_previous * (1 - s_previous)
        v = 0.9 * before + i
        steep = 1 / (v - before).abs().clamp(min=0.1)
        return i, v, hb.spike(v - 1, torch.where(v > 1, steep, 0))


class Traced(hb.Cell):
    """The derivative depends on a trace of the spikes, and on a learned width."""

    def __init__(self):
        super().__init__()
        self.width = nn.Parameter(torch.tensor(0.7))

    def forward(self, input_, trace_previous, v_previous, s_previous):
        trace = 0.5 * trace_previous + s_previous
        v = 0.9 * v_previous - s_previous + input_
        return trace, v, hb.spike(v - 1, self.width / (1 + (v - 1).abs() + trace))


CELLS = [Rising(), Traced()]
cells = pytest.mark.parametrize("cell", CELLS, ids=lambda cell: type(cell).__name__)


def _gradients(cell, inputs, backend):
    cell.zero_grad()
    x = inputs.clone().requires_grad_()
    outputs, _ = hb.unroll(cell, x, backend=backend)
    (outputs * torch.linspace(-1, 1, outputs.numel(), dtype=x.dtype).view(outputs.shape)).sum().backward()
    return [outputs.detach(), x.grad, *(p.grad for p in cell.parameters())]


@cells
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_compiled_step_is_the_references(cell, dtype):
    inputs = torch.rand(30, 4, 9, dtype=dtype)
    cell = cell.to(dtype)
    compiled, reference = (_gradients(cell, inputs, backend) for backend in ("cpu", "reference"))
    assert torch.equal(compiled[0], reference[0])
    assert 0.05 < compiled[0].mean() < 0.95
    for grad, expected in zip(compiled[1:], reference[1:], strict=True):
        torch.testing.assert_close(grad, expected, rtol=1e-4, atol=1e-5)
    cell.to(torch.float32)


@interpreted
@cells
def test_triton_agrees_with_the_reference(cell):
    inputs = torch.rand(12, 2, 5)
    compiled, reference = (_gradients(cell, inputs, backend) for backend in ("triton", "reference"))
    for result, expected in zip(compiled, reference, strict=True):
        torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-5)


def test_the_gradient_is_multiplied_by_the_derivative_which_gets_none():
    x = torch.tensor([-1.0, 0.0, 2.0], requires_grad=True)
    derivative = torch.tensor([3.0, 4.0, 5.0], requires_grad=True)
    spikes = hb.spike(x, derivative)
    assert torch.equal(spikes, torch.tensor([0.0, 0.0, 1.0]))
    spikes.sum().backward()
    assert torch.equal(x.grad, derivative.detach())
    assert derivative.grad is None


@pytest.mark.parametrize("surrogate", [hb.surrogate.ATan(), hb.surrogate.Step(), None], ids=repr)
def test_the_derivative_may_be_a_surrogate(surrogate):
    x = torch.linspace(-1, 1, 7, requires_grad=True)
    hb.spike(x, surrogate).sum().backward()
    function = surrogate or hb.surrogate.Step()
    torch.testing.assert_close(x.grad, function.derivative(x.detach()))


def test_explain_shows_where_the_gradient_matters():
    report = hb.explain(Rising())
    assert "cpu: one native kernel forward and one back" in report
    assert "gradient   of what is emitted matters only where v' > 1" in report


@pytest.mark.filterwarnings("ignore:.*torch.jit")  # torch uses its own deprecated functions
def test_broadcasting_and_transforms_of_torch_func():
    x = torch.rand(3, 4) - 0.5
    assert torch.equal(
        torch.func.grad(lambda x: hb.spike(x, torch.tensor(2.0)).sum())(x), torch.full_like(x, 2)
    )
    _, tangent = torch.func.jvp(lambda x: hb.spike(x, x.exp()), (x,), (torch.ones_like(x),))
    torch.testing.assert_close(tangent, x.exp())
    each = torch.func.vmap(lambda row: hb.spike(row, row.exp()))(x)
    assert torch.equal(each, (x > 0).float())


@pytest.mark.filterwarnings("ignore:.*torch.jit")  # torch uses its own deprecated functions
@pytest.mark.dynamo
def test_the_layer_compiles_and_exports():
    layer, x = hb.OverTime(Rising()), torch.rand(6, 2, 5)
    assert torch.equal(torch.compile(layer, backend="aot_eager", fullgraph=True)(x), layer(x))
    exported = torch.export.export(layer, (x,)).module()
    assert torch.equal(exported(x), layer(x))
    step = torch.jit.trace(lambda x: hb.spike(x, x.exp()), (x,))
    assert torch.equal(step(x - 0.5), (x > 0.5).float())


INTEGERS, TWO, WIDE = torch.tensor([1]), torch.ones(2), torch.ones(2).double()


@pytest.mark.parametrize(
    ("x", "derivative", "error", "message"),
    [
        (INTEGERS, None, TypeError, "x must be a floating-point tensor, got a tensor of torch.int64"),
        (0.5, None, TypeError, "x must be a floating-point tensor, got float"),
        (TWO, 0.5, TypeError, r"derivative must be a tensor of the dtype of x, torch.float32, .* got float"),
        (TWO, WIDE, TypeError, "derivative must be a tensor .* got a tensor of torch.float64"),
        (TWO, torch.ones(3), ValueError, r"derivative must broadcast .* \(2,\), got shape \(3,\)"),
        (TWO, torch.ones(4, 2), ValueError, r"derivative must broadcast .* \(2,\), got shape \(4, 2\)"),
    ],
)
def test_invalid_arguments_are_refused(x, derivative, error, message):
    with pytest.raises(error, match=message):
        hb.spike(x, derivative)
