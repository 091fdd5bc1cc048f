"""The energy counters of processors (RAPL), as Linux shows them. Nothing here estimates anything."""

import time
from collections.abc import Callable
from pathlib import Path

__all__ = ["joules_taken", "why_not"]

POWERCAP = Path("/sys/class/powercap")
"""Where Linux shows the energy counters of a processor (RAPL)."""
SECONDS = 1.0
"""For how long a measurement runs at least."""


def why_not() -> str:
    """Why nothing can be measured here; empty if it can."""
    try:
        counters = _counters()
        for each in counters:
            _microjoules(each)
    except OSError as error:
        return f"the counters in {POWERCAP} can't be read: {error.strerror}"
    return "" if counters else f"this machine shows no energy counters in {POWERCAP}"


def joules_taken(run: Callable[[], object]) -> float:
    """What the processors of this machine take for `run`, the mean over a second or more.

    All that runs on them meanwhile is in it.
    """
    counters = _counters()
    ranges = [int((each / "max_energy_range_uj").read_text(encoding="utf-8")) for each in counters]
    before, begun, runs = [_microjoules(each) for each in counters], time.perf_counter(), 0
    while runs == 0 or time.perf_counter() - begun < SECONDS:
        run()
        runs += 1
    after = [_microjoules(each) for each in counters]
    taken = sum((b - a) % (most + 1) for a, b, most in zip(before, after, ranges, strict=True))
    return taken * 1e-6 / runs


def _counters() -> list[Path]:
    """The folders of the counters, one a processor."""
    names = sorted(POWERCAP.glob("*/name"))
    return [each.parent for each in names if each.read_text(encoding="utf-8").startswith("package")]


def _microjoules(counter: Path) -> int:
    return int((counter / "energy_uj").read_text(encoding="utf-8"))
