"""Stride phases: the input gradient of a strided convolution as one small convolution per phase.

Pixels whose places have the same remainder modulo the stride form an image that the convolution crosses at a
stride of 1.
"""

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from hibana.runtime.kernels import Code, Longs, Value, kernel
from hibana.spikes.convolution.geometry import Geometry
from hibana.spikes.simd.lists import WORD, bits_from, first_bits, put_word, words_of

__all__ = ["StridePhase", "taps", "stride_phases"]

GRAIN = 8
"""Rows of pixels per thread, at least."""


class StridePhase(NamedTuple):
    """Pixels of the input whose coordinates have the same remainders, and the places of the window that meet
    them.
    """

    pixels: tuple[slice, slice]
    places: tuple[slice, slice]
    geometry: Geometry
    """Of the convolution over these pixels, at a stride of 1."""

    def image(self, images: Tensor) -> Tensor:
        """These pixels of ``[N, height, width, channels]``, as a view."""
        return images[:, *self.pixels]

    def weight(self, weight: Tensor) -> Tensor:
        """These places of a weight ``[outputs, channels, kernel height, kernel width]``, as a view."""
        return weight[:, :, *self.places]

    def bits(self, bits: Tensor, whole: Geometry) -> Tensor:
        """The bits of these pixels, of the bits ``[N * height, words]`` of images of geometry `whole`."""
        height, width = self.geometry.image
        images = len(bits) // whole.image[0]
        words = -(-width * whole.channels // WORD)
        out = torch.empty(images * height, words, dtype=torch.int64, device="cpu")
        down, across = self.pixels
        _picked(
            len(out),
            GRAIN,
            bits=bits,
            target=out,
            channels=whole.channels,
            whole_height=whole.image[0],
            whole_width=whole.image[1],
            height=height,
            width=width,
            first_down=down.start,
            first_across=across.start,
            stride_down=down.step,
            stride_across=across.step,
        )
        return out


@lru_cache(maxsize=256)
def stride_phases(geometry: Geometry) -> tuple[StridePhase, ...]:
    """The phases of a convolution that have pixels under some place of the window."""
    down, across = _images(geometry, 0), _images(geometry, 1)
    return tuple(_phase(geometry, one, other) for one in down for other in across)


def taps(geometry: Geometry, direction: int) -> list[tuple[int, int, int]]:
    """Down (0) or across (1): phase, place in the window, offset of the output's pixel."""
    step, padding = geometry.stride[direction], geometry.padding[direction]
    return [
        (phase, place, (phase + padding - place * geometry.dilation[direction]) // step)
        for phase in range(step)
        for place in range(geometry.kernel[direction])
        if (phase + padding - place * geometry.dilation[direction]) % step == 0
    ]


class _Image(NamedTuple):
    """What a :class:`StridePhase` is in one direction."""

    pixels: slice
    places: slice
    size: int
    kernel: int
    padding: int
    dilation: int


def _images(geometry: Geometry, direction: int) -> list[_Image]:
    size, step = geometry.image[direction], geometry.stride[direction]
    found = []
    for first in range(min(step, size)):
        of_first = [each[1:] for each in taps(geometry, direction) if each[0] == first]
        if of_first:
            places, further = zip(*of_first, strict=True)
            gaps = max(1, len(places) - 1)
            every, dilation = (places[-1] - places[0]) // gaps, (further[0] - further[-1]) // gaps
            found.append(
                _Image(
                    slice(first, None, step),
                    slice(places[0], places[-1] + 1, max(1, every)),
                    -(-(size - first) // step),
                    len(places),
                    further[0],
                    max(1, dilation),
                )
            )
    return found


def _phase(whole: Geometry, down: _Image, across: _Image) -> StridePhase:
    sizes = (down.size, across.size), (down.kernel, across.kernel), (1, 1)
    how = (down.padding, across.padding), (down.dilation, across.dilation)
    geometry = Geometry(whole.channels, *sizes, *how, whole.output)
    return StridePhase((down.pixels, across.pixels), (down.places, across.places), geometry)


@kernel
def _picked(
    code: Code,
    begin: Value,
    end: Value,
    *,
    bits: Longs,
    target: Longs,
    channels: Value,
    whole_height: Value,
    whole_width: Value,
    height: Value,
    width: Value,
    first_down: Value,
    first_across: Value,
    stride_down: Value,
    stride_across: Value,
) -> None:
    """The bits of every `stride`-th pixel. One work item is a row of these."""
    given, words = words_of(whole_width * channels), words_of(width * channels)
    with (
        code.scratch((Longs, given + 1), (Longs, words + 1)) as (source, row),
        code.loop(begin, end) as item,
    ):
        source[given] = 0
        line = item // height * whole_height + first_down + item % height * stride_down
        source.copy(bits + given * line, given)
        row.clear(words + 1)
        with code.loop(0, width) as x, code.loop(0, channels, WORD) as channel:
            at = (first_across + x * stride_across) * channels + channel
            there = first_bits(code, (channels - channel).smaller(WORD))
            put_word(row, x * channels + channel, bits_from(source, at) & there)
        (target + words * item).copy(row, words)
