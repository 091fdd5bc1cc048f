"""Networks whose sizes coincide, on buffers between protected pages: ``python -m fuzz --only sizes``."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
pytestmark = pytest.mark.skipif(
    shutil.which("cc") is None or sys.platform != "linux", reason="needs a C compiler on Linux"
)


TESTS = Path(__file__).parents[1]
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])}


def _run(*arguments):
    command = [sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=ENVIRONMENT)


def test_plain_networks_are_equal_optimized_compiled_in_c_in_onnx_and_in_integers():
    result = _run("-c", PLAIN)
    assert result.returncode == 0, result.stdout + result.stderr


PLAIN = """
import warnings
from fuzz import plain
from fuzz.differ import Counts
warnings.simplefilter("ignore")
counts = Counts()
findings = plain.run(0, 12, counts, lambda net: None)
assert not findings, findings
assert counts.compared == 12 and counts.refused < 6, counts
"""
"""The first cases of ``python -m fuzz --only plain``."""


def test_equal_sizes_give_equal_outputs_and_no_access_outside_a_buffer():
    result = _run("-m", "fuzz", "--only", "sizes", "--cases", "20", "--seed", "0")
    assert result.returncode == 0, result.stdout + result.stderr
    assert int(result.stdout.split(": ")[1].split(" compared")[0]) >= 20, result.stdout


GUARD_PROGRAM = """
import torch
import guard
import hibana as hb
from hibana.network.native import emitter

torch.set_num_threads(1)
net, x = torch.nn.Sequential(torch.nn.Linear(5, 40), hb.LIF()), torch.rand(6, 2, 5)
results = guard.run(net, x, [x], True)
print(all(torch.equal(result, hb.compile(net, x)(x)) for result in results), flush=True)
temporary = emitter.Emitter.temporary
emitter.Emitter.temporary = lambda self, count, kind=None: temporary(self, count - 1, kind)
guard.run(net, x, [x], True)
"""


def test_a_program_that_writes_one_number_too_many_crashes():
    """Tests the guard: a network runs, and crashes if each array is one number short."""
    result = _run("-c", GUARD_PROGRAM)
    assert result.stdout == "True\n", result.stderr
    assert result.returncode < 0
