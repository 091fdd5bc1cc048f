"""Prophesee's recordings of event cameras: ``.raw`` in EVT 2.0 and EVT 3.0, and ``.dat``.

A file is a header of lines that begin with ``%``, and words of a few bits each, little end first. Nothing
here knows a network or a folder.

Source: Prophesee, *Metavision SDK: RAW file format, EVT 2.0, EVT 3.0 and DAT file format*.
"""

import re
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["dat", "raw"]

Array = np.ndarray[Any, Any]
Columns = dict[str, Array]
"""Microseconds, column, row, and polarity 0 or 1 of each event: t, x, y, p."""
MOST_HEADER = 1 << 16
"""Bytes of a header at most."""


def raw(path: Path) -> Columns:
    """The events in a ``.raw`` file.

    Words before the first that says the time (and, of EVT 3.0, the row) are left out, as cameras begin
    anywhere. Times go on where their counter begins again.

    Raises:
        OSError: if the file can't be read.
        ValueError: if it is in another format, cut short, or holds what the format has not.
    """
    header, body = _parts(path.read_bytes())
    found = re.search(r"^% (?:format|evt) +(?:EVT)?(\d+(?:\.\d)?)", header, re.M)
    if found is None:
        raise ValueError("its header names no format, % evt 2.0 or 3.0")
    version = found[1].removesuffix(".0")
    if version not in ("2", "3"):
        raise ValueError(
            f"it is in EVT {version}, and EVT 2.0 and 3.0 are read; convert it, or save it as .dat"
        )
    size = 4 if version == "2" else 2
    if len(body) % size:
        raise ValueError(f"it was cut short, its last word has {len(body) % size} of {size} bytes")
    return _evt2(np.frombuffer(body, "<u4")) if version == "2" else _evt3(np.frombuffer(body, "<u2"))


def dat(path: Path) -> Columns:
    """The events in a ``.dat`` file, as :func:`raw` gives them.

    Raises:
        OSError: if the file can't be read.
        ValueError: if it holds no events of contrast, or was cut short.
    """
    header, body = _parts(path.read_bytes())
    if len(body) < 2:
        raise ValueError("it was cut short, it ends in its header")
    kind, size = body[0], body[1]
    if kind not in (0x00, 0x0C) or size != 8:
        raise ValueError(f"it holds events of type {kind} and {size} bytes, not type 12 or 0 and 8 bytes")
    if (len(body) - 2) % 8:
        raise ValueError(f"it was cut short, its last event has {(len(body) - 2) % 8} of 8 bytes")
    words = np.frombuffer(body, "<u4", offset=2).reshape(-1, 2)
    version = re.search(r"^% Version (\d+)", header, re.M)
    bits_x, bits_y = (9, 8) if version is not None and version[1] == "1" else (14, 14)
    place = words[:, 1].astype(np.int64)
    x, y = place & ((1 << bits_x) - 1), (place >> bits_x) & ((1 << bits_y) - 1)
    time = _going_on(words[:, 0].astype(np.int64), 1 << 32)
    return _events(time, x, y, (place >> (bits_x + bits_y)) & 1)


def _parts(content: bytes) -> tuple[str, bytes]:
    """Header and what follows it."""
    end = 0
    while content.startswith(b"% ", end):
        line = content.find(b"\n", end, MOST_HEADER)
        if line < 0:
            raise ValueError("its header does not end")
        last, end = content[end:line].strip(), line + 1
        if last == b"% end":
            break
    if not end:
        raise ValueError("it has no header of lines that begin with %")
    return content[:end].decode("ascii", errors="replace").replace("\r", ""), content[end:]


def _events(*columns: Array) -> Columns:
    if not len(columns[0]):
        raise ValueError("there is none")
    return dict(zip("txyp", columns, strict=True))


def _going_on(times: Array, period: int) -> Array:
    """`times` of a counter that begins again after `period`, as if it did not."""
    if not len(times):
        return times
    again = np.concatenate([[0], np.cumsum(times[:-1] - times[1:] >= period // 2)])
    going_on: Array = times + again * period
    return going_on


def _last(where: Array) -> Array:
    """For each word the index of the last at which `where` holds, up to and with itself; -1 before."""
    found: Array = np.maximum.accumulate(np.where(where, np.arange(len(where)), -1))
    return found


def _evt2(words: Array) -> Columns:
    """Events are words of their own: 6 bits of time, 11 of column, 11 of row; the rest of time is others."""
    words = words.astype(np.int64)
    types = words >> 28
    is_time = types == 0x8
    counters = np.zeros(len(words), np.int64)
    counters[is_time] = _going_on(words[is_time] & 0xFFFFFFF, 1 << 28)
    latest = _last(is_time)
    at = np.flatnonzero((types <= 0x1) & (latest >= 0))
    word = words[at]
    time = counters[latest[at]] << 6 | (word >> 22) & 0x3F
    return _events(time, (word >> 11) & 0x7FF, word & 0x7FF, types[at])


def _evt3(words: Array) -> Columns:
    """Time, row and column come when they change; a word may hold 12 or 8 columns in a row, a bit each."""
    words = words.astype(np.int64)
    types = words >> 12
    time = _evt3_times(words, types)
    of_y, of_base = _last(types == 0x0), _last(types == 0x3)
    widths = np.where(types == 0x4, 12, np.where(types == 0x5, 8, 0))
    before = np.cumsum(widths) - widths  # columns that vectors spanned before each word
    known = (time >= 0) & (of_y >= 0)
    single = np.flatnonzero((types == 0x2) & known)
    vector = np.flatnonzero((widths > 0) & known & (of_base >= 0))
    bits = (words[vector, None] >> np.arange(12)) & (np.arange(12) < widths[vector, None])
    row, bit = np.nonzero(bits & 1)
    at, base = vector[row], of_base[vector[row]]
    x = np.concatenate([words[single] & 0x7FF, (words[base] & 0x7FF) + before[at] - before[base] + bit])
    p = np.concatenate([words[single] >> 11 & 1, words[base] >> 11 & 1])
    place = np.concatenate([single, at])
    order = np.argsort(place, kind="stable")
    place = place[order]
    return _events(time[place], x[order], words[of_y[place]] & 0x7FF, p[order])


def _evt3_times(words: Array, types: Array) -> Array:
    """The time at each word, 24 bits and what overflowed; -1 before the first that says the upper half.

    A new upper half sets the lower one to zero until that is told.
    """
    is_high = types == 0x8
    high = np.zeros(len(words), np.int64)
    high[is_high] = _going_on(words[is_high] & 0xFFF, 1 << 12)
    of_high, of_low = _last(is_high), _last(types == 0x6)
    changed = np.zeros(len(words), bool)
    changed[is_high] = np.concatenate([[True], np.diff(high[is_high]) != 0])[: is_high.sum()]
    low = np.where(of_low > _last(changed), words[of_low] & 0xFFF, 0)
    times: Array = np.where(of_high >= 0, high[of_high] << 12 | low, -1)
    return times
