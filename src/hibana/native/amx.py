"""The unit of the processor that multiplies matrices in tiles: Intel's AMX.

It has eight registers, *tiles* of 16 rows of 64 bytes. Of bfloat16 one instruction multiplies two and adds to
a third, ``C += A B``: `A` 16 x 32 numbers, `B` 32 x 16 with each two that follow one another in a column side
by side (``[16][16][2]``), `C` 16 x 16 float32. Products are exact and sums rounded to float32; numbers below
2^-126 count as zero.

Source: Intel, *Architecture Instruction Set Extensions Programming Reference* (319433), chapter 3; Linux,
*Documentation/arch/x86/xstate.rst*, for the permission that a process asks.
"""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

from hibana.native.code import Code
from hibana.native.pointers import Bytes, Pointer
from hibana.native.values import Operand

__all__ = ["SIDE", "Tiles", "there", "tiles"]

SIDE = 16
"""Rows of a tile."""
ROW = 64
"""Bytes of a row."""
REGISTERS = 8
_CONFIGURATION = 64
"""Bytes that say how large each tile is."""
_PALETTE, _COLUMNS, _ROWS = 0, 16, 48
"""Where in them."""
_ARCH_PRCTL, _REQUEST, _TILE_DATA = 158, 0x1023, 18


@cache
def there() -> bool:
    """Whether there is such a unit, it multiplies bfloat16, and the system lets this process use it."""
    if not sys.platform.startswith("linux"):
        return False
    import llvmlite.binding as llvm

    features = llvm.get_host_cpu_features()
    if not (features.get("amx-tile") and features.get("amx-bf16")):
        return False
    refused: int = ctypes.CDLL(None).syscall(_ARCH_PRCTL, _REQUEST, _TILE_DATA)
    return not refused


class Tiles:
    """The tiles of a function that is being written, by number."""

    def __init__(self, code: Code) -> None:
        self._do = code.writer.do

    def clear(self, tile: int) -> None:
        """Has all be zero."""
        self._do(f"call void @llvm.x86.tilezero(i8 {tile})")

    def load(self, tile: int, at: Pointer, pitch: Operand) -> None:
        """Reads rows that begin `pitch` bytes after one another."""
        self._do(f"call void @llvm.x86.tileloadd64(i8 {tile}, ptr {at.text}, {_bytes(pitch)})")

    def store(self, tile: int, at: Pointer, pitch: Operand) -> None:
        """Writes them so."""
        self._do(f"call void @llvm.x86.tilestored64(i8 {tile}, ptr {at.text}, {_bytes(pitch)})")

    def multiply(self, total: int, left: int, right: int) -> None:
        """``total += left right``."""
        self._do(f"call void @llvm.x86.tdpbf16ps(i8 {total}, i8 {left}, i8 {right})")


@contextmanager
def tiles(code: Code) -> Iterator[Tiles]:
    """The tiles, of full size, while what is written meanwhile runs; then they are as large as before.

    Other libraries remember the size that they gave them.

    Raises:
        RuntimeError: if there are none, or this process may not use them.
    """
    if not there():
        raise RuntimeError("there is no unit for matrices (AMX) that this process may use")
    before, own = code.array(Bytes, _CONFIGURATION), code.array(Bytes, _CONFIGURATION)
    own.clear(_CONFIGURATION)
    own[_PALETTE] = 1
    for register in range(REGISTERS):
        own[_COLUMNS + 2 * register] = ROW
        own[_ROWS + register] = SIDE
    code.writer.do(f"call void @llvm.x86.sttilecfg(ptr {before.text})")
    code.writer.do(f"call void @llvm.x86.ldtilecfg(ptr {own.text})")
    yield Tiles(code)
    code.writer.do(f"call void @llvm.x86.ldtilecfg(ptr {before.text})")


def _bytes(count: Operand) -> str:
    return str(count) if not isinstance(count, int) else f"i64 {count}"
