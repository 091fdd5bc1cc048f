"""Max-pooling of spikes, channels last, without overlap: which pixel of a window spiked first.

Source text for :mod:`hibana.native`, after :mod:`hibana.events.kernels.lanes`.
"""

from hibana.events.kernels.lanes import first_bits, first_spikes, zeroed
from hibana.native.vocabulary import bytes_at, floats_at, function, ints_at, kernel, np, words_at


@function
def spiked(out, which, source, place):
    """Takes `place` for `which` where `source` spiked; returns whether any value is neither 0 nor 1."""
    strange = 0
    for i in range(out.size):
        value = source[i]
        there = value != np.float32(0)
        strange |= np.int64(there & (value != np.float32(1)))
        out[i] = np.float32(1) if there else out[i]
        which[i] = place if there else which[i]
    return strange


@function
def given_back(target, gradient, which, place):
    """`gradient` where `place` was taken, zeros elsewhere."""
    for i in range(target.size):
        target[i] = gradient[i] if which[i] == place else np.float32(0)


@kernel
def forward(begin, end, args):
    """Rows of output pixels: 1 where the window spiked, and which of its pixels did first, else the first."""
    source, target, which_at, strange_at = args[0], args[1], args[2], args[3]
    channels, width, window_height, window_width = args[4], args[5], args[6], args[7]
    height, out_height, out_width = args[8], args[9], args[10]
    vectors = channels // 16 * 16
    rest = channels - vectors
    strange = 0
    for item in range(begin, end):
        image, y = item // out_height, item % out_height
        for x in range(out_width):
            at = (item * out_width + x) * channels
            pixel = (image * height + y * window_height) * width + x * window_width
            under = source + 4 * channels * pixel
            for k in range(0, vectors, 16):
                strange |= first_spikes(
                    target + 4 * (at + k),
                    which_at + at + k,
                    under + 4 * k,
                    window_width,
                    4 * channels,
                    window_height,
                    4 * channels * width,
                )
            if rest:
                out, which = (
                    floats_at(target + 4 * (at + vectors), rest),
                    bytes_at(which_at + at + vectors, rest),
                )
                zeroed(out)
                zeroed(which)
                for place in range(window_height * window_width - 1, -1, -1):
                    beside = place // window_width * width + place % window_width
                    values = floats_at(under + 4 * (channels * beside + vectors), rest)
                    strange |= spiked(out, which, values, np.uint8(place))
    if strange:
        ints_at(strange_at, 1)[0] = 1


@kernel
def forward_of_bits(begin, end, args):
    """As :func:`forward`, where spikes are known as bits, and channels are whole vectors of 16.

    The bits are those of whole images, in one piece for each step of `per_step` images.
    """
    bits, target, which_at = args[0], args[1], args[2]
    channels, width, window_height, window_width = args[3], args[4], args[5], args[6]
    height, out_height, out_width, per_step = args[7], args[8], args[9], args[10]
    pixel_bytes = channels // 8
    step_bytes = per_step * height * width * pixel_bytes
    for item in range(begin, end):
        image, y = item // out_height, item % out_height
        row = image % per_step * height + y * window_height
        under = bits + step_bytes * (image // per_step) + row * width * pixel_bytes
        for x in range(out_width):
            at = (item * out_width + x) * channels
            for k in range(0, channels, 16):
                first_bits(
                    target + 4 * (at + k),
                    which_at + at + k,
                    under + x * window_width * pixel_bytes + k // 8,
                    window_width,
                    pixel_bytes,
                    window_height,
                    pixel_bytes * width,
                )


@kernel
def backward(begin, end, args):
    """Rows of windows: each gradient to the pixel that spiked first, zeros elsewhere."""
    gradient, target, which_at = args[0], args[1], args[2]
    channels, width, window_height, window_width = args[3], args[4], args[5], args[6]
    height, out_height, out_width = args[7], args[8], args[9]
    for item in range(begin, end):
        image, y = item // out_height, item % out_height
        for i in range(window_height):
            row = image * height + y * window_height + i
            for x in range(out_width):
                at = (item * out_width + x) * channels
                g, which = floats_at(gradient + 4 * at, channels), bytes_at(which_at + at, channels)
                for j in range(window_width):
                    pixel = (row * width + x * window_width + j) * channels
                    place = np.uint8(i * window_width + j)
                    given_back(floats_at(target + 4 * pixel, channels), g, which, place)
            left = (row * width + out_width * window_width) * channels
            zeroed(floats_at(target + 4 * left, (width - out_width * window_width) * channels))
        if y == out_height - 1:
            for row in range(image * height + out_height * window_height, (image + 1) * height):
                zeroed(floats_at(target + 4 * row * width * channels, width * channels))


@kernel
def support(begin, end, args):
    """Rows of output pixels: the bits of the support below at the pixels that :func:`forward` took.

    The bits below are those of whole images, in one piece for each step of `per_step` images.
    """
    bits, target, which_at = args[0], args[1], args[2]
    channels, width, window_height, window_width = args[3], args[4], args[5], args[6]
    height, out_height, out_width, per_step = args[7], args[8], args[9], args[10]
    words = (out_width * channels + 63) // 64
    step_bytes = (per_step * height * width * channels + 7) // 8
    for item in range(begin, end):
        image, y = item // out_height, item % out_height
        step, within = image // per_step, image % per_step
        below = bytes_at(bits + step_bytes * step, step_bytes)
        out = words_at(target + 8 * words * item, words)
        zeroed(out)
        which = bytes_at(which_at + item * out_width * channels, out_width * channels)
        for k in range(out_width * channels):
            x, channel = k // channels, k % channels
            row = within * height + y * window_height + which[k] // window_width
            at = (row * width + x * window_width + which[k] % window_width) * channels + channel
            bit = np.uint64((below[at >> 3] >> np.uint8(at & 7)) & np.uint8(1))
            out[k >> 6] |= bit << np.uint64(k & 63)
