"""A NIR file as nested dictionaries, read here once a process with limits could read it."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
from nir.serialization import hdf2dict

from hibana.network.nir.hdf5 import REFUSED

__all__ = ["load"]

PROGRAM = Path(__file__).with_name("hdf5.py")
PATIENCE = 60.0
"""Seconds, and as many for each 100 MB, after which a disk that does not answer is given up."""


def load(path: str | os.PathLike[str], max_bytes: int) -> dict[str, Any]:
    """The contents of the group ``node`` of a NIR file, groups as dictionaries.

    Args:
        path: an HDF5 file.
        max_bytes: the most that all its arrays may take in memory.

    Raises:
        FileNotFoundError: if there is no file.
        ValueError: if it is not a NIR file, is damaged, or is larger than `max_bytes`.
        RuntimeError: if the process that tries it can't start, or can't load h5py and nir.
    """
    name = os.fspath(path)
    paths = os.pathsep.join(filter(None, sys.path))
    if not Path(path).is_file():
        raise FileNotFoundError(f"source must be a NIR file, there is no {name}")
    try:
        process = subprocess.run(
            [sys.executable, "-P", PROGRAM, path, str(max_bytes)],
            env={**os.environ, "PYTHONPATH": paths, "OPENBLAS_NUM_THREADS": "1"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=PATIENCE * (1 + Path(path).stat().st_size / 1e8),
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ValueError(f"{name} is damaged: reading it does not end") from error
    *_, reason = ["", *process.stderr.decode(errors="replace").strip().splitlines()]
    if process.returncode == REFUSED:
        raise ValueError(f"{name} is damaged or not a NIR file: {reason}")
    if process.returncode < 0:
        what = f"HDF5 crashes on it or does not end (signal {-process.returncode})"
        raise ValueError(f"{name} is damaged: {what}")
    if process.returncode:
        raise RuntimeError(f"{name} can't be read, because no process can load h5py and nir: {reason}")
    with h5py.File(path, "r") as file:
        contents: dict[str, Any] = hdf2dict(file["node"])
    return contents
