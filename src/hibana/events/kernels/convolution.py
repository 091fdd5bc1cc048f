"""A convolution of spikes as the product of :mod:`hibana.events.kernels.linear`: the bits under its window.

Images lie channels last, ``[images, height, width, channels]``, a row of pixels as one row of bits.
Source text for :mod:`hibana.native`, after :mod:`hibana.events.kernels.lanes`.
"""

from hibana.events.kernels.lanes import (
    PANEL,
    ROW,
    SLACK,
    add_scaled_rows,
    allocated,
    copied,
    dots,
    fired_64,
    freed,
    listed,
    values_together,
    whole_lines,
    word_at,
    word_put,
    zeroed,
)
from hibana.native.vocabulary import floats_at, function, int32s_at, ints_at, kernel, np, places_at, words_at

NEAR = 1 << 15
"""Bytes of a table that the nearest cache holds."""


@function
def bits_from(at, position):
    """64 bits from bit `position` on of the words at address `at`; one word more than they fill is read."""
    word, shift = at + 8 * (position >> 6), np.uint64(position & 63)
    return (word_at(word) >> shift) | ((word_at(word + 8) << (np.uint64(63) - shift)) << np.uint64(1))


@function
def mask_of(count):
    """A mask of the first `count` bits, 1 to 64."""
    return ~np.uint64(0) >> np.uint64(64 - count)


@function
def bits_put(at, position, source, begin, count):
    """`count` bits at `source` from `begin` on, to where there are zeros at `at` from `position` on."""
    for done in range(0, count, 64):
        bits = bits_from(source, begin + done) & mask_of(min(64, count - done))
        word, shift = at + 8 * ((position + done) >> 6), np.uint64((position + done) & 63)
        word_put(word, word_at(word) | (bits << shift))
        word_put(word + 8, word_at(word + 8) | ((bits >> np.uint64(1)) >> (np.uint64(63) - shift)))


