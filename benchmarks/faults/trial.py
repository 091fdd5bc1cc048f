"""Trials of one kind, counted, and the processes that they run in."""

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

__all__ = ["CHECKOUT", "Ended", "Tally", "begun", "ended", "run", "scratch", "variables"]

CHECKOUT = Path(__file__).parents[2]
PATIENCE = 1800
"""Seconds after which a process counts as hanging: the machine may be busy with others."""


@dataclass
class Tally:
    """How often something was tried, how often it failed, and the worst that was seen."""

    kind: str
    tries: int = 0
    failures: list[str] = field(default_factory=list)
    seconds: float = 0.0
    megabytes: float = 0.0
    refused: int = 0

    def add(self, failure: str | None = None, seconds: float = 0.0, megabytes: float = 0.0) -> None:
        """Counts one trial; `failure` says what was wrong."""
        self.tries += 1
        self.seconds, self.megabytes = max(self.seconds, seconds), max(self.megabytes, megabytes)
        if failure is not None:
            self.failures.append(failure)

    def __str__(self) -> str:
        line = f"{self.kind:<52} {self.tries:>7,} tried, {len(self.failures):>5,} failed"
        if self.seconds:
            line += f", at most {self.seconds:.2f} s"
        if self.megabytes:
            line += f", at most {self.megabytes:.0f} MB"
        if self.refused:
            line += f", {self.refused:,} refused"
        return "\n    ".join([line, *(failure[-300:] for failure in self.failures[:3])])


@dataclass(frozen=True)
class Ended:
    """A process that came to its end, or was ended because it did not."""

    code: int | None
    out: str
    errors: str
    seconds: float

    def fault(self, *allowed: int) -> str | None:
        """What is wrong with how it ended, if it may end with `allowed`."""
        if self.code is None:
            return "it hung"
        if self.code not in allowed or "Traceback" in self.errors:
            return f"it ended with {self.code}: {self.errors.strip()}"
        return None


def variables(**changes: str) -> dict[str, str]:
    """The environment for a process of hibana."""
    paths = [str(CHECKOUT / "src"), str(CHECKOUT), os.environ.get("PYTHONPATH", "")]
    own = {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}
    return {**os.environ, **own, **changes}


def begun(arguments: Sequence[Any], **changes: Any) -> "subprocess.Popen[str]":
    """A Python process with `arguments`; `changes` are variables, `preexec_fn` or `stdin`."""
    before, talks = changes.pop("preexec_fn", None), changes.pop("stdin", False)
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        env=variables(**changes),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.PIPE if talks else subprocess.DEVNULL,
        text=True,
        preexec_fn=before,
    )


def ended(process: "subprocess.Popen[str]", began: float) -> Ended:
    """`process`, when it has ended."""
    try:
        out, errors = process.communicate(timeout=PATIENCE)
        code: int | None = process.returncode
    except subprocess.TimeoutExpired:
        process.kill()
        out, errors = process.communicate()
        code = None
    return Ended(code, out, errors, time.perf_counter() - began)


def run(arguments: Sequence[Any], **changes: Any) -> Ended:
    """A Python process with `arguments`, from its beginning to its end."""
    began = time.perf_counter()
    return ended(begun(arguments, **changes), began)


@contextmanager
def scratch(where: Path | None = None) -> Any:
    """A folder that is gone afterwards."""
    with tempfile.TemporaryDirectory(
        prefix="hibana-faults-", dir=where, ignore_cleanup_errors=True
    ) as folder:
        yield Path(folder)
