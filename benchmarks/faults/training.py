"""Trainings that are killed, that fill the disk, or that share a folder with another training."""

import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.faults.trial import Result, Tally, run, scratch, start, wait

__all__ = ["elastic", "full_disk", "kills", "one_folder"]

SMALL = ("--layers", "20", "--steps", "4", "--coding", "poisson", "--batch-size", "130")
TORCHRUN = ("-m", "torch.distributed.run", "--nproc-per-node", 2, "--max-restarts", 3)
OTHER_DISK = Path("/dev/shm")
"""A temporary folder that is usually on another file system than the runs."""


def kills(quick: bool) -> Iterator[Tally]:
    """Trials of SIGKILL and SIGTERM at random moments, followed by ``--resume``.

    The weights must be those of an undisturbed training.
    """
    chance = random.Random(0)
    epochs = 4 if quick else 12
    with scratch() as folder:
        undisturbed = run(_training(folder / "undisturbed", epochs))
        if undisturbed.fault(0):
            yield _failed("an undisturbed training", undisturbed)
            return
        expected = _weights(folder / "undisturbed")
        for name, temporary in (("one file system", folder), ("two file systems", OTHER_DISK)):
            if not temporary.is_dir():
                continue
            for number in (signal.SIGKILL, signal.SIGTERM):
                tally = Tally(f"kill: {number.name} in {name}, resumed")
                for trial in range(1 if quick else 13):  # 4 times 13: 52
                    out = folder / f"{name}-{number}-{trial}"
                    # Python starts in the first tenth
                    moment = undisturbed.seconds * chance.uniform(0.3, 1.0)
                    failure, seconds = _killed(out, epochs, number, moment, str(temporary), expected)
                    tally.add(failure, seconds)
                yield tally
                if quick:
                    return


def full_disk(quick: bool) -> Iterator[Tally]:
    """Trials of a training on a full disk: it must print an error and keep the earlier checkpoint."""
    tally = Tally("full disk: a training continues once there is space")
    for trial in range(1 if quick else 5):
        with scratch() as folder, _small_disk(folder, 4) as disk:
            out = disk / "run"
            first = run(_training(out, 2))
            if fault := first.fault(0):
                tally.add(fault)
                continue
            before = _weights(out)
            room = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
            filler = disk / "filler"
            filler.write_bytes(bytes(max(0, room - 4096 * (1 + trial))))
            stopped = run(_training(disk / "other", 2))
            # hibana's message may follow a traceback of TensorBoard's thread
            is_refused = stopped.code in (1, 2) and "No space left on device" in stopped.errors
            fault = None if is_refused else f"exit code {stopped.code}: {stopped.errors}"
            if fault is None and not _equal(before, _weights(out)):
                fault = "the earlier checkpoint changed"
            filler.unlink()
            if fault is None:
                fault = run(_training(disk / "third", 2)).fault(0)
            tally.add(fault, stopped.seconds)
    yield tally


def one_folder(quick: bool) -> Iterator[Tally]:
    """Trials of two simultaneous trainings in one folder, whose checkpoint must be that of one of them."""
    tally = Tally("two trainings in one folder")
    with scratch() as folder:
        expected = []
        for seed in (0, 1):
            alone = run(_training(folder / f"alone-{seed}", 3, seed))
            if alone.fault(0):
                yield _failed("an undisturbed training", alone)
                return
            expected.append(_weights(folder / f"alone-{seed}"))
        for trial in range(1 if quick else 20):
            out, start_time = folder / f"shared-{trial}", time.perf_counter()
            processes = [start(_training(out, 3, seed)) for seed in (0, 1)]
            results = [wait(process, start_time) for process in processes]
            fault = next((fault for result in results if (fault := result.fault(0, 2))), None)
            done = [weights for weights, result in zip(expected, results, strict=True) if result.code == 0]
            if fault is None and not done:
                fault = "both refused"
            if fault is None and not any(_equal(_weights(out), weights) for weights in done):
                fault = "the checkpoint is not that of a completed training"
            tally.add(fault, max(result.seconds for result in results))
    yield tally


def elastic(quick: bool) -> Iterator[Tally]:
    """Trials of SIGKILL of one of two processes of torchrun.

    The weights must be those of an undisturbed training.
    """
    chance, epochs = random.Random(0), 12
    tally = Tally("torchrun: SIGKILL of one of two processes")
    with scratch() as folder:
        undisturbed = run([*TORCHRUN, *_training(folder / "undisturbed", epochs)])
        if undisturbed.fault(0):
            yield _failed("an undisturbed training of two processes", undisturbed)
            return
        expected = _weights(folder / "undisturbed")
        for trial in range(3 if quick else 30):
            if tally.tries == (1 if quick else 10):
                break
            out, start_time = folder / f"killed-{trial}", time.perf_counter()
            agent = start([*TORCHRUN, *_training(out, epochs)])
            time.sleep(undisturbed.seconds * chance.uniform(0.2, 0.9))
            workers = Path(f"/proc/{agent.pid}/task/{agent.pid}/children").read_text().split()
            for worker in workers[: 1 + chance.randrange(2)][-1:]:
                os.kill(int(worker), signal.SIGKILL)
            result = wait(agent, start_time)
            fault = None
            if result.code is None:
                fault = "the process hung"
            elif result.code:
                fault = f"exit code {result.code}: {result.errors}"
            if fault is None and not workers:
                continue  # the training ended before the kill
            if fault is None and not _equal(_weights(out), expected):
                fault = "the weights differ"
            if fault is None and len(list(folder.glob(f"{out.name}*"))) != 1:
                fault = "several folders"
            tally.add(fault, result.seconds)
        yield tally


def _training(out: Path, epochs: int, seed: int = 0) -> list[Any]:
    """Returns the arguments of Python that run a training."""
    return ["-m", "hibana", "train", *SMALL, "--epochs", epochs, "--seed", seed, "--out", out]


def _killed(
    out: Path, epochs: int, number: int, moment: float, temporary: str, expected: Any
) -> tuple[str | None, float]:
    """Kills a training after `moment` seconds and resumes it; returns the fault and the time to resume."""
    process = start(_training(out, epochs), TMPDIR=temporary)
    try:
        process.communicate(timeout=moment)
    except subprocess.TimeoutExpired:
        process.send_signal(number)
        process.communicate()
    is_new = not (out / "settings.yaml").exists()  # nothing to resume
    command = _training(out, epochs) if is_new else ["-m", "hibana", "train", "--resume", out]
    result = run(command, TMPDIR=temporary)
    fault = result.fault(0)
    if fault is None and not _equal(_weights(out), expected):
        fault = "the weights differ"
    extra = [path.name for path in out.iterdir() if path.name.startswith("unfinished-")]
    return fault or (f"extra files: {extra}" if extra else None), result.seconds


def _weights(folder: Path) -> Any:
    from hibana import train

    return train.load(folder / "checkpoint.ckpt").state_dict()


def _equal(one: Any, other: Any) -> bool:
    import torch

    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def _failed(kind: str, result: Result) -> Tally:
    tally = Tally(kind)
    tally.add(result.fault(0), result.seconds)
    return tally


@contextmanager
def _small_disk(folder: Path, megabytes: int) -> Iterator[Path]:
    """Mounts an empty disk of `megabytes` in memory, which needs the right to mount."""
    disk = folder / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(disk)]
    subprocess.run(mount, check=True, capture_output=True)
    try:
        yield disk
    finally:
        subprocess.run(["umount", str(disk)], check=True)
