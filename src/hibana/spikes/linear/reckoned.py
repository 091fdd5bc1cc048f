"""What the products of a linear layer should take: formulas of their work, and how fast this machine does it.

Constants are nanoseconds of one thread, fitted to 440 products of 64 to 4096 neurons and of convolutions (AMD
EPYC, Zen 5; nine tenths of them within 30%). A *vector* is 16 outputs, a *word* 64 inputs.
"""

from functools import cache, lru_cache, partial

import torch
from torch.nn import functional

from hibana.spikes import cost
from hibana.spikes.bits import bits_of
from hibana.spikes.linear import dense, kernels, product
from hibana.spikes.simd.rows import LANES, panel, vectors
from hibana.spikes.speeds import YARDSTICK, Call, Way, fixed, numbers, random_bits, speed, waited_for

__all__ = [
    "MULTIPLIED",
    "about",
    "by_onednn",
    "costs",
    "forward",
    "scan",
    "weights",
]

NANO = 1e-9
LARGE = 2e6
"""Weights beyond which nothing of them is near."""
NEAR = 2.5e5
"""Weights that the second cache holds."""
SOONER = 0.85
"""Of two ways to the same dense product another one than torch's own takes at most this part."""
MULTIPLIED = 0.019
"""For one multiplication of a dense product."""
_TOUCHED = 0.03
"""For a byte of a dense product's input and output."""
READ = 0.09
"""For a weight that a dense product reads."""
BACK = 0.06
"""For one that it writes or reads on the way back."""
USED = 0.05
"""For one that is read where the input's gradient is wanted."""
PACKED = 0.11
"""For one that is packed."""
WRITTEN = 0.13
"""For one of a gradient that is summed by events."""
_ROWS, _INPUTS, _OUTPUTS = 512, 256, 128
"""Of what is measured."""


def costs(rows: int, inputs: int, outputs: int) -> cost.Costs:
    """Of so many rows times ``[outputs, inputs]`` weights."""
    return _costs(about(rows), inputs, outputs, torch.get_num_threads(), fixed())


@lru_cache(maxsize=256)
def _costs(rows: int, inputs: int, outputs: int, threads: int, by_formula: bool) -> cost.Costs:
    multiplied = _dense(rows, inputs, outputs) * speed(_multiplied(outputs))
    back = multiplied + _moved(BACK, inputs, outputs)
    pace = speed(YARDSTICK) * waited_for(threads)
    call = cost.OVERHEAD * pace
    sizes = rows, inputs, outputs
    return cost.Costs(
        cost.Product(multiplied + _moved(READ, inputs, outputs), cache(partial(forward, *sizes)), call),
        cost.Product(back, cache(partial(weights, *sizes, threads)), call),
        cost.Product(back, cache(partial(_restricted, *sizes)), call),
        scan(rows * inputs),
        cost.APART * pace,
    )


def by_onednn() -> bool:
    """Whether this machine multiplies sooner by oneDNN than by torch's BLAS; no, if nothing is measured."""
    return _by_onednn(fixed())


@cache
def _by_onednn(by_formula: bool) -> bool:
    return not by_formula and dense.there() and speed(_BY_ONEDNN) < SOONER * speed(_MULTIPLIED)


def _multiplied(outputs: int) -> Way:
    """The dense product, by the sooner library."""
    if by_onednn():
        return _BY_ONEDNN
    return _NARROW_MULTIPLIED if outputs < LANES else _MULTIPLIED


def about(count: int) -> int:
    """`count`, rounded down to an eighth of a power of two."""
    step = max(1, 1 << count.bit_length() >> 4)
    return count // step * step


def scan(count: int) -> float:
    """Seconds to make bits of so many numbers."""
    return _SCANNED.reckoned / _SCANNED_NUMBERS * count * speed(_SCANNED)


