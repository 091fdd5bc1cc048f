"""Layers without a state of neurons in a native step: sums of weight rows, pooling, and element-wise sums.

As in the program in C, sums are taken over inputs in the order in which they lie, the bias last; images that
a convolution gives lie channels last.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from hibana.network.graph import Node
from hibana.network.native.emitter import Emitter, Held, parts_of, spread
from hibana.network.sliding import channels_last, image_of, sliding_of
from hibana.runtime.kernels import Bytes, Pointer, Value

__all__ = ["average", "bias_of", "convolution", "linear", "maximum", "place_of", "scale", "total"]


def linear(emitter: Emitter, node: Node) -> Held:
    """``W x + b``."""
    read = emitter.held[node.inputs[0]]
    packed = emitter.packed[node] = emitter.pack(*node.layer.weights(node, read.places))
    out = emitter.temporary(node.size)
    emitter.add_rows(read, packed, out)
    return Held(node, torch.arange(node.size, dtype=torch.int64, device="cpu"), out)


def bias_of(emitter: Emitter, bias: Tensor | None) -> Pointer | None:
    """Where a bias lies, if there is one."""
    return None if bias is None else emitter.constant(bias)


def convolution(emitter: Emitter, node: Node) -> Held:
    """A convolution: each input that is not zero adds its weights to the pixels that see it."""
    code, module, window = emitter.code, _module(node), sliding_of(node)
    read, last = emitter.image(emitter.held[node.inputs[0]], node.seen[0])
    weights, bias = node.layer.weights(node, read.places)
    rows, added = emitter.constant(weights), bias_of(emitter, bias)
    outputs, _, width = image_of(node.shape)
    of_group, inner = outputs // module.groups, module.in_channels // module.groups
    kernel_height, kernel_width = window.kernel
    out = emitter.temporary(node.size)
    out.clear(node.size)
    with emitter.each_active(read) as (i, x):
        channel, row, column = place_of(i, node.seen[0], last)
        group = channel // inner * of_group if module.groups > 1 else 0
        of_channel = rows + channel * (kernel_height * kernel_width * of_group)
        with code.loop(0, kernel_height) as ky:
            y = row + window.padding[0] - ky * window.dilation[0]
            with _output(emitter, y, window.stride[0], window.outputs[0]) as oy:
                of_row = of_channel + ky * (kernel_width * of_group)
                pixels = out + (oy * (width * outputs) + group)
                with code.loop(0, kernel_width) as kx:
                    at = column + window.padding[1] - kx * window.dilation[1]
                    with _output(emitter, at, window.stride[1], window.outputs[1]) as ox:
                        emitter.accumulate(pixels + ox * outputs, of_row + kx * of_group, of_group, x)
    if added is not None:
        _add_bias(emitter, out, added, node.size, outputs)
    return Held(node, channels_last(node.shape), out)


def maximum(emitter: Emitter, node: Node) -> Held:
    """The largest number under each window; of spikes as bits, whether any is under it."""
    source = emitter.held[node.inputs[0]]
    read, last = emitter.image(source, node.seen[0])
    channels = image_of(node.seen[0])[0]
    if read.bits is not None and last and channels % 8 == 0:
        return _any(emitter, node, read, channels // 8)
    lowest = emitter.code.constant(-torch.inf, emitter.number.element)

    def larger(found: Value, there: Value) -> Value:
        return ((there > found) | there.differs(there)).select(there, found)

    held = _pooled(emitter, node, read, last, lowest, larger, lambda found, _: found)
    held.truths = source.truths
    return held


def average(emitter: Emitter, node: Node) -> Held:
    """The mean under each window, divided as torch does."""
    module, window = _module(node), sliding_of(node)
    read, last = emitter.image(emitter.held[node.inputs[0]], node.seen[0])
    divisor = getattr(module, "divisor_override", None)
    area = divisor or window.kernel[0] * window.kernel[1]
    counted = not (divisor or module.count_include_pad) and any(window.padding)
    element = emitter.number.element

    def divided(found: Value, count: Value) -> Value:
        by = count.real(element) if counted else emitter.code.constant(area, element)
        return found / spread(by, found.type.width)

    zero = emitter.code.constant(0, element)
    return _pooled(emitter, node, read, last, zero, lambda found, there: found + there, divided)


def total(emitter: Emitter, node: Node) -> Held:
    """The sum of two values."""
    one, two = (emitter.held[source] for source in node.inputs)
    two = emitter.ordered(two, one.places)
    left, right = emitter.numbers(one), emitter.numbers(two)
    out = emitter.temporary(node.size)
    for at, vector_width in emitter.vectors(node.size):
        (out + at).store((left + at).load(vector_width) + (right + at).load(vector_width))
    return Held(node, one.places, out)


def scale(emitter: Emitter, node: Node) -> Held:
    """A value times a number."""
    read = emitter.held[node.inputs[0]]
    numbers, out = emitter.numbers(read), emitter.temporary(node.size)
    factor = emitter.constant(torch.tensor([node.factor], dtype=torch.float64, device="cpu"))[0]
    for at, vector_width in emitter.vectors(node.size):
        (out + at).store((numbers + at).load(vector_width) * spread(factor, vector_width))
    return Held(node, read.places, out)


def place_of(i: Value, shape: tuple[int, ...], last: bool) -> tuple[Value, Value, Value]:
    """Channel, row and column of place `i` of an image, channels `last` or first."""
    channels, height, width = image_of(shape)
    if last:
        pixel = i // channels
        return i % channels, pixel // width, pixel % width
    return i // (height * width), i // width % height, i % width


@contextmanager
def _output(emitter: Emitter, offset: Value, stride: int, outputs: int) -> Iterator[Value]:
    """Code for where an offset from the first tap is that of an output, which is yielded."""
    at = offset if stride == 1 else offset // stride
    inside = (offset >= 0) & (at < outputs)
    with emitter.code.when(inside if stride == 1 else inside & (offset % stride).equals(0)):
        yield at


def _add_bias(emitter: Emitter, out: Pointer, bias: Pointer, size: int, channels: int) -> None:
    """Adds a number for each channel to an image, channels last."""
    with emitter.code.loop(0, size, channels) as pixel:
        emitter.accumulate(out + pixel, bias, channels, None)


def _any(emitter: Emitter, node: Node, read: Held, octets: int) -> Held:
    """Max pooling of spikes as bits, of which a pixel has whole bytes."""
    assert read.bits is not None
    window, width = sliding_of(node), image_of(node.shape)[2]
    out = emitter.temporary(-(-node.size // 64) * 8, Bytes).of(Bytes)
    out.clear(-(-node.size // 64) * 8)
    pixels = read.bits
    with _windows(emitter, node) as (oy, ox, taps):
        totals = [(at, n, emitter.code.variable(0, Bytes.element.of(n))) for at, n in parts_of(octets)]
        with taps() as (y, x):
            pixel = pixels + (y * window.image[1] + x) * octets
            for at, vector_width, found in totals:
                found.value = found.value | (pixel + at).load(vector_width)
        for at, _, found in totals:
            (out + ((oy * width + ox) * octets + at)).store(found.value)
    return Held(node, channels_last(node.shape), bits=out, truths=True)


def _pooled(
    emitter: Emitter, node: Node, read: Held, last: bool, first: Value, folded: Any, result: Any
) -> Held:
    """What is folded over each window, starting with `first`, from the numbers under it."""
    code, window = emitter.code, sliding_of(node)
    channels, height, width = image_of(node.shape)
    numbers, out = emitter.numbers(read), emitter.temporary(node.size)
    image = window.image[0] * window.image[1]

    def channel(source: Pointer, target: Pointer, stride: int, parts: list[tuple[int, int]]) -> None:
        with _windows(emitter, node) as (oy, ox, taps):
            totals = [(at, n, code.variable(spread(first, n))) for at, n in parts]
            count = code.variable(0)
            with taps() as (y, x):
                pixel = source + (y * window.image[1] + x) * stride
                for at, vector_width, found in totals:
                    found.value = folded(found.value, (pixel + at).load(vector_width))
                count.value = count.value + 1
            for at, _, found in totals:
                (target + ((oy * width + ox) * stride + at)).store(result(found.value, count.value))

    if last:
        channel(numbers, out, channels, parts_of(channels))
        return Held(node, channels_last(node.shape), out)
    with code.loop(0, channels) as c:
        channel(numbers + c * image, out + c * (height * width), 1, [(0, 1)])
    return Held(node, torch.arange(node.size, dtype=torch.int64, device="cpu"), out)


@contextmanager
def _windows(emitter: Emitter, node: Node) -> Iterator[tuple[Value, Value, Any]]:
    """A loop over the output pixels of `node`, and for each a loop over the pixels under its window."""
    code, window = emitter.code, sliding_of(node)
    with code.loop(0, window.outputs[0]) as oy, code.loop(0, window.outputs[1]) as ox:

        @contextmanager
        def taps() -> Iterator[tuple[Value, Value]]:
            ranges = []
            for axis, at in ((0, oy), (1, ox)):
                begin = at * window.stride[axis] - window.padding[axis]
                end = (begin + window.kernel[axis]).smaller(code.constant(window.image[axis]))
                ranges.append((begin.larger(code.constant(0)), end))
            with code.loop(*ranges[0]) as y, code.loop(*ranges[1]) as x:
                yield y, x

        yield oy, ox, taps


def _module(node: Node) -> Any:
    return node.module
