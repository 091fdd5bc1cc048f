"""``[rows, inputs]`` spikes times ``[outputs, inputs]`` weights, from bits, and both gradients.

Weights are packed to panels: ``[outputs / PANEL][inputs][PANEL]``, so that what a spike adds is one row.
Source text for :mod:`hibana.native`, after :mod:`hibana.events.kernels.lanes`.
"""

from hibana.events.kernels.lanes import (
    PANEL,
    ROW,
    SLACK,
    add_rows,
    add_subsets,
    allocated,
    begin_with,
    copied,
    dots,
    fired_64,
    freed,
    half_at,
    listed,
    ones,
    strange_64,
    sums_of_four,
    transposed,
    transposed_64,
    whole_lines,
    word_at,
    zeroed,
)
from hibana.native.vocabulary import floats_at, function, ints_at, kernel, np, places_at, words_at

TILE = 8
"""Words of inputs whose weights are kept near for an input's gradient."""
BLOCK = 256
"""Rows of bits, and of support, that are gone through at a time."""
LISTED = 64
"""Rows of bits that are listed at a time."""
GRADIENTS = 256
"""Rows of a gradient that are kept near at a time; a multiple of 64."""


@function
def copied_and_added(target, total, source):
    for i in range(source.size):
        target[i] = source[i]
        total[i] += source[i]


@kernel
def scan(begin, end, args):
    """Rows of floats to rows of bits; for each part, its spikes and whether any value is neither 0 nor 1.

    Without floats (0 for their address) the bits are known, and their ones are counted.
    """
    source, bits, counts, inputs, rows, step, per_part = (
        args[0],
        args[1],
        args[2],
        args[3],
        args[4],
        args[5],
        args[6],
    )
    whole = inputs // 64
    rest = inputs - 64 * whole
    words = (inputs + 63) // 64
    room = allocated(256)
    tail = floats_at(room, 64)
    zeroed(tail)
    for part in range(begin, end):
        spikes = 0
        strange = np.uint64(0)
        for row in range(part * per_part, min(rows, (part + 1) * per_part)):
            at = source + 4 * inputs * row * step
            out = words_at(bits + 8 * words * row, words)
            if source == 0:
                for w in range(words):
                    spikes += ones(out[w])
                continue
            for w in range(whole):
                fired = fired_64(at + 256 * w)
                strange |= strange_64(at + 256 * w)
                spikes += ones(fired)
                out[w] = fired
            if rest:
                copied(tail[:rest], floats_at(at + 256 * whole, rest))
                fired = fired_64(room)
                strange |= strange_64(room)
                spikes += ones(fired)
                out[whole] = fired
        result = ints_at(counts + 16 * part, 2)
        result[0] = spikes
        result[1] = np.int64(strange != 0)
    freed(room)


@kernel
def pack(begin, end, args):
    """Blocks of 64 inputs of ``[outputs, inputs]`` weights to ``[panels][words * 64][PANEL]``, then zeros."""
    source, target, outputs, inputs = args[0], args[1], args[2], args[3]
    words = (inputs + 63) // 64
    for item in range(begin, end):
        panel, word = item // words, item % words
        out = floats_at(target + ROW * 64 * item, 64 * PANEL)
        wide = min(PANEL, outputs - panel * PANEL)
        deep = min(64, inputs - 64 * word)
        if wide < PANEL or deep < 64:
            zeroed(out)
        at = source + 4 * (panel * PANEL * inputs + 64 * word)
        transposed(target + ROW * 64 * item, ROW, at, 4 * inputs, wide, deep)


