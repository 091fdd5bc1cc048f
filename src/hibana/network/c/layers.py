"""The layers without state in C: a row of weights added per number that is not zero; pooling; sums.

Each takes what it reads as a :class:`~hibana.network.c.memory.Held` and writes an array of numbers, images
channels last. Sums are taken in the order that the numbers lie in, the bias added in the end.
"""

from collections.abc import Sequence
from typing import Any

from hibana.network.c.memory import Held
from hibana.network.c.rows import Active, Rows
from hibana.network.c.text import block, each
from hibana.network.graph import Node
from hibana.network.sliding import Sliding, image_of, sliding_of

__all__ = [
    "active",
    "added_up",
    "average",
    "convolution",
    "events",
    "linear",
    "maximum",
    "numbers",
    "scaled",
]


def active(held: Held, real: str) -> Active:
    """Over what a layer reads."""
    if held.spikes:
        head = f"for (size_t k = 0; k < {held.count}; k++)"
        return Active(head, (f"const size_t i = {held.spikes}[k];",), False, held.spikes, held.count)
    return numbers(held.numbers, held.node.size, real)


def numbers(array: str, size: int, real: str) -> Active:
    """Over an array of numbers."""
    begins = (f"const {real} x = {array}[i];", "if (x == 0)", "    continue;")
    return Active(f"for (size_t i = 0; i < {size}; i++)", begins, True, array, str(size), real)


def events(size: int) -> Active:
    """Over a list of places, of which those that are none are left out."""
    begins = ("const size_t i = events[k];", f"if (i >= {size})", "    continue;")
    return Active("for (size_t k = 0; k < count; k++)", begins, False)


def linear(rows: Rows, over: Active, bias: str) -> list[str]:
    """A linear layer."""
    if bias and rows.whole:
        return [*each("o", rows.size, [f"{rows.out}[o] = {bias}[o];"]), *rows.lines(over)]
    lines = [*each("o", rows.size, [f"{rows.out}[o] = 0;"]), *rows.lines(over)]
    return lines + (each("o", rows.size, [f"{rows.out}[o] += {bias}[o];"]) if bias else [])


def convolution(
    node: Node, held: Held, over: Active, out: str, weights: str, bias: str, real: str
) -> list[str]:
    """A convolution, into the array `out`."""
    lines = each("o", node.size, [f"{out}[o] = 0;"])
    times = "x * " if over.valued else ""
    module: Any = node.module
    outputs, _, width = image_of(node.shape)
    window = sliding_of(node)
    of_group = outputs // module.groups
    group = f"c / {module.in_channels // module.groups}" if module.groups > 1 else "0"
    to = f"pixels[{_output('ty', window.stride[0])}][{_output('tx', window.stride[1])}][{group}][o]"
    added = each("o", of_group, [f"{to} += {times}{weights}[c][ky][kx][o];"])
    sides = f"[{width}][{module.groups}][{of_group}]"
    lines.append(f"{real} (*const pixels){sides} = ({real} (*){sides}){out};")
    lines += block(over.head, [*over.begins, *_place(held, node), *_taps(window, added)])
    if bias:
        inside = each("o", outputs, [f"{out}[p + o] += {bias}[o];"])
        lines += block(f"for (size_t p = 0; p < {node.size}; p += {outputs})", inside)
    return lines


def maximum(node: Node, held: Held, out: str, kind: str, lowest: str) -> list[str]:
    """The largest number under each window of `node`; of spikes, whether any is under it."""
    window = sliding_of(node)
    if held.spikes:
        view, pixel = _view(held, node, node.shape, out, "uint8_t", "pixels")
        to = pixel(_output("ty", window.stride[0]), _output("tx", window.stride[1]))
        over = active(held, kind)
        begin = each("o", node.size, [f"{out}[o] = 0;"])
        return [
            *begin,
            view,
            *block(over.head, [*over.begins, *_place(held, node), *_taps(window, [f"{to} = 1;"])]),
        ]
    found = ["if (found < there)", "    found = there;"]
    return _windows(node, held, out, kind, window, f"{kind} found = {lowest};", found, "found")


def average(node: Node, held: Held, out: str, kind: str) -> list[str]:
    """The mean under each window of `node`, as torch divides it."""
    module: Any = node.module
    window = sliding_of(node)
    area = getattr(module, "divisor_override", None) or window.kernel[0] * window.kernel[1]
    counted = not (getattr(module, "divisor_override", None) or module.count_include_pad) and any(
        window.padding
    )
    by = f"({kind})counted" if counted else f"({kind}){area}"
    given = "found" if area == 1 and not counted else f"found / {by}"
    begins = f"{kind} found = 0;" + (" int counted = 0;" if counted else "")
    return _windows(
        node,
        held,
        out,
        kind,
        window,
        begins,
        ["found += there;", *(["counted++;"] if counted else [])],
        given,
    )


