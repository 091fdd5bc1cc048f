"""The spin count of torch's threads: only the command sets it, before it loads torch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import hibana as hb
from hibana.runtime import openmp_spin

SPINS = str(openmp_spin.SPINS)
FAKE_TORCH = "import os\nraise SystemExit(f\"torch sees {os.environ.get('GOMP_SPINCOUNT')}\")\n"


def spin_count_of_torch(folder, *arguments, **variables):
    """The value of ``GOMP_SPINCOUNT`` when Python, started with `arguments`, imports torch."""
    (folder / "torch.py").write_text(FAKE_TORCH)
    for name in ("hibana", "mine.py"):
        (folder / name).write_text("from hibana.cli import main\nmain()\n")
    path = os.pathsep.join(map(str, (folder, Path(hb.__file__).parents[1])))
    clean = {name: value for name, value in os.environ.items() if name not in openmp_spin._USER_SETTINGS}
    run = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**clean, "PYTHONPATH": path, **variables},
        capture_output=True,
        text=True,
    )
    assert "torch sees" in run.stderr, run.stderr
    return run.stderr.split()[-1]


@pytest.mark.parametrize("arguments", [("hibana",), ("-m", "hibana"), ("-X", "utf8", "-m", "hibana")])
def test_the_command_sets_the_spin_count_before_torch_is_loaded(tmp_path, arguments):
    (tmp_path / "scripts").mkdir()
    folder = tmp_path / "scripts"
    assert spin_count_of_torch(folder, *arguments, "train", "--data", "digits") == SPINS
    assert spin_count_of_torch(folder, *arguments) == SPINS


def test_the_users_settings_stay(tmp_path):
    assert spin_count_of_torch(tmp_path, "hibana", "train", GOMP_SPINCOUNT="77") == "77"
    assert spin_count_of_torch(tmp_path, "hibana", "train", OMP_WAIT_POLICY="active") == "None"


def test_importing_hibana_changes_no_setting(tmp_path):
    assert spin_count_of_torch(tmp_path, "mine.py", "hibana") == "None"
    assert spin_count_of_torch(tmp_path, "-c", "import hibana", "hibana") == "None"
