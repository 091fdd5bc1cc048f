"""Measures how a layer's time grows with the steps and with the neurons, and the time of a tiny call."""

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
_PEERS_STEPS = 100  # the time of some peers' backward grows with the square of the steps
_NEURONS = (1_000, 3_000, 10_000, 30_000, 100_000, 300_000, 1_000_000)


def jobs(quick: bool) -> dict[str, Callable[[], list[Row]]]:
    """Three jobs: the growth with the steps, the growth with the neurons, and the time of a tiny call."""
    steps, neurons = (_STEPS[:2], _NEURONS[:2]) if quick else (_STEPS, _NEURONS)
    return {
        "scaling/steps": partial(_measure_growth, "steps", [(count, 20_000) for count in steps]),
        "scaling/neurons": partial(_measure_growth, "neurons", [(16, count) for count in neurons]),
        "scaling/call": _measure_call,
    }


def _measure_growth(along: str, shapes: list[tuple[int, int]]) -> list[Row]:
    """Times of IF forward and backward at each shape, of hibana, ReLU and the peers."""
    hb.keep_memory()
    usable, _ = peers.available()
    rows: list[Row] = []
    for shape in shapes:
        inputs, grad_outputs = layers.sequence(shape)
        others = list(usable) if shape[0] <= _PEERS_STEPS else []
        difference = agreement.disagreement(layers.cell(peers.CASES[_CASE]), inputs, grad_outputs)
        if difference:
            rows.append({"along": along, "shape": shape, "contender": "hibana", "error": difference})
        names = ["relu", *([] if difference else ["hibana"]), *others]
        differentiable_inputs = inputs.clone().requires_grad_()
        calls = {
            name: layers.forward_backward(
                layers.contender(name, peers.CASES[_CASE])[0], differentiable_inputs, grad_outputs
            )
            for name in names
        }
        seconds = measure.rounds(calls, budget_s=2.0, min_rounds=3)
        rows += [
            {"along": along, "shape": shape, "contender": name, **measure.summary(seconds[name])}
            for name in names
        ]
    return rows


def _measure_call() -> list[Row]:
    """Times of IF's forward at [1, 10] and of element-wise operations of torch at the same size."""
    x = torch.rand(1, 10)
    layer = hb.IF(1.0, hb.surrogate.Step(), detach_reset=True)

    def additions() -> None:
        y = x
        for _ in range(OPERATIONS_PER_CALL):
            y = y + x

    differentiable_inputs = x.clone().requires_grad_()
    calls: dict[str, Callable[[], object]] = {
        f"{OPERATIONS_PER_CALL} additions": additions,
        "hibana, no gradient wanted": layers.inference(layer, x),
        "hibana, a gradient wanted": lambda: layer(differentiable_inputs),
    }
    seconds = measure.rounds(calls, budget_s=2.0, max_rounds=200, stretch_s=0.001)
    return [{"contender": name, **measure.summary(times)} for name, times in seconds.items()]
