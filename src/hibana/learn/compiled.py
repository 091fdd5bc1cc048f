"""A chunk of a layer by compiled kernels.

The recursions are those of :class:`hibana.learn.system.System`, which goes through a chunk by PyTorch's
operations.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from hibana.compiler import unrolled
from hibana.learn.coefficients import Coefficient, dot, scan, times
from hibana.learn.derivatives import Linearised
from hibana.learn.network import Neurons
from hibana.learn.rule_cells import Around, EffectCell, RuleCell
from hibana.learn.rules import PPProp, Rule
from hibana.learn.system import System, filtered_by, first_of

__all__ = ["AnySystem", "Kernels", "Ran"]


@dataclass
class KernelSystem:
    """The recursion of a layer's traces over a chunk that kernels ran; as :class:`System` has it."""

    outputs: Tensor
    """What was emitted, with its graph."""
    last: Sequence[Tensor]
    """The neurons' states after the chunk, likewise."""
    drive: Tensor
    """The neurons' input, a leaf of that graph."""
    begun: Sequence[Tensor]
    """The states before the chunk, leaves of that graph; none at rest."""
    to_cut: Sequence[Sequence[Coefficient]]
    """C of the step before the chunk: of each state, of each component."""
    at: Sequence[tuple[int, Tensor]]
    """Of each component the state that it alone is a part of, and its factor there."""
    leak: Tensor | None
    shape: torch.Size
    alike: System | None
    """The recursion of the components, if they are the same for all neurons."""

    @property
    def count(self) -> int:
        """How many components there are."""
        return len(self.at)

    def backward(
        self, signal: Tensor | None, end: Sequence[Coefficient], end_readout: Coefficient
    ) -> tuple[Coefficient, list[Coefficient], Coefficient]:
        """As :meth:`System.backward`."""
        if self.alike is not None and signal is None and end_readout is None:
            return self.alike.backward(None, end, None)
        filtered = filtered_by(self.leak, signal, end_readout, self.shape)
        ends, given = list[Tensor](), list[Tensor]()
        if filtered is not None:
            ends.append(self.outputs)
            given.append(filtered.expand(self.shape))
        for (state, factor), one in zip(self.at, end, strict=True):
            if one is not None:
                ends.append(self.last[state])
                given.append((one / factor).expand(self.shape[1:]))
        wanted = [self.drive, *self.begun]
        factors, *before = torch.autograd.grad(ends, wanted, given, retain_graph=True, allow_unused=True)
        columns = [[row[j] for row in self.to_cut] for j in range(self.count)]
        return (
            factors,
            [dot(column, before) if before else None for column in columns],
            times(self.leak, first_of(filtered, self.shape)),
        )


