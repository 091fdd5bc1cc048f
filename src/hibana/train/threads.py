"""How many threads of the processor a training is worth.

Threads that share a small network's work wait for one another most of the time, and beside another busy
process for the one that does not get a processor: with two threads a training of the digits took ten times as
long there as with one, and alone no less time.
"""

import os
from typing import TYPE_CHECKING

import torch
from torch import nn

from hibana.data import DataSet
from hibana.train.baseline import first

if TYPE_CHECKING:
    from hibana.train.network import Network

__all__ = ["check", "choose", "work"]

WORTH = 3e8
"""Multiplications in a forward pass, as if dense, from which on more than one thread is worth it."""


def check(threads: int) -> None:
    """Refuses a number of threads that no machine is helped by.

    Raises:
        ValueError: if `threads` is below 1, or above four for each processor.
    """
    most = 4 * (os.cpu_count() or 1)
    if threads < 1:
        raise ValueError(f"threads must be at least 1, got {threads}")
    if threads > most:
        raise ValueError(f"threads must be at most {most}, four for each processor here, got {threads}")


def choose(model: "Network", samples: DataSet, threads: int | None = None) -> int:
    """Sets and returns torch's number of threads: `threads`, or one where the work is little.

    What ``OMP_NUM_THREADS`` says is not changed. The number is of the whole process, which is why the command
    calls this and :func:`hibana.train.fit` does not: a program's threads are the program's to choose.
    """
    if threads is None:
        small = work(model, samples) < WORTH
        threads = 1 if small and "OMP_NUM_THREADS" not in os.environ else torch.get_num_threads()
    torch.set_num_threads(threads)
    return threads


@torch.no_grad()
def work(model: "Network", samples: DataSet) -> float:
    """Multiplications of weights in the forward pass of a batch, as if no layer were sparse."""
    counted = 0.0

    def count(module: nn.Module, args: object, outputs: torch.Tensor) -> None:
        nonlocal counted
        weight = module.weight
        assert isinstance(weight, torch.Tensor)
        counted += outputs.numel() * weight.numel() / len(weight)

    hooks = [
        module.register_forward_hook(count)
        for module in model.net.modules()
        if isinstance(weight := getattr(module, "weight", None), nn.Parameter) and weight.ndim > 1
    ]
    shown = first(samples)[0][:1]
    try:
        outputs = model.net(model.encode(shown))
    finally:
        for hook in hooks:
            hook.remove()
    del outputs
    return counted * model.settings.batch_size
