"""``torch.poisson`` in a step: the distribution, and the same numbers in the kernels and in the reference."""

import pytest
import torch
from scipy import stats

import hibana as hb
from conformance.compare import assert_same
from hibana.cells.surrogate import ATan
from hibana.compiler.graph.ops import Unsupported, row_of


class Counting(hb.Cell):
    """Emits Poisson numbers with the means `rate` plus its input."""

    def __init__(self, rate):
        super().__init__()
        self.rate = rate

    def forward(self, input_, count):
        return (torch.poisson(self.rate + input_),)


class Driven(hb.Cell):
    """Poisson input from means per neuron, from a mean that the state changes, and from a constant."""

    def __init__(self, rate):
        super().__init__()
        self.rate = rate

    def forward(self, input_, v, s):
        drive = torch.poisson(self.rate.expand_as(v)) + torch.poisson(torch.full_like(v, 0.75))
        v = 0.9 * v * (1 - s) + 0.25 * drive + torch.poisson(torch.clamp(v, 0, 8)) - input_
        return v, ATan()(v - 9)


def run_seeded(cell, inputs, backend):
    torch.manual_seed(7)
    inputs = inputs.clone().requires_grad_()
    outputs, states = hb.unroll(cell, inputs, backend=backend)
    return outputs, states, inputs


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("neurons", [1, 31, 4099])
def test_kernels_draw_the_same_numbers_as_the_reference(dtype, neurons):
    cell = Driven(torch.linspace(0, 64, neurons, dtype=dtype))
    inputs = torch.rand(9, 2, neurons, generator=torch.Generator().manual_seed(1), dtype=dtype)
    result, expected = (run_seeded(cell, inputs, backend) for backend in ("cpu", "reference"))
    assert_same(result[0], expected[0], "spikes")
    assert_same(result[1][0], expected[1][0], "potentials")
    gradients = [torch.autograd.grad(outputs.sum(), x)[0] for outputs, _, x in (result, expected)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("rate", [0.01, 0.5, 1.5, 2.25, 10.0, 64.0])
def test_frequencies_are_those_of_the_distribution(rate):
    samples = 400_000
    counts = run_seeded(Counting(torch.tensor(rate)), torch.zeros(1, samples), "cpu")[0].detach().flatten()
    distribution = stats.poisson(rate)
    error = (rate / samples) ** 0.5
    assert abs(counts.mean() - rate) < 5 * error
    assert abs(counts.var() - rate) < 5 * (rate + 2 * rate**2) ** 0.5 / samples**0.5
    for k in range(int(counts.max()) + 1):
        p = distribution.pmf(k)
        assert abs((counts == k).float().mean() - p) < 5 * (p * (1 - p) / samples) ** 0.5 + 2**-22, k


def test_edges_of_the_means():
    """Zero gives zero, a mean outside of [0, 64] NaN, and no draw runs past the end of the distribution."""
    rates = torch.tensor([0.0, -0.0, -1e-6, 64.1, 1e30, torch.inf, -torch.inf, torch.nan, 1e-30])
    for backend in ("cpu", "reference"):
        counts = run_seeded(Counting(rates), torch.zeros(50, 9), backend)[0]
        assert (counts[:, [0, 1, 8]] == 0).all()
        assert counts[:, 2:8].isnan().all()
    largest = torch.tensor(1 - 2.0**-24).expand(4)
    rates = torch.tensor([1e-3, 1.5, 10.0, 64.0])
    counts = hb.compiler.draws.poisson(largest, rates, torch.exp(-rates))
    assert all(0 < c <= stats.poisson(float(r)).isf(1e-10) for c, r in zip(counts, rates, strict=True))


def test_means_have_no_gradient():
    inputs = torch.full((3, 5), 0.5, requires_grad=True)
    outputs, _ = hb.unroll(Counting(torch.tensor(1.0)), inputs, backend="cpu")
    assert not outputs.requires_grad or torch.autograd.grad(outputs.sum(), inputs)[0].eq(0).all()


@pytest.mark.parametrize("language", ["triton", "onnx"])
def test_other_backends_have_no_such_operation(language):
    with pytest.raises(Unsupported, match=f"operation 'poisson' has no {language} implementation"):
        row_of("poisson", language)
