"""Reads a NIR file as nested dictionaries, after a process with limited time and memory could read it.

Of 6,000 valid files with random damage, HDF5 looped forever on 10, crashed on 1 and took more than 1.5 GB of
memory for 6. This file is also the program of that process, so it imports nothing of hibana.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
from nir.serialization import hdf2dict

__all__ = ["load"]

PROGRAM = Path(__file__)
PATIENCE = 60.0
"""Seconds, and as many per 100 MB, after which :func:`load` ends a process whose disk does not answer."""
MAX_EXPANSION = 1032
"""Bytes that one byte of a compressed file expands to at most: the limit of deflate."""


def load(path: str | os.PathLike[str], max_bytes: int) -> dict[str, Any]:
    """Returns the contents of the group ``node`` of a NIR file, groups as dictionaries.

    Args:
        path: an HDF5 file.
        max_bytes: the most memory that all its arrays may take.

    Raises:
        FileNotFoundError: if there is no file.
        ValueError: if it is not a NIR file, is damaged, or is larger than `max_bytes`.
    """
    name, file_path = os.fspath(path), Path(path)
    if not file_path.is_file():
        raise FileNotFoundError(f"source must be a NIR file, there is no {name}")
    search_path = os.pathsep.join(filter(None, sys.path))
    try:
        process = subprocess.run(
            [sys.executable, "-P", PROGRAM, path, str(max_bytes)],
            env={**os.environ, "PYTHONPATH": search_path, "OPENBLAS_NUM_THREADS": "1"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=PATIENCE * (1 + file_path.stat().st_size / 1e8),
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ValueError(f"{name} is damaged: reading it does not end") from error
    *_, reason = ["", *process.stderr.decode(errors="replace").strip().splitlines()]
    if process.returncode < 0:
        number = -process.returncode
        raise ValueError(f"{name} is damaged: HDF5 crashes on it or does not end (signal {number})")
    if process.returncode:
        raise ValueError(f"{name} is damaged or not a NIR file: {reason}")
    with h5py.File(path, "r") as file:
        contents: dict[str, Any] = hdf2dict(file["node"])
    return contents


def refusal(file: Any, max_bytes: int) -> str | None:
    """The reason not to read `file`: links, values outside the file, or arrays above `max_bytes`; or None."""
    size = 0

    def refusal_of(name: str, link: Any) -> str | None:
        """The reason to refuse `link`, or the data set that it names, whose bytes are added to `size`."""
        nonlocal size
        if not isinstance(link, h5py.HardLink):
            return f"{name} is a link to elsewhere, which is not followed"
        item = file[name]
        if not isinstance(item, h5py.Dataset):
            return None
        size += item.nbytes
        if item.external or item.is_virtual:
            return f"{name} keeps its values outside the file"
        too_large = f"{name} would bring the file to more than the {max_bytes:,} of max_bytes"
        return too_large if size > max_bytes else None

    reason: str | None = file.visititems_links(refusal_of)
    return reason


def limit_resources(size: int, max_bytes: int) -> None:
    """Has the system end this process if a file of `size` bytes takes too much time or memory.

    The limits are 1 s of processor time and 1 s more per 5 MB, and 256 MB for Python and its libraries in
    addition to the arrays.
    """
    try:
        import resource
    except ImportError:  # on Windows, where the caller alone limits the time
        return
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # a parent may have it ignored
    signal.setitimer(signal.ITIMER_PROF, 1.0 + size / 5e6)  # RLIMIT_CPU counts whole seconds
    memory = (1 << 28) + min(max_bytes, MAX_EXPANSION * size)
    resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))


def main(path: str, max_bytes: int) -> int:
    """Reads the file at `path` within the limits, and returns 1 if it cannot be read."""
    limit_resources(Path(path).stat().st_size, max_bytes)
    try:
        with h5py.File(path, "r") as file:
            reason = refusal(file, max_bytes)
            if reason is None:
                hdf2dict(file["node"])
    except Exception as error:  # damaged bytes raise many types
        reason = " ".join(str(error).split()) or type(error).__name__
    if reason is not None:
        print(reason, file=sys.stderr)
    return int(reason is not None)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2])))
