"""Writers of Prophesee's files, to read them again: EVT 2.0, EVT 3.0 and DAT."""

import numpy as np

HEADER = "% date 2024-05-01 12:00:00\n% {format}\n% geometry {width}x{height}\n{end}"


def header(kind, width=1280, height=720, end="% end\n"):
    return HEADER.format(format=kind, width=width, height=height, end=end).encode()


def evt2(events, **options):
    """`events`, ``[N, 4]`` t x y p, as a ``.raw`` in EVT 2.0, a trigger and another word among them."""
    words, before = [0x1 << 28 | 5 << 11 | 7], None  # an event before any time, which nobody can date
    for t, x, y, p in events.astype(int).tolist():
        if t >> 6 != before:
            before = t >> 6
            words.append(0x8 << 28 | before & 0xFFFFFFF)
            words += [0xA << 28 | 1, 0xE << 28, 0xF << 28 | 3]
        words.append(p << 28 | (t & 0x3F) << 22 | x << 11 | y)
    return header("evt 2.0", **options) + np.array(words, "<u4").tobytes()


def evt3(events, *, vectors=True, **options):
    """`events` as a ``.raw`` in EVT 3.0; `vectors` writes what is alike in words of 12 and 8 columns."""
    words, high, low, row = [0x2 << 12 | 5, 0x0 << 12 | 9, 0x3 << 12, 0x4 << 12 | 3], None, None, None
    rest = events.astype(int).tolist()
    while rest:
        t, x, y, p = rest.pop(0)
        if t >> 12 != high:
            high, low = t >> 12, 0 if high is not None and t >> 12 != high else None
            words.append(0x8 << 12 | high & 0xFFF)
        if t & 0xFFF != low:
            low = t & 0xFFF
            words.append(0x6 << 12 | low)
        if y != row:
            row = y
            words.append(0x0 << 12 | y)
        alike = [x]
        while (
            vectors and rest and rest[0][0] == t and rest[0][2:] == [y, p] and alike[-1] < rest[0][1] < x + 20
        ):
            alike.append(rest.pop(0)[1])
        if len(alike) == 1:
            words += [0x2 << 12 | p << 11 | x, 0xA << 12 | 1, 0xE << 12]
            continue
        words.append(0x3 << 12 | p << 11 | x)
        for kind, first, size in ((0x4, 0, 12), (0x5, 12, 8)):
            words.append(
                kind << 12 | sum(1 << each - x - first for each in alike if first <= each - x < first + size)
            )
    return header("evt 3.0", **options) + np.array(words, "<u2").tobytes()


def dat(events, *, version=2, width=1280, height=720):
    """`events` as a ``.dat``."""
    text = f"% Data file containing CD events.\n% Version {version}\n% Width {width}\n% Height {height}\n"
    t, x, y, p = events.astype(np.int64).T
    bits_x, bits_y = (9, 8) if version == 1 else (14, 14)
    words = np.stack([t & 0xFFFFFFFF, x | y << bits_x | p << bits_x + bits_y], axis=1).astype("<u4")
    return text.encode() + bytes([0x0C, 8]) + words.tobytes()


def drawn(count=2000, seed=0, width=1280, height=720, last=50_000_000):
    """Events in order of time, several at one time, row and polarity; times beyond what 24 bits hold."""
    random = np.random.default_rng(seed)
    times = np.sort(random.integers(0, last, count // 4))
    events = []
    for t in times.tolist():
        y, p, x = random.integers(0, height), random.integers(0, 2), random.integers(0, width - 24)
        columns = x + np.sort(random.choice(20, random.integers(1, 8), replace=False))
        events += [(t, each, y, p) for each in columns.tolist()]
    return np.array(events, np.float64)
