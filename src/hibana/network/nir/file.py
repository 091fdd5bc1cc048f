"""A NIR file as plain nodes, read so that no file, however made, takes more than it was allowed.

:mod:`hibana.network.nir.hdf5` reads it in a process of its own, as a damaged file makes HDF5 loop, crash or
fill the memory; here its findings, text and plain numbers, are put together.
"""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import IO, Any

import numpy as np

__all__ = ["load"]

PROGRAM = Path(__file__).with_name("hdf5.py")
PATIENCE = 60.0
"""Seconds, and as many for each 100 MB, after which a disk that does not answer is given up; what takes the
processor's time is stopped by the program itself, within 2 seconds."""
LONGEST_LINE = 1 << 26
"""Bytes: of names and texts; arrays are no lines."""


def load(path: str | os.PathLike[str], max_bytes: int) -> dict[str, Any]:
    """The contents of the group ``node`` of a NIR file, groups as dictionaries.

    Args:
        path: an HDF5 file.
        max_bytes: the most that all its arrays may take in memory.

    Raises:
        FileNotFoundError: if there is no file.
        ValueError: if it is not a NIR file, is damaged, or is larger than `max_bytes`.
        RuntimeError: if no process can read it: Python does not start there, or h5py does not load.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"source must be a NIR file, there is no {os.fspath(path)}")
    patience = PATIENCE * (1 + Path(path).stat().st_size / 1e8)
    with _started(path, max_bytes) as program:
        watch = threading.Timer(patience, program.kill)
        watch.start()
        try:
            assert program.stdout is not None
            assert program.stderr is not None
            found = _Findings(max_bytes)
            found.take_from(program.stdout)
            message = b"" if found.begun else program.stderr.read()
        finally:
            watch.cancel()
            if not (found.ended and found.begun):
                program.kill()
    if not found.begun:
        reason = (
            message.decode(errors="replace").strip().splitlines() or [f"it ended with {program.returncode}"]
        )[-1]
        raise RuntimeError(f"{os.fspath(path)} can't be read, because no process can do it: {reason}")
    if not found.ended:
        raise ValueError(f"{os.fspath(path)} is damaged: {_end_of(program.returncode)}")
    if found.refused is not None:
        raise ValueError(f"{os.fspath(path)}{found.refused}")
    return found.content


def _started(path: str | os.PathLike[str], max_bytes: int) -> "subprocess.Popen[bytes]":
    """The program, with the modules that this process has."""
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.Popen(
        [sys.executable, "-P", PROGRAM, path, str(max_bytes)],
        env={**variables, "OPENBLAS_NUM_THREADS": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
    )


def _end_of(code: int) -> str:
    """What became of a program that did not come to its end."""
    stopped = (-signal.SIGPROF, -signal.SIGKILL) if hasattr(signal, "SIGPROF") else (1,)  # as on Windows
    if code in stopped:
        return "reading it takes no end"
    return f"HDF5 crashed on it ({code})"


class _Findings:
    """What the program sends, put together; no more of it than `max_bytes` can be."""

    def __init__(self, max_bytes: int) -> None:
        self.content: dict[str, Any] = {}
        self.refused: str | None = None
        self.begun = self.ended = False
        self.left = 8 * max_bytes + LONGEST_LINE  # a character may be six in a line

    def take_from(self, stream: IO[bytes]) -> None:
        """Takes findings until the program ends."""
        while not self.ended and (sizes := stream.read(16)):
            line, data = (int.from_bytes(sizes[at : at + 8], "little") for at in (0, 8))
            self.left -= line + data
            if len(sizes) < 16 or line > LONGEST_LINE or self.left < 0:
                return
            message, array = stream.read(line), bytearray(data)
            if len(message) < line or stream.readinto(array) < data:  # type: ignore[attr-defined] # it is buffered
                return
            place, kind, value = json.loads(message)
            self.take(place, kind, value, array)

    def take(self, place: list[str], kind: str, value: Any, data: bytearray) -> None:
        match kind:
            case "begin":
                self.begun = True
            case "end":
                self.ended = True
            case "refused":
                self.refused = f": {value}"
            case "damaged":
                self.refused = f" is damaged or not a NIR file: {value}"
            case "group":
                self.put(place, {})
            case "text":
                self.put(place, value)
            case "texts":
                shape, texts = value
                array = np.empty(len(texts), object)
                array[:] = texts
                self.put(place, array.reshape(shape)[()])
            case "array":
                shape, dtype = value
                self.put(place, np.frombuffer(data, dtype).reshape(shape)[()])

    def put(self, place: list[str], value: Any) -> None:
        if not place:
            self.content = value
            return
        group = self.content
        for name in place[:-1]:
            group = group[name]
        group[place[-1]] = value
