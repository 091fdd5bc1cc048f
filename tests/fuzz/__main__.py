"""Runs the fuzzer: ``PYTHONPATH=tests python -m fuzz --cases 100000`` or ``--minutes 60``.

Each batch is a process of its own, so that a crash is a finding like any other. What is found is printed as
the smallest program that shows it, with the case; the last line is the count. Exits with 1 if anything was.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings

from fuzz import circuits, deep, differ, large, networks, sizes, sparse, steps, twins
from fuzz.differ import Counts, Different

BATCHES = {
    "steps": 15,
    "networks": 400,
    "deep": 150,
    "large": 100,
    "sizes": 40,
    "sparse": 100,
    "circuits": 20,
}
"""Programs in a batch."""
LIMIT = 1200
"""Seconds that a batch may take."""


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__)
    parser.add_argument("--cases", type=int, default=10_000, help="how many cases to run, at least")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="when to end, whatever the cases")
    parser.add_argument("--only", choices=BATCHES, help="one kind of program; all in turn, if not given")
    parser.add_argument("--seed", type=int, default=0, help="of the first batch")
    parser.add_argument("--variations", type=int, default=200, help="cases of each step")
    parser.add_argument("--batch", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.batch:
        _run_batch(options.only, options.seed, options.variations, Path(options.batch))
        return 0
    return _run(options)


def _run(options: argparse.Namespace) -> int:
    total, findings, begun, number = Counts(), [], time.monotonic(), options.seed
    kinds = [options.only] if options.only else list(BATCHES)
    while total.all < options.cases and time.monotonic() - begun < 60 * options.minutes:
        for kind in kinds:
            counted, found = _in_a_process(kind, number, options.variations)
            total.compared += counted["compared"]
            total.refused += counted["refused"]
            total.invalid += counted["invalid"]
            total.beside_nan += counted["beside_nan"]
            for finding in found:
                findings.append(finding)
                print(f"\n{kind}, seed {number}: {finding}", flush=True)
        number += 1
    print(
        f"\n{total.all} cases in {time.monotonic() - begun:.0f} s: {total.compared} compared "
        f"({total.beside_nan} with NaN in one run alone, where allowed), "
        f"{total.refused} refused by name and compared under auto, {total.invalid} refused by PyTorch, "
        f"or with another spike by rounding; {len(findings)} findings"
    )
    return int(bool(findings))


def _in_a_process(kind: str, number: int, count: int) -> tuple[dict[str, int], list[str]]:
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "batch.json"
        command = [sys.executable, "-X", "faulthandler", "-m", "fuzz", "--only", kind, "--seed", str(number)]
        command += ["--variations", str(count), "--batch", str(target)]
        try:
            ended = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT)
            how = f"exit {ended.returncode}\n{ended.stderr[-1500:]}"
        except subprocess.TimeoutExpired:
            how = f"no end within {LIMIT} s"
        if target.exists():
            result = json.loads(target.read_text())
            return result["counts"], result["findings"]
        last = target.with_suffix(".last")
        return asdict(Counts()), [f"{how}\n{last.read_text() if last.exists() else ''}"]


def _run_batch(kind: str, number: int, count: int, target: Path) -> None:
    """One batch; what it is at stands in a file beside `target`, if it should crash."""
    warnings.simplefilter("ignore")
    counts, found = Counts(), []
    last = target.with_suffix(".last")

    def stated(program: Any) -> None:
        last.write_text(str(program))

    def write() -> None:
        target.write_text(json.dumps({"counts": asdict(counts), "findings": found}))

    if kind in ("sizes", "circuits"):
        section = sizes if kind == "sizes" else circuits
        found += section.run(number, BATCHES[kind], counts, stated)
        write()
        return
    strategy, compare = {
        "steps": (steps.steps(), lambda step: differ.compare_all(step, count, counts)),
        "networks": (networks.networks(), lambda network: twins.compare(network, counts)),
        "deep": (deep.deep(), lambda network: deep.compare(network, counts)),
        "large": (large.large(), lambda layer: large.compare(layer, counts)),
        "sparse": (sparse.sparse(), lambda network: sparse.compare(network, counts)),
    }[kind]

    @given(strategy)
    def run(program: Any) -> None:
        stated(program)
        compare(program)

    limited = settings(
        max_examples=BATCHES[kind],
        database=None,
        deadline=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
        print_blob=False,
    )
    try:
        seed(number)(limited(run))()
    except Different as difference:
        found.append(str(difference))
    except BaseExceptionGroup as group:
        found += [str(difference) for difference in group.exceptions]
    write()


if __name__ == "__main__":
    sys.exit(main())
