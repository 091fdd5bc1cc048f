"""Files of strangers: each kind damaged in many ways, and what hibana makes of them."""

import io
import json
import random
import select
import struct
import subprocess
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.faults.trial import Tally, begun, run, scratch

__all__ = ["flips", "strangers"]

SECONDS, MEGABYTES = {"NIR": 5.0}, 500.0
"""Processor time that a file of a kind may take, 2 seconds if not listed, and memory."""
HANGING = 60.0
"""Seconds of waiting after which a file has no end; the machine may be busy."""


def flips(quick: bool) -> Iterator[Tally]:
    """Checkpoints with one bit changed: all are refused."""
    with scratch() as folder, _Worker(folder) as worker:
        whole, chance = worker.files["checkpoint"].read_bytes(), random.Random(0)
        tally = Tally("checkpoints with one bit flipped, all refused")
        for _ in range(2 if quick else 1000):
            at = chance.randrange(8 * len(whole))
            data = bytearray(whole)
            data[at // 8] ^= 1 << at % 8
            worker.judge(tally, "checkpoint", bytes(data), refused=True)
        yield tally


def strangers(quick: bool) -> Iterator[Tally]:
    """Damaged and hostile files of each kind: a result or a sentence, in little time and memory."""
    with scratch() as folder, _Worker(folder) as worker:
        for kind, path in worker.files.items():
            whole, chance = path.read_bytes(), random.Random(1)
            tally = Tally(f"damaged files: {kind}")
            for hostile in HOSTILE[kind]:
                worker.judge(tally, kind, hostile(whole), refused=True)
            for trial in range(8 if quick else 1000):
                cut = trial % 4 == 3
                data = whole[: chance.randrange(len(whole))] if cut else _changed(whole, chance)
                # a text that was cut may be an edited one
                refused = kind == "checkpoint" or (cut and kind == ".npy")
                worker.judge(tally, kind, data, refused=refused)
            yield tally


def _changed(whole: bytes, chance: random.Random) -> bytes:
    data = bytearray(whole)
    for _ in range(chance.choice((1, 1, 1, 2, 16))):
        data[chance.randrange(len(data))] ^= chance.randrange(1, 256)
    if chance.random() < 0.1:
        at = chance.randrange(len(data))
        data[at:at] = chance.randbytes(chance.randrange(1, 64))
    return bytes(data)


class _Worker:
    """A process that opens files, begun anew whenever one ended it; and a good file of each kind."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        made = run(["-c", MAKE, folder])
        if fault := made.fault(0):
            raise RuntimeError(f"the files of the trials can't be made: {fault}")
        names = {"checkpoint": "run/checkpoint.ckpt", "NIR": "net.nir", "YAML": "run/settings.yaml"}
        self.files = {kind: folder / name for kind, name in {**names, ".npy": "in.npy"}.items()}
        self.process: subprocess.Popen[str] | None = None

    def __enter__(self) -> "_Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def judge(self, tally: Tally, kind: str, data: bytes, *, refused: bool) -> None:
        """Adds to `tally` what becomes of `data` as a file of `kind`; `refused`: it must be."""
        path = self.folder / f"trial{self.files[kind].suffix}"
        path.write_bytes(data)
        answer = self._asked(kind, path)
        if answer is None:
            tally.add(f"no answer; {self._end()}")
            return
        what, said, spent, waited, megabytes = answer
        tally.refused += what == "sentence"
        fault = said if what == "traceback" else None
        if refused and what == "read" and data != self.files[kind].read_bytes():
            fault = "it was read"
        if spent > SECONDS.get(kind, 2.0) or (waited > HANGING / 2):
            fault = f"it took {spent:.1f} s: {said}"
        if megabytes > MEGABYTES:
            fault = f"it took {megabytes:.0f} MB: {said}"
            self._end()  # the memory of a process that was started for it would be counted again
        tally.add(fault, spent, megabytes)

    def _asked(self, kind: str, path: Path) -> Any:
        if self.process is None:
            warm = [word for name, file in self.files.items() for word in (name, file)]
            arguments = ["-m", "benchmarks.faults.worker", self.files["checkpoint"], *warm]
            command = [str(word) for word in arguments]
            self.process = begun(command, stdin=True)
            self._line()
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(f"{kind} {path}\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            return None
        line = self._line()
        return json.loads(line) if line.strip() else None

    def _line(self) -> str:
        assert self.process is not None
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], HANGING)
        return self.process.stdout.readline() if ready else ""

    def _end(self) -> str:
        if self.process is None:
            return ""
        self.process.kill()
        _, errors = self.process.communicate()
        code, self.process = self.process.returncode, None
        return f"its process ended with {code}: {errors[-200:]}"


MAKE = """
import sys, warnings
from pathlib import Path
import numpy, torch, hibana as hb
from hibana import nir
from hibana.cli import main
folder = Path(sys.argv[1])
small = ["--layers", "20", "--epochs", "1", "--steps", "4"]
assert main(["train", *small, "--out", str(folder / "run")]) == 0
recurrent = hb.Recurrent(hb.LIFCell(3.0, 0.3), 8)
net = torch.nn.Sequential(torch.nn.Linear(5, 8), recurrent, torch.nn.Linear(8, 3), hb.LI())
warnings.simplefilter("ignore")
nir.write(net, folder / "net.nir")
numpy.save(folder / "in.npy", numpy.random.default_rng(0).random((5, 8, 8), numpy.float32))
"""


def _zip_bomb(whole: bytes) -> bytes:
    """The checkpoint with a part that is 2 GB of zeros, packed."""
    out = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(whole)) as old,
        zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as new,
    ):
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))
        with new.open(f"{entry.filename.partition('/')[0]}/data/999", "w", force_zip64=True) as bomb:
            for _ in range(128):
                bomb.write(bytes(1 << 24))
    return out.getvalue()


def _npy(descr: str, shape: str) -> Callable[[bytes], bytes]:
    head = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(117) + b"\n"
    return lambda whole: b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head + bytes(64)


def _aliases(whole: bytes) -> bytes:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
    return "\n".join([*lines, "layers: *a9"]).encode()


HOSTILE: dict[str, list[Callable[[bytes], bytes]]] = {
    "checkpoint": [_zip_bomb, lambda whole: b"", lambda whole: b"PK\x03\x04" + bytes(100)],
    "NIR": [lambda whole: b"", lambda whole: whole[:8] + bytes(1 << 16)],
    "YAML": [
        _aliases,
        lambda whole: b"layers: " + b"[" * 100_000,
        lambda whole: b"layers: " + b"{a: " * 5_000,
        lambda whole: b"- " * 50_000,
        lambda whole: b"\xff\xfe\x00",
        lambda whole: b"layers: !!python/object/apply:os.system ['false']",
    ],
    ".npy": [
        lambda whole: b"",
        _npy("'<f4'", "(1000000000000, 8, 8)"),
        _npy("'<f4'", "(" + "9" * 40 + ",)"),
        _npy("'|O'", "(5, 8, 8)"),
        _npy("[('a', '<f4', (1000000, 1000000))]", "(5,)"),
    ],
}
