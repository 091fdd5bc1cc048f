"""The caches of programs stay small, and evicted programs still run pending backwards."""

import gc
import sys
from pathlib import Path

import pytest
import torch

import hibana as hb
from hibana.compiler import programs
from hibana.compiler.cpu import kernels as cpu

X = 3 * torch.rand(6, 2, 5)


def _memory():
    """Resident memory of this process in bytes."""
    gc.collect()
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith("VmRSS"))
    return int(line.split()[1]) << 10


def _step(cell, inputs, backend):
    inputs = inputs.clone().requires_grad_()
    outputs, _ = hb.unroll(cell, inputs, backend=backend)
    return inputs, outputs


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_new_hyperparameters_and_shapes_do_not_grow_the_process():
    def call(i):
        cell = hb.LIFCell(2.0 + i / 100, threshold=0.5 + i / 1000, detach_reset=True)
        _step(cell, X, "cpu")[1].sum().backward()
        _step(shaped, torch.rand(3 + i % 20, 2 + i // 20, 3), "cpu")[1].sum().backward()

    shaped = hb.IFCell()
    for i in range(20):
        call(i)
    before = _memory()
    for i in range(20, 270):
        call(i)
    assert _memory() - before < 10 << 20


def test_another_value_of_a_hyper_parameter_plans_nothing_and_writes_no_kernel(monkeypatch):
    class NewCell(hb.LIFCell):
        """A cell without a cached program."""

    monkeypatch.setattr(programs, "_SHARED", {})  # its oldest program would be the next to be evicted
    _step(NewCell(2.0), X, "cpu")[1].sum().backward()

    def never(*arguments, **options):
        raise AssertionError("planned or written again")

    monkeypatch.setattr(programs, "make_plan", never)
    monkeypatch.setattr(cpu, "forward_loop", never)
    monkeypatch.setattr(cpu, "backward_loop", never)
    for tau in (3.0, 4.5):
        cell = NewCell(tau, threshold=0.3)
        inputs, outputs = _step(cell, X, "cpu")
        expected, expected_outputs = _step(cell, X, "reference")
        outputs.sum().backward()
        expected_outputs.sum().backward()
        assert torch.equal(outputs, expected_outputs)
        assert outputs.any()
        torch.testing.assert_close(inputs.grad, expected.grad)


def test_evicted_programs_still_run_pending_backwards(monkeypatch):
    monkeypatch.setattr(programs, "_SHARED", {})
    monkeypatch.setattr(programs, "SHARED_PROGRAMS", 2)
    monkeypatch.setattr(programs, "CELL_PROGRAMS", 1)
    monkeypatch.setattr(cpu, "SHAPES", 1)
    cells = [hb.IFCell(0.4), hb.LIFCell(3.0, threshold=0.3), hb.ALIFCell(), hb.IFCell(0.7), hb.QIFCell()]
    runs = [(_step(cell, X[: 3 + i % 2], "cpu"), cell) for i in range(6) for cell in cells]
    gc.collect()
    assert len(programs._SHARED) <= 2
    for (inputs, outputs), cell in runs:
        expected, expected_outputs = _step(cell, inputs.detach(), "reference")
        outputs.sum().backward()
        expected_outputs.sum().backward()
        assert torch.equal(outputs, expected_outputs)
        torch.testing.assert_close(inputs.grad, expected.grad)
