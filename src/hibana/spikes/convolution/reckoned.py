"""What the products of a convolution should take: those of a linear layer, the windows, and torch's own.

Constants are nanoseconds of one thread, fitted as those of :mod:`hibana.spikes.linear.reckoned`, to 54
convolutions of 8 to 256 channels, kernels 1, 3, 5, strides 1 and 2; what is listed by pixels to 140 others,
and of it what slides to 20 on an Intel Xeon.
"""

from functools import cache, lru_cache, partial
from math import exp

import torch
from torch.nn import functional

from hibana.spikes import cost
from hibana.spikes.convolution import autograd, kernels, pixels, scattered
from hibana.spikes.convolution.dense import channels_last
from hibana.spikes.convolution.geometry import Geometry
from hibana.spikes.convolution.strided import remainders
from hibana.spikes.linear.reckoned import NANO, about, scan
from hibana.spikes.linear.reckoned import forward as sums
from hibana.spikes.linear.reckoned import weights as weights_sums
from hibana.spikes.planes import Planes
from hibana.spikes.simd.rows import LANES, panel, vectors
from hibana.spikes.speeds import YARDSTICK, Call, Way, fixed, numbers, random_bits, speed, waited_for

__all__ = ["costs", "one_by_one"]

CALL = 7e-5
"""Seconds that a convolution by events takes before and after its kernels, more than a linear layer."""
SMALL = 32
"""Pixels of an image that take no longer than to read the weights for it."""
AT_A_STRIDE = 1.2
"""How many times as long as the product forward torch's gradient of the input takes at a stride: the median
of 28 measurements of 16 to 256 channels, kernels 1, 3 and 5 (1.04 to 2.5; 1.01 without a stride)."""


def costs(images: int, outputs: int, geometry: Geometry) -> cost.Costs:
    """Of so many images, to so many channels."""
    return _costs(about(images), outputs, geometry, torch.get_num_threads(), fixed())


@lru_cache(maxsize=256)
def _costs(images: int, outputs: int, geometry: Geometry, threads: int, by_formula: bool) -> cost.Costs:
    sizes = images, outputs, geometry
    family = _family(outputs, geometry)
    dense = _dense(*sizes) * speed(_FORWARD[family])
    learned = _dense(*sizes, 1.1) * speed(_WEIGHTS[family])
    pace = speed(YARDSTICK) * waited_for(threads)
    call = (CALL + cost.OVERHEAD) * pace
    return cost.Costs(
        cost.Product(
            dense,
            cache(partial(_forward, *sizes)),
            call,
            lambda density: _shared(*sizes, density),
        ),
        cost.Product(
            learned,
            cache(partial(_weights, *sizes, threads)),
            call,
        ),
        cost.Product(
            dense if max(geometry.stride) == 1 else AT_A_STRIDE * dense,
            cache(lambda density: _input(*sizes, density) * speed(_INPUT)),
            cost.OVERHEAD * pace,
        ),
        scan(images * geometry.image[0] * geometry.image[1] * geometry.channels),
        cost.APART * pace,
    )


def _forward(images: int, outputs: int, geometry: Geometry, density: float) -> float:
    """Seconds of the sums, from spikes listed for each pixel or for each window."""
    rows, inputs = _sizes(images, geometry)
    if not pixels.pay(geometry, outputs, density):
        return _windows(images, geometry) * speed(_WINDOWS) + sums(rows, inputs, outputs, density)
    return _by_pixels(images, outputs, geometry, density) * speed(_PIXELS)


def _shared(images: int, outputs: int, geometry: Geometry, density: float) -> float:
    """Seconds of the sums that are of several planes at once: each window's is begun and stored once."""
    whole = pixels.whole_windows(geometry, panel(outputs), 1, density)
    if not whole or not pixels.pay(geometry, outputs, density):
        return 0.0
    return NANO * _windows_summed(images, outputs, geometry, density) * speed(_PIXELS)


