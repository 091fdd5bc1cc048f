"""Cells that compute what a layer does, and whose gradient over time, or further states, are a rule's."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from hibana.cells import Cell
from hibana.learn.coefficients import Coefficient
from hibana.learn.network import Neurons
from hibana.runtime.torch_internals import run_backward

__all__ = ["Around", "EffectCell", "RuleCell"]


class Around(Cell):
    """A step around that of a layer of neurons, which computes what the layer's does."""

    cell: Cell
    recurrent: nn.Linear | None
    gradient_scale: float

    def __init__(self, layer: Neurons) -> None:
        nn.Module.__init__(self)
        self.cell = layer.cell
        self.recurrent = _recurrent_of(layer)
        self.gradient_scale = layer.gradient_scale
        self._enter()

    def fits(self, layer: Neurons) -> bool:
        """Whether it is still around the step of `layer`."""
        return self.cell is layer.cell and self.recurrent is _recurrent_of(layer)

    def total(self, input_: Tensor, spikes: Tensor) -> Tensor:
        """The neurons' input, of recurrent synapses too; without a gradient through these."""
        if self.recurrent is None:
            return input_
        bias: Tensor | None = self.recurrent.bias
        bias = None if bias is None else bias.detach()
        return input_ + functional.linear(spikes.detach(), self.recurrent.weight.detach(), bias)

    def rests_at_zero(self) -> bool:
        return self.cell.rests_at_zero()


def _recurrent_of(layer: Neurons) -> nn.Linear | None:
    module = None if layer.recurrent is None else layer.recurrent.module
    assert module is None or isinstance(module, nn.Linear)
    return module


class RuleCell(Around):
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


class EffectCell(Around):
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


def step_derivatives(
    cell: Cell, input_: Tensor, before: Sequence[Tensor]
) -> tuple[list[Tensor], list[tuple[Coefficient, ...]]]:
    """The states after a step; and of each its derivatives by the input and by the states before."""
    with torch.enable_grad():
        leaves = [one.detach().requires_grad_() for one in (input_, *before)]
        nexts = cell(*leaves)
        rows = []
        for one in nexts:
            reached = one + leaves[0] * 0  # what depends on nothing before the step has a graph too
            ones = torch.ones_like(one).detach()
            rows.append(run_backward((reached,), (ones,), tuple(leaves), keep_graph=True))
    return [one.detach() for one in nexts], rows
