"""How a layer's time grows with the steps and with the neurons, and what an almost empty call costs."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

import hibana as hb
from benchmarks import agreement, layers, measure, peers
from benchmarks.promises import OPERATIONS_PER_CALL

__all__ = ["jobs"]

Row = dict[str, Any]
_CASE = "step"
_STEPS = (1, 3, 10, 30, 100, 300, 1000)
_PEERS_STEPS = 100  # the backward of some of them grows with the square of the steps
_NEURONS = (1_000, 3_000, 10_000, 30_000, 100_000, 300_000, 1_000_000)


def jobs(quick: bool) -> dict[str, Callable[[], list[Row]]]:
    """What can be run on its own."""
    steps, neurons = (_STEPS[:2], _NEURONS[:2]) if quick else (_STEPS, _NEURONS)
    return {
        "scaling/steps": partial(_times, "steps", [(count, 20_000) for count in steps]),
        "scaling/neurons": partial(_times, "neurons", [(16, count) for count in neurons]),
        "scaling/call": _call,
    }


def _times(along: str, shapes: list[tuple[int, int]]) -> list[Row]:
    """IF forward and backward by size, beside ReLU and the peers."""
    hb.keep_memory()
    usable, _ = peers.available()
    rows: list[Row] = []
    for shape in shapes:
        inputs, grad_outputs = layers.sequence(shape)
        others = list(usable) if shape[0] <= _PEERS_STEPS else []
        red = agreement.disagreement(layers.cell(peers.CASES[_CASE]), inputs, grad_outputs)
        if red:
            rows.append({"along": along, "shape": shape, "contender": "hibana", "error": red})
        names = ["relu", *([] if red else ["hibana"]), *others]
        wanted = inputs.clone().requires_grad_()
        calls = {
            name: layers.forward_backward(layers.contender(name, peers.CASES[_CASE])[0], wanted, grad_outputs)
            for name in names
        }
        seconds = measure.rounds(calls, budget_s=2.0, at_least=3)
        rows += [
            {"along": along, "shape": shape, "contender": name, **measure.summary(seconds[name])}
            for name in names
        ]
    return rows


def _call() -> list[Row]:
    """IF at [1, 10], forward, beside eager element-wise operations of that size."""
    x = torch.rand(1, 10)
    layer = hb.IF(1.0, hb.surrogate.Step(), detach_reset=True)

    def additions() -> None:
        y = x
        for _ in range(OPERATIONS_PER_CALL):
            y = y + x

    wanted = x.clone().requires_grad_()
    calls: dict[str, Callable[[], object]] = {
        f"{OPERATIONS_PER_CALL} additions": additions,
        "hibana, no gradient wanted": layers.inference(layer, x),
        "hibana, a gradient wanted": lambda: layer(wanted),
    }
    seconds = measure.rounds(calls, budget_s=2.0, at_most=200, stretch_s=0.001)
    return [{"contender": name, **measure.summary(taken)} for name, taken in seconds.items()]