def _windows_summed(images: int, outputs: int, geometry: Geometry, density: float) -> float:
    """Of whole windows, what is not of a spike."""
    rows, inputs = _sizes(images, geometry)
    wide, panels, _ = _units(outputs, geometry)
    row = panel(outputs)
    copied = 2 if outputs % row.floats else 0
    ended = 6.0 if pixels.slides(geometry, row) else 2.5  # a branch that is mispredicted
    return rows * ((1.4 + ended * min(1, inputs * density / 2)) * panels + 0.26 * wide + copied)


def _by_pixels(images: int, outputs: int, geometry: Geometry, density: float) -> float:
    rows, inputs = _sizes(images, geometry)
    wide, panels, words = _units(outputs, geometry)
    packing, row = 0.45 * inputs * outputs, panel(outputs)
    if pixels.whole_windows(geometry, row, 1, density):
        listed = images * geometry.output[0] * geometry.image[1] * (1.8 + 0.74 * geometry.kernel[0])
        per_row = _windows_summed(images, outputs, geometry, density)
        each = 0.153 * wide if pixels.slides(geometry, row) else 0.11 * panels + 0.163 * wide
        added = rows * inputs * density * each
        return NANO * (14_000 + packing + listed + per_row + added)
    listed = images * geometry.image[0] * geometry.image[1] * 1.2 * words
    per_row = rows * (0.24 * wide + 3.6 * geometry.kernel[0] * words * panels) + listed
    added = rows * inputs * density * (0.05 + 0.175 * wide)
    return NANO * (14_000 + packing + per_row + added)


def _weights(images: int, outputs: int, geometry: Geometry, threads: int, density: float) -> float:
    """:func:`_forward` for the weights' gradient, of which few sums keep few threads busy."""
    rows, inputs = _sizes(images, geometry)
    if not pixels.pay_for_weights(geometry, density):
        windows = _windows(images, geometry) * speed(_WINDOWS)
        return windows + weights_sums(rows, inputs, outputs, threads, density)
    idle = threads / min(threads, pixels.parts(rows, outputs, 1, geometry, threads).number)
    return _weights_by_pixels(images, outputs, geometry, density) * speed(_PIXELS_WEIGHTS) * idle


