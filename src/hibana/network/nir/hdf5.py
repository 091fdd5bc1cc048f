"""Reads an HDF5 file in a process of its own, for :mod:`hibana.network.nir.file`: a program, never imported.

HDF5 believes the bytes that it reads: a damaged file makes it loop without an end, deaf to Ctrl-C, take any
amount of memory, or crash. So this program, which needs h5py and NumPy alone, limits its own time and memory,
and what it found goes out as text and plain numbers through its standard output.

Sizes are taken from the headers before anything is loaded, links are not followed, and every sentence names
the place in the file.
"""

import faulthandler
import json
import math
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any, BinaryIO

import h5py
import numpy as np

DEEPEST = 32
"""Graphs within graphs."""
MOST_ENTRIES = 100_000
SMALLEST_ENTRY = 32
"""Bytes of a file that an entry takes at least."""
DENSEST = 1032
"""How many bytes one byte of a compressed file makes at most: what deflate can do."""
SECONDS = 1.0
PER_ENTRY = 2e-3
PER_BYTE = 2e-8
"""Seconds of the processor for a file, for each of its entries and for each byte that they make."""
MEMORY = 64 << 20
"""Bytes besides those of the arrays."""


class _RefusedError(Exception):
    """Something in the file that is not read."""


class _Limits:
    """What this process may take; the system ends it when it takes more."""

    def __init__(self) -> None:
        if hasattr(
            signal, "SIGPROF"
        ):  # its default ends the process; whoever started it may have had another
            signal.signal(signal.SIGPROF, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGPROF})
        self.begun = time.process_time() if hasattr(signal, "setitimer") else time.monotonic()
        self.seconds = SECONDS
        self.more_time(0)

    def more_time(self, seconds: float) -> None:
        self.seconds += seconds
        if hasattr(signal, "setitimer"):  # time of this process, so that a busy machine is no damage
            left = self.seconds - (time.process_time() - self.begun)
            signal.setitimer(signal.ITIMER_PROF, max(left, 1e-6))
        else:
            left = self.seconds - (time.monotonic() - self.begun)
            faulthandler.dump_traceback_later(max(left, 1e-3), exit=True, file=sys.stderr)

    @staticmethod
    def memory(more: int) -> None:
        status = Path("/proc/self/status")  # where it isn't, memory is not limited by the system
        if status.exists():
            import resource

            (line,) = (
                line for line in status.read_text(encoding="utf-8").splitlines() if line.startswith("VmData:")
            )
            taken = int(line.split()[1]) * 1024 + more
            resource.setrlimit(resource.RLIMIT_DATA, (taken, taken))


class _Reader:
    """Walks over a file, and sends what it finds to `out`: see :func:`send`."""

    def __init__(self, out: BinaryIO, size: int, max_bytes: int) -> None:
        self.out = out
        self.allowed = self.left = max_bytes
        self.holds = min(max_bytes, size * DENSEST)
        self.entries_left = min(MOST_ENTRIES, size // SMALLEST_ENTRY)
        self.most_entries = self.entries_left
        self.limits = _Limits()
        self.limits.memory(2 * self.holds + MEMORY)
        self.send((), "begin")
        self.out.flush()  # it says that this process can read, also where the system ends it

    def send(self, where: tuple[str, ...], kind: str, value: Any = None, data: bytes = b"") -> None:
        """One finding: the length of a line of JSON and of the bytes after it, the line, the bytes."""
        line = json.dumps([where, kind, value]).encode()
        self.out.write(len(line).to_bytes(8, "little") + len(data).to_bytes(8, "little"))
        self.out.write(line)
        self.out.write(data)

    def group(self, group: Any, where: tuple[str, ...]) -> None:
        if not isinstance(group, h5py.Group):
            raise _RefusedError(f"{'/'.join(where) or 'node'} must be a group, got a dataset")
        if len(where) > 2 * DEEPEST:
            raise _RefusedError(f"{'/'.join(where)[:80]}… is nested deeper than {DEEPEST} graphs")
        self.send(where, "group")
        for name in group:
            self.entries_left -= 1
            if self.entries_left < 0:
                raise _RefusedError(f"more than {self.most_entries} entries")
            self.limits.more_time(PER_ENTRY)
            below = (*where, name)
            try:
                item = _entry(group, name, "/".join(below))
                (self.group if isinstance(item, h5py.Group) else self.array)(item, below)
            except _RefusedError:
                raise
            except Exception as error:  # damaged bytes end in any of them
                raise _RefusedError(
                    f"{'/'.join(below)} is damaged: {str(error) or type(error).__name__}"
                ) from error

    def array(self, item: Any, where: tuple[str, ...]) -> None:
        place = "/".join(where)
        if not isinstance(item, h5py.Dataset) or item.shape is None:
            raise _RefusedError(f"{place} must be a dataset with values")
        if item.is_virtual or item.external:
            raise _RefusedError(f"{place} keeps its values outside the file")
        stored = math.prod(item.chunks or ())
        self.take(max(item.size, stored) * item.dtype.itemsize, place)
        if item.dtype.kind == "O":
            self.send(where, "texts", [item.shape, self.texts(item, place)])
            return
        if item.dtype.kind not in "biufS":
            raise _RefusedError(f"{place} must hold numbers or text, got {item.dtype}")
        value = item[()]
        if isinstance(value, bytes):
            self.send(where, "text", value.decode())
            return
        array = np.ascontiguousarray(value)
        self.send(where, "array", [np.shape(value), array.dtype.str], array.tobytes())

    def texts(self, item: Any, place: str) -> list[str]:
        """Text of any length: one at a time, because its length stands in no header."""
        if h5py.check_string_dtype(item.dtype) is None:
            raise _RefusedError(f"{place} must hold numbers or text, got {item.dtype}")
        if item.size > MOST_ENTRIES:
            raise _RefusedError(f"{place} has more than {MOST_ENTRIES} texts")
        found = []
        for index in np.ndindex(item.shape):
            value = item[index]
            self.take(len(value), place)
            found.append(value.decode() if isinstance(value, bytes) else value)
        return found

    def take(self, size: int, place: str) -> None:
        self.left -= size
        if self.left < 0:
            raise _RefusedError(
                f"{place} would bring the file to more than the {self.allowed:,} bytes of max_bytes in memory"
            )
        if self.allowed - self.left > self.holds:
            raise _RefusedError(f"{place} is damaged: it claims {size:,} bytes, more than this file can hold")
        self.limits.more_time(size * PER_BYTE)


def _entry(group: Any, name: str, where: str) -> Any:
    link = group.get(name, getlink=True)
    if link is None:
        raise _RefusedError(f"has no group {name!r}, so it is not a NIR file")
    if not isinstance(link, h5py.HardLink):
        raise _RefusedError(f"{where} is a link to elsewhere, which is not followed")
    return group[name]


def main(path: str, max_bytes: int, out: BinaryIO) -> None:
    """Sends what the group ``node`` of the file at `path` holds or a sentence that refuses it, and an end."""
    reader = _Reader(out, os.stat(path).st_size, max_bytes)  # noqa: PTH116 - `path` may be any bytes
    try:
        with h5py.File(path, "r") as file:
            reader.group(_entry(file, "node", ""), ())
    except _RefusedError as error:
        reader.send((), "refused", str(error))
    except Exception as error:  # as above
        reader.send((), "damaged", str(error) or type(error).__name__)
    reader.send((), "end")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.stdout.buffer)
    sys.stdout.buffer.flush()
    os._exit(0)  # HDF5 has nothing left to say: it would try to close what is damaged
