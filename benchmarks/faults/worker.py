"""Opens files that others damaged, one at a time, and says how it went: run as a program by :mod:`.damaged`.

A line ``KIND PATH`` comes in, a line of JSON goes out: what became of it, the time of the processor that it
took, here and in processes that were started for it, and the most memory that it took.
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
"""A good one, for the samples that are given to it."""


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

    told = io.StringIO()
    with contextlib.redirect_stderr(told), contextlib.redirect_stdout(io.StringIO()):
        code = main(["predict", str(CHECKPOINT), str(path)])
    if code:
        raise ValueError(f"{code}: {told.getvalue()}")


OPENED: dict[str, Callable[[Path], None]] = {
    "checkpoint": _checkpoint,
    "NIR": _nir,
    "YAML": _yaml,
    ".npy": _npy,
}


def _outcome(kind: str, path: Path) -> tuple[str, str]:
    """``read``, ``sentence`` or ``traceback``, and the words."""
    try:
        OPENED[kind](path)
    except (ValueError, TypeError, FileNotFoundError) as error:
        said = str(error)
        long = len(said) > 2000 or not said.strip()
        return ("traceback", f"no sentence: {said[:200]!r}") if long else ("sentence", said)
    except BaseException:  # whatever a file makes of it is what is looked for
        return "traceback", traceback.format_exc()
    return "read", ""


def _seconds() -> float:
    spent = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in spent)


def _megabytes(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{name}:"))


def _begin() -> float:
    """What this process has now; its high-water mark begins anew."""
    Path("/proc/self/clear_refs").write_text("5")
    return _megabytes("VmRSS")


def _most(before: float) -> float:
    """The most that this process had more than `before`, or that a process had which it started.

    Linux counts what this process has as memory of the one that it starts, which is seen only beyond that.
    """
    started = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    highest = _megabytes("VmHWM")
    return max(highest - before, started if started > highest + 1 else 0.0)


def main() -> None:
    """Answers until its input ends."""
    global CHECKPOINT
    CHECKPOINT = Path(sys.argv[1])
    limit = 6 << 30  # so that a file can't take the machine
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    for kind, path in zip(sys.argv[2::2], sys.argv[3::2], strict=True):
        OPENED[kind](Path(path))  # imports what it takes, which is no part of a trial
    print(flush=True)
    for line in sys.stdin:
        kind, _, path = line.rstrip("\n").partition(" ")
        before, began, spent = _begin(), time.perf_counter(), _seconds()
        what, said = _outcome(kind, Path(path))
        waited = time.perf_counter() - began
        print(json.dumps([what, said, _seconds() - spent, waited, _most(before)]), flush=True)


if __name__ == "__main__":
    main()