def added_up(node: Node, one: Held, two: Held, out: str, kind: str) -> list[str]:
    """The sum of two values."""
    return each("o", node.size, [f"{out}[o] = {_read(one, 'o', kind)} + {_read(two, 'o', kind)};"])


def scaled(node: Node, held: Held, out: str, kind: str, factor: str) -> list[str]:
    """A value times a number."""
    return each("o", node.size, [f"{out}[o] = {_read(held, 'o', kind)} * {factor};"])


def _read(held: Held, place: str, kind: str) -> str:
    """The number at a place."""
    return f"({kind}){held.numbers}[{place}]" if held.kind != kind else f"{held.numbers}[{place}]"


def _output(offset: str, stride: int) -> str:
    """The output that an offset from the first tap belongs to."""
    return offset if stride == 1 else f"{offset} / {stride}"


def _place(held: Held, node: Node) -> list[str]:
    """Channel, row and column of place ``i`` of an image."""
    (seen,) = node.seen
    channels, height, width = image_of(seen)
    if held.channels_last(seen):
        c, row, column = f"i % {channels}", f"i / {channels * width}", f"i / {channels} % {width}"
    else:
        c, row, column = f"i / {height * width}", f"i / {width} % {height}", f"i % {width}"
    return [f"const size_t c = {c};", f"const int row = (int)({row}), column = (int)({column});"]


def _taps(window: Sliding, inside: list[str]) -> list[str]:
    """`inside` for each tap ``ky, kx`` and offset ``ty, tx`` at which a pixel at `row`, `column` is seen."""

    def along(offset: str, index: str, begin: str, axis: int, lines: list[str]) -> list[str]:
        step, padding = window.stride[axis], window.padding[axis]
        between = f" || {offset} % {step} != 0" if step > 1 else ""
        outside = f"{offset} < 0{between} || {_output(offset, step)} >= {window.outputs[axis]}"
        loop = (
            f"for (size_t {index} = 0; {index} < {window.kernel[axis]}; "
            f"{index}++, {offset} -= {window.dilation[axis]})"
        )
        start = f"int {offset} = {begin} + {padding};" if padding else f"int {offset} = {begin};"
        return [start, *block(loop, [f"if ({outside})", "    continue;", *lines])]

    return along("ty", "ky", "row", 0, along("tx", "kx", "column", 1, inside))


def _view(held: Held, node: Node, shape: Sequence[int], name: str, kind: str, view: str) -> tuple[str, Any]:
    """An array as an image that lies as that which `node` reads, and the number at a row and column of it."""
    channels, height, width = image_of(shape)
    last = held.channels_last(node.seen[0])
    sides = f"[{width}][{channels}]" if last else f"[{height}][{width}]"
    const = "const " if view == "image" else ""
    declared = f"{const}{kind} (*const {view}){sides} = ({const}{kind} (*){sides}){name};"
    return declared, lambda y, x: f"{view}[{y}][{x}][c]" if last else f"{view}[c][{y}][{x}]"


def _windows(
    node: Node, held: Held, out: str, kind: str, window: Sliding, begins: str, found: list[str], given: str
) -> list[str]:
    """For each output pixel, what is found over the pixels ``there`` under its window."""
    (seen,) = node.seen
    read, pixel = _view(held, node, seen, held.numbers, held.kind, "image")
    written, to = _view(held, node, node.shape, out, kind, "pixels")
    there = f"const {kind} there = ({kind}){pixel('y', 'x')};"

    def along(at: str, index: str, begin: str, axis: int, lines: list[str]) -> list[str]:
        loop = f"for (int {index} = 0, {at} = {begin}; {index} < {window.kernel[axis]}; {index}++, {at}++)"
        outside = f"if ({at} < 0 || {at} >= {window.image[axis]})"
        return block(loop, [*([outside, "    continue;"] if _leaves(window, axis) else []), *lines])

    taps = along("y", "ky", "top", 0, along("x", "kx", "left", 1, [there, *found]))
    pixels = [begins, *taps, f"{to('oy', 'ox')} = {given};"]
    for index, start, axis in (("ox", "left", 1), ("oy", "top", 0)):
        step = f"{index}++, {start} += {window.stride[axis]}"
        begin = f"int {index} = 0, {start} = {-window.padding[axis]}"
        pixels = block(f"for ({begin}; {index} < {window.outputs[axis]}; {step})", pixels)
    return [read, written, *each("c", image_of(seen)[0], pixels)]


def _leaves(window: Sliding, axis: int) -> bool:
    """Whether a window may reach beyond the image."""
    last = (window.outputs[axis] - 1) * window.stride[axis] - window.padding[axis] + window.kernel[axis]
    return window.padding[axis] > 0 or last > window.image[axis]
