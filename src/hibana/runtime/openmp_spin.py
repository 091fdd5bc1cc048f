"""Limits how long torch's threads spin at a barrier, if this process is the command ``hibana``.

By default, threads of OpenMP spin for milliseconds. If another process is busy, they thereby occupy the
processor that the awaited thread needs. GNU's OpenMP reads the limit when torch loads it, so this module must
be imported before torch. The OpenMP libraries of LLVM and Intel, in torch for macOS and Windows, do not read
the limit. A program that imports hibana keeps the default: GNU's OpenMP has no function that sets the limit
after it was loaded (*Training: Threads* describes the variable).
"""

import os
import sys
from pathlib import Path

SPINS = 3000
"""Iterations that a thread spins before it sleeps; GNU's default is 300,000.

Measured on two processors, a training step of 784-512-512-10, 8 steps, batch 64: 4 ms with 3,000 or 300,000
and 4.7 ms with 1,000; beside a busy process 10.5 ms with 3,000 and 14 to 19 ms with 300,000.
"""

_USER_SETTINGS = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
"""Environment variables with which users set the limit."""


def is_command() -> bool:
    """Whether Python was started as ``hibana`` or ``python -m hibana``."""
    argv = getattr(sys, "argv", ())
    command = sys.orig_argv[-len(argv) :] if argv else []  # argv[0] is "-m" while a package loads
    return bool(command) and Path(command[0]).name == "hibana"


if is_command() and not any(name in os.environ for name in _USER_SETTINGS):
    os.environ["GOMP_SPINCOUNT"] = str(SPINS)
