"""Source to native functions that run on torch's own threads: what `loop` and `events` stand on.

Nothing here knows about neurons, spikes or tensors' meaning. `assemble` and `build` turn source into
functions and keep them on disk, `threads` runs them, `vocabulary` is what the source may say beyond Numba.
Importing this package loads neither Numba nor torch's extensions; building does.
"""

from hibana.native.build import Kernel, assemble, build, kept_in
from hibana.native.threads import Work, arguments, ready, run

__all__ = ["Kernel", "Work", "arguments", "assemble", "build", "kept_in", "ready", "run"]
