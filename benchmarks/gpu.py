"""Times one layer on a GPU: hibana, ``torch.relu``, SpikingJelly, a loop in PyTorch, and ``copy_``.

The contenders are called alternately, several times before a synchronization, so that launches overlap with
computation as in normal use. The bytes of a pass are the bytes of the sequence that it must read and write.
``of_copy`` is the bandwidth as a fraction of the bandwidth of ``copy_``.
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

__all__ = ["SIZES", "jobs", "measure_layer"]

SIZES = {**layers.SIZES, "32x4194304": (32, 4194304)}
CASES = ("step", "through-reset", "atan")
_QUICK = {"4x1000": (4, 1000)}
_BATCH_S = 0.02

Row = dict[str, Any]


def jobs(quick: bool) -> dict[str, Callable[[], list[Row]]]:
    """One job per size and neuron; without a GPU a single job that reports this."""
    if not torch.cuda.is_available():
        return {"gpu": _no_device}
    sizes = _QUICK if quick else SIZES
    budget = 0.5 if quick else 8.0
    return {
        f"gpu/{size}/{case}": partial(measure_layer, size, shape, case, budget)
        for size, shape in sizes.items()
        for case in CASES
    }


def _no_device() -> list[Row]:
    return [{"contender": "everybody", "error": "there is no CUDA device, so nothing was measured"}]


def measure_layer(
    size: str, shape: tuple[int, int], name: str, budget_s: float, device: str = "cuda"
) -> list[Row]:
    """Times of all contenders at `shape`; hibana is timed only if it agrees with its reference loop there."""
    case = peers.CASES[name]
    columns = {"size": size, "case": name, **_device_description(device)}
    inputs, grad_outputs = (tensor.to(device) for tensor in layers.sequence(shape))
    cell = layers.cell(case)
    difference = agreement.disagreement(cell, inputs, grad_outputs)
    contenders: dict[str, Callable[[Tensor], Tensor]] = {"relu": torch.relu}
    if not difference:
        contenders["hibana"] = hb.OverTime(cell)
    usable, _ = peers.available()
    if "spikingjelly" in usable:
        contenders["spikingjelly"] = usable["spikingjelly"].layer(case).module.to(device)
    contenders["loop"] = loop = partial(_loop, cell)
    contenders["loop+compile"] = torch.compile(loop)
    rows: list[Row] = [{**columns, "contender": "hibana", "error": difference}] if difference else []
    differentiable_inputs = inputs.clone().requires_grad_()
    passes: dict[str, Callable[[Callable[[Tensor], Tensor]], layers.Call]] = {
        "forward+backward": lambda layer: layers.forward_backward(layer, differentiable_inputs, grad_outputs),
        "inference": lambda layer: layers.inference(layer, inputs),
    }
    for kind, call in passes.items():
        calls = {contender: call(layer) for contender, layer in contenders.items()}
        calls["copy"] = partial(torch.empty_like(inputs).copy_, inputs)
        rows += [
            {**columns, "pass": kind, **row} for row in _measure_calls(calls, cell, inputs, kind, budget_s)
        ]
    return rows


def _loop(cell: hb.Cell, inputs: Tensor) -> Tensor:
    """The neuron's step in plain PyTorch, called once per time step."""
    return hb.unroll(cell, inputs, backend="reference")[0]


def _measure_calls(
    calls: dict[str, layers.Call], cell: hb.Cell, inputs: Tensor, kind: str, budget_s: float
) -> list[Row]:
    """Times the calls of one pass; rows have the bandwidth, or the error of a contender that fails."""
    batches, counts, rows = {}, {}, []
    for name, call in calls.items():
        try:
            batches[name], counts[name] = _batch(call, inputs.is_cuda)
        except Exception as error:  # reported in the table
            if name in ("relu", "hibana", "copy"):
                raise
            rows.append({"contender": name, "error": f"{type(error).__name__}: {str(error).splitlines()[0]}"})
    seconds = measure.rounds(batches, budget_s=budget_s, min_rounds=5)
    seconds_per_call = {
        name: [batch_seconds / counts[name] for batch_seconds in times] for name, times in seconds.items()
    }
    bytes_moved = {name: _bytes_per_pass(name, cell, inputs, kind) for name in seconds_per_call}
    summaries = {name: measure.summary(times) for name, times in seconds_per_call.items()}
    copy_speed = bytes_moved["copy"] / summaries["copy"]["ms"]
    for name, summary in summaries.items():
        row = {"contender": name, **summary}
        if bytes_moved[name]:
            speed = bytes_moved[name] / summary["ms"]
            row |= {"gb_s": speed / 1e6, "of_copy": speed / copy_speed}
        rows.append(row)
    return rows


def _batch(call: layers.Call, is_cuda: bool) -> tuple[layers.Call, int]:
    """A function that repeats `call` and then synchronizes, and the number of repetitions."""

    def batch(times: int) -> None:
        for _ in range(times):
            call()
        if is_cuda:
            torch.cuda.synchronize()

    batch(2)  # compiles, tunes
    start = time.perf_counter()
    batch(1)
    count = max(1, min(200, int(_BATCH_S / (time.perf_counter() - start))))
    return partial(batch, count), count


def _bytes_per_pass(name: str, cell: hb.Cell, inputs: Tensor, kind: str) -> float:
    """Bytes that a pass must read and write, or 0 if unknown.

    These are the input, the output, their gradients, and what the forward saves for the backward.
    """
    sequence, backward = inputs.numel() * inputs.element_size(), kind == "forward+backward"
    if name == "copy":
        return 2 * sequence
    if name == "relu":
        return (5 if backward else 2) * sequence
    if name != "hibana":
        return 0
    node = hb.unroll(cell, inputs[:, :64].clone().requires_grad_())[0].grad_fn
    bits = node.specification.kernels.plan.bits() if node is not None and backward else 0
    return (4 if backward else 2) * sequence + 2 * inputs.numel() * bits / 8


def _device_description(device: str) -> dict[str, str]:
    """The device, its driver, and the CUDA version for which torch was built."""
    if device != "cuda":
        return {"device": device, "driver": "none", "cuda": "none"}
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    result = subprocess.run(command, capture_output=True, check=False, text=True)
    driver = result.stdout.splitlines()[0].strip() if result.returncode == 0 else "unknown to nvidia-smi"
    return {"device": torch.cuda.get_device_name(), "driver": driver, "cuda": str(torch.version.cuda)}
