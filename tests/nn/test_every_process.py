"""Every public layer in forked, spawned and distributed processes, and in graphs that Inductor compiles.

Processes take seconds to start, so each process runs several layers, one after the other.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.parametrize("which", ["few", pytest.param("all", marks=pytest.mark.exhaustive)])
@pytest.mark.parametrize("how", ["forked", "spawned", "compiled"])
def test_layers_agree_with_the_reference_in_other_processes(how: str, which: str) -> None:
    process = subprocess.run(
        [sys.executable, str(Path(__file__).parents[1] / "every_process.py"), how, which],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        capture_output=True,
        text=True,
        timeout=3600,  # a machine may be busy
    )
    assert process.returncode == 0, process.stderr
