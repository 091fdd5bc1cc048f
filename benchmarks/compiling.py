"""What the first use costs: compiling IF or a network, loading it from the disk, importing hibana.

Each number is the median of fresh processes; a cold one has an empty cache folder of its own.
"""

import gc
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from benchmarks import measure

__all__ = ["jobs"]

Row = dict[str, Any]


def jobs(quick: bool) -> dict[str, Callable[[], list[Row]]]:
    """What can be run on its own."""
    return {"compile/first-use": partial(_first_use, 1 if quick else 3)}


def _first_use(times: int) -> list[Row]:
    taken_by: dict[str, list[float]] = {}
    calls = {
        "first_call": "IF and its backward",
        "first_network": "two hb.Conv2d and MaxPool2d, two hb.Linear, IF and their backward",
    }
    for _ in range(times):
        for call, what in calls.items():
            with tempfile.TemporaryDirectory() as folder:
                for how in ("compiled", "from the disk cache"):
                    taken = measure.in_process("benchmarks.compiling", call, HIBANA_CACHE=folder)
                    taken_by.setdefault(f"{what}, {how}", []).append(taken)
        imported = measure.in_process("benchmarks.compiling", "import_hibana")
        taken_by.setdefault("import hibana, after import torch", []).append(imported)
    return [{"what": what, "s": statistics.median(taken), "times": times} for what, taken in taken_by.items()]


def first_call() -> float:
    """Seconds of the first forward and backward of IF in this process, hibana imported before."""
    import torch

    import hibana as hb

    layer = hb.IF(1.0, hb.surrogate.Step(), detach_reset=True)
    return _seconds(layer, torch.rand(4, 8, requires_grad=True))


def first_network() -> float:
    """The same of a network whose convolutions, poolings and linear layers work per spike."""
    import torch
    from torch import nn

    import hibana as hb

    def images(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
        convolution = hb.Conv2d(inputs, outputs, 3, padding=1)
        return hb.EachStep(convolution), hb.IF(detach_reset=True), hb.EachStep(hb.events.MaxPool2d(2))

    linear = (hb.Linear(64 * 7 * 7, 512), hb.IF(detach_reset=True), hb.Linear(512, 10))
    net = nn.Sequential(*images(1, 32), *images(32, 64), nn.Flatten(2), *linear)
    return _seconds(net, (torch.rand(8, 64, 1, 28, 28) < 0.2).float())


def _seconds(module: Any, inputs: Any) -> float:
    import torch

    torch.relu(torch.rand(4, 8, requires_grad=True)).sum().backward()  # autograd's engine starts its threads
    gc.collect()  # what importing torch left is looked through once, here or, for 80 ms, in the call
    began = time.perf_counter()
    module(inputs).sum().backward()
    return time.perf_counter() - began


def import_hibana() -> float:
    """Seconds that ``import hibana`` takes where torch is there already."""
    import torch  # noqa: F401 - what is measured comes after it

    began = time.perf_counter()
    import hibana  # noqa: F401

    return time.perf_counter() - began
