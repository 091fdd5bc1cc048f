"""Memory of a process, measured in separate processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

FAULTS = """
import resource, torch, hibana as hb

def faults(count):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(count):
        torch.zeros(1 << 24)  # 64 MB, freed at once
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults(2)
before = faults(4)
kept = hb.keep_memory()
faults(2)
print(kept, before, faults(4))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="page faults are counted on Linux")
def test_freed_memory_is_reused_without_page_faults():
    out = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True).stdout
    supported, before, after = out.split()
    if supported == "False":
        pytest.skip("the C library is not glibc")
    assert int(before) > 1000  # else the test measures nothing
    assert int(after) < int(before) / 10


PEAK = """
import sys, torch, hibana as hb
from torch import nn
from examples.deep_networks import convolved, neuron

def mark():
    (line,) = (line for line in open("/proc/self/status") if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 1024

torch.set_num_threads(1)
blocks = [convolved(32, 32, 3, 1, neuron) for _ in range(10)]
if sys.argv[1] == "checkpointed":
    blocks = [hb.Checkpointed(block) for block in blocks]
net = nn.Sequential(convolved(3, 32, 3, 1, neuron), *blocks)
net(torch.rand(2, 2, 3, 8, 8)).sum().backward()  # torch loads its compiler at a first checkpoint: 140 MB
open("/proc/self/clear_refs", "w").write("5")
before = mark()
net(torch.rand(4, 16, 3, 32, 32)).sum().backward()
print(mark() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the peak of a process is read on Linux")
def test_checkpointed_blocks_take_less_than_half_the_memory():
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(1 << 20)}  # unmaps freed memory
    megabytes = []
    for kind in ("plain", "checkpointed"):
        command = [sys.executable, "-W", "ignore", "-c", PEAK, kind]
        run = subprocess.run(command, capture_output=True, text=True, check=True, env=environment, cwd=ROOT)
        megabytes.append(float(run.stdout))
    plain, checkpointed = megabytes
    assert plain > 90
    assert checkpointed < 0.5 * plain
