"""One layer: each neuron of :data:`benchmarks.peers.CASES` beside ``torch.relu``, heap warm and cold."""

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
    """What can be run on its own: a size with a heap, and the memory of one neuron."""
    sizes = _QUICK if quick else SIZES
    found: dict[str, Callable[[], list[Row]]] = {}
    for heap in ("warm", "cold"):
        for size, shape in sizes.items():
            budget = 0.2 if quick else (6.0 if heap == "warm" else 3.0)
            for name in peers.CASES:
                found[f"layers/{heap}/{size}/{name}"] = partial(_times, size, shape, name, heap, budget)
    for size in sizes:
        for name in ("step",) if quick else ("step", "atan"):
            found[f"layers/compiled/{size}/{name}"] = partial(_compiled, size, sizes[size], name)
    largest = list(sizes)[-1 if quick else 1]
    for name in peers.CASES:
        found[f"layers/memory/{name}"] = partial(_memory, name, largest, sizes[largest])
    return found


def cell(case: peers.Case) -> hb.Cell:
    """Hibana's cell for `case`."""
    surrogate = getattr(hb.surrogate, case.surrogate)()
    if case.leaky:
        return hb.LIFCell(2.0, 1.0, surrogate, case.detach_reset)
    return hb.IFCell(1.0, surrogate, case.detach_reset)


def sequence(shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """An input that makes about 9% of the neurons fire in each step, and a gradient of the output."""
    generator = torch.Generator().manual_seed(0)
    inputs = 0.1 + 0.5 * torch.randn(shape, generator=generator)
    return inputs, torch.randn(shape, generator=generator)


def contender(name: str, case: peers.Case) -> tuple[Callable[[Tensor], Tensor], str]:
    """What `name` makes of a sequence, and what exactly that is."""
    if name == "relu":
        return torch.relu, "torch.relu"
    if name == "hibana":
        layer = hb.OverTime(cell(case))
        return layer, f"hibana.OverTime({layer.cell!r})"
    built = peers.PEERS[name.removesuffix(peers.COMPILED)].layer(case)
    if name.endswith(peers.COMPILED):
        return torch.compile(built.module), f"torch.compile({built.described})"
    return built.module, built.described


def forward_backward(layer: Callable[[Tensor], Tensor], inputs: Tensor, grad_outputs: Tensor) -> Call:
    """A call that runs `layer` and its backward, and keeps nothing."""

    def call() -> None:
        torch.autograd.grad(layer(inputs), inputs, grad_outputs)

    return call


def inference(layer: Callable[[Tensor], Tensor], inputs: Tensor) -> Call:
    """A call that runs `layer` where no gradient is wanted."""

    def call() -> None:
        with torch.inference_mode():
            layer(inputs)

    return call


def _times(size: str, shape: tuple[int, int], name: str, heap: str, budget_s: float) -> list[Row]:
    about = {"size": size, "heap": heap, "case": name}
    if heap == "warm" and not hb.keep_memory():
        return [{**about, "contender": "all", "error": "only glibc's mallopt keeps the heap warm"}]
    usable, _ = peers.available()
    return _compared(about, shape, list(usable), budget_s)


def _compiled(size: str, shape: tuple[int, int], name: str) -> list[Row]:
    """The peers whose documentation speaks of ``torch.compile``, through it; it needs a C++ compiler."""
    about = {"size": size, "heap": "warm", "case": name}
    if shutil.which("c++") is None:
        return [{**about, "contender": "peers", "error": "torch.compile needs a C++ compiler"}]
    hb.keep_memory()
    usable, _ = peers.available()
    others = [peer + peers.COMPILED for peer in peers.COMPILABLE if peer in usable]
    return _compared(about, shape, others, budget_s=6.0)


def _compared(about: Row, shape: tuple[int, int], others: list[str], budget_s: float) -> list[Row]:
    """Everybody's times, hibana's only if it agrees with its reference at this very size."""
    case = peers.CASES[about["case"]]
    inputs, grad_outputs = sequence(shape)
    red = agreement.disagreement(cell(case), inputs, grad_outputs)
    rows: list[Row] = [{**about, "contender": "hibana", "error": red}] if red else []
    names = ["relu", *([] if red else ["hibana"]), *others]
    return rows + [{**about, **row} for row in _rows(case, names, inputs, grad_outputs, budget_s)]


def _rows(
    case: peers.Case, contenders: list[str], inputs: Tensor, grad_outputs: Tensor, budget_s: float
) -> Iterator[Row]:
    wanted = inputs.clone().requires_grad_()
    passes: dict[str, Callable[[Callable[[Tensor], Tensor]], Call]] = {
        "forward+backward": lambda layer: forward_backward(layer, wanted, grad_outputs),
        "inference": lambda layer: inference(layer, inputs),
    }
    for kind, call in passes.items():
        layers = {name: contender(name, case) for name in contenders}
        budget = budget_s if kind == "forward+backward" else budget_s / 2
        seconds = measure.rounds(
            {name: call(layer) for name, (layer, _) in layers.items()}, budget_s=budget, at_least=3
        )
        for name, (layer, described) in layers.items():
            with torch.inference_mode():
                firing = float((layer(inputs) > 0).float().mean())
            summary = measure.summary(seconds[name])
            yield {"pass": kind, "contender": name, "is": described, "firing": firing, **summary}


def _memory(case: str, size: str, shape: tuple[int, int]) -> list[Row]:
    usable, _ = peers.available()
    rows = []
    for name in ("relu", "hibana", *usable):
        peak = measure.in_process("benchmarks.layers", "peak", name, case, *shape)
        rows.append({"size": size, "case": case, "contender": name, **peak})
    return rows


def peak(name: str, case: str, steps: int, neurons: int) -> dict[str, float]:
    """Megabytes that two passes forward and backward of one layer take, above what stood before them."""
    inputs, grad_outputs = sequence((steps, neurons))
    inputs.requires_grad_()
    layer, _ = contender(name, peers.CASES[case])
    small = inputs[:, :8].detach().requires_grad_()
    forward_backward(layer, small, grad_outputs[:, :8])()  # what is compiled or loaded once is no layer's
    call = forward_backward(layer, inputs, grad_outputs)
    return measure.peak_above_baseline(call)
