"""Folders of compiled kernels that are damaged, swapped, shared, somebody else's, or can't be written."""

import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.faults.trial import Tally, begun, ended, run, scratch

__all__ = ["caches"]

PROGRAM = """
import sys, warnings, torch, hibana as hb
torch.manual_seed(0)
x = torch.rand(6, 3, 70, requires_grad=True)
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    found = []
    for layer in (hb.IF(detach_reset=True), hb.LIF(), hb.Linear(70, 5)):
        out = layer(x)
        (gradient,) = torch.autograd.grad(out.sum(), x)
        found += [out.double().sum().item(), gradient.double().sum().item()]
print(found, len([w for w in said if "kernels are not kept" in str(w.message)]))
"""


def caches(quick: bool) -> Iterator[Tally]:
    """Whatever stands in the folder: the right numbers, no crash, a word said once, nothing left behind."""
    chance = random.Random(0)
    with scratch() as folder:
        wanted = run(["-c", PROGRAM], HIBANA_CACHE="off")
        if wanted.fault(0):
            raise RuntimeError(f"the program of the trials fails without a cache: {wanted.errors}")
        numbers = wanted.out.rpartition(" ")[0]
        run(["-c", PROGRAM], HIBANA_CACHE=str(folder / "good"))
        for name, change in [*CHANGES.items()][: 2 if quick else None]:
            tally = Tally(f"kernel cache: {name}")
            for trial in range(1 if quick else 10):
                cache = folder / f"{name}-{trial}"
                subprocess.run(["cp", "-r", folder / "good", cache], check=True)
                change(sorted(cache.rglob("*.kernel")), chance)
                end = run(["-c", PROGRAM], HIBANA_CACHE=str(cache))
                tally.add(_fault(end.fault(0), end.out, numbers, cache), end.seconds)
            yield tally
        if quick:
            return
        yield _shared(folder, numbers)
        if sys.platform == "linux" and os.getuid() == 0:
            yield _full(folder, numbers)


def _fault(fault: str | None, out: str, numbers: str, cache: Path) -> str | None:
    found, _, said = out.strip().rpartition(" ")
    if fault is None and found != numbers:
        return f"other numbers: {out.strip()}"
    if fault is None and int(said) > 2:
        return f"said {said} times"
    left = [str(path) for path in cache.rglob("*") if not path.name.endswith(".kernel") and path.is_file()]
    return fault or (f"left behind: {left}" if left else None)


def _shared(folder: Path, numbers: str) -> Tally:
    tally = Tally("kernel cache: empty, four processes at once")
    for trial in range(10):
        cache, began = folder / f"shared-{trial}", time.perf_counter()
        for process in [begun(["-c", PROGRAM], HIBANA_CACHE=str(cache)) for _ in range(4)]:
            end = ended(process, began)
            tally.add(_fault(end.fault(0), end.out, numbers, cache), end.seconds)
    return tally


def _full(folder: Path, numbers: str) -> Tally:
    """A disk on which there is room for the folder and for part of the kernels."""
    tally = Tally("kernel cache: full disk")
    disk = folder / "disk"
    disk.mkdir(mode=0o700)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=28k,mode=700", "tmpfs", disk], check=True)
    try:
        for _ in range(10):
            end = run(["-c", PROGRAM], HIBANA_CACHE=str(disk))
            tally.add(_fault(end.fault(0), end.out, numbers, disk), end.seconds)
    finally:
        subprocess.run(["umount", disk], check=True)
    return tally


def _damaged(files: list[Path], chance: random.Random) -> None:
    for path in files:
        data = bytearray(path.read_bytes())
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        path.write_bytes(data[: chance.randrange(len(data))] if chance.random() < 0.3 else data)


def _swapped(files: list[Path], chance: random.Random) -> None:
    contents = [path.read_bytes() for path in files]
    for path, data in zip(files, contents[1:] + contents[:1], strict=True):
        path.write_bytes(data)


def _foreign(files: list[Path], chance: random.Random) -> None:
    for path in files:
        if os.getuid() == 0:
            os.chown(path, 65534, 65534)
        else:
            path.chmod(0o666)


def _looped(files: list[Path], chance: random.Random) -> None:
    for path in files:
        path.unlink()
        path.symlink_to(path)


def _folders(files: list[Path], chance: random.Random) -> None:
    for path in files:
        path.unlink()
        (path / "full").mkdir(parents=True)


def _open(files: list[Path], chance: random.Random) -> None:
    files[0].parent.chmod(0o777)


def _nowhere(files: list[Path], chance: random.Random) -> None:
    base = files[0].parents[1]
    subprocess.run(["rm", "-r", base], check=True)
    base.symlink_to("/proc/nowhere")  # nobody, not even root, makes a folder there


CHANGES: dict[str, Callable[[list[Path], random.Random], None]] = {
    "every file damaged": _damaged,
    "files swapped": _swapped,
    "files of another user": _foreign,
    "a loop of links in each file's place": _looped,
    "a folder in each file's place": _folders,
    "a folder that all may write to": _open,
    "a folder that can't be made": _nowhere,
}
