"""The files that `hibana convert` writes, whole or not at all."""

import os
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from torch import Tensor, nn

from hibana.network.c import CProgram, to_c

__all__ = ["check_budget", "write_c", "write_whole"]


def write_c(
    net: nn.Module,
    target: Path,
    example: Tensor,
    *,
    scores: str = "sum",
    ram: int | None = None,
    flash: int | None = None,
) -> CProgram:
    """Writes `net` as C to `target` and the header beside it, as :func:`to_c` has them; both or none.

    Args:
        net: the network.
        target: a path that ends in ``.c``; the functions are called after it.
        example: inputs ``[T, batch, ...]``.
        scores: what becomes of the outputs over time.
        ram: bytes that may change, at most.
        flash: bytes of constants, at most.

    Raises:
        ValueError: if it takes more memory than `ram` or `flash`, or what :func:`to_c` raises.
    """
    program = to_c(net, example, name=target.stem, scores=scores)
    check_budget(program, ram, flash)
    write_whole({target: program.source, target.with_suffix(".h"): program.header})
    return program


def write_whole(files: Mapping[Path, str | bytes]) -> None:
    """Writes texts or bytes to their paths, each whole; none before all of them are on the disk."""
    with ExitStack() as unfinished:
        parts = [(_temporary(path, content, unfinished), path) for path, content in files.items()]
        for part, path in parts:
            part.replace(path)


def check_budget(program: CProgram, ram: int | None, flash: int | None) -> None:
    """Refuses a program that needs more memory than there is.

    Raises:
        ValueError: saying how much it needs.
    """
    for option, most, needed, what in (
        ("ram", ram, program.changing_bytes, "bytes that change"),
        ("flash", flash, program.constant_bytes, "bytes of constants, without code"),
    ):
        if most is not None and most < 1:
            raise ValueError(f"--{option} must be a number of bytes, at least 1, got {most}")
        if most is not None and needed > most:
            raise ValueError(f"--{option} is {most:,}, and the network takes {needed:,} {what}")


def _temporary(path: Path, content: str | bytes, unfinished: ExitStack) -> Path:
    """A file with `content` in the folder of `path`, to be put in its place; `unfinished` takes it away."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    part = Path(name)
    unfinished.callback(part.unlink, missing_ok=True)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
    part.chmod(0o666 & ~_umask())
    return part


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