def forward(rows: int, inputs: int, outputs: int, density: float) -> float:
    """Seconds of the sums for rows of bits, packing the weights included."""
    narrow = outputs < LANES
    packed = _moved(PACKED, inputs, outputs)
    if density > product.crossover(outputs):
        return packed + _looked_up(rows, inputs, outputs) * speed(_NARROW_LOOKED_UP if narrow else _LOOKED_UP)
    return packed + _listed(rows, inputs, outputs, density) * speed(_NARROW_LISTED if narrow else _LISTED)


def weights(rows: int, inputs: int, outputs: int, threads: int, density: float) -> float:
    """Seconds of the weights' gradient, of which few sums keep few threads busy."""
    parts = product.parts(rows, outputs, -(-inputs // 64), threads)
    idle = threads / min(threads, parts.number)
    written = _moved(WRITTEN, inputs, outputs)
    if density > product.gradient_crossover():
        return (written + _weights_looked_up(rows, inputs, outputs) * speed(_WEIGHTS_LOOKED_UP)) * idle
    return (written + _weights_listed(rows, inputs, outputs, density) * speed(_WEIGHTS_LISTED)) * idle


def _restricted(rows: int, inputs: int, outputs: int, density: float) -> float:
    """Seconds of the input's gradient where it is wanted."""
    read = _moved(USED, inputs, outputs) * min(1.0, rows * density)
    return read + _input(rows, inputs, outputs, density) * speed(_INPUT)


def _moved(each: float, inputs: int, outputs: int) -> float:
    """Seconds to bring or to write all weights, each so many nanoseconds."""
    return NANO * each * inputs * outputs * speed(_AFAR)


def _sizes(rows: int, inputs: int, outputs: int) -> tuple[int, int, int]:
    """Vectors of a row of outputs, words of one of inputs, and what of the weights is far."""
    each = vectors(outputs)
    return -(-outputs // (each * LANES)) * each, -(-inputs // 64), max(0, inputs * outputs - int(LARGE))


def _dense(rows: int, inputs: int, outputs: int) -> float:
    lanes = -(-outputs // LANES) * LANES
    bytes_ = 4 * rows * (inputs + outputs)
    return NANO * (1700 + MULTIPLIED * rows * inputs * lanes + _TOUCHED * bytes_)


def _listed(rows: int, inputs: int, outputs: int, density: float) -> float:
    wide, words, far = _sizes(rows, inputs, outputs)
    spikes = rows * inputs * density
    added = 0.2 if density > product.NEAR_FROM or inputs * outputs <= NEAR else 0.33
    per_row = rows * (1.5 * wide + 2.5 * words + 0.1 * outputs)
    return NANO * (8600 + 0.5 * far + per_row + spikes * (0.035 + added * wide))


def _looked_up(rows: int, inputs: int, outputs: int) -> float:
    wide, _, far = _sizes(rows, inputs, outputs)
    fours, blocks = -(-inputs // 4), -(-rows // kernels.LOOKED_UP)
    narrow = 3.5 * rows if outputs % (LANES * vectors(outputs)) else 0.0  # written by way of a block
    added = wide * (rows * (0.9 + 0.18 * fours) + blocks * 6.2 * fours)
    return NANO * (8200 + 0.9 * far + narrow + added)


def _weights_listed(rows: int, inputs: int, outputs: int, density: float) -> float:
    wide, words, far = _sizes(rows, inputs, outputs)
    spikes, blocks = rows * inputs * density, -(-rows // 256)
    per_row = rows * (wide + 2.2 * words)
    sums = blocks * words * 118 * wide
    return NANO * (5500 + 0.6 * far + per_row + sums + spikes * (0.11 + 0.18 * wide))


def _weights_looked_up(rows: int, inputs: int, outputs: int) -> float:
    wide, words, far = _sizes(rows, inputs, outputs)
    per_row = rows * (2.2 * wide + 1.3 * words)
    return NANO * (5700 + 0.5 * far + per_row + -(-rows // 32) * words * 108 * wide)


def _input(rows: int, inputs: int, outputs: int, density: float) -> float:
    """Where bits of the support are set, from weights that are packed."""
    wide, words, _ = _sizes(rows, inputs, outputs)
    tile = product.words_near(outputs, words, density)
    each = -(-words // tile) * (15 + 2.7 * wide + 8 * tile)
    return NANO * (4400 + rows * (each + 0.4 * inputs * density * wide))


def _forward_of(rows: int, inputs: int, outputs: int, density: float) -> Call:
    bits, table = random_bits(rows, inputs, density), numbers(outputs, inputs)
    return partial(product.forward, bits, density, table, None)


def _weights_of(density: float) -> Call:
    bits = random_bits(_ROWS, _INPUTS, density)
    return partial(product.weight_gradient, bits, density, numbers(_ROWS, _OUTPUTS), _INPUTS, False)


def _input_of(density: float) -> Call:
    table = product.packed(numbers(_OUTPUTS, _INPUTS), panel(_OUTPUTS))
    used = product.Used(random_bits(_ROWS, _INPUTS, density), density)
    return partial(product.input_gradient, used, table, numbers(_ROWS, _OUTPUTS), _INPUTS)


def _readout_of(rows: int, inputs: int, outputs: int) -> Call:
    return partial(functional.linear, numbers(rows, inputs), numbers(outputs, inputs), numbers(outputs))


_SIZES = _ROWS, _INPUTS, _OUTPUTS
_NARROW = 4096, 72, 8
"""The same of few outputs, which fill no vector."""
_READOUT = 1024, 512, 10
"""Of a dense product of as few, to which torch adds a bias."""
_LISTED = Way("sums, listed", _listed(*_SIZES, 1 / 16), partial(_forward_of, *_SIZES, 1 / 16))
_LOOKED_UP = Way("sums, looked up", _looked_up(*_SIZES), partial(_forward_of, *_SIZES, 1 / 2))
_NARROW_LISTED = Way("narrow sums, listed", _listed(*_NARROW, 1 / 16), partial(_forward_of, *_NARROW, 1 / 16))
_NARROW_LOOKED_UP = Way("narrow sums, looked up", _looked_up(*_NARROW), partial(_forward_of, *_NARROW, 1 / 2))
_WEIGHTS_LISTED = Way("weights, listed", _weights_listed(*_SIZES, 1 / 16), lambda: _weights_of(1 / 16))
_WEIGHTS_LOOKED_UP = Way("weights, looked up", _weights_looked_up(*_SIZES), lambda: _weights_of(1 / 2))
_INPUT = Way("input", _input(*_SIZES, 1 / 4), lambda: _input_of(1 / 4))
_MULTIPLIED = Way(
    "multiplied",
    _dense(*_SIZES),
    lambda: partial(torch.mm, numbers(_ROWS, _INPUTS), numbers(_OUTPUTS, _INPUTS).T),
)
_NARROW_MULTIPLIED = Way(
    "narrow multiplied",
    _dense(*_READOUT),
    lambda: _readout_of(*_READOUT),
)
_BY_ONEDNN = Way(
    "multiplied by oneDNN",
    _dense(*_SIZES),
    lambda: partial(dense.linear, numbers(_ROWS, _INPUTS), numbers(_OUTPUTS, _INPUTS), None),
)
_FAR = 512, 1024
_AFAR = Way(
    "weights from afar",
    NANO * PACKED * _FAR[0] * _FAR[1],
    lambda: partial(product.packed, numbers(*_FAR), panel(_FAR[0])),
)
"""What takes as long as memory beyond the second cache does."""
_SCANNED_NUMBERS = 1 << 19
_SCANNED = Way(
    "scanned",
    NANO * 0.06 * _SCANNED_NUMBERS,
    lambda: partial(bits_of, numbers(_SCANNED_NUMBERS // 1024, 1024)),
)
"""Bits made of so many numbers."""
