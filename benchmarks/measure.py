"""How time and memory are measured: interleaved rounds, medians, the heap warm or cold, a process for a peak.

Nothing here knows what is measured.
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

__all__ = ["Others", "in_process", "peak_above_baseline", "rounds", "summary"]


def rounds(
    contenders: Mapping[str, Callable[[], object]],
    *,
    budget_s: float,
    at_least: int = 5,
    at_most: int = 40,
    stretch_s: float = 0.02,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds that each call of each contender takes, measured in turn, round after round.

    A contender's turn is an untimed call, so that it finds its data where its own calls leave them, and
    then timed calls for about `stretch_s`; a slow one has one call a turn. Each round starts with another
    contender. Rounds go on until `budget_s` is spent, at least `at_least` and at most `at_most`. Seconds are
    those of `clock`.
    """
    calls = {name: _calls_in(stretch_s, call, clock) for name, call in contenders.items()}
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    order = list(contenders)
    began = clock()
    for turn in range(at_most):
        if turn >= at_least and clock() - began > budget_s:
            break
        first = turn % len(order)
        for name in order[first:] + order[:first]:
            if calls[name] > 1:
                contenders[name]()
            seconds[name] += [_seconds(contenders[name], clock) for _ in range(calls[name])]
    return seconds


def _calls_in(stretch_s: float, call: Callable[[], object], clock: Callable[[], float]) -> int:
    """How many calls fit into `stretch_s`, seen from the second one: the first may compile."""
    call()
    return max(1, min(20, int(stretch_s / max(_seconds(call, clock), 1e-9))))


def _seconds(call: Callable[[], object], clock: Callable[[], float]) -> float:
    gc.disable()
    try:
        began = clock()
        call()
        return clock() - began
    finally:
        gc.enable()


def summary(seconds: list[float]) -> dict[str, float]:
    """Median and quartiles in milliseconds, and how many calls they are of."""
    low, median, high = statistics.quantiles(seconds, n=4) if len(seconds) > 1 else seconds * 3
    return {"ms": median * 1e3, "ms_low": low * 1e3, "ms_high": high * 1e3, "calls": len(seconds)}


class Others:
    """Watches how much of all cores other processes use, where the system tells (Linux); 0 elsewhere."""

    def __init__(self) -> None:
        self._began, self._busy, self._own = time.perf_counter(), _busy_s(), _own_s()

    def share(self) -> float:
        """Their part of the processor since this was made, 0 to 1."""
        elsewhere = (_busy_s() - self._busy) - (_own_s() - self._own)
        return max(0.0, elsewhere / (time.perf_counter() - self._began) / (os.cpu_count() or 1))


def _busy_s() -> float:
    stat = Path("/proc/stat")
    if not stat.exists():
        return _own_s()
    ticks = [int(value) for value in stat.read_text().split("\n", 1)[0].split()[1:9]]
    idle = ticks[3] + ticks[4]  # idle, and waiting for input and output
    return (sum(ticks) - idle) / os.sysconf("SC_CLK_TCK")


def _own_s() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def peak_above_baseline(call: Callable[[], object]) -> dict[str, float]:
    """Megabytes that the process holds at most during two calls, above what it holds before them.

    Meant for a process of its own, see :func:`in_process`; it resets the kernel's mark of the peak where
    the kernel allows it, and otherwise takes the highest mark so far as the baseline.
    """
    gc.collect()
    mark = Path("/proc/self/clear_refs")
    if mark.exists():
        mark.write_text("5")  # Linux: the mark starts again from what is resident now
    baseline = _peak_mb()
    call()
    call()
    return {"mb": _peak_mb() - baseline, "baseline_mb": baseline}


def _peak_mb() -> float:
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
    """What `function` of `module` returns for `arguments`, all of them JSON, in a fresh process of `python`.

    Raises:
        RuntimeError: if the process ends with an error; the message is its standard error.
    """
    code = (
        "import importlib, json, sys\n"
        "module, function, arguments = json.loads(sys.stdin.read())\n"
        "print(json.dumps(getattr(importlib.import_module(module), function)(*arguments)))\n"
    )
    done = subprocess.run(
        [python, "-W", "ignore", "-c", code],
        input=json.dumps([module, function, arguments]),
        env={**os.environ, **variables},
        capture_output=True,
        check=False,
        text=True,
    )
    if done.returncode != 0:
        raise RuntimeError(f"{module}.{function}{arguments} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])
