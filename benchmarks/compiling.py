"""What the first use costs: compiling IF with its backward, loading it from the disk, importing hibana.

Each number is the median of fresh processes; a cold one has an empty cache folder of its own.
"""

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
    cold, cached, imported = [], [], []
    for _ in range(times):
        with tempfile.TemporaryDirectory() as folder:
            cold.append(measure.in_process("benchmarks.compiling", "first_call", HIBANA_CACHE=folder))
            cached.append(measure.in_process("benchmarks.compiling", "first_call", HIBANA_CACHE=folder))
        imported.append(measure.in_process("benchmarks.compiling", "import_hibana"))
    named = {
        "IF and its backward, compiled": cold,
        "IF and its backward, from the disk cache": cached,
        "import hibana, after import torch": imported,
    }
    return [{"what": what, "s": statistics.median(taken), "times": times} for what, taken in named.items()]


def first_call() -> float:
    """Seconds of the first forward and backward of IF in this process, Numba and hibana imported before."""
    import numba  # noqa: F401 - its own import is not hibana's
    import torch

    import hibana as hb

    inputs = torch.rand(4, 8, requires_grad=True)
    torch.relu(inputs).sum().backward()  # autograd's engine starts its threads
    layer = hb.IF(1.0, hb.surrogate.Step(), detach_reset=True)
    began = time.perf_counter()
    layer(inputs).sum().backward()
    return time.perf_counter() - began


def import_hibana() -> float:
    """Seconds that ``import hibana`` takes where torch is there already."""
    import torch  # noqa: F401 - what is measured comes after it

    began = time.perf_counter()
    import hibana  # noqa: F401

    return time.perf_counter() - began
