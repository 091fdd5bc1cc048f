"""Seconds of the first use: compiling IF or a network, loading their kernels from the disk, importing hibana.

Each number is the median over new processes. Before each compilation the cache folder is empty.
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
    """The single job, which measures three times, or once if `quick`."""
    return {"compile/first-use": partial(_first_use, 1 if quick else 3)}


def _first_use(repetitions: int) -> list[Row]:
    """Median seconds over `repetitions` new processes per measurement."""
    seconds_by_title: dict[str, list[float]] = {}
    calls = {
        "first_call": "IF and its backward",
        "first_network": "two hb.Conv2d and MaxPool2d, two hb.Linear, IF and their backward",
    }
    for _ in range(repetitions):
        for call, title in calls.items():
            with tempfile.TemporaryDirectory() as folder:
                for source in ("compiled", "from the disk cache"):
                    seconds = measure.in_process("benchmarks.compiling", call, HIBANA_CACHE=folder)
                    seconds_by_title.setdefault(f"{title}, {source}", []).append(seconds)
        import_seconds = measure.in_process("benchmarks.compiling", "import_hibana")
        seconds_by_title.setdefault("import hibana, after import torch", []).append(import_seconds)
    return [
        {"what": title, "s": statistics.median(seconds), "times": repetitions}
        for title, seconds in seconds_by_title.items()
    ]


def first_call() -> float:
    """Seconds of the first forward and backward of IF in this process, without the import of hibana."""
    import torch

    import hibana as hb

    layer = hb.IF(1.0, hb.surrogate.Step(), detach_reset=True)
    return _seconds(layer, torch.rand(4, 8, requires_grad=True))


def first_network() -> float:
    """Seconds of the first forward and backward of a network whose layers all work per spike."""
    import torch
    from torch import nn

    import hibana as hb

    def image_layers(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
        convolution = hb.Conv2d(inputs, outputs, 3, padding=1)
        return hb.EachStep(convolution), hb.IF(detach_reset=True), hb.EachStep(hb.events.MaxPool2d(2))

    linear = (hb.Linear(64 * 7 * 7, 512), hb.IF(detach_reset=True), hb.Linear(512, 10))
    net = nn.Sequential(*image_layers(1, 32), *image_layers(32, 64), nn.Flatten(2), *linear)
    return _seconds(net, (torch.rand(8, 64, 1, 28, 28) < 0.2).float())


def _seconds(module: Any, inputs: Any) -> float:
    """Seconds of one forward and backward of `module`."""
    import torch

    torch.relu(torch.rand(4, 8, requires_grad=True)).sum().backward()  # autograd's engine starts its threads
    gc.collect()  # the first collection after importing torch takes 80 ms, which must not fall into the call
    start = time.perf_counter()
    module(inputs).sum().backward()
    return time.perf_counter() - start


def import_hibana() -> float:
    """Seconds of ``import hibana`` after ``import torch``."""
    import torch  # noqa: F401 - imported first, so that its time is not measured

    start = time.perf_counter()
    import hibana  # noqa: F401

    return time.perf_counter() - start
