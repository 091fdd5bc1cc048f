"""Counts of trials, and functions that run them in processes."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["CHECKOUT", "Result", "Tally", "run", "scratch", "start", "variables", "wait"]

CHECKOUT = Path(__file__).parents[2]
TIMEOUT = 1800
"""Seconds after which a process counts as hanging. It is long because the machine may be busy."""


@dataclass
class Tally:
    """Number of trials of one kind, the failures, and the largest time and memory."""

    kind: str
    tries: int = 0
    failures: list[str] = field(default_factory=list)
    seconds: float = 0.0
    megabytes: float = 0.0
    refused: int = 0

    def add(self, failure: str | None = None, seconds: float = 0.0, megabytes: float = 0.0) -> None:
        """Counts one trial; `failure` describes the fault, or is ``None``."""
        self.tries += 1
        self.seconds, self.megabytes = max(self.seconds, seconds), max(self.megabytes, megabytes)
        if failure is not None:
            self.failures.append(failure)

    def __str__(self) -> str:
        line = f"{self.kind:<52} {self.tries:>7,} trials, {len(self.failures):>5,} failed"
        if self.seconds:
            line += f", at most {self.seconds:.2f} s"
        if self.megabytes:
            line += f", at most {self.megabytes:.0f} MB"
        if self.refused:
            line += f", {self.refused:,} refused"
        return "\n    ".join([line, *(failure[-300:] for failure in self.failures[:3])])


@dataclass(frozen=True)
class Result:
    """Exit code, output and duration of a process; the code of a killed process that hung is ``None``."""

    code: int | None
    out: str
    errors: str
    seconds: float

    def fault(self, *allowed: int) -> str | None:
        """Describes the fault of a process that may exit with the codes `allowed`, or returns ``None``."""
        if self.code is None:
            return "the process hung"
        if self.code not in allowed or "Traceback" in self.errors:
            return f"exit code {self.code}: {self.errors.strip()}"
        return None


def variables(**changes: str) -> dict[str, str]:
    """Returns the environment variables of a process that uses hibana."""
    paths = [str(CHECKOUT / "src"), str(CHECKOUT), os.environ.get("PYTHONPATH", "")]
    added = {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}
    return {**os.environ, **added, **changes}


def start(arguments: Sequence[Any], **changes: Any) -> "subprocess.Popen[str]":
    """Starts a Python process with `arguments`.

    `changes` are environment variables, or ``preexec_fn``, or ``stdin=True`` for a process that reads input.
    """
    preexec_fn, reads_input = changes.pop("preexec_fn", None), changes.pop("stdin", False)
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        env=variables(**changes),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.PIPE if reads_input else subprocess.DEVNULL,
        text=True,
        preexec_fn=preexec_fn,
    )


def wait(process: "subprocess.Popen[str]", start_time: float) -> Result:
    """Waits for the end of `process`, which was started at `start_time`; kills it after the timeout."""
    try:
        out, errors = process.communicate(timeout=TIMEOUT)
        code: int | None = process.returncode
    except subprocess.TimeoutExpired:
        process.kill()
        out, errors = process.communicate()
        code = None
    return Result(code, out, errors, time.perf_counter() - start_time)


def run(arguments: Sequence[Any], **changes: Any) -> Result:
    """Runs a Python process with `arguments`; `changes` as in :func:`start`."""
    start_time = time.perf_counter()
    return wait(start(arguments, **changes), start_time)


@contextmanager
def scratch(where: Path | None = None) -> Any:
    """A temporary folder, in `where` or in the system's temporary folder."""
    with tempfile.TemporaryDirectory(
        prefix="hibana-faults-", dir=where, ignore_cleanup_errors=True
    ) as folder:
        yield Path(folder)
