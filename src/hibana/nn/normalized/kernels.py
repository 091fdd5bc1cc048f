"""Batch normalisation, channels last: moments of each channel, and the gradient that goes through them."""

from hibana.runtime.kernels import (
    DOUBLE,
    FLOAT,
    INT,
    LONG,
    Code,
    Floats,
    Function,
    Longs,
    Pointer,
    Value,
    kernel,
)

__all__ = ["moments", "moments_of_blocks", "moments_of_pieces", "scales", "through_moments"]

VECTOR = 64
"""Channels that are gone through at a time."""
WIDE = 16
"""And in float64."""


@kernel
def moments_of_blocks(
    code: Code,
    begin: Value,
    end: Value,
    *,
    source: Floats,
    means: Floats,
    drifts: Floats,
    squares: Floats,
    channels: Value,
    pixels: Value,
    each: Value,
) -> None:
    """Of blocks of `each` pixels: about the mean, and the sums of what differs from it and of its squares.

    The first of the sums would be zero, but for what was rounded.
    """
    with code.loop(begin, end) as block:
        _of_block(code, block, source, means, drifts, squares, channels, pixels, each)


@kernel
def moments_of_pieces(
    code: Code,
    begin: Value,
    end: Value,
    *,
    producer_args: Longs,
    source: Floats,
    means: Floats,
    drifts: Floats,
    squares: Floats,
    producer: Value,
    several: Value,
    blocks: Value,
    channels: Value,
    pixels: Value,
    each: Value,
) -> None:
    """:func:`moments_of_blocks` of what a producer at an address computes, while it is in the cache.

    One piece of work is one of the producer's, of so many `blocks`; it computes `several` at a time.
    """
    produce = Function.at(Pointer.at(producer), LONG, LONG, Longs)
    with code.loop(begin, end, several) as first:
        last = (first + several).smaller(end)
        produce.do(code, first, last, producer_args)
        with code.loop(first * blocks, last * blocks) as block:
            _of_block(code, block, source, means, drifts, squares, channels, pixels, each)


def _of_block(
    code: Code,
    block: Value,
    source: Pointer,
    means: Pointer,
    drifts: Pointer,
    squares: Pointer,
    channels: Value,
    pixels: Value,
    each: Value,
) -> None:
    first = block * each
    last = (first + each).smaller(pixels)
    count = (last - first).real(FLOAT).spread(VECTOR)
    for channel, there in code.vectors(channels, VECTOR):
        total, drift, square = (code.variable(0.0, FLOAT.of(VECTOR)) for _ in range(3))
        with code.loop(first, last) as pixel:
            total.value += (source + (pixel * channels + channel)).load(VECTOR, there)
        mean = total.value / count
        with code.loop(first, last) as pixel:
            deviation = (source + (pixel * channels + channel)).load(VECTOR, there) - mean
            drift.value += deviation
            square.value = deviation.fused(deviation, square.value)
        at = block * channels + channel
        (means + at).store(mean, there)
        (drifts + at).store(drift.value, there)
        (squares + at).store(square.value, there)


@kernel
def moments(
    code: Code,
    begin: Value,
    end: Value,
    *,
    means: Floats,
    drifts: Floats,
    squares: Floats,
    weight: Floats,
    bias: Floats,
    mean: Floats,
    unbiased: Floats,
    inverse: Floats,
    scale: Floats,
    shift: Floats,
    channels: Value,
    pixels: Value,
    each: Value,
    eps: Value,
) -> None:
    """Mean and variance of all blocks of :func:`moments_of_blocks`, in float64, and what follows from them.

    The variance is given as it is `unbiased`; ``inverse = 1 / sqrt(variance + eps)`` and
    ``scale = inverse * weight`` are of the one that is not, ``shift = bias``. What is not given is left out;
    `eps` is the bits of a float32. One piece of work.
    """
    blocks, all_ = (pixels + each - 1) // each, pixels.real(DOUBLE).spread(WIDE)
    correction = (all_ / (pixels - 1).real(DOUBLE).spread(WIDE)).to(FLOAT)
    added = eps.to(INT).number().spread(WIDE)
    with code.loop(begin, end):
        for channel, there in code.vectors(channels, WIDE):
            centre, spread = (code.variable(0.0, DOUBLE.of(WIDE)) for _ in range(2))
            for second in (False, True):
                with code.loop(0, blocks) as block:
                    count = (pixels - block * each).smaller(each).real(DOUBLE).spread(WIDE)
                    found = (
                        (part + (block * channels + channel)).load(WIDE, there).to(DOUBLE)
                        for part in (means, drifts, squares)
                    )
                    about, drift, square = found
                    exact = about + drift / count
                    if second:
                        deviation = exact - centre.value
                        spread.value += square - drift * drift / count + deviation * deviation * count
                    else:
                        centre.value += exact * count
                if not second:
                    centre.value = centre.value / all_
            variance = (spread.value / all_).to(FLOAT)
            one = _inverse(variance, added)
            factor, term = _given(code, one, weight, bias, channel, there)
            (mean + channel).store(centre.value.to(FLOAT), there)
            (unbiased + channel).store(variance * correction, there)
            (inverse + channel).store(one, there)
            (scale + channel).store(factor, there)
            (shift + channel).store(term, there)


