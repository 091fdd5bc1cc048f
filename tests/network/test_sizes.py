"""Networks in which sizes coincide, on buffers between protected pages: ``python -m fuzz --only sizes``."""

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


def test_sizes_that_coincide_give_the_same_and_nothing_is_read_outside_a_buffer():
    ran = _run("-m", "fuzz", "--only", "sizes", "--cases", "20", "--seed", "0")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert int(ran.stdout.split(": ")[1].split(" compared")[0]) >= 20, ran.stdout


GUARDED = """
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


def test_a_program_that_writes_one_number_too_many_ends():
    """The guard itself: the same network runs, and crashes if each array is a number short."""
    ran = _run("-c", GUARDED)
    assert ran.stdout == "True\n", ran.stderr
    assert ran.returncode < 0
