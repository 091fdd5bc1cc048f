"""Workers that share the tests: each computes with one thread, and if one dies the run ends with an error."""

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


def shared_by_two(folder: Path, **tests: str) -> subprocess.CompletedProcess[str]:
    """What came of `tests`, by file, with two workers that share them as ours do."""
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
        timeout=600,  # replaced, it would never end
    )


def test_a_worker_that_is_killed_ends_the_run_with_an_error(tmp_path):
    ended = shared_by_two(tmp_path, test_killed=TESTS)
    assert ended.returncode == 1, ended.stdout + ended.stderr
    assert "crashed while running 'test_killed.py::test_passes[20]'" in ended.stdout


@pytest.mark.skipif("PYTEST_XDIST_WORKER" not in os.environ, reason="it is about workers")
def test_a_worker_computes_with_as_many_threads_as_it_is_told():
    assert torch.get_num_threads() == int(os.environ["OMP_NUM_THREADS"])