def _inverse(variance: Value, added: Value) -> Value:
    """``1 / sqrt(variance + added)``."""
    return 1.0 / (variance + added).call("sqrt")


def _given(
    code: Code, inverse: Value, weight: Pointer, bias: Pointer, channel: Value, there: Value | None
) -> tuple[Value, Value]:
    """`inverse` times the weight, and the bias, of the channels from one on; without what is not given."""
    factor, term, width = code.variable(inverse), code.variable(0.0, inverse.type), inverse.type.width
    with code.when(weight.given()):
        factor.value *= (weight + channel).load(width, there)
    with code.when(bias.given()):
        term.value = (bias + channel).load(width, there)
    return factor.value, term.value


@kernel
def scales(
    code: Code,
    begin: Value,
    end: Value,
    *,
    mean: Floats,
    variance: Floats,
    weight: Floats,
    bias: Floats,
    inverse: Floats,
    scale: Floats,
    shift: Floats,
    channels: Value,
    eps: Value,
) -> None:
    """``inverse = 1 / sqrt(variance + eps)``, ``scale = inverse * weight``, ``shift = bias - mean * scale``.

    What is not given is left out. `eps` is the bits of a float32. The shift is rounded once, as in torch's
    own kernel. One piece of work.
    """
    added = eps.to(INT).number().spread(VECTOR)
    with code.loop(begin, end):
        for channel, there in code.vectors(channels, VECTOR):
            one = _inverse((variance + channel).load(VECTOR, there), added)
            factor, term = _given(code, one, weight, bias, channel, there)
            (inverse + channel).store(one, there)
            (scale + channel).store(factor, there)
            (shift + channel).store((-(mean + channel).load(VECTOR, there)).fma(factor, term), there)


@kernel
def through_moments(
    code: Code,
    begin: Value,
    end: Value,
    *,
    gradient: Floats,
    source: Floats,
    mean: Floats,
    inverse: Floats,
    scale: Floats,
    of_scale: Floats,
    of_shift: Floats,
    channels: Value,
    pixels: Value,
    each: Value,
) -> None:
    """Adds to the gradient of blocks of `each` pixels what goes through mean and variance.

    -scale * (of_shift + (source - mean) * inverse^2 * of_scale) / pixels
    """
    count = pixels.real(FLOAT).spread(VECTOR)
    with code.scratch((Floats, channels), (Floats, channels)) as (slopes, shifts):
        for channel, there in code.vectors(channels, VECTOR):
            rows = (mean, inverse, scale, of_scale, of_shift)
            about, root, factor, to_scale, to_shift = ((row + channel).load(VECTOR, there) for row in rows)
            share = -factor / count
            slope = share * root * root * to_scale
            (slopes + channel).store(slope, there)
            (shifts + channel).store(share * to_shift - slope * about, there)
        with code.loop(begin * each, (end * each).smaller(pixels)) as pixel:
            for channel, there in code.vectors(channels, VECTOR):
                at = pixel * channels + channel
                slope, shift = ((row + channel).load(VECTOR, there) for row in (slopes, shifts))
                place = gradient + at
                value = place.load(VECTOR, there) + shift
                place.store((source + at).load(VECTOR, there).fused(slope, value), there)
