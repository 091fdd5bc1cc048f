"""Batch normalisation, channels last: moments of each channel, and the gradient that goes through them."""

from hibana.native import FLOAT, Code, Floats, Value, kernel

__all__ = ["moments", "through_moments"]

LANES = 64
"""Channels that are gone through at a time."""


@kernel
def moments(
    code: Code,
    begin: Value,
    end: Value,
    *,
    source: Floats,
    counts: Floats,
    means: Floats,
    drifts: Floats,
    squares: Floats,
    channels: Value,
    pixels: Value,
    each: Value,
) -> None:
    """Of blocks of `each` pixels, which are `counts`: about the mean, and the sums of what differs from it.

    Sums of that, which would be zero but for what was rounded, and of its squares.
    """
    with code.loop(begin, end) as block:
        first = block * each
        last = (first + each).smaller(pixels)
        count = counts[block].spread(LANES)
        for channel, there in code.vectors(channels, LANES):
            total = code.variable(0.0, FLOAT.of(LANES))
            with code.loop(first, last) as pixel:
                total.value += (source + (pixel * channels + channel)).load(LANES, there)
            mean = total.value / count
            drift, square = (code.variable(0.0, FLOAT.of(LANES)) for _ in range(2))
            with code.loop(first, last) as pixel:
                apart = (source + (pixel * channels + channel)).load(LANES, there) - mean
                drift.value += apart
                square.value = apart.fused(apart, square.value)
            at = block * channels + channel
            (means + at).store(mean, there)
            (drifts + at).store(drift.value, there)
            (squares + at).store(square.value, there)


@kernel
def through_moments(
    code: Code,
    begin: Value,
    end: Value,
    *,
    gradient: Floats,
    source: Floats,
    slopes: Floats,
    shifts: Floats,
    channels: Value,
    pixels: Value,
    each: Value,
) -> None:
    """Adds ``slope * source + shift``, each one number a channel, to the gradient of blocks of pixels."""
    with code.loop(begin, end) as block:
        last = (block * each + each).smaller(pixels)
        with code.loop(block * each, last) as pixel:
            for channel, there in code.vectors(channels, LANES):
                at = pixel * channels + channel
                slope, shift = ((row + channel).load(LANES, there) for row in (slopes, shifts))
                place = gradient + at
                value = place.load(LANES, there) + shift
                place.store((source + at).load(LANES, there).fused(slope, value), there)
