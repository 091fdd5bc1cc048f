"""Number of processor threads for a training.

Threads that share a small network's work mostly wait for each other, and beside a busy process for the thread
that gets no processor: there, training on the digits took ten times as long with two threads as with one.
"""

import math
import os

import torch

from hibana.train.network import Network

__all__ = ["check", "choose", "work"]

WORTH = 3e8
"""Multiplications in a forward pass, if all layers were dense, from which more than one thread is used."""


def check(threads: int) -> None:
    """Checks a number of threads.

    Raises:
        ValueError: if `threads` is below 1, or more than four per processor.
    """
    most = 4 * (os.cpu_count() or 1)
    if not 1 <= threads <= most:
        raise ValueError(f"threads must be from 1 to {most}, four for each processor here, got {threads}")


def choose(model: Network, threads: int | None = None) -> int:
    """Sets and returns torch's number of threads: `threads`, or one if the work is little.

    ``OMP_NUM_THREADS`` takes precedence over the second. Only the command calls this function, because the
    number applies to the whole process, which belongs to the program that calls :func:`hibana.train.fit`.
    """
    if threads is None:
        small = work(model) < WORTH and "OMP_NUM_THREADS" not in os.environ
        threads = 1 if small else torch.get_num_threads()
    torch.set_num_threads(threads)
    return threads


def work(model: Network) -> float:
    """Multiplications in a dense forward pass of one batch; pooling and stride are not taken into account."""
    pixels = math.prod(model.shape[-2:]) if len(model.shape) > 1 else 1
    weights = sum(w.numel() * (pixels if w.ndim == 4 else 1) for w in model.net.parameters() if w.ndim > 1)
    return float(weights * model.settings.steps * model.settings.batch_size)
