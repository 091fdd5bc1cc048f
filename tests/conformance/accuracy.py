"""Errors of the functions that differ from PyTorch's bits, in units in the last place.

``python -m conformance.accuracy [float32] [float64] [NAME ...]``, in ``tests``, evaluates all 2**32
numbers of 32 bits, 250 million pairs of them, and ten million numbers or pairs of 64 bits: one minute per
function.
"""

import ctypes
import sys
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

import hibana as hb
from hibana.compiler.cpu.vector_functions import hibana_function, library_function, sleef_function
from hibana.compiler.graph.ops import OPERATIONS

EXTENDED = np.finfo(np.longdouble).nmant > 60
"""Whether ``longdouble`` is precise enough to measure errors of 64-bit results."""

PIECE = 1 << 17
"""Numbers compared at a time; they fit a cache."""

Numbers = np.ndarray


def _decay(x: Numbers) -> Numbers:
    return np.exp(-np.abs(x))


def _sigmoid(x: Numbers) -> Numbers:
    decay = _decay(x)
    return np.where(x < 0, decay, 1) / (1 + decay)


TRUTH: dict[str, Callable[..., Numbers]] = {
    "sigmoid": _sigmoid,
    "softplus": lambda x: np.maximum(x, 0) + np.log1p(_decay(x)),
    "sinh": np.sinh,
    "cosh": np.cosh,
    "atanh": np.arctanh,
    "exp2": np.exp2,
    "expm1": np.expm1,
    "log1p": np.log1p,
    "pow": np.power,
    "atan2": np.arctan2,
    "hypot": np.hypot,
    "elu": lambda x: np.where(x < 0, np.expm1(x), x),
}


def function_address(name: str, dtype: torch.dtype) -> int:
    """The address of the function that replaces PyTorch's, or 0."""
    address = hibana_function(name, dtype)
    if not address and OPERATIONS[name].arity == 2:
        address = sleef_function(name, dtype)
    return address or library_function(name, dtype)


def apply(address: int, *inputs: Tensor) -> Tensor:
    """The result of the row function at `address` for `inputs`."""
    result = torch.empty_like(inputs[0])
    pointers = [ctypes.c_void_p] * (len(inputs) + 1)
    prototype = ctypes.CFUNCTYPE(None, ctypes.c_int32, *pointers, ctypes.c_int64)
    prototype(address)(result.numel(), *(x.data_ptr() for x in inputs), result.data_ptr(), 0)
    return result


def distance(name: str, *inputs: Tensor) -> float:
    """The largest error over `inputs`, in units in the last place of the result."""
    address = function_address(name, inputs[0].dtype)
    assert address, f"{name} is not served in {inputs[0].dtype}"
    wide = np.float64 if inputs[0].dtype == torch.float32 else np.longdouble
    result = apply(address, *inputs).numpy()
    with np.errstate(all="ignore"):
        exact = TRUTH[name](*(x.numpy().astype(wide) for x in inputs))
        rounded = exact.astype(result.dtype)
        same = (result == rounded) | (np.isnan(result) & np.isnan(rounded))
        result, exact, rounded = result[~same], exact[~same], rounded[~same]
        error = np.abs(result.astype(wide) - exact) / _unit(rounded, wide)
    return float(np.where(np.isnan(error), np.inf, error).max(initial=0))


def _unit(numbers: Numbers, wide: type) -> Numbers:
    """The unit in the last place of each of `numbers`."""
    size = np.abs(numbers)
    if size.dtype != np.float32:
        return np.nextafter(size, np.array(np.inf, size.dtype)).astype(wide) - size.astype(wide)
    exponents = size.astype(np.float64).view(np.int64) & np.int64(0x7FF << 52)
    least = np.float64(2.0**-149).view(np.int64)
    return np.maximum(exponents - np.int64(23 << 52), least).view(np.float64)


def random_bits(count: int, dtype: torch.dtype, seed: int) -> Tensor:
    """`count` numbers of both signs, with equally likely exponents."""
    generator = torch.Generator().manual_seed(seed)
    integer, width = (torch.int32, 31) if dtype == torch.float32 else (torch.int64, 63)
    bits_ = torch.randint(-(2**63), 2**63 - 1, (count,), generator=generator, dtype=torch.int64)
    return (bits_ >> (63 - width)).to(integer).view(dtype)


def sample(name: str, count: int, dtype: torch.dtype, seed: int = 1) -> tuple[Tensor, ...]:
    """Numbers of every exponent, and as many of moderate size; a second argument is shuffled."""
    generator = torch.Generator().manual_seed(seed)

    def part(size: float) -> Tensor:
        return size * (2 * torch.rand(count // 4, generator=generator, dtype=dtype) - 1)

    x = torch.cat([random_bits(count // 4, dtype, seed), part(800), part(40), part(2)])
    if OPERATIONS[name].arity == 1:
        return (x,)
    y = torch.cat([random_bits(count // 2, dtype, seed + 1), part(9), part(40)])[
        torch.randperm(x.numel(), generator=generator)
    ]
    return (x.abs() if name == "pow" else x), y


def sweep(name: str, dtype: torch.dtype) -> float:
    """The largest error over all 2**32 numbers, or over 10 or 250 million samples."""
    if dtype == torch.float64:
        return max(distance(name, *sample(name, 1_000_000, dtype, seed)) for seed in range(10))
    if OPERATIONS[name].arity == 2:
        return max(distance(name, *sample(name, 1 << 24, dtype, seed)) for seed in range(16))
    every = (torch.arange(first, first + PIECE) for first in range(-(2**31), 2**31, PIECE))
    return max(distance(name, each.to(torch.int32).view(torch.float32)) for each in every)


class Alone(hb.Cell):
    """A step that is one function of its input."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor, v: Tensor) -> tuple[Tensor]:
        return (self.function(x),)


def main() -> None:
    dtypes = {"float32": torch.float32, "float64": torch.float64}
    chosen = [dtypes.pop(word) for word in sys.argv[1:] if word in dtypes]
    names = [word for word in sys.argv[1:] if word in TRUTH] or list(TRUTH)
    for dtype in chosen or dtypes.values():
        for name in names:
            if (dtype == torch.float32 or EXTENDED) and function_address(name, dtype):
                print(f"{name}, {dtype}: {sweep(name, dtype):.3f}", flush=True)


if __name__ == "__main__":
    main()
