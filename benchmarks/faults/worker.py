"""Opens damaged files, one at a time, and reports the outcome; :mod:`.damaged` runs it as a program.

It reads lines ``KIND PATH`` and answers each with a JSON list: outcome, message, processor time in seconds
(of this process and its children), elapsed time in seconds, and peak memory in megabytes.
"""

import contextlib
import io
import json
import resource
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

warnings.simplefilter("ignore")
CHECKPOINT = Path()
"""An undamaged checkpoint, which predicts the samples of damaged .npy files."""


def _checkpoint(path: Path) -> None:
    from hibana import train

    train.load(path)


def _nir(path: Path) -> None:
    from hibana import nir

    nir.read(path)


def _yaml(path: Path) -> None:
    from hibana import train

    train.read(path)


def _npy(path: Path) -> None:
    from hibana.cli import main

    errors = io.StringIO()
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
        code = main(["predict", str(CHECKPOINT), str(path)])
    if code:
        raise ValueError(f"{code}: {errors.getvalue()}")


READERS: dict[str, Callable[[Path], None]] = {
    "checkpoint": _checkpoint,
    "NIR": _nir,
    "YAML": _yaml,
    ".npy": _npy,
}


def _outcome(kind: str, path: Path) -> tuple[str, str]:
    """Opens a file; returns the outcome (``read``, ``sentence`` or ``traceback``) and the message."""
    try:
        READERS[kind](path)
    except (ValueError, TypeError, FileNotFoundError) as error:
        message = str(error)
        if len(message) > 2000 or not message.strip():
            return "traceback", f"no sentence: {message[:200]!r}"
        return "sentence", message
    except BaseException:  # the trials look for any other exception
        return "traceback", traceback.format_exc()
    return "read", ""


def _seconds() -> float:
    """Returns the processor time of this process and its finished children."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _megabytes(name: str) -> float:
    """Returns the entry `name` of this process's status, in megabytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{name}:"))


def _reset_peak() -> float:
    """Resets the peak memory of this process; returns its present memory in megabytes."""
    Path("/proc/self/clear_refs").write_text("5")
    return _megabytes("VmRSS")


def _peak(before: float) -> float:
    """Returns the peak memory since :func:`_reset_peak` returned `before`, in megabytes.

    The peak is that of this process above `before`, or that of a child process. Linux counts the memory of
    this process as memory of its children, so a child counts only if its peak is larger.
    """
    of_children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    highest = _megabytes("VmHWM")
    return max(highest - before, of_children if of_children > highest + 1 else 0.0)


def main() -> None:
    """Answers lines until the end of the input."""
    global CHECKPOINT
    CHECKPOINT = Path(sys.argv[1])
    limit = 6 << 30  # protects the machine from files that allocate without limit
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    for kind, path in zip(sys.argv[2::2], sys.argv[3::2], strict=True):
        READERS[kind](Path(path))  # loads all modules before the first trial
    print(flush=True)
    for line in sys.stdin:
        kind, _, path = line.rstrip("\n").partition(" ")
        before, start, used = _reset_peak(), time.perf_counter(), _seconds()
        outcome, message = _outcome(kind, Path(path))
        elapsed = time.perf_counter() - start
        print(json.dumps([outcome, message, _seconds() - used, elapsed, _peak(before)]), flush=True)


if __name__ == "__main__":
    main()
