"""Measures the time of alternating calls and the peak memory of a process.

The modules of the single benchmarks define the calls that are measured.
"""

import gc
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

__all__ = ["OtherProcesses", "in_process", "peak_above_baseline", "rounds", "summary"]


def rounds(
    contenders: Mapping[str, Callable[[], object]],
    *,
    budget_s: float,
    min_rounds: int = 5,
    max_rounds: int = 40,
    stretch_s: float = 0.02,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Calls the contenders alternately, round after round; returns the seconds of each call by contender.

    In its turn a contender makes one untimed call, which puts its data into the processor's caches, and then
    timed calls for about `stretch_s`. A contender with a slow call makes only one timed call per turn. Each
    round starts with the next contender. Rounds end when `budget_s` is spent, but there are at least
    `min_rounds` and at most `max_rounds` of them. All seconds are measured with `clock`.
    """
    calls_per_turn = {name: _calls_in(stretch_s, call, clock) for name, call in contenders.items()}
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    order = list(contenders)
    start = clock()
    for turn in range(max_rounds):
        if turn >= min_rounds and clock() - start > budget_s:
            break
        first = turn % len(order)
        for name in order[first:] + order[:first]:
            if calls_per_turn[name] > 1:
                contenders[name]()
            seconds[name] += [_seconds(contenders[name], clock) for _ in range(calls_per_turn[name])]
    return seconds


def _calls_in(stretch_s: float, call: Callable[[], object], clock: Callable[[], float]) -> int:
    """The number of calls, 1 to 20, that fit into `stretch_s`. The first, untimed call may compile."""
    call()
    return max(1, min(20, int(stretch_s / max(_seconds(call, clock), 1e-9))))


def _seconds(call: Callable[[], object], clock: Callable[[], float]) -> float:
    """Seconds of one call, without garbage collection."""
    gc.disable()
    try:
        start = clock()
        call()
        return clock() - start
    finally:
        gc.enable()


def summary(seconds: list[float]) -> dict[str, float]:
    """Median and quartiles of `seconds` in milliseconds, and the number of calls."""
    low, median, high = statistics.quantiles(seconds, n=4) if len(seconds) > 1 else seconds * 3
    return {"ms": median * 1e3, "ms_low": low * 1e3, "ms_high": high * 1e3, "calls": len(seconds)}


class OtherProcesses:
    """Measures how much of the processor other processes use, on Linux; elsewhere the share is 0."""

    def __init__(self) -> None:
        self._start, self._busy_at_start, self._own_at_start = (
            time.perf_counter(),
            _system_seconds(),
            _process_seconds(),
        )

    def share(self) -> float:
        """Share of all cores that other processes used since this object was created, 0 to 1."""
        elsewhere = (_system_seconds() - self._busy_at_start) - (_process_seconds() - self._own_at_start)
        return max(0.0, elsewhere / (time.perf_counter() - self._start) / (os.cpu_count() or 1))


def _system_seconds() -> float:
    """Processor seconds of all processes since the start of the system; without /proc, of this process."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return _process_seconds()
    ticks = [int(value) for value in stat.read_text().split("\n", 1)[0].split()[1:9]]
    idle = ticks[3] + ticks[4]  # idle, and waiting for input and output
    return (sum(ticks) - idle) / os.sysconf("SC_CLK_TCK")


def _process_seconds() -> float:
    """Processor seconds of this process and of its children that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def peak_above_baseline(call: Callable[[], object]) -> dict[str, float]:
    """Megabytes of this process: the peak during two calls above the memory before them, and that memory.

    Use it in a new process, see :func:`in_process`. On Linux the peak is reset before the calls. On other
    systems the baseline is the highest peak so far.
    """
    gc.collect()
    mark = Path("/proc/self/clear_refs")
    if mark.exists():
        mark.write_text("5")  # resets the peak to the current resident memory
    baseline = _peak_megabytes()
    call()
    call()
    return {"mb": _peak_megabytes() - baseline, "baseline_mb": baseline}


def _peak_megabytes() -> float:
    """Largest resident memory of this process so far, in MB."""
    status = Path("/proc/self/status")
    if not status.exists():
        import resource  # not on Windows

        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
    (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 1024


def in_process(
    module: str, function: str, *arguments: object, python: str = sys.executable, **variables: str
) -> Any:
    """Calls ``module.function(*arguments)`` in a new process of `python`; returns its result.

    Arguments and result are passed as JSON; `variables` are added to the environment.

    Raises:
        RuntimeError: if the process fails; the message contains its standard error.
    """
    code = (
        "import importlib, json, sys\n"
        "module, function, arguments = json.loads(sys.stdin.read())\n"
        "print(json.dumps(getattr(importlib.import_module(module), function)(*arguments)))\n"
    )
    result = subprocess.run(
        [python, "-W", "ignore", "-c", code],
        input=json.dumps([module, function, arguments]),
        env={**os.environ, **variables},
        capture_output=True,
        check=False,
        text=True,
    )
    if result.returncode != 0:
        raise RuntimeError(f"{module}.{function}{arguments} failed:\n{result.stderr}")
    return json.loads(result.stdout.splitlines()[-1])
