"""Runs the jobs of the benchmarks, each in its own process, and writes the report from all stored results.

A job is a part of the benchmarks that can be run alone. Its results are stored in a JSON file under the name
of the job, so jobs can be run at different times. The report contains all stored results.
"""

import argparse
import datetime
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import environment

__all__ = ["main", "matches"]

PARTS = (
    *("layers", "networks", "streaming", "recurrent", "scaling", "compile"),
    *("deep", "plain", "cells", "online", "sparse", "grid", "training", "gpu"),
)
_OPTIONAL_PARTS = ("deep", "plain", "cells", "online", "sparse", "grid", "training", "gpu")
"""Parts that run only if ``--only`` names them."""


def main() -> int:
    """Runs the jobs that the options select and writes the report; returns 1 if a job failed."""
    options = _parser().parse_args()
    if options.job:
        return _run_job(options.job, options)
    names = [name for name in _jobs(options.quick) if matches(name, options.only)]
    if options.list:
        print("\n".join(names))
        return 0
    if not names and not options.report:
        print(f"no job matches --only {' '.join(options.only)}; see --list for the names", file=sys.stderr)
        return 2
    failed = [] if options.report else [name for name in names if not _run_in_process(name, options)]
    from benchmarks import report

    print(report.write(options.out, options.name))
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def _parser() -> argparse.ArgumentParser:
    """The parser of the command-line options."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--only",
        nargs="+",
        default=[part for part in PARTS if part not in _OPTIONAL_PARTS],
        metavar="PART",
        help=f"parts ({', '.join(PARTS)}), jobs, or the first components of their names; "
        f"the default is all parts except {', '.join(_OPTIONAL_PARTS)}",
    )
    parser.add_argument(
        "--quick", action="store_true", help="small sizes and few rounds, to test the benchmarks"
    )
    parser.add_argument("--list", action="store_true", help="print the names of the selected jobs")
    parser.add_argument(
        "--report", action="store_true", help="run nothing; write the report from the stored results"
    )
    parser.add_argument("--threads", type=int, default=2, help="threads of torch (default: 2)")
    parser.add_argument(
        "--out", type=Path, default=Path("bench-results"), help="folder of results and report"
    )
    parser.add_argument("--name", default="benchmarks", help="name of the report; use one per machine")
    parser.add_argument(
        "--spyx",
        default="",
        metavar="PYTHON",
        help="Python of an environment with spyx and jax (pip install spyx jax), for the part recurrent",
    )
    parser.add_argument(
        "--brainevent",
        default="",
        metavar="PYTHON",
        help="Python of an environment with brainevent (pip install brainevent numba), for the part sparse",
    )
    parser.add_argument("--job", help=argparse.SUPPRESS)
    return parser


def _jobs(quick: bool) -> dict[str, Callable[[], list[dict[str, Any]]]]:
    """All jobs by name; a job returns the rows of its measurements."""
    from benchmarks import (
        cells,
        compiling,
        deep,
        gpu,
        grid,
        layers,
        networks,
        online,
        plain,
        recurrent,
        recurrent_training,
        scaling,
        sparse,
        streaming,
        training,
    )

    parts = (
        layers,
        networks,
        streaming,
        recurrent,
        scaling,
        compiling,
        deep,
        plain,
        cells,
        online,
        sparse,
        grid,
        training,
        recurrent_training,
        gpu,
    )
    return {name: job for part in parts for name, job in part.jobs(quick).items()}


def matches(name: str, only: list[str]) -> bool:
    """Whether job `name` is one of `only`, or lies below one of them in its path."""
    return any(name == prefix or name.startswith(prefix.rstrip("/") + "/") for prefix in only)


def _run_in_process(name: str, options: argparse.Namespace) -> bool:
    """Runs a job in a new process and stores its rows in results.json; returns whether it succeeded."""
    start = time.perf_counter()
    print(f"{name} ... ", end="", file=sys.stderr, flush=True)
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.run", "--job", name]
    command += ["--threads", str(options.threads), *(["--quick"] if options.quick else [])]
    result = subprocess.run(command, capture_output=True, check=False, text=True, env=_variables(options))
    print(f"{time.perf_counter() - start:.0f} s", end="", file=sys.stderr)
    if result.returncode != 0:
        print(f", failed:\n{result.stderr}", file=sys.stderr)
        return False
    path = options.out / options.name / "results.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    results = json.loads(path.read_text()) if path.exists() else {}
    results[name] = json.loads(result.stdout.splitlines()[-1])
    path.write_text(json.dumps(results, indent=1) + "\n")
    others = results[name]["about"]["others"]
    print(f", others had {others:.0%} of the processor" if others > 0.02 else "", file=sys.stderr)
    return True


def _variables(options: argparse.Namespace) -> dict[str, str]:
    threads = str(options.threads)
    variables = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "HIBANA_BENCH_SPYX": options.spyx}
    return {**os.environ, **variables, "HIBANA_BENCH_BRAINEVENT": options.brainevent}


def _run_job(name: str, options: argparse.Namespace) -> int:
    """Runs a job in this process and prints its rows and their provenance as JSON on the last line."""
    import torch

    from benchmarks import measure

    torch.set_num_threads(options.threads)
    others = measure.OtherProcesses()
    rows = _jobs(options.quick)[name]()
    print(json.dumps({"rows": rows, "about": {"others": others.share(), **_provenance(options)}}))
    return 0


def _provenance(options: argparse.Namespace) -> dict[str, Any]:
    """The time, machine and versions of a measurement, and why peers are missing."""
    import llvmlite
    import torch

    import hibana
    from benchmarks import peers

    _, reasons = peers.available()
    pip = environment.not_installed(Path(os.environ["HIBANA_BENCH_ENV"]))
    return {
        "when": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "quick": options.quick,
        "threads": torch.get_num_threads(),
        "processor": _processor(),
        "versions": {
            "hibana": f"{hibana.__version__} ({_commit()})",
            "torch": torch.__version__,
            "llvmlite": llvmlite.__version__,
            "python": sys.version.split()[0],
            **{name: pin for name, pin in environment.PINS.items() if name not in reasons},
        },
        "missing": {**reasons, **{name: f"could not be installed: {why}" for name, why in pip.items()}},
    }


def _processor() -> str:
    """The processor's name, number of cores and size of the L3 cache."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    cache = Path("/sys/devices/system/cpu/cpu0/cache/index3/size")
    l3 = f", {int(cache.read_text().strip().rstrip('K')) // 1024} MB of L3 cache" if cache.exists() else ""
    return f"{names[0]}, {len(names)} cores{l3}" if names else f"{os.cpu_count()} cores"


def _commit() -> str:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    result = subprocess.run(command, capture_output=True, check=False, text=True)
    return result.stdout.strip() or "no checkout"


if __name__ == "__main__":
    sys.exit(main())
