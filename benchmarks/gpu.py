"""One layer on a GPU: beside ``torch.relu``, SpikingJelly, the article's loop, and what the card can copy.

Everybody is called in turn, several times before the device is waited for, so that a launch costs what it
costs in use. Bytes are what a pass must read and write of the sequence; shares are of what ``copy_`` moves.
"""

import subprocess
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

import hibana as hb
from benchmarks import agreement, layers, measure, peers

__all__ = ["SIZES", "compared", "jobs"]

SIZES = {**layers.SIZES, "32x4194304": (32, 4194304)}
CASES = ("step", "through-reset", "atan")
_QUICK = {"4x1000": (4, 1000)}
_BATCH_S = 0.02

Row = dict[str, Any]


def jobs(quick: bool) -> dict[str, Callable[[], list[Row]]]:
    """A job for each size and neuron; where there is no GPU, one that says so."""
    if not torch.cuda.is_available():
        return {"gpu": _absent}
    sizes = _QUICK if quick else SIZES
    budget = 0.5 if quick else 8.0
    return {
        f"gpu/{size}/{case}": partial(compared, size, shape, case, budget)
        for size, shape in sizes.items()
        for case in CASES
    }


def _absent() -> list[Row]:
    return [
        {"contender": "everybody", "error": "there is no CUDA device here, so nothing was measured on one"}
    ]


def compared(
    size: str, shape: tuple[int, int], name: str, budget_s: float, device: str = "cuda"
) -> list[Row]:
    """Everybody's times at `shape`, hibana's only if it agrees with its reference there."""
    case = peers.CASES[name]
    about = {"size": size, "case": name, **_card(device)}
    inputs, grad_outputs = (tensor.to(device) for tensor in layers.sequence(shape))
    cell = layers.cell(case)
    red = agreement.disagreement(cell, inputs, grad_outputs)
    contenders: dict[str, Callable[[Tensor], Tensor]] = {"relu": torch.relu}
    if not red:
        contenders["hibana"] = hb.OverTime(cell)
    usable, _ = peers.available()
    if "spikingjelly" in usable:
        contenders["spikingjelly"] = usable["spikingjelly"].layer(case).module.to(device)
    contenders["loop"] = loop = partial(_loop, cell)
    contenders["loop+compile"] = torch.compile(loop)
    rows: list[Row] = [{**about, "contender": "hibana", "error": red}] if red else []
    wanted = inputs.clone().requires_grad_()
    passes: dict[str, Callable[[Callable[[Tensor], Tensor]], layers.Call]] = {
        "forward+backward": lambda layer: layers.forward_backward(layer, wanted, grad_outputs),
        "inference": lambda layer: layers.inference(layer, inputs),
    }
    for kind, call in passes.items():
        calls = {who: call(layer) for who, layer in contenders.items()}
        calls["copy"] = partial(torch.empty_like(inputs).copy_, inputs)
        rows += [{**about, "pass": kind, **row} for row in _timed(calls, cell, inputs, kind, budget_s)]
    return rows


def _loop(cell: hb.Cell, inputs: Tensor) -> Tensor:
    """The article's loop: the step in plain PyTorch, once for each step of time."""
    return hb.unroll(cell, inputs, backend="reference")[0]


def _timed(
    calls: dict[str, layers.Call], cell: hb.Cell, inputs: Tensor, kind: str, budget_s: float
) -> list[Row]:
    batches, counts, rows = {}, {}, []
    for name, call in calls.items():
        try:
            batches[name], counts[name] = _batch(call, inputs.is_cuda)
        except Exception as error:  # a rival that can't run here is written down, and the rest goes on
            if name in ("relu", "hibana", "copy"):
                raise
            rows.append({"contender": name, "error": f"{type(error).__name__}: {str(error).splitlines()[0]}"})
    seconds = measure.rounds(batches, budget_s=budget_s, at_least=5)
    each = {name: [taken / counts[name] for taken in times] for name, times in seconds.items()}
    moved = {name: _bytes(name, cell, inputs, kind) for name in each}
    summaries = {name: measure.summary(times) for name, times in each.items()}
    copied = moved["copy"] / summaries["copy"]["ms"]
    for name, summary in summaries.items():
        row = {"contender": name, **summary}
        if moved[name]:
            row |= {
                "gb_s": moved[name] / summary["ms"] / 1e6,
                "of_copy": moved[name] / summary["ms"] / copied,
            }
        rows.append(row)
    return rows


def _batch(call: layers.Call, waits: bool) -> tuple[layers.Call, int]:
    """`call` several times and then waiting for the device, and how many times that is."""

    def batch(times: int) -> None:
        for _ in range(times):
            call()
        if waits:
            torch.cuda.synchronize()

    batch(2)  # compiles, tunes
    began = time.perf_counter()
    batch(1)
    count = max(1, min(200, int(_BATCH_S / (time.perf_counter() - began))))
    return partial(batch, count), count


def _bytes(name: str, cell: hb.Cell, inputs: Tensor, kind: str) -> float:
    """What a pass must move: input and output, both gradients, and what is kept, written and read; or 0."""
    sequence, backward = inputs.numel() * inputs.element_size(), kind == "forward+backward"
    if name == "copy":
        return 2 * sequence
    if name == "relu":
        return (5 if backward else 2) * sequence
    if name != "hibana":
        return 0
    kept = hb.unroll(cell, inputs[:, :64].clone().requires_grad_())[0].grad_fn
    bits = kept.specification.kernels.plan.bits() if kept is not None and backward else 0
    return (4 if backward else 2) * sequence + 2 * inputs.numel() * bits / 8


def _card(device: str) -> dict[str, str]:
    """The device, its driver and the CUDA that torch was built for."""
    if device != "cuda":
        return {"device": device, "driver": "none", "cuda": "none"}
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, check=False, text=True)
    driver = done.stdout.splitlines()[0].strip() if done.returncode == 0 else "not told by nvidia-smi"
    return {"device": torch.cuda.get_device_name(), "driver": driver, "cuda": str(torch.version.cuda)}
