"""Kernel caches whose files are damaged, swapped, shared, owned by another user, or cannot be written."""

import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.faults.trial import Tally, run, scratch, start, wait

__all__ = ["caches"]

PROGRAM = """
import sys, warnings, torch, hibana as hb
torch.manual_seed(0)
x = torch.rand(6, 3, 70, requires_grad=True)
with warnings.catch_warnings(record=True) as messages:
    warnings.simplefilter("always")
    sums = []
    for layer in (hb.IF(detach_reset=True), hb.LIF(), hb.Linear(70, 5)):
        out = layer(x)
        (gradient,) = torch.autograd.grad(out.sum(), x)
        sums += [out.double().sum().item(), gradient.double().sum().item()]
print(sums, len([w for w in messages if "kernels are not kept" in str(w.message)]))
"""


def caches(quick: bool) -> Iterator[Tally]:
    """Trials of every change of the cache folder.

    A trial fails if the results differ, the process crashes, warns more than twice, or leaves other files in
    the folder.
    """
    random_numbers = random.Random(0)
    with scratch() as folder:
        reference = run(["-c", PROGRAM], HIBANA_CACHE="off")
        if reference.fault(0):
            raise RuntimeError(f"the program of the trials fails without a cache: {reference.errors}")
        numbers = reference.out.rpartition(" ")[0]
        run(["-c", PROGRAM], HIBANA_CACHE=str(folder / "good"))
        for name, change in [*CHANGES.items()][: 2 if quick else None]:
            tally = Tally(f"kernel cache: {name}")
            for trial in range(1 if quick else 10):
                cache = folder / f"{name}-{trial}"
                subprocess.run(["cp", "-r", folder / "good", cache], check=True)
                change(sorted(cache.rglob("*.kernel")), random_numbers)
                result = run(["-c", PROGRAM], HIBANA_CACHE=str(cache))
                tally.add(_fault(result.fault(0), result.out, numbers, cache), result.seconds)
            yield tally
        if quick:
            return
        yield _shared(folder, numbers)
        if sys.platform == "linux" and os.getuid() == 0:
            yield _full(folder, numbers)


def _fault(fault: str | None, out: str, numbers: str, cache: Path) -> str | None:
    results, _, warning_count = out.strip().rpartition(" ")
    if fault is None and results != numbers:
        return f"different numbers: {out.strip()}"
    if fault is None and int(warning_count) > 2:
        return f"{warning_count} warnings"
    extra = [str(path) for path in cache.rglob("*") if not path.name.endswith(".kernel") and path.is_file()]
    return fault or (f"extra files: {extra}" if extra else None)


def _shared(folder: Path, numbers: str) -> Tally:
    tally = Tally("kernel cache: empty, four processes at once")
    for trial in range(10):
        cache, start_time = folder / f"shared-{trial}", time.perf_counter()
        for process in [start(["-c", PROGRAM], HIBANA_CACHE=str(cache)) for _ in range(4)]:
            result = wait(process, start_time)
            tally.add(_fault(result.fault(0), result.out, numbers, cache), result.seconds)
    return tally


def _full(folder: Path, numbers: str) -> Tally:
    """Trials on a disk that has space for the folder and for some of the kernels."""
    tally = Tally("kernel cache: full disk")
    disk = folder / "disk"
    disk.mkdir(mode=0o700)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=28k,mode=700", "tmpfs", disk], check=True)
    try:
        for _ in range(10):
            result = run(["-c", PROGRAM], HIBANA_CACHE=str(disk))
            tally.add(_fault(result.fault(0), result.out, numbers, disk), result.seconds)
    finally:
        subprocess.run(["umount", disk], check=True)
    return tally


def _damaged(files: list[Path], random_numbers: random.Random) -> None:
    for path in files:
        data = bytearray(path.read_bytes())
        data[random_numbers.randrange(len(data))] ^= 1 << random_numbers.randrange(8)
        path.write_bytes(
            data[: random_numbers.randrange(len(data))] if random_numbers.random() < 0.3 else data
        )


def _swapped(files: list[Path], random_numbers: random.Random) -> None:
    contents = [path.read_bytes() for path in files]
    for path, data in zip(files, contents[1:] + contents[:1], strict=True):
        path.write_bytes(data)


def _foreign(files: list[Path], random_numbers: random.Random) -> None:
    for path in files:
        if os.getuid() == 0:
            os.chown(path, 65534, 65534)
        else:
            path.chmod(0o666)


def _looped(files: list[Path], random_numbers: random.Random) -> None:
    for path in files:
        path.unlink()
        path.symlink_to(path)


def _folders(files: list[Path], random_numbers: random.Random) -> None:
    for path in files:
        path.unlink()
        (path / "full").mkdir(parents=True)


def _open(files: list[Path], random_numbers: random.Random) -> None:
    files[0].parent.chmod(0o777)


def _nowhere(files: list[Path], random_numbers: random.Random) -> None:
    base = files[0].parents[1]
    subprocess.run(["rm", "-r", base], check=True)
    base.symlink_to("/proc/nowhere")  # not even root can create a folder there


CHANGES: dict[str, Callable[[list[Path], random.Random], None]] = {
    "every file damaged": _damaged,
    "files swapped": _swapped,
    "files of another user": _foreign,
    "each file replaced by a link to itself": _looped,
    "each file replaced by a folder": _folders,
    "a folder writable by all users": _open,
    "a folder that cannot be created": _nowhere,
}
