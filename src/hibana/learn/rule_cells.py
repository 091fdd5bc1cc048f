"""Cells that compute a layer's step with the gradient over time of a rule, and runs of them with a graph."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, final

import torch
from torch import Tensor

from hibana.cells import Cell
from hibana.compiler import unroll_layer
from hibana.learn.derivatives import INPUT, Jacobian, same_step_derivatives, step_derivatives
from hibana.learn.network import NeuronLayer
from hibana.nn.layers import WrapperCell, with_gradient

__all__ = ["CellRun", "EffectCell", "Gradients", "NeuronTraceCell", "ParameterTraces", "RuleCell"]
__all__ += ["SilentCell", "SilentTraceCell", "run_cell"]

ParameterTraces = Sequence[Sequence[Tensor]]
"""For each parameter: the derivative of each state by it, then that of a leaky readout's memory."""


class RuleCell(WrapperCell):
    """A cell that computes the step of a layer of neurons, with extra states.

    Args:
        layer: the layer.
        cell: one step of its neurons.
        extra: the names of the extra states in front of the neurons' states.
        remembers: whether one more state, the output, has the gradient of a leaky readout's memory.
    """

    self_weight: Tensor
    """The weight of the recurrent synapse of each neuron to itself, ``[neurons]``."""
    leak: Tensor
    """The decay factor of the leaky readout behind the layer, a scalar."""

    def __init__(
        self, layer: NeuronLayer, cell: Cell, extra: Sequence[str] = (), *, remembers: bool = False
    ) -> None:
        self.remembers = remembers
        super().__init__(cell, extra)
        self._original = (layer.recurrent,)  # a tuple, so that its parameters are not those of this module
        module = None if layer.recurrent is None else layer.recurrent.module
        self.synapses = None if module is None else copy.deepcopy(module).requires_grad_(False)

    def copy_weights(self, leak: Tensor | None) -> None:
        """Copies the recurrent weights, because an optimizer may change them before the graph is used.

        Also sets the decay factor `leak` of the leaky readout behind the layer; None without a readout.
        """
        (original,) = self._original
        if original is not None and self.synapses is not None:
            self.synapses.load_state_dict(original.module.state_dict())
            self._buffers["self_weight"] = original.self_weights()
        if leak is not None:
            self._buffers["leak"] = leak

    def total_input(self, input_: Tensor, spikes: Tensor) -> Tensor:
        """The input plus the recurrent input from the previous `spikes`, which passes no gradient."""
        return input_ if self.synapses is None else input_ + self.synapses(spikes.detach())

    def state_names(self) -> tuple[str, ...]:  # type: ignore[override] # the names depend on the cell
        """The names of the extra states, then of the states of the cell, then maybe of the output."""
        return (*super().state_names(), *["remembered_output"] * self.remembers)


