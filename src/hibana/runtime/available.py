"""Whether native code can be compiled and run in this process. How is not said here."""

from functools import cache

from hibana.runtime import build, threads

__all__ = ["unavailable_reason"]


@cache
def unavailable_reason() -> str:
    """Why no native code can be compiled or run in this process, or ``""``."""
    try:
        build.host()
    except (ImportError, OSError, RuntimeError) as error:
        return f"llvmlite can't compile for this processor ({error})"
    try:
        threads.parallel_for()
    except (AttributeError, OSError) as error:
        return f"PyTorch's library can't be called ({error})"
    return ""
