"""Number of processor threads for a training.

For a small network, threads mostly wait for each other. Beside a busy process they also wait for the thread
that has no processor: there, training on the digits took ten times as long with two threads as with one.
"""

import math
import os

import torch

from hibana.train.network import Network

MIN_MULTIPLICATIONS = 3e8
"""Multiplications in a dense forward pass of a batch from which more than one thread is used.

Pooling and strides are ignored.
"""


def choose(model: Network, threads: int | None = None) -> int:
    """Sets and returns torch's number of threads: `threads`, or by default one for small networks.

    ``OMP_NUM_THREADS`` takes precedence over the default. Only the command calls this function:
    :func:`hibana.train.fit` does not, because the number of threads belongs to the calling program.
    """
    if threads is None:
        pixels = math.prod(model.shape[-2:]) if len(model.shape) > 1 else 1
        weights = (w for w in model.net.parameters() if w.ndim > 1)
        products = sum(w.numel() * (pixels if w.ndim == 4 else 1) for w in weights)
        multiplications = products * model.settings.steps * model.settings.batch_size
        is_small = multiplications < MIN_MULTIPLICATIONS and "OMP_NUM_THREADS" not in os.environ
        threads = 1 if is_small else torch.get_num_threads()
    torch.set_num_threads(threads)
    return threads
