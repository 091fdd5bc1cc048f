"""Steps of hundreds of operations: planned by a minimum cut, and compiled in little time."""

import sys

import pytest
import torch

import hibana as hb
from conformance.compare import assert_conforms
from conformance.suite import CPU, each_backend
from hibana.compiler.cpu.row_loops import RowLoops
from hibana.compiler.cpu.time_loop import TimeLoop
from hibana.compiler.graph.loops import backward_loop
from hibana.compiler.graph.plan import make_plan
from hibana.compiler.graph.trace import trace
from hibana.runtime.kernels import Floats


class HodgkinHuxley(hb.Cell):
    """The squid's axon by forward Euler, several substeps to a step."""

    def __init__(self, substeps):
        super().__init__()
        self.substeps = substeps

    def forward(self, input_, v_previous, m_previous, h_previous, n_previous, s_previous):
        v, m, h, n = v_previous, m_previous, h_previous, n_previous
        for _ in range(self.substeps):
            opening = torch.exp((25 - v) / 10) - 1
            change_m = 0.1 * (25 - v) / opening * (1 - m) - 4 * torch.exp(v / -18) * m
            change_h = 0.07 * torch.exp(v / -20) * (1 - h) - h / (torch.exp((30 - v) / 10) + 1)
            change_n = 0.01 * (10 - v) / (torch.exp((10 - v) / 10) - 1) * (1 - n)
            change_n = change_n - 0.125 * torch.exp(v / -80) * n
            current = 120 * m**3 * h * (115 - v) + 36 * n * n * n * n * (-12 - v) + 0.3 * (10.6 - v)
            v = v + 0.01 * (current + input_)
            m, h, n = m + 0.01 * change_m, h + 0.01 * change_h, n + 0.01 * change_n
        return v, m, h, n, hb.surrogate.ATan()(v - 0.5 + 0.0 * s_previous)


class Euler(hb.Cell):
    """A quadratic potential, many substeps to a step."""

    def __init__(self, substeps):
        super().__init__()
        self.substeps = substeps

    def forward(self, input_, v_previous, s_previous):
        v = v_previous * (1 - s_previous)
        for _ in range(self.substeps):
            v = v + 0.01 * (v * v - v + input_)
        return v, hb.surrogate.ATan()(v - 1)


@each_backend
@pytest.mark.parametrize("shape", [(1, 5), (7, 3, 23)], ids=str)
def test_a_step_of_some_hundred_operations(run, shape):
    assert_conforms(run, Euler(60), 4 * torch.rand(shape))


@pytest.mark.cover(1)
@pytest.mark.parametrize(
    "cell", [HodgkinHuxley(1), HodgkinHuxley(4), Euler(60)], ids=["one", "four", "euler"]
)
@pytest.mark.parametrize("shape", [(1, 5), (3, 64), (5, 5000)], ids=str)
def test_a_long_step_over_rows_of_any_width(cell, shape):
    assert_conforms(CPU, cell, 40 * torch.rand(shape))


def test_a_step_of_a_thousand_operations_saves_only_input_and_state():
    step = trace(Euler(250), torch.Size([5]), torch.float32)
    assert make_plan(step).bits() == 64, "the input and the potential"


def gradient_loop(step, calls):
    """The loop of the gradient of `step` over rows of neurons."""
    loop = backward_loop(step, make_plan(step), wants_input=True)
    return TimeLoop(**vars(loop), number=Floats, calls=calls, by_rows=True)


def test_no_recursion_is_as_deep_as_a_step_is_long():
    """A chain of operations longer than Python's stack, from the trace to the kernel's source."""
    before, limit = sys.getrecursionlimit(), 300
    sys.setrecursionlimit(limit)
    try:
        step = trace(Euler(limit), torch.Size([5]), torch.float32)
        source = RowLoops(step, gradient_loop(step, frozenset())).source()
    finally:
        sys.setrecursionlimit(before)
    assert source.text.count("fmul") > limit


def test_a_kernel_needs_a_small_stack():
    step = trace(HodgkinHuxley(12), torch.Size([5]), torch.float32)
    source = RowLoops(step, gradient_loop(step, frozenset({"exp"}))).source()
    allocations = [line.split("[")[1].split(" x ") for line in source.text.splitlines() if "alloca" in line]
    assert sum(4 * int(count) for count, _ in allocations) < 2 << 20
    assert source.max_row >= 64
