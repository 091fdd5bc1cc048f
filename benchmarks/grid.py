"""Times layers of hibana (mode "auto") and of torch over a grid of sizes, densities and batches.

The input is a plain tensor of spikes. This is the slowest case for hibana: it has recorded nothing about the
spikes in advance, so each call must pack their bits, and in training it must compute the full gradient of
the input. With one thread, processor time is measured, which other processes disturb less than wall time. A
combination that seems slower is measured for longer before it counts as slower.
"""

import copy
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import hibana as hb
from benchmarks import measure

__all__ = ["DENSITIES", "SLOWER", "inference", "jobs", "training"]

Row = dict[str, Any]
DENSITIES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
SLOWER = 1.05
"""Smallest ratio to torch's time that counts as slower."""
_STEPS = 4
"""Time steps; they are joined with the batch."""


class _Size(NamedTuple):
    """A layer, and the shape of one sample of its input."""

    title: str
    layer: Callable[[], nn.Module]
    shape: tuple[int, ...]
    can_train: bool = True
    """Whether the layer's backward is measured."""


def _sizes() -> dict[str, _Size]:
    """The measured layers by name: linear layers, and convolutions with several kernels and strides."""
    sizes = {}
    for width in (64, 256, 1024, 4096):
        sizes[f"linear/{width}"] = _Size(f"linear {width}", partial(nn.Linear, width, width), (width,))
    for channels, pixels in ((8, 64), (32, 32), (128, 16), (256, 4)):
        for kernel in (1, 3, 5):
            for stride in (1, 2):
                name = f"{channels} at {pixels}x{pixels}, {kernel}x{kernel}" + ("/2" if stride == 2 else "")
                layer = partial(nn.Conv2d, channels, channels, kernel, stride, kernel // 2)
                key = f"conv/{channels}c{kernel}s{stride}-{pixels}"
                # the backward of torch 2.13 writes beyond its memory for few channels and these kernels
                can_train = channels >= 16 or (kernel, stride) != (1, 2)
                sizes[key] = _Size(name, layer, (channels, pixels, pixels), can_train)
    return sizes


def jobs(quick: bool) -> dict[str, Callable[[], list[Row]]]:
    """One job per size of layer, which measures all densities and batches."""
    sizes = _sizes()
    names = ["linear/64", "conv/8c1s1-64"] if quick else list(sizes)
    return {f"grid/{name}": partial(_measure_size, sizes[name], quick) for name in names}


def _measure_size(size: _Size, quick: bool) -> list[Row]:
    """Rows of one job: times of a layer at all batches and densities."""
    hb.keep_memory()
    rows = []
    for batch in (1,) if quick else (1, 16, 256):
        if batch * _STEPS * torch.Size(size.shape).numel() > 1 << 24:
            continue  # 64 MB or more of input
        for density in DENSITIES[::6] if quick else DENSITIES:
            rows += _measure_cell(size, batch, density, quick)
    return rows


def _measure_cell(size: _Size, batch: int, density: float, quick: bool) -> list[Row]:
    """Times of both layers at one density, or one row with an error if the outputs differ."""
    torch.manual_seed(0)
    dense = size.layer()
    spikes = (torch.rand(_STEPS * batch, *size.shape) < density).float()
    if spikes.ndim == 4:  # the fastest memory format of torch
        spikes = spikes.contiguous(memory_format=torch.channels_last)
        dense = dense.to(memory_format=torch.channels_last)
    ours = hb.events.adopt(copy.deepcopy(dense))
    columns = {"size": size.title, "batch": batch, "density": density}
    with torch.no_grad():
        expected = dense(spikes)
        if not torch.allclose(ours(spikes), expected, rtol=1e-3, atol=1e-3):
            return [{**columns, "contender": "hibana", "error": "outputs differ"}]
    gradient = torch.randn_like(expected)
    rows: list[Row] = []
    passes = {"forward": inference}
    if size.can_train:
        passes["training"] = partial(training, gradient=gradient)
    for kind, call in passes.items():
        calls = {contender: call(layer, spikes) for contender, layer in (("torch", dense), ("hibana", ours))}
        seconds = _call_seconds(calls, quick)
        explanations = {"torch": "", "hibana": ours.explain()}
        rows += [
            {
                **columns,
                "pass": kind,
                "contender": contender,
                "said": explanations[contender],
                "ms": min(times) * 1e3,
            }
            for contender, times in seconds.items()
        ]
    return rows


def _call_seconds(calls: dict[str, Callable[[], None]], quick: bool) -> dict[str, list[float]]:
    """Seconds of alternating calls by contender, with further calls if hibana seems slower."""
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    seconds = measure.rounds(
        calls, budget_s=0.05 if quick else 1.0, min_rounds=2 if quick else 7, clock=clock
    )
    if not quick and min(seconds["hibana"]) > SLOWER * min(seconds["torch"]):
        for contender, further_times in measure.rounds(
            calls, budget_s=3.0, min_rounds=20, clock=clock
        ).items():
            seconds[contender] += further_times
    return seconds


def inference(layer: nn.Module, spikes: Tensor) -> Callable[[], None]:
    """Returns a function that calls `layer` in inference mode."""

    def call() -> None:
        with torch.inference_mode():
            layer(spikes)

    return call


def training(layer: nn.Module, spikes: Tensor, gradient: Tensor) -> Callable[[], None]:
    """Returns a function that calls `layer` and its backward for a `gradient` of the output.

    The backward includes the gradient of the spikes.
    """
    inputs = spikes.clone().requires_grad_()  # keeps the memory format

    def call() -> None:
        inputs.grad = None
        layer.zero_grad()
        layer(inputs).backward(gradient)

    return call
