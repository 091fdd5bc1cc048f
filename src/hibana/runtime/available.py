"""Checks whether native code can be compiled and run in this process."""

from functools import cache

from hibana.runtime import build, threads

__all__ = ["unavailable_reason"]


@cache
def unavailable_reason() -> str:
    """The reason why native code can't be compiled or run in this process; empty if it can."""
    try:
        build.host()
    except (ImportError, OSError, RuntimeError) as error:
        return f"llvmlite can't compile for this processor ({error})"
    try:
        threads.parallel_for()
    except (AttributeError, OSError) as error:
        return f"PyTorch's library can't be called ({error})"
    return ""
