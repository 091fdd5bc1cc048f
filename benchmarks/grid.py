"""A grid of layers, densities and batches: hibana's layers in mode "auto" beside torch's own.

The input are spikes that come from nowhere, so that their bits have to be made; in training it takes a
gradient, all of which is computed. Everything that hibana knows of a layer below would only help it. With
one thread, time is that of the processor, which others at work on the machine disturb less. A cell that is
slower is measured again before it counts.
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
"""A cell counts as slower from this ratio on."""
_STEPS = 4
"""Time steps, which are joined with the batch."""


class _Size(NamedTuple):
    """A layer, and the shape of one sample of its input."""

    title: str
    layer: Callable[[], nn.Module]
    shape: tuple[int, ...]
    trains: bool = True


def _sizes() -> dict[str, _Size]:
    found = {}
    for width in (64, 256, 1024, 4096):
        found[f"linear/{width}"] = _Size(f"linear {width}", partial(nn.Linear, width, width), (width,))
    for channels, pixels in ((8, 64), (32, 32), (128, 16), (256, 4)):
        for kernel in (1, 3, 5):
            for stride in (1, 2):
                name = f"{channels} at {pixels}x{pixels}, {kernel}x{kernel}" + ("/2" if stride == 2 else "")
                layer = partial(nn.Conv2d, channels, channels, kernel, stride, kernel // 2)
                key = f"conv/{channels}c{kernel}s{stride}-{pixels}"
                safe = channels >= 16 or (kernel, stride) != (1, 2)  # torch 2.13 writes beyond its memory
                found[key] = _Size(name, layer, (channels, pixels, pixels), safe)
    return found


def jobs(quick: bool) -> dict[str, Callable[[], list[Row]]]:
    """What can be run on its own: a layer, at all densities and batches."""
    sizes = _sizes()
    names = ["linear/64", "conv/8c1s1-64"] if quick else list(sizes)
    return {f"grid/{name}": partial(_times, sizes[name], quick) for name in names}


def _times(size: _Size, quick: bool) -> list[Row]:
    hb.keep_memory()
    rows = []
    for batch in (1,) if quick else (1, 16, 256):
        if batch * _STEPS * torch.Size(size.shape).numel() > 1 << 24:
            continue  # 64 MB and more of input
        for density in DENSITIES[::6] if quick else DENSITIES:
            rows += _cell(size, batch, density, quick)
    return rows


def _cell(size: _Size, batch: int, density: float, quick: bool) -> list[Row]:
    """Both layers' times at one density, if they agree."""
    torch.manual_seed(0)
    dense = size.layer()
    spikes = (torch.rand(_STEPS * batch, *size.shape) < density).float()
    if spikes.ndim == 4:  # as torch is fastest
        spikes = spikes.contiguous(memory_format=torch.channels_last)
        dense = dense.to(memory_format=torch.channels_last)
    ours = hb.events.adopt(copy.deepcopy(dense))
    about = {"size": size.title, "batch": batch, "density": density}
    with torch.no_grad():
        wanted = dense(spikes)
        if not torch.allclose(ours(spikes), wanted, rtol=1e-3, atol=1e-3):
            return [{**about, "contender": "hibana", "error": "outputs differ"}]
    gradient = torch.randn_like(wanted)
    rows: list[Row] = []
    passes = {"forward": inference}
    if size.trains:
        passes["training"] = partial(training, gradient=gradient)
    for kind, call in passes.items():
        calls = {who: call(layer, spikes) for who, layer in (("torch", dense), ("hibana", ours))}
        seconds = _seconds(calls, quick)
        said = {"torch": "", "hibana": ours.explain()}
        rows += [
            {**about, "pass": kind, "contender": who, "said": said[who], "ms": min(taken) * 1e3}
            for who, taken in seconds.items()
        ]
    return rows


def _seconds(calls: dict[str, Callable[[], None]], quick: bool) -> dict[str, list[float]]:
    """Of each call, in turn; of more calls where hibana seems slower."""
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    seconds = measure.rounds(calls, budget_s=0.05 if quick else 1.0, at_least=2 if quick else 7, clock=clock)
    if not quick and min(seconds["hibana"]) > SLOWER * min(seconds["torch"]):
        for who, more in measure.rounds(calls, budget_s=3.0, at_least=20, clock=clock).items():
            seconds[who] += more
    return seconds


def inference(layer: nn.Module, spikes: Tensor) -> Callable[[], None]:
    """A call of `layer` where no gradient is wanted."""

    def call() -> None:
        with torch.inference_mode():
            layer(spikes)

    return call


def training(layer: nn.Module, spikes: Tensor, gradient: Tensor) -> Callable[[], None]:
    """A call of `layer` and its backward from a `gradient` of its output, with the gradient of the spikes."""
    inputs = spikes.clone().requires_grad_()  # in the order in which they lie

    def call() -> None:
        inputs.grad = None
        layer.zero_grad()
        layer(inputs).backward(gradient)

    return call
