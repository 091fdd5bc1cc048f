"""What :func:`hibana.keep_memory` does to a process, seen in one of its own."""

import subprocess
import sys

import pytest

SEEN = """
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
def test_freed_memory_is_found_again_without_the_kernel():
    out = subprocess.run([sys.executable, "-c", SEEN], capture_output=True, text=True, check=True).stdout
    kept, before, after = out.split()
    if kept == "False":
        pytest.skip("the C library is not glibc")
    assert int(before) > 1000  # or there is nothing to be seen here
    assert int(after) < int(before) / 10
