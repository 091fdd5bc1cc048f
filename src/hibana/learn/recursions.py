"""A chunk's recursions: of the traces of synapses, of a cell's own parameters, and of the neuron's side."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hibana.learn.coefficients import (
    Coefficient,
    at,
    dot,
    like_chunk,
    one_later,
    plus,
    scaled,
    scan,
    spread,
    stacked,
    times,
)
from hibana.learn.derivatives import Linearised
from hibana.learn.system import System

__all__ = ["ParameterTraces", "effect_of", "system_of", "with_own_synapse"]


def with_own_synapse(step: Linearised, weights: Tensor) -> Linearised:
    """`step`, where what a neuron emitted comes back to it times its weight, the diagonal of `weights`."""
    own = weights.diagonal()
    to_states = [
        [*row[:-1], plus(row[-1], times(k, own))]
        for row, k in zip(step.to_states, step.to_input, strict=True)
    ]
    return replace(step, to_states=to_states)


def system_of(
    step: Linearised, last: list[list[Coefficient]] | None, leak: Tensor | None, shape: torch.Size
) -> System:
    """The recursion of the traces over a chunk of `shape`; `last` is ``to_cut`` of the step before it."""
    before = [
        [one_later(c, None if last is None else last[s][i], shape) for i, c in enumerate(row)]
        for s, row in enumerate(step.to_cut)
    ]
    columns = [[row[i] for row in before] for i in range(len(step.to_input))]
    return System(
        [[spread(dot(row, column), shape) for column in columns] for row in step.to_states],
        [spread(c, shape) for c in step.to_input],
        [spread(c, shape) for c in step.to_cut[-1]],
        leak,
        shape,
    )


@dataclass(frozen=True)
class ParameterTraces:
    """The traces of a cell's parameters: for each sum that their gradients are made of, a number a state."""

    of_states: list[list[Coefficient]]
    of_readout: list[Coefficient]
    """What a leaky readout remembers of each."""

    @classmethod
    def after(
        cls, before: "ParameterTraces | None", step: Linearised, system: System, example: Tensor
    ) -> tuple[list[Tensor], "ParameterTraces"]:
        """What a learning signal is multiplied by at each step, like `example`, and the traces at the end.

        e_t = (dh_t/dh_(t-1)) e_(t-1) + dh_t/dp,   dh_t/dh_(t-1) = C S^T
        """
        states, cut, count = range(len(step.to_cut)), range(len(step.to_input)), len(step.to_sums[0])
        to_cut, to_states, to_sums = (
            [[spread(c, system.shape) for c in row] for row in rows]
            for rows in (step.to_cut, step.to_states, step.to_sums)
        )
        none: list[Coefficient] = [None] * count
        at_rest: list[list[Coefficient]] = [[None] * len(states) for _ in range(count)]
        traces = before.of_states if before else at_rest
        remembered = before.of_readout if before else none
        filtered: list[list[Coefficient]] = [[] for _ in range(count)]
        for t in range(system.steps):
            carried = [[dot([at(c, t) for c in to_states[j]], trace) for j in cut] for trace in traces]
            traces = [
                [plus(dot([at(c, t) for c in to_cut[i]], inner), at(to_sums[i][m], t)) for i in states]
                for m, inner in enumerate(carried)
            ]
            remembered = [
                plus(trace[-1], times(system.leak, one))
                for trace, one in zip(traces, remembered, strict=True)
            ]
            for steps, one in zip(filtered, remembered, strict=True):
                steps.append(one)
        return [like_chunk(stacked(steps, system.shape), example) for steps in filtered], cls(
            traces, remembered
        )


def effect_of(
    before: Sequence[Tensor], step: Linearised, system: System, decay: float, example: Tensor
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The neuron's side of a trace of rank one, like `example`; and what each state has of it at the end.

        F_t = decay (dh_t/dh_(t-1)) F_(t-1) + (1 - decay) dh_t/du_t,   z_t = decay leak z_(t-1) + F_t

    of the state that is emitted; within the steps by the values of the cut, ``F = C f``. At the end comes z,
    what a readout has of it.
    """
    shape = system.shape
    none: list[Coefficient] = [None] * (len(step.to_cut) + 1)
    *of_states, remembered = before or none
    f = [
        torch.zeros_like(example) if k is None else (k * (1 - decay)).expand(shape).clone()
        for k in system.to_input
    ]
    for one, row in zip(f, step.to_states, strict=True):
        carried = dot([at(spread(c, shape), 0) for c in row], of_states)
        if carried is not None:
            one[0] += carried * decay
    transition = [[scaled(decay, c) for c in row] for row in system.transition]
    scan(f, transition, [None] * len(f))
    filtered = dot(system.emitted, f)
    assert filtered is not None
    if system.leak is not None:
        scan([filtered], [[system.leak * decay]], [remembered])
    zero, end = torch.zeros_like(example[0]), [one[-1] for one in f]
    found = [dot([at(spread(c, shape), -1) for c in row], end) for row in step.to_cut]
    return filtered, (*(zero if one is None else one.clone() for one in found), filtered[-1].clone())