@kernel
def forward_lists(begin, end, args):
    """Rows of outputs: for each spike of a row, its row of weights is added."""
    bits, table, bias, target = args[0], args[1], args[2], args[3]
    inputs, outputs, tile = args[4], args[5], args[6]
    words = (inputs + 63) // 64
    tiles = (words + tile - 1) // tile
    block = allocated(
        (LISTED + 1) * ROW + whole_lines(8 * (tiles * LISTED + 1)) + 2 * (LISTED * words * 64 + SLACK)
    )
    begun = block + LISTED * ROW
    firsts = begun + ROW
    listing = firsts + whole_lines(8 * (tiles * LISTED + 1))
    first = ints_at(firsts, tiles * LISTED + 1)
    index = places_at(listing, LISTED * words * 64 + SLACK)
    for row in range(begin, end, LISTED):
        rows = min(LISTED, end - row)
        n = 0
        for t in range(tiles):
            for i in range(rows):
                first[t * rows + i] = n
                at = bits + 8 * words * (row + i)
                for w in range(t * tile, min(words, (t + 1) * tile)):
                    n = listed(word_at(at + 8 * w), (w - t * tile) * 64, index, n)
        first[tiles * rows] = n
        for panel in range((outputs + PANEL - 1) // PANEL):
            begin_with(floats_at(begun, PANEL), bias, panel, outputs)
            wide = min(PANEL, outputs - panel * PANEL)
            out, pitch = target + 4 * (outputs * row + PANEL * panel), 4 * outputs
            if wide < PANEL:
                out, pitch = block, ROW
            for t in range(tiles):
                tiled = table + ROW * 64 * (words * panel + tile * t)
                for i in range(rows):
                    listed_from = first[t * rows + i]
                    add_rows(
                        out + pitch * i,
                        out + pitch * i if t else begun,
                        tiled,
                        listing + 2 * listed_from,
                        first[t * rows + i + 1] - listed_from,
                    )
            if wide < PANEL:
                for i in range(rows):
                    at = target + 4 * (outputs * (row + i) + PANEL * panel)
                    copied(floats_at(at, wide), floats_at(block + ROW * i, wide))
    freed(block)


@kernel
def forward_tables(begin, end, args):
    """Rows of outputs: for each four inputs, the sum of those that spiked is looked up."""
    bits, table, bias, target = args[0], args[1], args[2], args[3]
    inputs, outputs = args[4], args[5]
    words = (inputs + 63) // 64
    tables = allocated((8 * 16 + BLOCK + 1) * ROW)
    block = tables + 8 * 16 * ROW
    begun = block + BLOCK * ROW
    for row in range(begin, end, BLOCK):
        rows = min(BLOCK, end - row)
        for panel in range((outputs + PANEL - 1) // PANEL):
            begin_with(floats_at(begun, PANEL), bias, panel, outputs)
            wide = min(PANEL, outputs - panel * PANEL)
            for half in range((inputs + 31) // 32):
                tiled = table + ROW * (64 * words * panel + 32 * half)
                for group in range(8):
                    sums_of_four(tables + 16 * ROW * group, tiled + 4 * ROW * group)
                for i in range(rows):
                    fired = half_at(bits + 8 * words * (row + i) + 4 * half)
                    at = block + ROW * i
                    add_subsets(at, at if half else begun, tables, fired)
            for i in range(rows):
                at = target + 4 * (outputs * (row + i) + PANEL * panel)
                copied(floats_at(at, wide), floats_at(block + ROW * i, wide))
    freed(tables)


@kernel
def input_gradient(begin, end, args):
    """Rows of the input's gradient, computed where the support's bits are set and zero elsewhere."""
    bits, table, gradient, target = args[0], args[1], args[2], args[3]
    inputs, outputs = args[4], args[5]
    words = (inputs + 63) // 64
    tile = min(words, TILE)
    panels = (outputs + PANEL - 1) // PANEL
    padded = allocated(panels * (ROW + 8) + 2 * (64 * tile + SLACK))
    places_of = padded + panels * ROW
    places = ints_at(places_of, panels)
    index = places_at(places_of + 8 * panels, 64 * tile + SLACK)
    zeroed(floats_at(padded, panels * PANEL))
    for begun in range(begin, end, BLOCK):
        rows = range(begun, min(end, begun + BLOCK))
        for word in range(0, words, tile):
            last = min(words, word + tile)
            for row in rows:
                n = 0
                for w in range(word, last):
                    n = listed(word_at(bits + 8 * (words * row + w)), 64 * (w - word), index, n)
                out = target + 4 * (inputs * row + 64 * word)
                zeroed(floats_at(out, min(inputs, 64 * last) - 64 * word))
                at = gradient + 4 * outputs * row
                if outputs < panels * PANEL:
                    copied(floats_at(padded, outputs), floats_at(at, outputs))
                    at = padded
                for panel in range(panels):
                    places[panel] = at + ROW * panel
                dots(out, 4, places_of, table + ROW * 64 * word, panels, ROW * 64 * words, index, n)
    freed(padded)


@function
def brought_near(gradient, outputs, row, rows, panel_begin, panel_end, near, bias):
    """Packs rows of the gradient to panels at `near`, and adds them to the sums at `bias`."""
    for panel in range(panel_begin, panel_end):
        wide = min(PANEL, outputs - panel * PANEL)
        total = floats_at(bias + ROW * (panel - panel_begin), wide)
        for i in range(rows):
            out = floats_at(near + ROW * ((panel - panel_begin) * GRADIENTS + i), wide)
            copied_and_added(
                out, total, floats_at(gradient + 4 * (outputs * (row + i) + PANEL * panel), wide)
            )


@function
def columns(bits, words, word, row, rows, out, square):
    """The bits of 64 inputs over up to GRADIENTS rows, input by input: ``[64][GRADIENTS / 64]``."""
    for part in range((rows + 63) // 64):
        for i in range(64):
            at = 64 * part + i
            square[i] = word_at(bits + 8 * (words * (row + at) + word)) if at < rows else np.uint64(0)
        transposed_64(square)
        for k in range(64):
            out[k * (GRADIENTS // 64) + part] = square[k]


@function
def unpacked(sums, target, outputs, inputs, panel, word):
    """64 inputs of a panel of weight gradients to where ``[outputs, inputs]`` has them."""
    wide = min(PANEL, outputs - panel * PANEL)
    deep = min(64, inputs - 64 * word)
    transposed(target + 4 * (panel * PANEL * inputs + 64 * word), 4 * inputs, sums, ROW, deep, wide)


@kernel
def weight_gradient(begin, end, args):
    """Parts of the weights' gradient, each some panels of outputs by some words of inputs, over some rows.

    For each block of rows near at hand: an input's sum takes the gradient rows where it spiked, one by
    one from a list, or (`by_table`) in fours looked up. Each part of the rows has sums of its own.
    """
    bits, gradient, targets, biases = args[0], args[1], args[2], args[3]
    total, inputs, outputs, by_table = args[4], args[5], args[6], args[7]
    parts_across, parts_down, per_part = args[8], args[9], args[10]
    words = (inputs + 63) // 64
    panels = (outputs + PANEL - 1) // PANEL
    length = GRADIENTS // 64
    wide, deep = (panels + parts_across - 1) // parts_across, (words + parts_down - 1) // parts_down
    tables = allocated(
        ROW * (8 * 16 + wide * (64 * deep + GRADIENTS + 1))
        + 8 * 64 * (deep * length + 2)
        + 2 * (64 * GRADIENTS + SLACK)
        + 64
    )
    sums = tables + ROW * 8 * 16
    near = sums + ROW * wide * deep * 64
    bias_sums = near + ROW * wide * GRADIENTS
    turned_at = bias_sums + ROW * wide
    turned = words_at(turned_at, deep * 64 * length)
    square = words_at(turned_at + 8 * 64 * deep * length, 64)
    first = ints_at(turned_at + 8 * 64 * (deep * length + 1), 65)
    listing = turned_at + 8 * 64 * (deep * length + 2) + 64
    index = places_at(listing, 64 * GRADIENTS + SLACK)
    for part in range(begin, end):
        across, down = part // parts_down % parts_across, part % parts_down
        share = part // parts_down // parts_across
        target = targets + 4 * outputs * inputs * share
        bias = biases + 4 * outputs * share if biases else 0
        panel_begin, panel_end = panels * across // parts_across, panels * (across + 1) // parts_across
        word_begin, word_end = words * down // parts_down, words * (down + 1) // parts_down
        wide, deep = panel_end - panel_begin, word_end - word_begin
        zeroed(floats_at(sums, wide * deep * 64 * PANEL))
        zeroed(floats_at(near, wide * GRADIENTS * PANEL))
        zeroed(floats_at(bias_sums, wide * PANEL))
        row_end = min(total, per_part * (share + 1))
        for row in range(per_part * share, row_end, GRADIENTS):
            rows = min(GRADIENTS, row_end - row)
            brought_near(gradient, outputs, row, rows, panel_begin, panel_end, near, bias_sums)
            for d in range(deep):
                columns(bits, words, word_begin + d, row, rows, turned[d * 64 * length :], square)
            if by_table:
                for panel in range(wide):
                    for half in range((rows + 31) // 32):
                        for group in range(8):
                            rows_at = near + ROW * (panel * GRADIENTS + 32 * half + 4 * group)
                            sums_of_four(tables + 16 * ROW * group, rows_at)
                        for k in range(deep * 64):
                            at = sums + ROW * (panel * deep * 64 + k)
                            add_subsets(at, at, tables, half_at(turned_at + 8 * length * k + 4 * half))
                continue
            for d in range(deep):
                n = 0
                for k in range(64):
                    first[k] = n
                    for w in range((rows + 63) // 64):
                        n = listed(turned[(d * 64 + k) * length + w], 64 * w, index, n)
                first[64] = n
                for panel in range(wide):
                    for k in range(64):
                        at = sums + ROW * ((panel * deep + d) * 64 + k)
                        rows_at = near + ROW * panel * GRADIENTS
                        add_rows(at, at, rows_at, listing + 2 * first[k], first[k + 1] - first[k])
        for panel in range(wide):
            for d in range(deep):
                done = sums + ROW * 64 * (panel * deep + d)
                unpacked(done, target, outputs, inputs, panel_begin + panel, word_begin + d)
        if bias and down == 0:
            for panel in range(wide):
                at = (panel_begin + panel) * PANEL
                width = min(PANEL, outputs - at)
                copied(floats_at(bias + 4 * at, width), floats_at(bias_sums + ROW * panel, width))
    freed(tables)
