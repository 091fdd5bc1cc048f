"""Damaged and malicious files of each kind that hibana reads."""

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

from benchmarks.faults.trial import Tally, run, scratch, start

__all__ = ["damaged_files", "flips"]

SECONDS, MEGABYTES = 2.0, 500.0
"""Largest processor time of a file in seconds, and largest memory in megabytes."""
TIMEOUT = 60.0
"""Seconds of waiting after which a file counts as hanging. It is long because the machine may be busy."""


def flips(quick: bool) -> Iterator[Tally]:
    """Trials of checkpoints with one flipped bit; all must be refused."""
    with scratch() as folder, _Worker(folder) as worker:
        content, chance = worker.files["checkpoint"].read_bytes(), random.Random(0)
        tally = Tally("checkpoints with one bit flipped, all refused")
        for _ in range(2 if quick else 1000):
            at = chance.randrange(8 * len(content))
            data = bytearray(content)
            data[at // 8] ^= 1 << at % 8
            worker.judge(tally, "checkpoint", bytes(data), refused=True)
        yield tally


def damaged_files(quick: bool) -> Iterator[Tally]:
    """Trials of damaged and malicious files of each kind.

    Each file must give a result or a short error message, within the limits of time and memory.
    """
    with scratch() as folder, _Worker(folder) as worker:
        for kind, path in worker.files.items():
            content, chance = path.read_bytes(), random.Random(1)
            tally = Tally(f"damaged files: {kind}")
            for hostile in HOSTILE[kind]:
                worker.judge(tally, kind, hostile(content), refused=True)
            for trial in range(8 if quick else 1000):
                cut = trial % 4 == 3
                data = content[: chance.randrange(len(content))] if cut else _changed(content, chance)
                is_incomplete = cut and data != content.rstrip()  # a text file may lack the last newline
                refused = kind == "checkpoint" or (is_incomplete and kind in (".npy", "YAML"))
                worker.judge(tally, kind, data, refused=refused)
            yield tally


def _changed(content: bytes, chance: random.Random) -> bytes:
    """Changes 1, 2 or 16 bytes, and sometimes inserts up to 63 random bytes."""
    data = bytearray(content)
    for _ in range(chance.choice((1, 1, 1, 2, 16))):
        data[chance.randrange(len(data))] ^= chance.randrange(1, 256)
    if chance.random() < 0.1:
        at = chance.randrange(len(data))
        data[at:at] = chance.randbytes(chance.randrange(1, 64))
    return bytes(data)


class _Worker:
    """A process that opens files, restarted after a crash; and an undamaged file of each kind."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        result = run(["-c", MAKE, folder])
        if fault := result.fault(0):
            raise RuntimeError(f"the files of the trials cannot be created: {fault}")
        names = {"checkpoint": "run/checkpoint.ckpt", "NIR": "net.nir", "YAML": "run/settings.yaml"}
        self.files = {kind: folder / name for kind, name in {**names, ".npy": "in.npy"}.items()}
        self.process: subprocess.Popen[str] | None = None

    def __enter__(self) -> "_Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def judge(self, tally: Tally, kind: str, data: bytes, *, refused: bool) -> None:
        """Opens `data` as a file of `kind` and adds the outcome to `tally`.

        With `refused`, it is a fault if the file is read.
        """
        path = self.folder / f"trial{self.files[kind].suffix}"
        path.write_bytes(data)
        answer = self._open(kind, path)
        if answer is None:
            tally.add(f"no answer; {self._end()}")
            return
        outcome, message, seconds, elapsed, megabytes = answer
        tally.refused += outcome == "sentence"
        fault = message if outcome == "traceback" else None
        if refused and outcome == "read" and data != self.files[kind].read_bytes():
            fault = "the file was read"
        if seconds > SECONDS or (elapsed > TIMEOUT / 2):
            fault = f"{seconds:.1f} s: {message}"
        if megabytes > MEGABYTES:
            fault = f"{megabytes:.0f} MB: {message}"
            self._end()  # the peak memory of child processes cannot be reset
        tally.add(fault, seconds, megabytes)

    def _open(self, kind: str, path: Path) -> Any:
        if self.process is None:
            examples = [word for name, file in self.files.items() for word in (name, file)]
            arguments = ["-m", "benchmarks.faults.worker", self.files["checkpoint"], *examples]
            command = [str(word) for word in arguments]
            self.process = start(command, stdin=True)
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
        ready, _, _ = select.select([self.process.stdout], [], [], TIMEOUT)
        return self.process.stdout.readline() if ready else ""

    def _end(self) -> str:
        if self.process is None:
            return ""
        self.process.kill()
        _, errors = self.process.communicate()
        code, self.process = self.process.returncode, None
        return f"exit code {code}: {errors[-200:]}"


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


def _zip_bomb(content: bytes) -> bytes:
    """Adds a compressed part of 2 GB of zeros to a checkpoint."""
    out = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(content)) as old,
        zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as new,
    ):
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))
        with new.open(f"{entry.filename.partition('/')[0]}/data/999", "w", force_zip64=True) as bomb:
            for _ in range(128):
                bomb.write(bytes(1 << 24))
    return out.getvalue()


def _npy(descr: str, shape: str) -> Callable[[bytes], bytes]:
    """Returns a function that returns an .npy file with this header and 64 bytes of data."""
    head = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(117) + b"\n"
    return lambda content: b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head + bytes(64)


def _aliases(content: bytes) -> bytes:
    """A YAML file whose nested aliases expand to 10^10 items."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
    return "\n".join([*lines, "layers: *a9"]).encode()


HOSTILE: dict[str, list[Callable[[bytes], bytes]]] = {
    "checkpoint": [_zip_bomb, lambda content: b"", lambda content: b"PK\x03\x04" + bytes(100)],
    "NIR": [lambda content: b"", lambda content: content[:8] + bytes(1 << 16)],
    "YAML": [
        _aliases,
        lambda content: b"layers: " + b"[" * 100_000,
        lambda content: b"layers: " + b"{a: " * 5_000,
        lambda content: b"- " * 50_000,
        lambda content: b"\xff\xfe\x00",
        lambda content: content.replace(b"seed:", b"epochs: 9\nseed:"),
        lambda content: b"layers: !!python/object/apply:os.system ['false']",
    ],
    ".npy": [
        lambda content: b"",
        _npy("'<f4'", "(1000000000000, 8, 8)"),
        _npy("'<f4'", "(" + "9" * 40 + ",)"),
        _npy("'|O'", "(5, 8, 8)"),
        _npy("[('a', '<f4', (1000000, 1000000))]", "(5,)"),
    ],
}
