"""A chunk by compiled kernels: cells whose gradient over time, or whose states, are what a rule keeps.

Of :class:`hibana.learn.traces.System`, which goes through a chunk by PyTorch's operations, the recursion is
the same.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from hibana.cells import Cell
from hibana.compiler import unrolled
from hibana.learn.coefficients import Coefficient, dot, scan, times
from hibana.learn.derivatives import Linearised
from hibana.learn.network import Neurons
from hibana.learn.rules import PPProp, Rule
from hibana.learn.traces import System, filtered_by, first_of

__all__ = ["InstantSystem", "KernelSystem", "Kernels", "Ran"]


class _Around(Cell):
    """A step around that of a layer of neurons, which computes what the layer's does."""

    def __init__(self, layer: Neurons) -> None:
        nn.Module.__init__(self)
        self.cell = layer.cell
        self.recurrent = None if layer.recurrent is None else layer.recurrent.module
        self.gradient_scale = layer.gradient_scale
        self._enter()

    def fits(self, layer: Neurons) -> bool:
        """Whether it is still around the step of `layer`."""
        recurrent = None if layer.recurrent is None else layer.recurrent.module
        return self.cell is layer.cell and self.recurrent is recurrent

    def total(self, input_: Tensor, spikes: Tensor) -> Tensor:
        """The neurons' input, of recurrent synapses too; without a gradient through these."""
        if self.recurrent is None:
            return input_
        tensors = [None if t is None else t.detach() for t in (self.recurrent.weight, self.recurrent.bias)]
        return input_ + functional.linear(spikes.detach(), *tensors)  # type: ignore[arg-type] # the weight is there

    def rests_at_zero(self) -> bool:
        return self.cell.rests_at_zero()


