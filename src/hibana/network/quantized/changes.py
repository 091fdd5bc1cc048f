"""What quantisation made of a network, layer by layer."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hibana.network.graph import Node

__all__ = ["LayerChange", "Quantization", "change", "same_class"]


@dataclass(frozen=True)
class LayerChange:
    """What quantisation made of a layer."""

    name: str
    what: str
    weight_error: float
    """Root mean square of what the weights changed by, over that of the weights; 0 without weights."""
    before: float
    """The part of its numbers that are not zero on the calibration data, before;"""
    after: float
    """and after."""
    agreement: float
    """The part of its numbers that are as they were, of what spikes; else the correlation."""


@dataclass(frozen=True)
class Quantization:
    """The report of :func:`quantize`, layer by layer."""

    layers: tuple[LayerChange, ...]
    same_class: float
    """The part of the samples and steps whose largest output is at the same place."""

    def __str__(self) -> str:
        head = f"{'layer':12} {'':12} {'weights changed':>15} {'not zero':>10} {'now':>10} {'agreement':>10}"
        rows = [
            f"{c.name:12.12} {c.what:12} {c.weight_error:15.2%} {c.before:10.2%} {c.after:10.2%} "
            f"{c.agreement:10.2%}"
            for c in self.layers
        ]
        return "\n".join([head, *rows, f"same class: {self.same_class:.2%}"])


def change(node: Node, weight_error: float, was: Tensor, now: Tensor) -> LayerChange:
    """What became of `node`, whose numbers were `was` and are `now`, in the same units."""
    module: Any = node.module
    spikes = node.kind == "neurons" and bool(((was == 0) | (was == 1)).all())
    agreement = float((was == now).double().mean()) if spikes else _correlation(was, now)
    what = type(getattr(module, "cell", module)).__name__.removesuffix("Cell")
    return LayerChange(node.name, what, weight_error, _not_zero(was), _not_zero(now), agreement)


def same_class(before: Tensor, after: Tensor) -> float:
    """The part of the samples and steps with the largest output at the same place."""
    same = before.flatten(1).argmax(1) == after.flatten(1).argmax(1)
    return float(same.double().mean())


def _not_zero(values: Tensor) -> float:
    return float(values.count_nonzero()) / values.numel()


def _correlation(one: Tensor, two: Tensor) -> float:
    pair = torch.stack([one.flatten(), two.flatten()])
    pair = pair - pair.mean(1, keepdim=True)
    norms = pair.norm(dim=1).prod()
    return 1.0 if float(norms) == 0 else float((pair[0] * pair[1]).sum() / norms)
