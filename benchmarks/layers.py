"""Times one layer of neurons and ``torch.relu``, with a warm and with a cold heap.

The heap is warm if freed memory stays in the process (``hb.keep_memory``), and cold with glibc's defaults.
"""

import shutil
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

import hibana as hb
from benchmarks import agreement, measure, peers

__all__ = ["SIZES", "jobs"]

SIZES = {"16x65536": (16, 65536), "32x262144": (32, 262144), "100x12800": (100, 12800)}
_QUICK = {"4x1000": (4, 1000)}

Call = Callable[[], object]
Row = dict[str, Any]


def jobs(quick: bool) -> dict[str, Callable[[], list[Row]]]:
    """One job per size, heap and neuron, and one per neuron that measures the memory."""
    sizes = _QUICK if quick else SIZES
    job_functions: dict[str, Callable[[], list[Row]]] = {}
    for heap in ("warm", "cold"):
        for size, shape in sizes.items():
            budget = 0.2 if quick else (6.0 if heap == "warm" else 3.0)
            for name in peers.CASES:
                job_functions[f"layers/{heap}/{size}/{name}"] = partial(
                    _measure_eager, size, shape, name, heap, budget
                )
    for size in sizes:
        for name in ("step",) if quick else ("step", "atan"):
            job_functions[f"layers/compiled/{size}/{name}"] = partial(
                _measure_compiled, size, sizes[size], name
            )
    largest = list(sizes)[-1 if quick else 1]
    for name in peers.CASES:
        job_functions[f"layers/memory/{name}"] = partial(_measure_memory, name, largest, sizes[largest])
    return job_functions


def cell(case: peers.Case) -> hb.Cell:
    """The cell of hibana that computes `case`."""
    surrogate = getattr(hb.surrogate, case.surrogate)()
    if case.leaky:
        return hb.LIFCell(2.0, 1.0, surrogate, case.detach_reset)
    return hb.IFCell(1.0, surrogate, case.detach_reset)


def sequence(shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """An input with which about 9% of the neurons fire in each step, and a gradient of the output."""
    generator = torch.Generator().manual_seed(0)
    inputs = 0.1 + 0.5 * torch.randn(shape, generator=generator)
    return inputs, torch.randn(shape, generator=generator)


def contender(name: str, case: peers.Case) -> tuple[Callable[[Tensor], Tensor], str]:
    """The layer of contender `name` over a sequence, and its description as code."""
    if name == "relu":
        return torch.relu, "torch.relu"
    if name == "hibana":
        layer = hb.OverTime(cell(case))
        return layer, f"hibana.OverTime({layer.cell!r})"
    peer_layer = peers.PEERS[name.removesuffix(peers.COMPILED)].layer(case)
    if name.endswith(peers.COMPILED):
        return torch.compile(peer_layer.module), f"torch.compile({peer_layer.description})"
    return peer_layer.module, peer_layer.description


def forward_backward(layer: Callable[[Tensor], Tensor], inputs: Tensor, grad_outputs: Tensor) -> Call:
    """Returns a function that runs `layer` and its backward and discards the results."""

    def call() -> None:
        torch.autograd.grad(layer(inputs), inputs, grad_outputs)

    return call


def inference(layer: Callable[[Tensor], Tensor], inputs: Tensor) -> Call:
    """Returns a function that runs `layer` in inference mode."""

    def call() -> None:
        with torch.inference_mode():
            layer(inputs)

    return call


def _measure_eager(size: str, shape: tuple[int, int], name: str, heap: str, budget_s: float) -> list[Row]:
    """Times of hibana, ReLU and the peers without ``torch.compile``."""
    columns = {"size": size, "heap": heap, "case": name}
    if heap == "warm" and not hb.keep_memory():
        return [{**columns, "contender": "all", "error": "only glibc's mallopt keeps the heap warm"}]
    usable, _ = peers.available()
    return _measure_contenders(columns, shape, list(usable), budget_s)


def _measure_compiled(size: str, shape: tuple[int, int], name: str) -> list[Row]:
    """Times of the peers that recommend ``torch.compile``, compiled by it; needs a C++ compiler."""
    columns = {"size": size, "heap": "warm", "case": name}
    if shutil.which("c++") is None:
        return [{**columns, "contender": "peers", "error": "torch.compile needs a C++ compiler"}]
    hb.keep_memory()
    usable, _ = peers.available()
    others = [peer + peers.COMPILED for peer in peers.COMPILABLE if peer in usable]
    return _measure_contenders(columns, shape, others, budget_s=6.0)


def _measure_contenders(
    columns: Row, shape: tuple[int, int], others: list[str], budget_s: float
) -> list[Row]:
    """Times of all contenders; hibana is timed only if it agrees with its reference loop at this size."""
    case = peers.CASES[columns["case"]]
    inputs, grad_outputs = sequence(shape)
    difference = agreement.disagreement(cell(case), inputs, grad_outputs)
    rows: list[Row] = [{**columns, "contender": "hibana", "error": difference}] if difference else []
    names = ["relu", *([] if difference else ["hibana"]), *others]
    return rows + [{**columns, **row} for row in _measure_passes(case, names, inputs, grad_outputs, budget_s)]


def _measure_passes(
    case: peers.Case, contenders: list[str], inputs: Tensor, grad_outputs: Tensor, budget_s: float
) -> Iterator[Row]:
    """Yields a row per pass and contender: times, the contender's code, and its firing rate."""
    differentiable_inputs = inputs.clone().requires_grad_()
    passes: dict[str, Callable[[Callable[[Tensor], Tensor]], Call]] = {
        "forward+backward": lambda layer: forward_backward(layer, differentiable_inputs, grad_outputs),
        "inference": lambda layer: inference(layer, inputs),
    }
    for kind, call in passes.items():
        layers = {name: contender(name, case) for name in contenders}
        budget = budget_s if kind == "forward+backward" else budget_s / 2
        seconds = measure.rounds(
            {name: call(layer) for name, (layer, _) in layers.items()}, budget_s=budget, min_rounds=3
        )
        for name, (layer, description) in layers.items():
            with torch.inference_mode():
                firing = float((layer(inputs) > 0).float().mean())
            summary = measure.summary(seconds[name])
            yield {"pass": kind, "contender": name, "is": description, "firing": firing, **summary}


def _measure_memory(case: str, size: str, shape: tuple[int, int]) -> list[Row]:
    """Peak memory of each contender, each in a new process."""
    usable, _ = peers.available()
    rows = []
    for name in ("relu", "hibana", *usable):
        peak = measure.in_process("benchmarks.layers", "peak", name, case, *shape)
        rows.append({"size": size, "case": case, "contender": name, **peak})
    return rows


def peak(name: str, case: str, steps: int, neurons: int) -> dict[str, float]:
    """Peak memory of two forward and backward passes of one layer, in MB; see ``peak_above_baseline``."""
    inputs, grad_outputs = sequence((steps, neurons))
    inputs.requires_grad_()
    layer, _ = contender(name, peers.CASES[case])
    small_inputs = inputs[:, :8].detach().requires_grad_()
    forward_backward(layer, small_inputs, grad_outputs[:, :8])()  # compiles and loads before the measurement
    call = forward_backward(layer, inputs, grad_outputs)
    return measure.peak_above_baseline(call)
