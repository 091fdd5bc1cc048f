"""Runs the fuzzer: ``PYTHONPATH=tests python -m fuzz --cases 100000`` or ``--minutes 60``.

Each batch runs in a new process, so that a crash is reported like other findings. A finding is printed as the
smallest program that shows it, with the case. The last line counts the cases. Exits with 1 after a finding.
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

from fuzz import circuits, deep, differ, large, networks, plain, sizes, sparse, steps, twins
from fuzz.differ import Counts, Different

BATCHES = {
    "steps": 15,
    "networks": 400,
    "deep": 150,
    "large": 100,
    "sizes": 40,
    "sparse": 100,
    "circuits": 20,
    "plain": 150,
}
"""Programs per batch."""
TIMEOUT = 1200
"""Largest seconds of a batch."""


def main() -> int:
    """Runs the command; returns 1 if there were findings, else 0."""
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__)
    parser.add_argument("--cases", type=int, default=10_000, help="smallest number of cases")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="end after this time")
    parser.add_argument("--only", choices=BATCHES, help="one kind of program (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first batch")
    parser.add_argument("--variations", type=int, default=200, help="cases per step")
    parser.add_argument("--batch", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.batch:
        _run_batch(options.only, options.seed, options.variations, Path(options.batch))
        return 0
    return _run(options)


def _run(options: argparse.Namespace) -> int:
    total, findings, start, batch = Counts(), [], time.monotonic(), options.seed
    kinds = [options.only] if options.only else list(BATCHES)
    while total.all < options.cases and time.monotonic() - start < 60 * options.minutes:
        for kind in kinds:
            counts, new_findings = _run_in_process(kind, batch, options.variations)
            total.compared += counts["compared"]
            total.refused += counts["refused"]
            total.invalid += counts["invalid"]
            total.one_sided_nan += counts["one_sided_nan"]
            for finding in new_findings:
                findings.append(finding)
                print(f"\n{kind}, seed {batch}: {finding}", flush=True)
        batch += 1
    print(
        f"\n{total.all} cases in {time.monotonic() - start:.0f} s: {total.compared} compared "
        f"({total.one_sided_nan} with an allowed NaN in one of the two runs), "
        f"{total.refused} refused with a message and compared with auto, {total.invalid} refused by PyTorch "
        f"or with another spike by rounding; {len(findings)} findings"
    )
    return int(bool(findings))


def _run_in_process(kind: str, batch: int, count: int) -> tuple[dict[str, int], list[str]]:
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "batch.json"
        command = [sys.executable, "-X", "faulthandler", "-m", "fuzz", "--only", kind, "--seed", str(batch)]
        command += ["--variations", str(count), "--batch", str(target)]
        try:
            process = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT)
            outcome = f"exit {process.returncode}\n{process.stderr[-1500:]}"
        except subprocess.TimeoutExpired:
            outcome = f"not finished after {TIMEOUT} s"
        if target.exists():
            result = json.loads(target.read_text())
            return result["counts"], result["findings"]
        last = target.with_suffix(".last")
        return asdict(Counts()), [f"{outcome}\n{last.read_text() if last.exists() else ''}"]


def _run_batch(kind: str, batch: int, count: int, target: Path) -> None:
    """Runs a batch and writes its results to `target`; a file beside it names the last case, for crashes."""
    warnings.simplefilter("ignore")
    counts, findings = Counts(), []
    last = target.with_suffix(".last")

    def record(program: Any) -> None:
        last.write_text(str(program))

    def write() -> None:
        target.write_text(json.dumps({"counts": asdict(counts), "findings": findings}))

    sections = {"sizes": sizes, "circuits": circuits, "plain": plain}
    if kind in sections:
        findings += sections[kind].run(batch, BATCHES[kind], counts, record)
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
        record(program)
        compare(program)

    limits = settings(
        max_examples=BATCHES[kind],
        database=None,
        deadline=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
        print_blob=False,
    )
    try:
        seed(batch)(limits(run))()
    except Different as difference:
        findings.append(str(difference))
    except BaseExceptionGroup as group:
        findings += [str(difference) for difference in group.exceptions]
    write()


if __name__ == "__main__":
    sys.exit(main())
