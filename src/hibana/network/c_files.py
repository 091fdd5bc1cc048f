"""The C files that `hibana convert` writes, within a budget of memory."""

from pathlib import Path

from torch import Tensor, nn

from hibana.network.c import CProgram, to_c
from hibana.runtime import files

__all__ = ["check_budget", "write_c"]


def write_c(
    net: nn.Module,
    target: Path,
    example: Tensor,
    *,
    scores: str = "sum",
    ram: int | None = None,
    flash: int | None = None,
) -> CProgram:
    """Writes `net` as C to `target` and the header beside it, as :func:`to_c` has them.

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
    files.write(target.with_suffix(".h"), program.header.encode())
    files.write(target, program.source.encode())
    return program


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
