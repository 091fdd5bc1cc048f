"""How far the functions that are not PyTorch's own bits are from the true values, in units in the last place.

``python -m conformance.accuracy [float32] [float64] [NAME ...]``, from the folder ``tests``, goes over all
2**32 numbers of 32 bits, 250 million pairs of them, and ten million numbers or pairs of 64 bits: a minute for
each function.
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
"""Whether this processor has numbers that hold the true value of one of 64 bits."""

PIECE = 1 << 17
"""Numbers that are compared at a time: few enough for a cache."""

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


def served_by(name: str, dtype: torch.dtype) -> int:
    """The address of the function that stands in for PyTorch's, or 0."""
    address = hibana_function(name, dtype)
    if not address and OPERATIONS[name].arity == 2:
        address = sleef_function(name, dtype)
    return address or library_function(name, dtype)


def applied(address: int, *given: Tensor) -> Tensor:
    """What the function at `address` makes of rows."""
    found = torch.empty_like(given[0])
    pointers = [ctypes.c_void_p] * (len(given) + 1)
    prototype = ctypes.CFUNCTYPE(None, ctypes.c_int32, *pointers, ctypes.c_int64)
    prototype(address)(found.numel(), *(x.data_ptr() for x in given), found.data_ptr(), 0)
    return found


def distance(name: str, *given: Tensor) -> float:
    """The largest error over `given`, in units in the last place of the result."""
    address = served_by(name, given[0].dtype)
    assert address, f"{name} is not served in {given[0].dtype}"
    wide = np.float64 if given[0].dtype == torch.float32 else np.longdouble
    found = applied(address, *given).numpy()
    with np.errstate(all="ignore"):
        exact = TRUTH[name](*(x.numpy().astype(wide) for x in given))
        rounded = exact.astype(found.dtype)
        same = (found == rounded) | (np.isnan(found) & np.isnan(rounded))
        found, exact, rounded = found[~same], exact[~same], rounded[~same]
        error = np.abs(found.astype(wide) - exact) / _unit(rounded, wide)
    return float(np.where(np.isnan(error), np.inf, error).max(initial=0))


def _unit(numbers: Numbers, wide: type) -> Numbers:
    """The unit in the last place of each of `numbers`."""
    size = np.abs(numbers)
    if size.dtype != np.float32:
        return np.nextafter(size, np.array(np.inf, size.dtype)).astype(wide) - size.astype(wide)
    exponents = size.astype(np.float64).view(np.int64) & np.int64(0x7FF << 52)
    least = np.float64(2.0**-149).view(np.int64)
    return np.maximum(exponents - np.int64(23 << 52), least).view(np.float64)


def of_any_bits(count: int, dtype: torch.dtype, seed: int) -> Tensor:
    """`count` numbers of every exponent alike, of both signs."""
    generator = torch.Generator().manual_seed(seed)
    whole, bits = (torch.int32, 31) if dtype == torch.float32 else (torch.int64, 63)
    drawn = torch.randint(-(2**63), 2**63 - 1, (count,), generator=generator, dtype=torch.int64)
    return (drawn >> (63 - bits)).to(whole).view(dtype)


def sample(name: str, count: int, dtype: torch.dtype, seed: int = 1) -> tuple[Tensor, ...]:
    """Numbers of every exponent, and as many where functions bend; the second argument shuffled."""
    generator = torch.Generator().manual_seed(seed)

    def part(size: float) -> Tensor:
        return size * (2 * torch.rand(count // 4, generator=generator, dtype=dtype) - 1)

    x = torch.cat([of_any_bits(count // 4, dtype, seed), part(800), part(40), part(2)])
    if OPERATIONS[name].arity == 1:
        return (x,)
    y = torch.cat([of_any_bits(count // 2, dtype, seed + 1), part(9), part(40)])[
        torch.randperm(x.numel(), generator=generator)
    ]
    return (x.abs() if name == "pow" else x), y


def swept(name: str, dtype: torch.dtype) -> float:
    """The largest error over all 2**32 numbers, or over some ten or 250 million of those that there are."""
    if dtype == torch.float64:
        return max(distance(name, *sample(name, 1_000_000, dtype, seed)) for seed in range(10))
    if OPERATIONS[name].arity == 2:
        return max(distance(name, *sample(name, 1 << 24, dtype, seed)) for seed in range(16))
    every = (torch.arange(first, first + PIECE) for first in range(-(2**31), 2**31, PIECE))
    return max(distance(name, each.to(torch.int32).view(torch.float32)) for each in every)


class Alone(hb.Cell):
    """A step that is one function of its input, and nothing else."""

    def __init__(self, of: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.of = of

    def forward(self, x: Tensor, v: Tensor) -> tuple[Tensor]:
        return (self.of(x),)


def main() -> None:
    dtypes = {"float32": torch.float32, "float64": torch.float64}
    asked = [dtypes.pop(word) for word in sys.argv[1:] if word in dtypes]
    names = [word for word in sys.argv[1:] if word in TRUTH] or list(TRUTH)
    for dtype in asked or dtypes.values():
        for name in names:
            if (dtype == torch.float32 or EXTENDED) and served_by(name, dtype):
                print(f"{name}, {dtype}: {swept(name, dtype):.3f}", flush=True)


if __name__ == "__main__":
    main()
