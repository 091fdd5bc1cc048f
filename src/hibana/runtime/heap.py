"""Settings of the C library's allocator."""

import ctypes
import sys

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4  # glibc's malloc.h


def keep_memory() -> bool:
    """Makes this process keep the memory of freed tensors for the tensors that come next.

    By default glibc takes every large tensor from the kernel and gives it back when it is freed, and the
    kernel clears each page of the next one when it is first written: often longer than the work on it. A
    training step allocates the same sizes again and again, and a convolutional network of 32 and 64 channels
    takes half the time without that. The price: the process holds the memory of its largest step until it
    ends. All of the process does, not hibana alone, so it must be asked for; ``hibana train`` asks.

    Returns:
        Whether it could be done: false where the C library is not glibc, and then nothing is changed.

    Source: ``mallopt(3)``: M_MMAP_MAX, M_TRIM_THRESHOLD, M_TOP_PAD.

    >>> import hibana as hb
    >>> hb.keep_memory() in (True, False)
    True
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        return False
    settings = {_MMAP_MAX: 0, _TRIM_THRESHOLD: 2**31 - 1, _TOP_PAD: 64 << 20}
    return all(mallopt(option, value) == 1 for option, value in settings.items())
