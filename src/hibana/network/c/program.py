"""A network as one file of C99 and a header."""

import re
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from hibana.compiler.graph.ops import Unsupported
from hibana.network.c.arithmetic import IntegerArithmetic
from hibana.network.c.emitter import Spiking
from hibana.network.c.source import header, source
from hibana.network.c.unit import SCORES, Cost, build_unit
from hibana.network.integer_network import Quantized
from hibana.network.reader import read
from hibana.runtime import files

__all__ = ["CProgram", "Cost", "exact_dtype", "to_c"]


@dataclass(frozen=True)
class CProgram:
    """A network as a program in C: the text of its two files, and their cost."""

    name: str
    source: str
    header: str
    kind: str
    """C's type of potentials."""
    input: str
    """C's type of inputs."""
    inputs: int
    outputs: int
    constant_bytes: int
    """Bytes of weights and other constants."""
    changing_bytes: int
    """Size of the struct in bytes: states, and arrays that live between two layers."""
    costs: tuple[Cost, ...]
    spiking: tuple[Spiking, ...]
    functions: tuple[str, ...]
    """Functions of math.h whose last bit may differ from PyTorch's."""

    def write(self, path: Path | str) -> tuple[Path, Path]:
        """Writes the program to `path`, which ends in ``.c``, and beside it the header, which it includes."""
        return write_files(Path(path), self.name, self.source, self.header)

    def check_memory(self, ram: int | None, flash: int | None) -> None:
        """Raises ValueError if the program needs more than `ram` or `flash` bytes; None is no limit."""
        for option, limit, size, unit in (
            ("ram", ram, self.changing_bytes, "bytes that change"),
            ("flash", flash, self.constant_bytes, "bytes of constants, without code"),
        ):
            if limit is not None and limit < 1:
                raise ValueError(f"--{option} must be a number of bytes, at least 1, got {limit}")
            if limit is not None and size > limit:
                raise ValueError(f"--{option} is {limit:,}, and the network takes {size:,} {unit}")


def write_files(target: Path, name: str, source: str, header: str) -> tuple[Path, Path]:
    """Writes a program called `name` to `target`, and its header beside it; returns both paths."""
    path = target.with_suffix(".h")
    files.write(target, source.replace(f'#include "{name}.h"', f'#include "{path.name}"').encode())
    files.write(path, header.encode())
    return target, path


def to_c(net: nn.Module, example: Tensor, *, name: str = "net", scores: str = "sum") -> CProgram:
    """`net` as one file of C99 and a header, without dependencies, allocation or recursion.

    The program holds the weights as constants and the state in a struct. ``NAME_reset`` sets it to rest,
    ``NAME_step`` runs one step of one sample on numbers, ``NAME_step_events`` on a list of the inputs that
    are 1. ``NAME_output`` returns the output of the last step, ``NAME_scores`` the scores over the steps, and
    ``NAME_class`` the index of the largest score. Layers add a row of weights for each nonzero input, so an
    input of zero costs nothing.

    Spikes equal PyTorch's bit for bit if IEEE 754 determines the result of each operation, and PyTorch takes
    sums in the program's order, which is also that of :func:`hibana.compile`.

    Args:
        net: a network over ``[T, batch, ...]`` of linear layers, convolutions, pooling, flatten, rectifiers,
            normalization, upsampling, concatenations, sums, windows, delays, and neurons; it does not change.
        example: inputs ``[T, batch, ...]``; the program has its dtype, and firing rates are measured on it.
        name: the prefix of the program's functions.
        scores: the reduction of the outputs over time: their ``"sum"``, the ``"max"``, the ``"last"``, or
            minus the number of steps before the ``"first"`` nonzero output.

    Raises:
        TypeError: if `example` is no floating-point tensor.
        ValueError: if `name` is not an identifier of C, `scores` has another value, `example` is not
            ``[T, batch, ...]``, or weights are not finite.
        Unsupported: naming the layer, if it has no form in C.

    >>> import torch, hibana as hb
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3), hb.IF())
    >>> program = hb.convert.to_c(net, torch.rand(8, 2, 4))
    >>> program.constant_bytes, program.changing_bytes
    (60, 40)
    """
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]{0,30}", name):
        raise ValueError(f"name must be letters, digits and _, and begin with a letter, got {name!r}")
    if scores not in SCORES:
        raise ValueError(f"scores must be one of {', '.join(SCORES)}, got {scores!r}")
    unit = build_unit(net, example, name, scores)
    description = str(net)
    return CProgram(
        name,
        source(unit, description),
        header(unit, description),
        unit.arithmetic.kind,
        unit.arithmetic.input,
        unit.network.input.size,
        unit.network.output.size,
        unit.constant_bytes,
        unit.memory.bytes(),
        tuple(unit.costs),
        tuple(unit.spiking),
        tuple(sorted(unit.functions)),
    )


def exact_dtype(net: Quantized, example: Tensor) -> torch.dtype:
    """The dtype that represents all numbers of `net` exactly, for as many steps as `example` has.

    Raises Unsupported, naming the layer, if a number may not fit in 32 bits, or is not an integer.
    """
    arithmetic = IntegerArithmetic(net, read(net, example), len(example), "sum")
    if arithmetic.largest >= 2**53:
        raise Unsupported("net computes with numbers that no dtype of PyTorch represents exactly")
    return torch.float32 if arithmetic.largest < 2**24 else torch.float64
