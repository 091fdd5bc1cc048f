"""A network as one file of C99 and a header."""

import re
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from hibana.compiler.graph.ops import Unsupported
from hibana.network.c.arithmetic import Arithmetic, FloatArithmetic, IntegerArithmetic
from hibana.network.c.costs import Cost, Spiking
from hibana.network.c.unit import Unit
from hibana.network.graph import Network
from hibana.network.integer_network import Quantized
from hibana.network.reader import read
from hibana.runtime import files

__all__ = ["CProgram", "Cost", "exact_dtype", "to_c"]

SCORES = ("sum", "max", "last", "first")


@dataclass(frozen=True)
class CProgram:
    """A network in C: two files, and what they cost."""

    name: str
    source: str
    header: str
    kind: str
    """C's type of potentials,"""
    input: str
    """and of what goes in."""
    inputs: int
    outputs: int
    constant_bytes: int
    """Of weights and other constants."""
    changing_bytes: int
    """Of the struct: states, and what is needed between two layers."""
    costs: tuple[Cost, ...]
    spiking: tuple[Spiking, ...]
    functions: tuple[str, ...]
    """Functions of math.h whose last bit may be another than PyTorch's."""

    def write(self, path: Path | str) -> tuple[Path, Path]:
        """Writes the program to `path`, which ends in ``.c``, and beside it the header, which it includes."""
        target = Path(path)
        header = target.with_suffix(".h")
        source = self.source.replace(f'#include "{self.name}.h"', f'#include "{header.name}"')
        files.write(target, source.encode())
        files.write(header, self.header.encode())
        return target, header

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


def to_c(net: nn.Module, example: Tensor, *, name: str = "net", scores: str = "sum") -> CProgram:
    """`net` as one file of C99 and a header, without dependencies, allocation or recursion.

    The program holds the weights as constants and the state in a struct. ``NAME_reset`` sets it to rest,
    ``NAME_step`` runs one step of one sample on numbers, ``NAME_step_events`` on a list of the inputs that
    are 1; ``NAME_output`` gives what the network put out, ``NAME_scores`` that over the steps,
    ``NAME_class`` the place of its largest. A number that is zero costs nothing: layers add a row of weights
    for each that is not.

    Spikes equal PyTorch's bit for bit where all operations are those that IEEE 754 determines, and sums are
    taken in the program's order, as :func:`hibana.compile` takes them.

    Args:
        net: a network over ``[T, batch, ...]`` of linear layers, convolutions, pooling, flatten, batch
            normalisation after a linear layer or convolution, sums, windows, delays, and neurons; it is left
            as it is.
        example: inputs ``[T, batch, ...]``, on which firing rates are counted; its dtype is the program's.
        name: what the program's functions begin with.
        scores: what becomes of the outputs over time: their ``"sum"``, the ``"max"``, the ``"last"``, or
            minus the steps before the ``"first"`` that is not zero.

    Raises:
        TypeError: if `example` is no floating-point tensor.
        ValueError: if `name` is no name in C, `scores` is none of these, `example` is not
            ``[T, batch, ...]``, or weights are not finite.
        Unsupported: naming the layer, if C does not say it.

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
    unit = _written(net, example, name, scores)
    about = str(net)
    return CProgram(
        name,
        unit.source(about),
        unit.header(about),
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
    """The dtype that holds all numbers of `net` exactly, for as many steps as `example` has.

    Raises:
        Unsupported: naming the layer, if a number may not fit in 32 bits, or is no whole one.
    """
    numbers = _whole(net, read(net.net, net.integer_input(example)), len(example), "sum")
    if numbers.largest >= 2**53:
        raise Unsupported("net computes with numbers that no dtype of PyTorch holds exactly")
    return torch.float32 if numbers.largest < 2**24 else torch.float64


def _written(net: nn.Module, example: Tensor, name: str, scores: str) -> Unit:
    """The layers of `net`, in whole numbers if it computes so."""
    if isinstance(net, Quantized):
        network = read(net.net, net.integer_input(example))
        numbers: Arithmetic = _whole(net, network, len(example), scores)
    else:
        network = read(net, example)
        numbers = FloatArithmetic(network.dtype)
    return Unit(network, numbers, name, scores, len(example))


def _whole(net: Quantized, network: Network, steps: int, scores: str) -> IntegerArithmetic:
    scales = net.input_scale, net.output_scale
    return IntegerArithmetic(network, net.input_range, scales, steps, summed=steps if scores == "sum" else 1)
