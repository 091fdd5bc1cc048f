"""Every public layer in other processes: forked, sent to new ones, shared between two; several by Inductor.
Metrics counted by two together.

Processes take seconds to begin, so one takes layers of each sort, or all, one after the other.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.parametrize("which", ["few", pytest.param("all", marks=pytest.mark.exhaustive)])
@pytest.mark.parametrize("how", ["forked", "spawned", "compiled"])
def test_layers_give_the_references_numbers(how: str, which: str) -> None:
    done = subprocess.run(
        [sys.executable, str(Path(__file__).parents[1] / "every_process.py"), how, which],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        capture_output=True,
        text=True,
        timeout=3600,  # a machine may be busy
    )
    assert done.returncode == 0, done.stderr