@dataclass
class InstantSystem:
    """The recursion of one trace that is the same for all neurons, where a signal meets what `outputs` do."""

    outputs: Tensor
    """What was emitted, with the graph of each step alone."""
    drive: Tensor
    """The neurons' input, a leaf of that graph."""
    alike: System
    count = 1
    leak = None

    @property
    def shape(self) -> torch.Size:
        return self.alike.shape

    def backward(
        self, signal: Tensor | None, end: Sequence[Coefficient], end_readout: Coefficient
    ) -> tuple[Coefficient, list[Coefficient], Coefficient]:
        """As :meth:`System.backward`."""
        if signal is None:
            return self.alike.backward(None, end, None)
        (factors,) = torch.autograd.grad(
            self.outputs, self.drive, signal, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        ((decay,),), (to_input,) = self.alike.transition, self.alike.to_input
        assert to_input is not None
        scan([factors], [[decay]], [None], back=True)
        return factors, [None if decay is None else factors[0] * (decay / to_input)], None


AnySystem = System | KernelSystem | InstantSystem
"""The recursion of a layer's traces over a chunk."""


class Ran(NamedTuple):
    """A chunk of a layer, run by kernels."""

    emitted: Tensor
    state: tuple[Tensor, ...]
    """The neurons' states after the chunk."""
    system: "AnySystem"
    effect: Tensor | None = None
    """The neuron's side of a trace of rank one."""
    effects: tuple[Tensor, ...] = ()
    """What it goes on from."""
    at_last: tuple[Tensor, ...] = ()
    """The neurons' input in the last step, and their states before it."""
    instant: Callable[[Tensor], Tensor] | None = None
    """From the gradient of what is emitted in each step to that of its input; None if `system` has it."""


class Kernels:
    """Runs chunks of a layer by kernels, where these can give what a rule needs."""

    def __init__(self, layer: Neurons, rule: Rule) -> None:
        self.layer, self.rule = layer, rule
        self._cells: dict[str, Around] = {}

    def run(
        self,
        drive: Tensor,
        state: tuple[Tensor, ...] | None,
        effects: tuple[Tensor, ...],
        to_cut: Sequence[Sequence[Coefficient]],
        whole: Linearised,
        at_rest: System,
    ) -> Ran | None:
        """A chunk of the layer; None where kernels can't give what the rule needs.

        Args:
            drive: the neurons' input but that of recurrent synapses, ``[T, batch, ...]``.
            state: before the chunk; at rest if None.
            effects: what the last chunk left, of a rule with traces of rank one.
            to_cut: C of the step before the chunk.
            whole: a step at rest, linearised.
            at_rest: the recursion of the rule at that step.
        """
        at_rest = replace(at_rest, shape=drive.shape)
        alike = replace(at_rest, leak=None) if at_rest.moves_alike else None
        count = len(whole.to_cut)

        def instant(signal: Tensor) -> Tensor:
            outputs, _, leaf, _ = self._with_graph("instant", drive, state)
            # zeros of a step that emits before it uses its input
            return torch.autograd.grad(outputs, leaf, signal, allow_unused=True, materialize_grads=True)[0]

        if isinstance(self.rule, PPProp) and not at_rest.is_alike:
            emitted, last = unrolled(self.layer.step, drive, state)
            cell = self._effect_cell(self.rule.decay, at_rest.leak, drive)
            effect, carried = unrolled(cell, drive, None if state is None else (*state, *effects))
            return Ran(emitted, last, at_rest, effect, carried[count:], instant=instant)
        if alike is not None and all(c is None or c.ndim == 0 for c in at_rest.emitted):
            emitted, last = unrolled(self.layer.step, drive, state)
            return Ran(emitted, last, at_rest)
        if not self.rule.through_spikes:
            if alike is None or at_rest.count != 1 or not _is_number(whole.to_input[0], at_rest.to_input[0]):
                return None
            outputs, last, leaf, _ = self._with_graph("instant", drive, state)
            system: AnySystem = InstantSystem(outputs, leaf, alike)
        else:
            places = [_place_of(j, whole.to_cut) for j in range(at_rest.count)]
            at = [place for place in places if place is not None]
            if len(at) < len(places):
                return None
            outputs, last, leaf, begun = self._with_graph("over time", drive, state)
            system = KernelSystem(
                outputs, last[-count:], leaf, begun, to_cut, at, at_rest.leak, drive.shape, alike
            )
        ended = tuple([one.detach() for one in last])
        return Ran(outputs.detach(), ended[-count:], system, at_last=ended[:-count], instant=instant)

    def _with_graph(
        self, keeps: str, drive: Tensor, state: tuple[Tensor, ...] | None
    ) -> tuple[Tensor, tuple[Tensor, ...], Tensor, list[Tensor]]:
        """What the layer emits, with its graph, its last states, and the input and first states as leaves."""
        cell = self._cells.get(keeps)
        if not isinstance(cell, RuleCell) or not cell.fits(self.layer):
            own = self.rule.own_synapse
            cell = self._cells[keeps] = RuleCell(self.layer, over_time=keeps == "over time", own_synapse=own)
        with torch.enable_grad():
            leaf = drive.detach().requires_grad_()
            begun = [] if state is None else [one.detach().requires_grad_() for one in state]
            outputs, last = unrolled(cell, leaf, cell.from_state(begun) if begun else None)
        return outputs, last, leaf, begun

    def _effect_cell(self, decay: float, leak: Tensor | None, drive: Tensor) -> "EffectCell":
        cell = self._cells.get("effect")
        if not isinstance(cell, EffectCell) or not cell.fits(self.layer) or cell.leak.dtype != drive.dtype:
            cell = self._cells["effect"] = EffectCell(self.layer, decay, drive)
        cell.leak.copy_(torch.zeros_like(cell.leak) if leak is None else leak)
        return cell


def _is_number(one: Coefficient, other: Coefficient) -> bool:
    """Whether both are one number for all neurons at all times, not zero, and the same."""
    if one is None or other is None or one.ndim or other.ndim:
        return False
    return bool(one != 0) and bool(one == other)


def _place_of(component: int, to_cut: Sequence[Sequence[Coefficient]]) -> tuple[int, Tensor] | None:
    """The state that of all components this one alone is a part of, by one number, and that number."""
    for state, row in enumerate(to_cut):
        there = [i for i, c in enumerate(row) if c is not None]
        factor = row[component]
        if there == [component] and factor is not None and factor.ndim == 0:
            return state, factor
    return None