class RuleCell(_Around):
    """The step of a layer; its gradient over time is what a rule keeps.

    Before the states of the neurons it has their total input and their states before the step, for the
    derivatives of the last step of a chunk.

    Args:
        layer: whose step it is.
        over_time: whether a gradient goes from step to step through the neuron's own states.
        own_synapse: whether also through its recurrent synapse to itself.
    """

    def __init__(self, layer: Neurons, *, over_time: bool = True, own_synapse: bool = False) -> None:
        super().__init__(layer)
        self.over_time, self.own_synapse = over_time, own_synapse

    def forward(self, input_: Tensor, *carried: Tensor) -> tuple[Tensor, ...]:
        before = carried[len(carried) // 2 + 1 :]
        if not self.over_time:
            before = tuple([one.detach() for one in before])
        total = self.total(input_, before[-1])
        if self.own_synapse and self.recurrent is not None:
            weights = self.recurrent.weight.detach().diagonal() * self.gradient_scale
            own = before[-1] * weights
            total = total + (own - own.detach())
        return (total.detach(), *(one.detach() for one in before), *self.cell(total, *before))

    def state_names(self) -> tuple[str, ...]:  # type: ignore[override] # they are those of the cell it has
        names = self.cell.state_names()
        return ("input_of_step", *(f"{name}_before" for name in names), *names)

    def initial_state(self, input_: Tensor) -> tuple[Tensor, ...]:
        return self.from_state(self.cell.initial_state(input_))

    def from_state(self, state: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The states with these of the neurons."""
        blank = torch.zeros_like(state[0])
        return (*[blank] * (len(state) + 1), *state)


class EffectCell(_Around):
    """The neuron's side of a trace of rank one, emitted, beside the states of a layer.

        F_t = decay (dh_t/dh_(t-1)) F_(t-1) + (1 - decay) dh_t/du_t     of each state h of a neuron
        z_t = decay leak z_(t-1) + F_t                                  of the state that is emitted
    """

    def __init__(self, layer: Neurons, decay: float, like: Tensor) -> None:
        super().__init__(layer)
        self.decay = decay
        self.leak = like.new_zeros(())
        """That of a readout, 0 without one."""

    def forward(self, input_: Tensor, *carried: Tensor) -> tuple[Tensor, ...]:
        count = len(carried) // 2
        before, effects, remembered = carried[:count], carried[count:-1], carried[-1]
        nexts, rows = step_derivatives(self.cell, self.total(input_, before[-1]), before)
        moved = []
        for to_input, *to_states in rows:
            total = 0 if to_input is None else to_input * (1 - self.decay)
            for factor, effect in zip(to_states, effects, strict=True):
                if factor is not None:
                    total = total + factor * effect * self.decay
            moved.append(total if isinstance(total, Tensor) else torch.zeros_like(input_))
        return (*nexts, *moved, moved[-1] + remembered * (self.leak * self.decay))

    def state_names(self) -> tuple[str, ...]:  # type: ignore[override] # they are those of the cell it has
        names = self.cell.state_names()
        return (*names, *(f"effect_on_{name}" for name in names), "effect")

    def initial_state(self, input_: Tensor) -> tuple[Tensor, ...]:
        state = self.cell.initial_state(input_)
        return (*state, *(torch.zeros_like(one) for one in (*state, state[0])))


_PARTIAL = {"allow_unreachable": True, "accumulate_grad": False}


def step_derivatives(
    cell: Cell, input_: Tensor, before: Sequence[Tensor]
) -> tuple[list[Tensor], list[tuple[Coefficient, ...]]]:
    """The states after a step; and of each its derivatives with respect to the input and the states before."""
    with torch.enable_grad():
        leaves = [one.detach().requires_grad_() for one in (input_, *before)]
        nexts = cell(*leaves)
        engine: Any = torch.autograd.Variable._execution_engine  # torch.autograd.grad would load sympy
        rows = []
        for one in nexts:
            reached = one + leaves[0] * 0  # what depends on nothing before the step has a graph too
            ones = torch.ones_like(one).detach()
            rows.append(engine.run_backward((reached,), (ones,), True, False, tuple(leaves), **_PARTIAL))
    return [one.detach() for one in nexts], rows


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

    @property
    def is_alike(self) -> bool:
        """As :attr:`System.is_alike`."""
        return self.alike is not None and self.leak is None

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
    is_alike = True

    @property
    def shape(self) -> torch.Size:
        return self.alike.shape

    def backward(
        self, signal: Tensor | None, end: Sequence[Coefficient], end_readout: Coefficient
    ) -> tuple[Coefficient, list[Coefficient], Coefficient]:
        """As :meth:`System.backward`."""
        if signal is None:
            return self.alike.backward(None, end, None)
        (factors,) = torch.autograd.grad(self.outputs, self.drive, signal, retain_graph=True)
        ((decay,),), (to_input,) = self.alike.transition, self.alike.to_input
        assert to_input is not None
        scan([factors], [[decay]], [None], back=True)
        return factors, [None if decay is None else factors[0] * (decay / to_input)], None


class Ran(NamedTuple):
    """A chunk of a layer, run by kernels."""

    emitted: Tensor
    state: tuple[Tensor, ...]
    """The neurons' states after the chunk."""
    system: "System | KernelSystem | InstantSystem"
    effect: Tensor | None = None
    """The neuron's side of a trace of rank one."""
    effects: tuple[Tensor, ...] = ()
    """What it goes on from."""
    at_last: tuple[Tensor, ...] = ()
    """The neurons' input in the last step, and their states before it."""
    instant: Callable[[Tensor], Tensor] | None = None
    """From the gradient of what is emitted in each step to that of the step's input; None if `system` has it."""


class Kernels:
    """Runs chunks of a layer by kernels, where these can give what a rule needs."""

    def __init__(self, layer: Neurons, rule: Rule) -> None:
        self.layer, self.rule = layer, rule
        self._cells: dict[str, _Around] = {}

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
            return torch.autograd.grad(outputs, leaf, signal)[0]

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
            system: KernelSystem | InstantSystem = InstantSystem(outputs, leaf, alike)
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
        return Ran(
            outputs.detach(), ended[-count:], system, at_last=ended[:-count], instant=instant
        )

    def _with_graph(
        self, keeps: str, drive: Tensor, state: tuple[Tensor, ...] | None
    ) -> tuple[Tensor, tuple[Tensor, ...], Tensor, list[Tensor]]:
        """What the layer emits, with its graph, its last states, and the input and first states as leaves."""
        cell = self._cells.get(keeps)
        if not isinstance(cell, RuleCell) or not cell.fits(self.layer):
            own = self.rule.own_synapse
            cell = self._cells[keeps] = RuleCell(
                self.layer, over_time=keeps == "over time", own_synapse=own
            )
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
