"""Source to native functions that run on torch's own threads: what `loop` and `events` stand on.

Nothing here knows about neurons, spikes or tensors' meaning. `assemble` and `build` turn source into
functions and keep them on disk, `threads` runs them, `vocabulary` is what the source may say beyond Numba.
Importing this package loads neither Numba nor torch's extensions; building does.
"""

from hibana.native.build import Kernel, assemble, build
from hibana.native.threads import arguments, ready, run

__all__ = ["Kernel", "arguments", "assemble", "build", "ready", "run"]
