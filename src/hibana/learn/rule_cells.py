"""Cells that compute the step of a layer, and whose gradient over time, or further states, are a rule's."""

from collections.abc import Sequence
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional

from hibana.cells import Cell
from hibana.learn.derivatives import INPUT, Recursion, Structure, couplings, derivatives
from hibana.learn.network import Neurons

__all__ = ["Around", "EffectCell", "InputTraceCell", "NeuronTraceCell", "Silent"]


class Around(Cell):
    """A step that computes that of a layer of neurons, with states of its own before those of the neurons.

    Args:
        layer: the layer.
        cell: one step of its neurons.
        extra: the names of its own states.
    """

    cell: Cell
    weight: Tensor
    bias: Tensor | None

    def __init__(self, layer: Neurons, cell: Cell, extra: Sequence[str]) -> None:
        nn.Module.__init__(self)
        module: Any = None if layer.recurrent is None else layer.recurrent.module
        self.cell, self.gradient_scale, self.extra = cell, layer.gradient_scale, tuple(extra)
        self.is_recurrent = module is not None
        self._recurrent = (module,)  # a tuple, so that its parameters are not those of this module
        self.take_weights()
        self._enter()

    def take_weights(self) -> None:
        """Takes copies of the recurrent weights, which an optimiser may change before the graph is used."""
        (module,) = self._recurrent
        for name in ("weight", "bias"):
            value = None if module is None else getattr(module, name)
            self._buffers[name] = None if value is None else value.detach().clone()

    def total(self, input_: Tensor, spikes: Tensor) -> Tensor:
        """The input of the neurons, with that from recurrent synapses, through which no gradient goes."""
        if not self.is_recurrent:
            return input_
        return input_ + functional.linear(spikes.detach(), self.weight, self.bias)

    def state_names(self) -> tuple[str, ...]:  # type: ignore[override] # its own, then those of the cell
        return (*self.extra, *self.cell.state_names())

    def initial_state(self, input_: Tensor) -> tuple[Tensor, ...]:
        return self.from_state(self.cell.initial_state(input_))

    def from_state(self, state: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The states where those of the neurons are `state`, and its own are zero."""
        return (*(torch.zeros_like(state[0]) for _ in self.extra), *state)

    def rests_at_zero(self) -> bool:
        return self.cell.rests_at_zero()


@final
class NeuronTraceCell(Around):
    """A step whose gradient over time goes through the own states of each neuron: D-RTRL and e-prop.

    Its own states are the derivatives of states by other states of the same step.

    Args:
        layer: the layer.
        cell: one step of its neurons.
        structure: of the cell; None if the gradient stays within a step.
        own_synapse: whether it also goes through the recurrent synapse of a neuron to itself.
    """

    def __init__(
        self, layer: Neurons, cell: Cell, structure: Structure | None, *, own_synapse: bool = False
    ) -> None:
        self.within = () if structure is None else tuple(structure.within)
        self.chained = () if structure is None else structure.chained
        self.over_time, self.own_synapse = structure is not None, own_synapse
        super().__init__(layer, cell, [f"coupling_{i}_{j}" for i, j in self.within])

    def forward(self, input_: Tensor, *carried: Tensor) -> tuple[Tensor, ...]:
        before = carried[len(self.extra) :]
        if not self.over_time:
            before = tuple([one.detach() for one in before])
        total = self.total(input_, before[-1])
        if self.own_synapse and self.is_recurrent:
            own = self.weight.diagonal() * self.gradient_scale
            total = _attached(total, before[-1], own)
        nexts = self.cell(total, *before)
        coupling = couplings(nexts, self.within, self.chained)
        return (*(coupling[pair] for pair in self.within), *nexts)


@final
class InputTraceCell(Around):
    """A step whose gradient over time goes through constants that are the same for all neurons: OTTT.

        m_t = A m_(t-1) + k u_t      zero; its gradient is that of the components of a trace
        ds_t = C_t dm_t              C: derivatives of what is emitted by the components

    Args:
        layer: the layer.
        structure: of its cell.
        components: states that have a component.
        like: a tensor of the dtype and device of its input.
    """

    def __init__(self, layer: Neurons, structure: Structure, components: Sequence[int], like: Tensor) -> None:
        super().__init__(layer, layer.cell, [f"trace_of_{i}" for i in components])
        emitted = len(layer.cell.state_names()) - 1
        self.within = tuple([(emitted, i) for i in components if (emitted, i) in structure.within])
        self.chained = structure.chained
        self.places = tuple([list(components).index(i) for _, i in self.within])
        self.transition = like.new_zeros(len(components), len(components))
        self.to_input = like.new_zeros(len(components))

    def take(self, recursion: Recursion) -> None:
        """Takes the constants of the trace."""
        self.transition.copy_(recursion.transition)
        self.to_input.copy_(recursion.to_input)

    def forward(self, input_: Tensor, *carried: Tensor) -> tuple[Tensor, ...]:
        count = len(self.extra)
        traces, before = carried[:count], carried[count:]
        total = self.total(input_, before[-1])
        nexts, _ = derivatives(self.cell, (total, *before), ())
        coupling = couplings(nexts, self.within, self.chained)
        moved = []
        for i in range(count):
            one = _attached(torch.zeros_like(input_), total, self.to_input[i])
            for j, trace in enumerate(traces):
                one = one + trace * self.transition[i, j]
            moved.append(one)
        *states, emitted = (one.detach() for one in nexts)
        for place, pair in zip(self.places, self.within, strict=True):
            emitted = _attached(emitted, moved[place], coupling[pair])
        return (*moved, *states, emitted)


@final
class EffectCell(Around):
    """The neuron's side of a trace of rank one, emitted, behind the states of a layer: PP-Prop.

    F_t = decay (dh_t/dh_(t-1)) F_(t-1) + (1 - decay) dh_t/du_t     of each state h of a neuron
    z_t = decay leak z_(t-1) + F_t                                  of the state that is emitted
    """

    def __init__(self, layer: Neurons, structure: Structure, decay: float, like: Tensor) -> None:
        super().__init__(layer, layer.cell, ())
        self.decay, self.pairs = decay, tuple(structure.over_step)
        self.leak = like.new_zeros(())
        """The factor of a leaky readout, 0 without one."""

    def forward(self, input_: Tensor, *carried: Tensor) -> tuple[Tensor, ...]:
        count = len(carried) // 2
        before, effects, remembered = carried[:count], carried[count:-1], carried[-1]
        total = self.total(input_, before[-1])
        nexts, factors = derivatives(self.cell, (total, *before), self.pairs)
        moved = [torch.zeros_like(input_) for _ in nexts]
        for (i, j), factor in factors.items():
            moved[i] = moved[i] + factor * (1 - self.decay if j == INPUT else effects[j] * self.decay)
        effect = moved[-1] + remembered * (self.leak * self.decay)
        return (*(one.detach() for one in nexts), *moved, effect)

    def state_names(self) -> tuple[str, ...]:  # type: ignore[override] # the effects follow
        names = self.cell.state_names()
        return (*names, *(f"effect_on_{name}" for name in names), "effect")

    def from_state(self, state: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return (*state, *(torch.zeros_like(one) for one in (*state, state[0])))


@final
class Silent(Around):
    """One step of neurons that did not spike before, with no gradient through their spike."""

    def __init__(self, layer: Neurons) -> None:
        super().__init__(layer, layer.cell, ())

    def forward(self, input_: Tensor, *before: Tensor) -> tuple[Tensor, ...]:
        return self.cell(input_, *before[:-1], torch.zeros_like(before[-1]))  # type: ignore[no-any-return]


def _attached(value: Tensor, source: Tensor, factor: Tensor) -> Tensor:
    """`value`, whose gradient, times `factor`, is also one of `source`."""
    attached: Tensor = _Attached.apply(value, source, factor)  # type: ignore[no-untyped-call] # torch leaves it so
    return attached


class _Attached(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, source: Tensor, factor: Tensor) -> Tensor:
        ctx.factor = factor
        return value.detach()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return grad, grad * ctx.factor, None
