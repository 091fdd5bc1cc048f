"""``python -m benchmarks.faults``: prints one line per kind of trial; exits with 1 if a trial failed."""

import argparse
import sys
import time
from collections.abc import Callable, Iterator

from benchmarks.faults import caches, damaged, threads, training
from benchmarks.faults.trial import Tally

SECTIONS: dict[str, Callable[[bool], Iterator[Tally]]] = {
    "kills": training.kills,
    "elastic": training.elastic,
    "disk": training.full_disk,
    "folder": training.one_folder,
    "caches": caches.caches,
    "flips": damaged.flips,
    "files": damaged.damaged_files,
    "first-calls": threads.first_calls,
    "forks": threads.forks,
    "concurrent": threads.concurrent,
    "growth": threads.growth,
}


def main() -> int:
    """Runs the selected sections; returns 1 if a trial failed, else 0."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.faults", description=__doc__.partition("\n")[0]
    )
    names = ", ".join(SECTIONS)
    parser.add_argument(
        "--only", nargs="+", choices=SECTIONS, default=[*SECTIONS], metavar="SECTION", help=names
    )
    parser.add_argument(
        "--quick", action="store_true", help="a few trials of each kind, to test this program"
    )
    options = parser.parse_args()
    start, failed = time.perf_counter(), 0
    for name in options.only:
        for tally in SECTIONS[name](options.quick):
            print(tally, flush=True)
            failed += len(tally.failures)
    print(f"{failed} failures, {time.perf_counter() - start:.0f} s", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
