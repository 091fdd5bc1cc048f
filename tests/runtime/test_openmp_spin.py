"""How torch's threads are told to wait: by the command, before torch is loaded, and by nobody else."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import hibana as hb
from hibana.runtime import openmp_spin

SPINS = str(openmp_spin.SPINS)
SPIES = "import os\nraise SystemExit(f\"torch sees {os.environ.get('GOMP_SPINCOUNT')}\")\n"


def seen_by_torch(folder, *started, **variables):
    """What stands in ``GOMP_SPINCOUNT`` at the moment at which a Python that was so started imports torch."""
    (folder / "torch.py").write_text(SPIES)
    for name in ("hibana", "mine.py"):
        (folder / name).write_text("from hibana.cli import main\nmain()\n")
    path = os.pathsep.join(map(str, (folder, Path(hb.__file__).parents[1])))
    clean = {name: value for name, value in os.environ.items() if name not in openmp_spin._USER_SETTINGS}
    run = subprocess.run(
        [sys.executable, *started],
        cwd=folder,
        env={**clean, "PYTHONPATH": path, **variables},
        capture_output=True,
        text=True,
    )
    assert "torch sees" in run.stderr, run.stderr
    return run.stderr.split()[-1]


@pytest.mark.parametrize("started", [("hibana",), ("-m", "hibana"), ("-X", "utf8", "-m", "hibana")])
def test_the_command_says_how_long_to_spin_before_torch_is_loaded(tmp_path, started):
    (tmp_path / "scripts").mkdir()
    folder = tmp_path / "scripts"
    assert seen_by_torch(folder, *started, "train", "--data", "digits") == SPINS
    assert seen_by_torch(folder, *started) == SPINS


def test_what_a_user_says_of_waiting_stays(tmp_path):
    assert seen_by_torch(tmp_path, "hibana", "train", GOMP_SPINCOUNT="77") == "77"
    assert seen_by_torch(tmp_path, "hibana", "train", OMP_WAIT_POLICY="active") == "None"


def test_a_program_that_imports_hibana_waits_as_it_did(tmp_path):
    assert seen_by_torch(tmp_path, "mine.py", "hibana") == "None"
    assert seen_by_torch(tmp_path, "-c", "import hibana", "hibana") == "None"
