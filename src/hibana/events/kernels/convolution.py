"""A convolution of spikes as the product of :mod:`hibana.events.kernels.linear`: the bits under its window.

Images lie channels last, ``[images, height, width, channels]``, a row of pixels as one row of bits.
Source text for :mod:`hibana.native`, after :mod:`hibana.events.kernels.lanes`.
"""

from hibana.events.kernels.lanes import (
    PANEL,
    ROW,
    allocated,
    copied,
    dots,
    freed,
    listed,
    places_at,
    whole_lines,
    word_at,
    word_put,
    words_at,
    zeroed,
)
from hibana.native.vocabulary import floats_at, function, ints_at, kernel, np


@function
def bits_from(at, position):
    """64 bits from bit `position` on of the words at address `at`; one word more than they fill is read."""
    word, shift = at + 8 * (position >> 6), np.uint64(position & 63)
    return (word_at(word) >> shift) | ((word_at(word + 8) << (np.uint64(63) - shift)) << np.uint64(1))


@function
def first_bits(count):
    """A mask of the first `count` bits, 1 to 64."""
    return ~np.uint64(0) >> np.uint64(64 - count)


@function
def bits_put(at, position, source, begin, count):
    """`count` bits at `source` from `begin` on, to where there are zeros at `at` from `position` on."""
    for done in range(0, count, 64):
        bits = bits_from(source, begin + done) & first_bits(min(64, count - done))
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
                    here = bits_from(rows + pitch * i, x * stride_across * channels) & first_bits(wide)
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
                        bits_here = bits_from(rows + pitch * i, source + done) & first_bits(count)
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
        ROW * across_outputs + copies + 8 * pieces + 2 * (64 * table_words + 7) + 8 * (words + 9)
    )
    near = nothing + ROW * across_outputs
    places_of = near + copies
    index_at = places_of + 8 * pieces
    row_at = index_at + whole_lines(2 * (64 * table_words + 7))
    places = ints_at(places_of, pieces)
    index = places_at(index_at, 64 * table_words + 7)
    zeroed(floats_at(nothing, PANEL * across_outputs + copies // 4))
    zeroed(words_at(row_at, words + 1))
    for item in range(begin, end):
        image, y = item // height, item % height
        zeroed(floats_at(target + 4 * item * width * channels, width * channels))
        copied(words_at(row_at, words), words_at(bits + 8 * words * item, words))
        for x in range(width):
            n = 0
            for base in range(0, channels, 64):
                here = bits_from(row_at, x * channels + base) & first_bits(min(64, channels - base))
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