@kernel
def windows(begin, end, args):
    """For each output pixel the bits under its window, ``[kernel height][kernel width][channels]``.

    One piece of work is a row of output pixels.
    """
    bits, target, channels, height, width = args[0], args[1], args[2], args[3], args[4]
    kernel_height, kernel_width, stride_down, stride_across = args[5], args[6], args[7], args[8]
    padding_down, padding_across, dilation_down, dilation_across = args[9], args[10], args[11], args[12]
    out_height, out_width = args[13], args[14]
    words = (width * channels + 63) // 64
    pitch = 8 * (((width + 2 * padding_across) * channels + 63) // 64 + 2)
    window = (kernel_height * kernel_width * channels + 63) // 64
    rows = allocated(kernel_height * pitch + 8 * (words + 1))
    row = rows + kernel_height * pitch
    wide = kernel_width * channels
    in_a_word = window == 1 and dilation_across == 1
    pieces, piece = (1, wide) if dilation_across == 1 else (kernel_width, channels)
    zeroed(words_at(row, words + 1))
    for item in range(begin, end):
        image, y = item // out_height, item % out_height
        zeroed(words_at(rows, kernel_height * pitch // 8))
        for i in range(kernel_height):
            above = y * stride_down - padding_down + i * dilation_down
            if 0 <= above < height:
                copied(words_at(row, words), words_at(bits + 8 * words * (image * height + above), words))
                bits_put(rows + pitch * i, padding_across * channels, row, 0, width * channels)
        target_at = target + 8 * window * item * out_width
        if in_a_word:
            for x in range(out_width):
                under = np.uint64(0)
                for i in range(kernel_height):
                    here = bits_from(rows + pitch * i, x * stride_across * channels) & mask_of(wide)
                    under |= here << np.uint64(i * wide)
                word_put(target_at + 8 * x, under)
            continue
        at = target_at
        for x in range(out_width):
            begun, filled = np.uint64(0), 0
            for i in range(kernel_height):
                for j in range(pieces):
                    source = (x * stride_across + j * dilation_across) * channels
                    for done in range(0, piece, 64):
                        count = min(64, piece - done)
                        bits_here = bits_from(rows + pitch * i, source + done) & mask_of(count)
                        begun |= bits_here << np.uint64(filled)
                        if filled + count >= 64:
                            word_put(at, begun)
                            at += 8
                            begun = (bits_here >> np.uint64(1)) >> np.uint64(63 - filled)
                            filled -= 64
                        filled += count
            if filled:
                word_put(at, begun)
                at += 8
    freed(rows)


@kernel
def input_gradient(begin, end, args):
    """The input's gradient at stride 1, computed where the support's bits are set and zero elsewhere.

    One piece of work is a row of input pixels; the table holds, for each channel of the input, its weights
    ``[kernel height][kernel width][outputs]``, the outputs padded with zeros to panels.
    """
    bits, table, gradient, target = args[0], args[1], args[2], args[3]
    channels, height, width, outputs = args[4], args[5], args[6], args[7]
    kernel_height, kernel_width, padding_down, padding_across = args[8], args[9], args[10], args[11]
    dilation_down, dilation_across, out_height, out_width = args[12], args[13], args[14], args[15]
    words, table_words = (width * channels + 63) // 64, (channels + 63) // 64
    across_outputs = (outputs + PANEL - 1) // PANEL
    taps = kernel_height * kernel_width
    pieces = taps * across_outputs
    copies = ROW * across_outputs * (taps if outputs % PANEL else 0)
    nothing = allocated(
        ROW * across_outputs + copies + 8 * pieces + 2 * (64 * table_words + SLACK) + 8 * (words + 9)
    )
    near = nothing + ROW * across_outputs
    places_of = near + copies
    index_at = places_of + 8 * pieces
    row_at = index_at + whole_lines(2 * (64 * table_words + SLACK))
    places = ints_at(places_of, pieces)
    index = places_at(index_at, 64 * table_words + SLACK)
    zeroed(floats_at(nothing, PANEL * across_outputs + copies // 4))
    zeroed(words_at(row_at, words + 1))
    for item in range(begin, end):
        image, y = item // height, item % height
        zeroed(floats_at(target + 4 * item * width * channels, width * channels))
        copied(words_at(row_at, words), words_at(bits + 8 * words * item, words))
        for x in range(width):
            n = 0
            for base in range(0, channels, 64):
                here = bits_from(row_at, x * channels + base) & mask_of(min(64, channels - base))
                if here:
                    n = listed(here, base, index, n)
            if n == 0:
                continue
            for i in range(kernel_height):
                down = y + padding_down - i * dilation_down
                for j in range(kernel_width):
                    across = x + padding_across - j * dilation_across
                    tap = i * kernel_width + j
                    at = nothing
                    if 0 <= down < out_height and 0 <= across < out_width:
                        at = gradient + 4 * outputs * ((image * out_height + down) * out_width + across)
                        if copies:
                            copy = near + ROW * across_outputs * tap
                            copied(floats_at(copy, outputs), floats_at(at, outputs))
                            at = copy
                    for piece in range(across_outputs):
                        places[tap * across_outputs + piece] = at + ROW * piece
            out = target + 4 * (item * width + x) * channels
            dots(out, 4, places_of, table, pieces, ROW * 64 * table_words, index, n)
    freed(nothing)


@function
def values_listed(gradient, outputs, room, index, shift, offsets, values, n):
    """Appends the values other than zero of one pixel's `outputs`: what they are, and the rows of a table.

    The row of output ``o`` is ``o - shift`` rows from where the table will be said to begin.
    """
    count = 0
    for base in range(0, outputs, 64):
        at, wide = gradient + 4 * base, min(64, outputs - base)
        if wide < 64:
            tail = floats_at(room, 64)
            zeroed(tail)
            copied(tail[:wide], floats_at(at, wide))
            at = room
        word = fired_64(at)
        values_together(values + 4 * (n + count), at, word)
        count = listed(word, base, index, count)
    for k in range(count):
        offsets[n + k] = ROW * (np.int64(index[k]) - shift)
    return n + count


@kernel
def input_gradient_of_few(begin, end, args):
    """The input's gradient at stride 1, from the values of a gradient that is mostly zero.

    Each value of it adds its row of the table: for each panel of the input's channels,
    ``[kernel height][kernel width][outputs][PANEL]``. One piece of work is `deep` rows of input pixels; a row
    of the kernel is gone through at a time, or one of its weights if a row of them is too large to be near.
    Neighbours in a row of the gradient are neighbours in the list, and their tables lie as they do: the
    weights of a kernel's row are one stretch of the list.
    """
    table, gradient, target = args[0], args[1], args[2]
    channels, height, width, outputs = args[3], args[4], args[5], args[6]
    kernel_height, kernel_width, padding_down, padding_across = args[7], args[8], args[9], args[10]
    dilation_down, dilation_across, out_height, out_width, deep = (
        args[11],
        args[12],
        args[13],
        args[14],
        args[15],
    )
    table_rows = (kernel_height * kernel_width * outputs + 63) // 64 * 64
    parts = (height + deep - 1) // deep
    together = dilation_across == 1 and kernel_width * outputs * ROW <= NEAR
    across = kernel_width if together else 1
    pixels = (deep + (kernel_height - 1) * dilation_down) * out_width
    nothing = allocated(
        ROW * (1 + deep * width)
        + 256
        + whole_lines(8 * (pixels + 1))
        + 8 * pixels * outputs
        + 4 * SLACK
        + 2 * (outputs + SLACK)
    )
    block = nothing + ROW
    room = block + ROW * deep * width
    firsts = room + 256
    offsets_at = firsts + whole_lines(8 * (pixels + 1))
    values_at = offsets_at + 4 * pixels * outputs
    index_at = values_at + 4 * (pixels * outputs + SLACK)
    first = ints_at(firsts, pixels + 1)
    offsets = int32s_at(offsets_at, pixels * outputs)
    index = places_at(index_at, outputs + SLACK)
    zeroed(floats_at(nothing, PANEL))
    for item in range(begin, end):
        image, upper = item // parts, item % parts * deep
        lower = min(height, upper + deep)
        top = max(0, upper + padding_down - (kernel_height - 1) * dilation_down)
        bottom = min(out_height, lower + padding_down)
        n, pixel = 0, 0
        for down in range(top, bottom):
            at = gradient + 4 * outputs * (image * out_height + down) * out_width
            for q in range(out_width):
                first[pixel] = n
                n = values_listed(
                    at + 4 * outputs * q, outputs, room, index, q * outputs, offsets, values_at, n
                )
                pixel += 1
        first[pixel] = n
        for panel in range((channels + PANEL - 1) // PANEL):
            wide = min(PANEL, channels - panel * PANEL)
            into = target + 4 * (channels * (image * height + upper) * width + PANEL * panel)
            out, pitch = (into, 4 * channels) if wide == PANEL else (block, ROW)
            tables = table + ROW * table_rows * panel
            for i in range(kernel_height):
                for j in range(0, kernel_width, across):
                    for y in range(upper, lower):
                        down = y + padding_down - i * dilation_down
                        begun = (down - top) * out_width
                        for x in range(width):
                            at = out + pitch * ((y - upper) * width + x)
                            right = x + padding_across - j * dilation_across
                            left = max(0, right - across + 1)
                            here, there = 0, 0
                            if 0 <= down < out_height and left < out_width and right >= 0:
                                here, there = first[begun + left], first[begun + min(right + 1, out_width)]
                            if i or j:
                                start = at
                            else:
                                start = nothing
                            rows_at = tables + ROW * outputs * (i * kernel_width + j + right)
                            add_scaled_rows(
                                at, start, rows_at, offsets_at + 4 * here, values_at + 4 * here, there - here
                            )
            if wide < PANEL:
                for k in range((lower - upper) * width):
                    copied(floats_at(into + 4 * channels * k, wide), floats_at(block + ROW * k, wide))
    freed(nothing)