def _weights_by_pixels(images: int, outputs: int, geometry: Geometry, density: float) -> float:
    rows, inputs = _sizes(images, geometry)
    wide, panels, words = _units(outputs, geometry)
    blocks = -(-rows // (pixels.near(density) // panel(outputs).floats))
    per_row = rows * (1.8 * wide + 2.3 * words)
    summed = blocks * inputs * (4.9 * panels + 0.73 * wide)
    added = rows * inputs * density * (0.12 + 0.16 * wide)
    written = 0.2 * inputs * outputs
    return NANO * (19_000 + written + per_row + summed + added)


def _sizes(images: int, geometry: Geometry) -> tuple[int, int]:
    """Output pixels, and inputs under the window of one."""
    rows = images * geometry.output[0] * geometry.output[1]
    return rows, geometry.channels * geometry.kernel[0] * geometry.kernel[1]


def _units(outputs: int, geometry: Geometry) -> tuple[int, int, int]:
    """Vectors and panels of a row of outputs, and words of a pixel."""
    row = panel(outputs)
    panels = -(-outputs // row.floats)
    return panels * row.vectors, panels, -(-geometry.channels // 64)


def one_by_one(
    steps: int, rows: int, inputs: int, outputs: int, longest: int, taps: int, density: float, learning: bool
) -> float:
    """Seconds of an addition for each spike, synapse and tap, later by up to `longest` steps.

    Fitted to 48 sizes, to a fifth: 64 to 700 inputs, 64 to 512 outputs, 1 to 20% spiking.
    """
    sizes = steps, rows, inputs, outputs, longest, taps, density
    added = _added(*sizes) + learning * _added_to_weights(*sizes)
    alone = cost.OVERHEAD * speed(YARDSTICK) * waited_for(torch.get_num_threads())
    return added * speed(_ONE_BY_ONE) + alone


def _added(
    steps: int, rows: int, inputs: int, outputs: int, longest: int, taps: int, density: float
) -> float:
    spikes = steps * rows * inputs * density
    written = 0.6 * (steps + longest) * rows
    return NANO * outputs * (written + 0.41 * spikes + 3.2 * inputs * taps)


def _added_to_weights(
    steps: int, rows: int, inputs: int, outputs: int, longest: int, taps: int, density: float
) -> float:
    spikes = steps * rows * inputs * density
    read = 0.22 * (steps + longest) * rows
    return NANO * outputs * (read + 0.41 * spikes + 2.3 * inputs * taps)


def _windows(images: int, geometry: Geometry) -> float:
    rows = images * geometry.output[0] * geometry.output[1]
    down, across = geometry.kernel
    words = -(-geometry.channels * down * across // 64)
    pieces = down if geometry.dilation[1] == 1 else down * across
    return NANO * (10_000 + rows * (0.8 * pieces + 1.4 * words))


def _dense(images: int, outputs: int, geometry: Geometry, factor: float = 1.0) -> float:
    """Of torch's convolution, or `factor` times as many multiplications."""
    lanes = -(-outputs // LANES) * LANES
    rows = images * geometry.output[0] * geometry.output[1]
    pixels = images * geometry.image[0] * geometry.image[1]
    inputs = geometry.channels * geometry.kernel[0] * geometry.kernel[1]
    touched = 4 * (pixels * geometry.channels + rows * outputs)
    strided = 1.0 if max(geometry.stride) == 1 else 1.2 if outputs >= LANES else 0.85
    byte = 0.012 if geometry.kernel == (1, 1) and factor == 1 else 0.027
    weights = 0.0
    if geometry.kernel != (1, 1):  # they are put in another order, and read for each image
        weights = inputs * outputs * (0.5 + 0.04 * images * (1 < rows // images < SMALL))
    return NANO * (15_000 + 0.009 * factor * strided * rows * inputs * lanes + byte * touched + weights)


def _input(images: int, outputs: int, geometry: Geometry, density: float) -> float:
    """Where bits of the support are set, at a stride for each remainder of the pixels by it."""
    if geometry.stride == (1, 1):
        return _input_close(images, outputs, geometry, density)
    pixels_ = images * geometry.image[0] * geometry.image[1]
    cleared = NANO * pixels_ * (0.03 * geometry.channels + 2.5 * -(-geometry.channels // 64))
    parts = remainders(geometry)
    return cleared + sum(_input_close(images, outputs, part.geometry, density) for part in parts)


def _input_close(images: int, outputs: int, geometry: Geometry, density: float) -> float:
    """At a stride of 1: what is brought near for tiles, and sums of products."""
    row = vectors(outputs)
    panels = -(-outputs // (row * LANES))
    together, deep, wide = geometry.tile(kernels.TILE)
    pixels = images * geometry.image[0] * geometry.image[1]
    each = together * deep * wide
    tiles = pixels / each
    near = (
        together * (deep + geometry.kernel[0] - 1) * (wide + (geometry.kernel[1] - 1) * geometry.dilation[1])
    )
    floats = tiles * near * panels * row * LANES + pixels * geometry.channels
    products = geometry.kernel[0] * geometry.kernel[1] * row
    lists = tiles * geometry.channels * panels
    some = 1 - exp(-each * density)  # of the lists are not empty, and filled up to fours
    found = lists * (each * density + 2 * some)
    listed = lists * some * (3 + 0.66 * products)
    return NANO * (12_000 + 0.087 * floats + listed + found * (1 + 0.165 * products))


def _square(channels: int, kernel: int, side: int, images: int, stride: int = 1) -> tuple[int, int, Geometry]:
    """Images, outputs, and a geometry that keeps the number of channels, of `side` pixels each way."""
    sizes = (side, side), (kernel, kernel), (stride, stride), (kernel // 2, kernel // 2), (1, 1)
    return images, channels, Geometry(channels, *sizes)


_FAMILIES = {
    "narrow": _square(8, 3, 32, 8),
    "of one pixel": _square(32, 1, 16, 32),
    "strided": _square(32, 3, 32, 8, 2),
    "wide": _square(32, 3, 16, 16),
}
"""What is measured, of each kind that torch computes its own way."""
_WIDE = _square(64, 3, 16, 16)
"""And by events: of so many channels that a call takes little beside its kernels."""


def _family(outputs: int, geometry: Geometry) -> str:
    if outputs < LANES:
        return "narrow"
    if geometry.kernel == (1, 1):
        return "of one pixel"
    return "wide" if max(geometry.stride) == 1 else "strided"


def _torchs(family: str, weights: bool) -> Call:
    images, channels, geometry = _FAMILIES[family]
    shape = images, channels, *geometry.image
    last = channels_last(numbers(*shape))
    out = channels_last(numbers(images, channels, *geometry.output))
    weight = numbers(channels, channels, *geometry.kernel)
    how = geometry.stride, geometry.padding, geometry.dilation
    if not weights:
        return partial(functional.conv2d, last, weight, None, *how)
    given = out, last, weight, None, *how, False, [0, 0], 1, [False, True, False]
    return partial(torch.ops.aten.convolution_backward, *given)


def _windows_of() -> Call:
    images, channels, geometry = _WIDE
    bits = random_bits(images * geometry.image[0], geometry.image[1] * channels, 1 / 4)
    return partial(autograd.windows_of, bits[None], geometry)


def _input_of() -> Call:
    images, channels, geometry = _WIDE
    bits = random_bits(images * geometry.image[0], geometry.image[1] * channels, 1 / 4)
    rows = numbers(images * geometry.image[0] * geometry.image[1], channels)
    return partial(autograd.input_gradient, bits, numbers(channels, channels, 3, 3), rows, geometry)


def _planes() -> tuple[Planes, Geometry]:
    images, channels, geometry = _WIDE
    bits = random_bits(images * geometry.image[0], geometry.image[1] * channels, _FEW)
    return Planes(bits[None], _FEW), geometry


def _by_pixels_of() -> Call:
    planes, geometry = _planes()
    return partial(
        pixels.forward, planes, numbers(geometry.channels, geometry.channels, 3, 3), None, geometry
    )


def _weights_by_pixels_of() -> Call:
    planes, geometry = _planes()
    rows = numbers(_sizes(_WIDE[0], geometry)[0], geometry.channels)
    return partial(pixels.weight_gradient, planes, rows, geometry)


_FORWARD = {
    family: Way(f"convolution, {family}", _dense(*_FAMILIES[family]), partial(_torchs, family, False))
    for family in _FAMILIES
}
_WEIGHTS = {
    family: Way(f"its weights, {family}", _dense(*_FAMILIES[family], 1.1), partial(_torchs, family, True))
    for family in _FAMILIES
}
_WINDOWS = Way("windows", _windows(_WIDE[0], _WIDE[2]), _windows_of)
_INPUT = Way("input of windows", _input(*_WIDE, 1 / 4), _input_of)
_FEW = 1 / 8
_PIXELS = Way("pixels", _by_pixels(*_WIDE, _FEW), _by_pixels_of)
_PIXELS_WEIGHTS = Way("pixels' weights", _weights_by_pixels(*_WIDE, _FEW), _weights_by_pixels_of)
_DELAYED = 40, 32, 128, 64, 8, 1, 1 / 16


def _one_by_one_of() -> Call:
    steps, rows, inputs, outputs, longest, taps, density = _DELAYED
    lags = (torch.arange(outputs * inputs, dtype=torch.int64, device="cpu") * 5 % longest).view(
        outputs, inputs
    )
    bits = random_bits(steps * rows, inputs, density)
    return partial(scattered.scattered, bits, numbers(taps, outputs, inputs), lags, None, steps, 0)


_ONE_BY_ONE = Way("one by one", _added(*_DELAYED), _one_by_one_of)
