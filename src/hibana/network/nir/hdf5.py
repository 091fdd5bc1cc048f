"""Reads a NIR file and reports whether that worked: a program for :mod:`hibana.network.nir.file`.

Of 6,000 valid files with random damage HDF5 looped for ever on 10, crashed on 1 and took more than 1.5 GB
for 6. This process limits its own time and memory, so that the one that asked can read the file afterwards.
"""

import math
import sys
import time
from pathlib import Path
from typing import Any

import h5py
from nir.serialization import hdf2dict

SECONDS, BYTES_PER_SECOND = 2.0, 5_000_000
"""Processor time for any file, and how much of a file is read in another second."""
DENSEST = 1032
"""Bytes that one byte of a compressed file expands to at most, which is the limit of deflate."""
BASE_MEMORY = 1 << 28
"""Bytes for Python and its libraries."""
REFUSED = 3
"""Exit status if the file can't be read, with the reason as the last line of the error output."""


def limit(size: int, max_bytes: int) -> None:
    """Has the system end this process when a file of `size` bytes takes too much time or memory."""
    try:
        import resource
    except ImportError:  # on Windows, where only the time is limited, by the process that waits
        return
    seconds = math.ceil(time.process_time() + SECONDS + size / BYTES_PER_SECOND)
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    memory = BASE_MEMORY + min(max_bytes, DENSEST * size)
    resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))


def refusal(file: Any, max_bytes: int) -> str | None:
    """Why the contents are not read: links, values outside the file, or arrays of more than `max_bytes`."""
    left = max_bytes

    def of_link(name: str, link: Any) -> str | None:
        return (
            None
            if isinstance(link, h5py.HardLink)
            else f"{name} is a link to elsewhere, which is not followed"
        )

    def of_values(name: str, item: Any) -> str | None:
        nonlocal left
        if not isinstance(item, h5py.Dataset):
            return None
        left -= item.nbytes
        if item.external or item.is_virtual:
            return f"{name} keeps its values outside the file"
        return (
            None if left >= 0 else f"{name} would bring the file to more than the {max_bytes:,} of max_bytes"
        )

    reason: str | None = file.visititems_links(of_link) or file.visititems(of_values)
    return reason


def main(path: str, max_bytes: int) -> int:
    """Reads the file at `path` and returns the exit status."""
    limit(Path(path).stat().st_size, max_bytes)
    try:
        with h5py.File(path, "r") as file:
            reason = refusal(file, max_bytes)
            if reason is None:
                hdf2dict(file["node"])
    except Exception as error:  # damaged bytes raise many types
        reason = " ".join(str(error).split()) or type(error).__name__
    if reason is not None:
        print(reason, file=sys.stderr)
    return 0 if reason is None else REFUSED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2])))
