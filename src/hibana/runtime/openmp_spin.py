"""How long torch's threads spin where one waits for another, if this process is the command ``hibana``.

OpenMP's threads spin for milliseconds by default before they sleep. Beside another busy process, the thread
that is waited for may have no processor meanwhile, and the one that spins keeps it from getting one. GNU's
OpenMP reads the number once, when torch loads it: this module is imported before torch, and imports nothing
of it. Where hibana is only imported, the program is somebody else's, and nothing is set.
"""

import os
import sys
from pathlib import Path

__all__ = ["is_command"]

SPINS = 3000
"""Turns that a thread spins before it sleeps; GNU's default is 300,000.

On two processors, a training step of 784-512-512-10 at 8 steps and batch 64 took about 4 ms alone whether
threads spun 3,000 turns or 300,000, 4.7 with 1,000 and 6 with none, longer than with one thread (5); beside a
busy process it took 10.5 with 3,000, 14 to 19 with 300,000 and 8 to 10 with 1,000.
Three epochs of mnist-1d, whose operations are
shorter, took 2.6 s alone with 3,000 and 2.1 with 10,000 or 300,000; beside a busy process 4.7, 5.7 and 7.7.
"""

_THEIRS = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")


def is_command() -> bool:
    """Whether Python was started as ``hibana`` or ``python -m hibana``."""
    given = getattr(sys, "argv", ())
    started = sys.orig_argv[-len(given) :] if given else []  # while a package loads, argv[0] is "-m" alone
    return bool(started) and Path(started[0]).name == "hibana"


if is_command() and not any(name in os.environ for name in _THEIRS):
    os.environ["GOMP_SPINCOUNT"] = str(SPINS)
