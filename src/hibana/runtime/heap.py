"""Settings of the C library's allocator."""

import ctypes
import sys

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4  # glibc's malloc.h


def keep_memory() -> bool:
    """Makes this process reuse the memory of freed tensors for later tensors.

    By default, glibc requests the memory of every large tensor from the operating system and returns it when
    the tensor is freed. The operating system clears each new page at its first write, which often takes
    longer than the computation. A training step allocates the same sizes again and again: a convolutional
    network of 32 and 64 channels takes half the time if the memory is reused. In return, the process holds
    the memory of its largest step until it ends. The setting affects all libraries of the process, so hibana
    does not set it by itself; the command ``hibana train`` does.

    Returns:
        Whether the memory will be reused. Without glibc, nothing changes and the result is False.

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
