"""Workers of pytest-xdist: each uses one thread, and the run ends with an error if one is killed."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import workers

pytest.importorskip("xdist", reason="pytest-xdist is not installed")
if sys.platform == "win32":
    pytest.skip("there is no SIGKILL", allow_module_level=True)

TESTS = """
import os, signal, time
import pytest

@pytest.mark.parametrize("number", range(60))
def test_passes(number):
    time.sleep(0.01)
    if number == 20:
        os.kill(os.getpid(), signal.SIGKILL)
"""


def run_two_workers(folder: Path, **tests: str) -> subprocess.CompletedProcess[str]:
    """Runs `tests` (contents by name of file) with two workers, configured as the workers of this project."""
    shutil.copy(Path(workers.__file__), folder / "conftest.py")
    for name, text in tests.items():
        (folder / f"{name}.py").write_text(text)
    (folder / "pytest.ini").write_text("[pytest]\n")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n", "2", "-p", "no:cacheprovider"],
        cwd=folder,
        env={**environment, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_PLUGINS": "xdist.plugin"},
        capture_output=True,
        text=True,
        timeout=600,  # it would not end if pytest-xdist replaced the worker
    )


def test_a_worker_that_is_killed_ends_the_run_with_an_error(tmp_path):
    result = run_two_workers(tmp_path, test_killed=TESTS)
    assert result.returncode == 1, result.stdout + result.stderr
    assert "crashed while running 'test_killed.py::test_passes[20]'" in result.stdout


@pytest.mark.skipif("PYTEST_XDIST_WORKER" not in os.environ, reason="needs a worker")
def test_a_worker_uses_the_configured_number_of_threads():
    assert torch.get_num_threads() == int(os.environ["OMP_NUM_THREADS"])
