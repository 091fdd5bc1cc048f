"""Trainings that are killed, run out of disk, or meet another one in their folder."""

import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.faults.trial import Ended, Tally, begun, ended, run, scratch

__all__ = ["elastic", "full_disk", "kills", "one_folder"]

SMALL = ("--layers", "20", "--steps", "4", "--coding", "poisson", "--batch-size", "130")
TORCHRUN = ("-m", "torch.distributed.run", "--nproc-per-node", 2, "--max-restarts", 3)
OTHER_DISK = Path("/dev/shm")
"""Where this is another file system than the runs' folders."""


def kills(quick: bool) -> Iterator[Tally]:
    """SIGKILL and SIGTERM at random moments, then ``--resume``: the weights of an undisturbed run."""
    chance = random.Random(0)
    epochs = 4 if quick else 12
    with scratch() as folder:
        whole = run(_training(folder / "whole", epochs))
        if whole.fault(0):
            yield _failed("a training that nobody disturbs", whole)
            return
        wanted = _weights(folder / "whole")
        for name, temporary in (("one file system", folder), ("two file systems", OTHER_DISK)):
            if not temporary.is_dir():
                continue
            for number in (signal.SIGKILL, signal.SIGTERM):
                tally = Tally(f"kill: {number.name} in {name}, resumed")
                for trial in range(1 if quick else 13):  # 4 times 13: 52
                    out = folder / f"{name}-{number}-{trial}"
                    # the first tenth is Python's start; what comes after the end kills nobody
                    moment = whole.seconds * chance.uniform(0.3, 1.0)
                    failure, seconds = _killed(out, epochs, number, moment, str(temporary), wanted)
                    tally.add(failure, seconds)
                yield tally
                if quick:
                    return


def full_disk(quick: bool) -> Iterator[Tally]:
    """A training whose disk is full: a sentence, and the checkpoint before is whole."""
    tally = Tally("full disk: a training goes on once there is room")
    for trial in range(1 if quick else 5):
        with scratch() as folder, _small_disk(folder, 4) as disk:
            out = disk / "run"
            first = run(_training(out, 2))
            if fault := first.fault(0):
                tally.add(fault)
                continue
            before = _weights(out)
            room = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
            filling = disk / "filling"
            filling.write_bytes(bytes(max(0, room - 4096 * (1 + trial))))
            stopped = run(_training(disk / "other", 2))
            fault = stopped.fault(1, 2)
            if fault is None and not _equal(before, _weights(out)):
                fault = "the checkpoint before is another"
            filling.unlink()
            if fault is None:
                fault = run(_training(disk / "third", 2)).fault(0)
            tally.add(fault, stopped.seconds)
    yield tally


def one_folder(quick: bool) -> Iterator[Tally]:
    """Two trainings into one folder at once: what is kept there is one of them, whole."""
    tally = Tally("two trainings into one folder")
    with scratch() as folder:
        wanted = []
        for seed in (0, 1):
            alone = run(_training(folder / f"alone-{seed}", 3, seed))
            if alone.fault(0):
                yield _failed("a training that nobody disturbs", alone)
                return
            wanted.append(_weights(folder / f"alone-{seed}"))
        for trial in range(1 if quick else 20):
            out, began = folder / f"shared-{trial}", time.perf_counter()
            both = [begun(_training(out, 3, seed)) for seed in (0, 1)]
            ends = [ended(process, began) for process in both]
            fault = next((fault for end in ends if (fault := end.fault(0, 2))), None)
            done = [weights for weights, end in zip(wanted, ends, strict=True) if end.code == 0]
            if fault is None and not done:
                fault = "both refused"
            if fault is None and not any(_equal(_weights(out), weights) for weights in done):
                fault = "what is kept is no training that ended well"
            tally.add(fault, max(end.seconds for end in ends))
    yield tally


def elastic(quick: bool) -> Iterator[Tally]:
    """SIGKILL of one of two processes that torchrun started: the weights of an undisturbed run."""
    chance, epochs = random.Random(0), 12
    tally = Tally("torchrun: SIGKILL of one of two processes")
    with scratch() as folder:
        undisturbed = run([*TORCHRUN, *_training(folder / "undisturbed", epochs)])
        if undisturbed.fault(0):
            yield _failed("a training of two processes that nobody disturbs", undisturbed)
            return
        expected = _weights(folder / "undisturbed")
        for trial in range(3 if quick else 30):
            if tally.tries == (1 if quick else 10):
                break
            out, began = folder / f"killed-{trial}", time.perf_counter()
            agent = begun([*TORCHRUN, *_training(out, epochs)])
            time.sleep(undisturbed.seconds * chance.uniform(0.2, 0.9))
            workers = Path(f"/proc/{agent.pid}/task/{agent.pid}/children").read_text().split()
            for worker in workers[: 1 + chance.randrange(2)][-1:]:
                os.kill(int(worker), signal.SIGKILL)
            end = ended(agent, began)
            fault = (
                "it hung"
                if end.code is None
                else f"it ended with {end.code}: {end.errors}"
                if end.code
                else None
            )
            if fault is None and not workers:
                continue  # the training ended before its kill: another moment
            if fault is None and not _equal(_weights(out), expected):
                fault = "the weights differ"
            if fault is None and len(list(folder.glob(f"{out.name}*"))) != 1:
                fault = "it used several folders"
            tally.add(fault, end.seconds)
        yield tally


def _training(out: Path, epochs: int, seed: int = 0) -> list[Any]:
    return ["-m", "hibana", "train", *SMALL, "--epochs", epochs, "--seed", seed, "--out", out]


def _killed(
    out: Path, epochs: int, number: int, moment: float, temporary: str, wanted: Any
) -> tuple[str | None, float]:
    """What was wrong after a training was killed at `moment`, in seconds; and how long going on took."""
    process = begun(_training(out, epochs), TMPDIR=temporary)
    try:
        process.communicate(timeout=moment)
    except subprocess.TimeoutExpired:
        process.send_signal(number)
        process.communicate()
    begins = not (out / "settings.yaml").exists()  # nothing was kept yet: it is begun again
    again = _training(out, epochs) if begins else ["-m", "hibana", "train", "--resume", out]
    end = run(again, TMPDIR=temporary)
    fault = end.fault(0)
    if fault is None and not _equal(_weights(out), wanted):
        fault = "the weights are others"
    left = [path.name for path in out.iterdir() if path.name.startswith("unfinished-")]
    return fault or (f"left behind: {left}" if left else None), end.seconds


def _weights(folder: Path) -> Any:
    from hibana import train

    return train.load(folder / "checkpoint.ckpt").state_dict()


def _equal(one: Any, other: Any) -> bool:
    import torch

    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def _failed(kind: str, end: Ended) -> Tally:
    tally = Tally(kind)
    tally.add(end.fault(0), end.seconds)
    return tally


@contextmanager
def _small_disk(folder: Path, megabytes: int) -> Iterator[Path]:
    """A disk of its own of `megabytes`, where this user may mount one; says so and is skipped elsewhere."""
    disk = folder / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(disk)]
    subprocess.run(mount, check=True, capture_output=True)
    try:
        yield disk
    finally:
        subprocess.run(["umount", str(disk)], check=True)
