"""Products inside a step: spikes equal the reference's if all sums are exact; gradients are close."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import hibana as hb
from conformance.compare import assert_conforms
from conformance.suite import CPU, SURROGATES, TRITON, interpreted
from hibana.cells.surrogate import ATan, Box, Step
from selection import examples

SHAPES = [(6, 5, 8), (9, 33, 63), (4, 2, 3, 20), (7, 130), (3, 1, 500), (1, 4, 16)]
"""``[T, ..., neurons]``: sizes that are and are not multiples of bytes, words and panels."""


def grid(*shape: int, parts: int = 32) -> torch.Tensor:
    """Numbers whose sums, and sums of products with spikes, are exact in any order."""
    return torch.randint(-parts // 2, parts // 2 + 1, shape).double() / parts


def inputs(shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    torch.manual_seed(seed)
    return torch.randint(-8, 24, shape).double() / 16


class Spiking(hb.Cell):
    """A neuron with feedback of its spikes through `fed_back`; leaks and thresholds are dyadic."""

    def __init__(self, neurons, surrogate=None, detach=False):
        super().__init__()
        self.weight = nn.Parameter(grid(neurons, neurons))
        self.bias = nn.Parameter(grid(neurons))
        self.register_buffer("mask", (torch.rand(neurons, neurons) < 0.5).double())
        self.low, self.high = nn.Parameter(grid(neurons, 2)), nn.Parameter(grid(2, neurons))
        self.surrogate, self.detach = surrogate or Box(), detach

    def forward(self, input_, v_previous, s_previous):
        reset = s_previous.detach() if self.detach else s_previous
        v = 0.5 * v_previous * (1 - reset) + input_ + self.fed_back(s_previous)
        return v, self.surrogate(v - 1)

    def fed_back(self, s):
        return nn.functional.linear(s, self.weight)


class WithBias(Spiking):
    def fed_back(self, s):
        return nn.functional.linear(s, self.weight, self.bias)


class FromTheRight(Spiking):
    def fed_back(self, s):
        return s @ self.weight


class Masked(Spiking):
    def fed_back(self, s):
        return nn.functional.linear(s, self.weight * self.mask)


class LowRank(Spiking):
    def fed_back(self, s):
        matrix = self.low @ self.high
        return s @ (matrix - torch.diag(torch.diagonal(matrix)))


class WithAddmm(Spiking):
    def fed_back(self, s):
        return torch.addmm(self.bias, s, self.weight) if s.ndim == 2 else s @ self.weight + self.bias


class FromTheLeft(Spiking):
    def fed_back(self, s):
        return (self.weight @ s.mT).mT if s.ndim > 1 else s @ self.weight.T


class WithEinsum(Spiking):
    def fed_back(self, s):
        return torch.einsum("...i,ij->...j", s, self.weight)


class BothWays(Spiking):
    """Feedback through a matrix and through its transpose."""

    def fed_back(self, s):
        return nn.functional.linear(s, self.weight) + 0.25 * (s @ self.weight)


class OfTheInput(Spiking):
    def forward(self, input_, v_previous, s_previous):
        v = 0.5 * v_previous * (1 - s_previous) + nn.functional.linear(input_, self.weight)
        return v, self.surrogate(v - 1)


class TwoLayers(Spiking):
    """Two layers within the step, with feedback from the upper one and a leak per neuron."""

    def forward(self, input_, v_previous, s_previous, above_previous, spikes_previous):
        v = self.bias.abs() * v_previous * (1 - s_previous) + input_ + spikes_previous @ self.weight
        s = self.surrogate(v - 1)
        above = 0.5 * above_previous - spikes_previous + nn.functional.linear(s, self.low @ self.high)
        return v, s, above, self.surrogate(above - 1)


FORMS = [Spiking, WithBias, FromTheRight, Masked, LowRank, WithAddmm, FromTheLeft, WithEinsum, BothWays]


ALL = [*FORMS, OfTheInput, TwoLayers]
RANKS = [(9, 33, 63), (4, 2, 3, 20), (7, 130)]
"""Forms differ in their rank only; all use one kernel, which the other sizes test."""


@pytest.mark.parametrize(
    ("kind", "shape"),
    [(kind, shape) for kind in ALL for shape in (SHAPES if kind in (Spiking, TwoLayers) else RANKS)],
    ids=lambda of: getattr(of, "__name__", str(of)),
)
def test_a_step_with_products_conforms(kind, shape):
    torch.manual_seed(1)
    assert_conforms(CPU, kind(shape[-1]), inputs(shape), uses=("outputs and states",))


@interpreted
@pytest.mark.parametrize("shape", [(3, 18, 19), (2, 2, 3, 8)], ids=str)
@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
def test_a_step_with_products_conforms_in_triton(kind, shape):
    torch.manual_seed(1)
    assert_conforms(TRITON, kind(shape[-1]), inputs(shape), uses=("outputs and states",))


@interpreted
def test_triton_refuses_more_neurons_than_a_program_holds():
    cell = Spiking(520)
    with pytest.raises(RuntimeError, match="520 neurons is wider than the 512"):
        hb.unroll(cell, inputs((1, 1, 520)), backend="triton")
    layer = hb.Recurrent(hb.IFCell(), 520, backend="triton").double()
    assert layer(inputs((2, 1, 520))).shape == (2, 1, 520)  # only its cell is compiled


@pytest.mark.parametrize("detach", [False, True])
@pytest.mark.parametrize("surrogate", [Step(), Box(), ATan()], ids=str)
def test_every_kind_of_surrogate_conforms(surrogate, detach):
    torch.manual_seed(2)
    assert_conforms(
        CPU, Spiking(37, surrogate, detach), inputs((8, 6, 37)), uses=("outputs only", "states only")
    )


@pytest.mark.parametrize("kind", SURROGATES, ids=lambda kind: kind.__name__)
def test_every_surrogate_of_the_package_conforms(kind):
    if kind.__name__ == "Formula":
        pytest.skip("it takes a function")
    torch.manual_seed(3)
    assert_conforms(CPU, Spiking(24, kind()), inputs((6, 5, 24)), uses=("outputs and states",))


def test_an_initial_state_may_hold_any_numbers():
    torch.manual_seed(4)
    cell, x = TwoLayers(20), inputs((5, 7, 20))
    state = tuple(grid(7, 20, parts=8) for _ in cell.state_names())
    for backend in ("cpu", "reference"):
        result = hb.unroll(cell, x, state, backend=backend)
        if backend == "cpu":
            first = result
    assert torch.equal(first[0], result[0])
    assert all(torch.equal(a, b) for a, b in zip(first[1], result[1], strict=True))


@settings(max_examples=examples(4), suppress_health_check=list(HealthCheck))
@given(st.data())
def test_steps_made_at_random_with_one_to_three_products_conform(data):
    neurons = data.draw(st.sampled_from([3, 8, 17, 64, 70]), label="neurons")
    count = data.draw(st.integers(1, 3), label="products")
    turns = [data.draw(st.sampled_from(["s", "u", "now"]), label="of") for _ in range(count)]
    turned = [data.draw(st.booleans(), label="transposed") for _ in range(count)]
    surrogate = data.draw(st.sampled_from([Step(), Box(), ATan()]))

    class Made(hb.Cell):
        def __init__(self):
            super().__init__()
            self.matrices = nn.ParameterList([nn.Parameter(grid(neurons, neurons)) for _ in range(count)])

        def forward(self, input_, u_previous, v_previous, s_previous):
            u = surrogate(0.5 * u_previous + input_ - 0.5)
            v = 0.5 * v_previous * (1 - s_previous) + input_
            for of, matrix, other in zip(turns, self.matrices, turned, strict=True):
                operand = {"s": s_previous, "u": u_previous, "now": u}[of]
                v = v + (operand @ matrix.T if other else operand @ matrix)
            return u, v, surrogate(v - 1)

    torch.manual_seed(data.draw(st.integers(0, 99), label="seed"))
    shape = (data.draw(st.integers(1, 6)), data.draw(st.integers(1, 9)), neurons)
    assert_conforms(CPU, Made(), inputs(shape), uses=("outputs and states",))


def test_float32_spikes_are_equal_where_sums_are_exact():
    torch.manual_seed(5)
    cell, x = WithBias(96).float(), inputs((20, 10, 96)).float()
    assert torch.equal(hb.unroll(cell, x, backend="cpu")[0], hb.unroll(cell, x, backend="reference")[0])


def test_a_constant_input_of_zero_stride_conforms():
    torch.manual_seed(6)
    cell = Spiking(24)
    still = inputs((5, 24)).requires_grad_()
    grads = []
    for backend in ("cpu", "reference"):
        out, _ = hb.unroll(cell, still.expand(6, 5, 24), backend=backend)
        grads.append(torch.autograd.grad((out * torch.arange(24)).sum(), [still, cell.weight]))
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_one_program_runs_any_batch_size():
    torch.manual_seed(7)
    cell = Spiking(24)
    for batch in (2, 5, 24, 1):
        x = inputs((4, batch, 24), seed=batch)
        result, expected = (hb.unroll(cell, x, backend=backend)[0] for backend in ("cpu", "reference"))
        assert torch.equal(result, expected)


def test_gradients_below_an_events_layer_for_aligned_and_unaligned_sizes():
    for neurons in (24, 23):
        torch.manual_seed(8)
        layer = hb.OverTime(Spiking(neurons, Step(), detach=True)).float()
        above = hb.Linear(neurons, 5)
        grads = []
        for mode in ("events", "dense"):
            above.mode = mode
            x = inputs((40, 9, neurons)).float().requires_grad_()
            above(layer(x)).pow(2).sum().backward()
            grads.append((x.grad, layer.cell.weight.grad.clone()))
            layer.zero_grad()
        for one, other in zip(*grads, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_the_saved_sequence_is_bits():
    saved = []
    cell = Spiking(64, Step(), detach=True).float()
    x = inputs((10, 8, 64)).float().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        hb.unroll(cell, x, backend="cpu")
    sequences = [t for t in saved if t.shape[:1] == (10,)]
    assert [t.dtype for t in sequences] == [torch.uint8]
    assert sequences[0].numel() == 10 * 8 * 64 // 8