@final
class NeuronTraceCell(RuleCell):
    """A step whose gradient over time stays within each neuron: D-RTRL and e-prop.

    The extra states are derivatives of states by other states of the same step (:attr:`Jacobian.same_step`).
    If a leaky readout is behind the layer, the output y has the gradient of the readout's memory of the
    neurons' spikes s:

        dy_t = leak dy_(t-1) + ds_t

    Args:
        layer: the layer.
        cell: one step of its neurons.
        jacobian: the Jacobian of the cell; None to keep the gradient within a step.
        self_synapse: whether the gradient includes the recurrent synapse of a neuron to itself.
    """

    def __init__(
        self, layer: NeuronLayer, cell: Cell, jacobian: Jacobian | None, *, self_synapse: bool = False
    ) -> None:
        self.over_time = jacobian is not None
        """Whether the gradient passes from a step to the previous one."""
        self.same_step = tuple(jacobian.same_step) if jacobian is not None else ()
        """Pairs of states: the derivative of the first by the second is an extra state."""
        has_self_synapses = self_synapse and layer.recurrent is not None
        self.self_scale = layer.gradient_scale if has_self_synapses else 0.0
        """Factor of the gradient through the synapse of a neuron to itself."""
        extra_states = [f"coupling_{i}_{j}" for i, j in self.same_step]
        super().__init__(layer, cell, extra_states, remembers=self.over_time and layer.readout is not None)

    def forward(self, input_: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        """The extra states (derivatives), then the neurons' states, and maybe the output, after a step."""
        previous = states[len(self.extra) : len(states) - self.remembers]
        if not self.over_time:
            previous = tuple([state.detach() for state in previous])
        total = self.total_input(input_, previous[-1])
        if self.self_scale:
            total = with_gradient(total, previous[-1], self.self_weight * self.self_scale)
        next_states = self.cell(total, *previous)
        values = same_step_derivatives(next_states, self.same_step)
        if self.remembers:
            next_states = (*next_states, with_gradient(next_states[-1], states[-1], self.leak))
        return (*(values[pair] for pair in self.same_step), *next_states)


@final
class SilentTraceCell(RuleCell):
    """A step whose gradient over time is that of neurons without a previous spike: OTTT.

    The values are those of the layer's step. The gradient of an independent state is that of a step after a
    spike of zero, and the output passes its gradient on to the independent states of the same step.

    Args:
        layer: the layer.
        jacobian: the Jacobian of its cell.
        independent_states: indices of the states that have their own number in a trace.
    """

    def __init__(self, layer: NeuronLayer, jacobian: Jacobian, independent_states: Sequence[int]) -> None:
        super().__init__(layer, layer.cell)
        output, self.independent_states = jacobian.states - 1, tuple(independent_states)
        pairs = [(output, i) for i in independent_states]
        self.same_step = tuple([pair for pair in pairs if pair in jacobian.same_step])

    def forward(self, input_: Tensor, *previous: Tensor) -> tuple[Tensor, ...]:
        """The neurons' states after a step."""
        total = self.total_input(input_, previous[-1])
        next_states, _ = step_derivatives(self.cell, (total, *previous), ())
        factors = same_step_derivatives(next_states, self.same_step)
        silent_states = self.cell(total, *previous[:-1], torch.zeros_like(previous[-1]))
        results = [state.detach() for state in next_states]
        for i in self.independent_states:
            results[i] = with_gradient(results[i], silent_states[i], 1.0)
        for (output, i), factor in factors.items():
            results[output] = with_gradient(results[output], results[i], factor)
        return tuple(results)


@final
class EffectCell(RuleCell):
    """A step whose gradient over time is the neuron's factor of a trace of rank one: PP-Prop.

        F_t = decay (dh_t/dh_(t-1)) F_(t-1) + (1 - decay) dh_t/du_t     for each state h of a neuron
        z_t = decay leak z_(t-1) + F_t      for the output; leak is 0 without a leaky readout
        dm_t = decay dm_(t-1) + du_t,   ds_t = z_t dm_t                 m: a state of zero with a gradient

    Its extra states are m, F for each state of the neurons, and z.
    """

    def __init__(self, layer: NeuronLayer, jacobian: Jacobian, decay: float) -> None:
        names = [f"effect_on_{name}" for name in layer.cell.state_names()]
        super().__init__(layer, layer.cell, ["trace", *names, "effect"])
        self.decay, self.over_step = decay, tuple(jacobian.over_step)
        self.has_readout = layer.readout is not None

    def forward(self, input_: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        """m, F of each state, z, and the neurons' states after a step; `states` are these before the step."""
        count = len(self.extra)
        (trace, *effects, effect), previous = states[:count], states[count:]
        total = self.total_input(input_, previous[-1])
        next_states, factors = step_derivatives(self.cell, (total, *previous), self.over_step)
        next_effects = [torch.zeros_like(input_) for _ in next_states]
        for (i, j), factor in factors.items():
            source = 1 - self.decay if j == INPUT else effects[j] * self.decay
            next_effects[i] = next_effects[i] + factor * source
        next_effect = next_effects[-1]
        if self.has_readout:
            next_effect = next_effect + effect * (self.leak * self.decay)
        next_trace = with_gradient(trace * self.decay, total, 1.0)
        *inner, output = (state.detach() for state in next_states)
        output = with_gradient(output, next_trace, next_effect)
        return (next_trace, *next_effects, next_effect, *inner, output)


@final
class SilentCell(WrapperCell):
    """One step of the neurons of `cell` whose previous spike is zero and passes no gradient on."""

    def forward(self, input_: Tensor, *previous: Tensor) -> tuple[Tensor, ...]:
        """The neurons' states after a step without a previous spike."""
        return self.cell(input_, *previous[:-1], torch.zeros_like(previous[-1]))  # type: ignore[no-any-return]


class Gradients(NamedTuple):
    """Gradients with respect to everything that a run depends on; None is zero."""

    neuron_inputs: Tensor
    """Gradient of the neurons' input at each step, ``[T, batch, ...]``."""
    extra: list[Tensor | None]
    """Gradients of the extra states of the :class:`RuleCell` before the chunk."""
    states: list[Tensor | None]
    """Gradients of the neurons' states before the chunk, then of a leaky readout's memory if remembered."""
    parameters: list[Tensor]
    """Gradients of the cell's parameters, for each sample and neuron, also through the steps before."""


@dataclass(eq=False)
class CellRun:
    """The outputs and states of a cell over a chunk, with their autograd graph."""

    outputs: Tensor
    """``[T, batch, ...]``."""
    extra: tuple[Tensor, ...]
    """The cell's extra states after the chunk."""
    last: tuple[Tensor, ...]
    """The neurons' states after the chunk, then the output if it has a leaky readout's gradient."""
    neuron_inputs: Tensor
    previous: list[Tensor]
    """The cell's extra states and the neurons' states before the chunk."""
    parameters: list[Tensor]
    """The cell's parameters, for each sample and neuron."""
    _end_gradients: dict[int, Gradients] = field(default_factory=dict)

    def gradients(self, output: Tensor, grad: Tensor) -> Gradients:
        """The gradients of everything that the run depends on, from the gradient `grad` of `output`.

        `output` is the outputs or a state after the chunk.
        """
        leaves = [self.neuron_inputs, *self.previous, *self.parameters]
        grads: Sequence[Tensor | None] = [None] * len(leaves)
        if output.requires_grad:
            grads = torch.autograd.grad(output, leaves, grad, retain_graph=True, allow_unused=True)
        input_grad, *other_grads = grads
        input_grad = torch.zeros_like(self.neuron_inputs) if input_grad is None else input_grad
        first, count = len(self.extra), len(self.previous)
        parameter_grads = [torch.zeros_like(input_grad[0]) if g is None else g for g in other_grads[count:]]
        return Gradients(input_grad, other_grads[:first], other_grads[first:count], parameter_grads)

    def end_gradients(self, state: int) -> Gradients:
        """Gradients of the sum over neurons of the state with the index `state` in :attr:`last`."""
        if state not in self._end_gradients:
            output = self.last[state]
            self._end_gradients[state] = self.gradients(output, torch.ones_like(output))
        return self._end_gradients[state]


def run_cell(
    cell: RuleCell,
    inputs: Tensor,
    state: tuple[Tensor, ...],
    leak: Tensor | None = None,
    parameters: Sequence[Tensor] = (),
    traces: ParameterTraces = (),
    carried: Sequence[Tensor] = (),
) -> CellRun:
    """Runs `cell` over a sequence and keeps the autograd graph.

    Args:
        cell: the cell.
        inputs: the neurons' inputs, ``[T, batch, ...]``.
        state: the neurons' states before the first step.
        leak: the decay factor of a leaky readout behind the neurons; None without a leaky readout.
        parameters: the cell's parameters, for each sample and neuron.
        traces: the traces of the parameters before the first step; empty in the resting state.
        carried: the last extra states of the cell before the first step; its other extra states are zero.
    """
    cell.copy_weights(leak)
    count = len(cell.extra)
    zeros = [torch.zeros_like(state[0]) for _ in range(count - len(carried))]
    with torch.enable_grad():
        leaf = inputs.detach().requires_grad_()
        previous = (*zeros, *carried, *state, *state[-1:] * cell.remembers)
        leaves = [value.detach().requires_grad_() for value in previous]
        first = list(leaves)
        for parameter, parameter_traces in zip(parameters, traces, strict=False):
            for i in reversed(range(len(parameter_traces))):
                first[count + i] = with_gradient(first[count + i], parameter, parameter_traces[i])
        outputs, last = unroll_layer(cell, leaf, tuple(first))
    return CellRun(outputs, last[:count], last[count:], leaf, leaves, list(parameters))
