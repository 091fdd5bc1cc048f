"""A layer of neurons that learns online: its states, its traces, and the gradient of a chunk of steps.

A chunk is a number of steps that run together, by a cell whose gradient over time is that of the rule
(:mod:`hibana.learn.rule_cells`), so automatic differentiation gives the rule's gradients within the chunk.
Traces hold the gradients from the steps before the chunk. They are updated by the gradients of the states
after the chunk. A readout is a layer behind, without spikes, that remembers its input (leaky); its memory
counts as one more state of each neuron. The trace of a synapse has one part for each independent state.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from hibana.compiler.graph.ops import Unsupported
from hibana.learn import rule_cells
from hibana.learn.derivatives import Jacobian, Recursion, jacobian_of, recursion_of
from hibana.learn.expanded_cell import ExpandedCell
from hibana.learn.network import NeuronLayer
from hibana.learn.rules import PPProp, Rule
from hibana.learn.synapses import Synapses
from hibana.learn.traces import End, InputTraces, SynapseTraces
from hibana.runtime.torch_internals import tree_map

__all__ = ["OnlineLayer", "TracePlan"]

TracesT = TypeVar("TracesT", InputTraces, SynapseTraces)


class TracePlan(NamedTuple):
    """How the traces of a layer's synapses are computed."""

    jacobian: Jacobian
    traced_states: Sequence[int]
    """Indices of the states that have their own number in a trace; the last may be a readout's memory."""
    recursion: Recursion | None
    """The recursion of an input's trace; None if each synapse has a trace."""
    is_rank_one: bool = False
    """Whether a trace is the product of a trace of the input and one of the neuron."""


@dataclass(eq=False)
class Chunk:
    """The values of a layer over a number of steps, and the graphs for their gradients."""

    plan: TracePlan
    inputs: Tensor
    """The inputs of the layer, ``[T, batch, ...]``, from which `neuron_inputs` are computed."""
    neuron_inputs: Tensor
    """The products of inputs and weights, with their graph."""
    previous_state: tuple[Tensor, ...]
    """The neurons' states before the first step."""
    weight_run: rule_cells.CellRun
    """The run for the outputs and for the gradients of weights."""
    parameter_run: rule_cells.CellRun | None
    """The run for the gradients of the cell's parameters; None without learned parameters."""

    @property
    def outputs(self) -> Tensor:
        """The outputs of the layer, ``[T, batch, ...]``."""
        return self.weight_run.outputs.detach()


class OnlineLayer:
    """The states and traces of one layer of neurons, and the gradients of its parameters."""

    def __init__(self, layer: NeuronLayer, rule: Rule) -> None:
        self.layer, self.rule = layer, rule
        is_silent = layer.spikes and not rule.through_spikes
        self.silent_cell = rule_cells.SilentCell(layer.cell) if is_silent else None
        """The cell without the effects of a spike, for rules that leave them out; else None."""
        self.expanded_cell: ExpandedCell | None = None
        """The cell with one value of each learned parameter per sample and neuron; None without any."""
        self.step_cell = rule_cells.NeuronTraceCell(layer, layer.cell, None)
        """Passes the gradient of the outputs to the inputs of the same step."""
        self.neuron_cell: rule_cells.NeuronTraceCell
        """Passes the gradient over time within each neuron."""
        self.weight_cell: rule_cells.RuleCell
        """Passes the gradient over time as the rule does for weights."""
        self._jacobian: Jacobian | None = None
        """The Jacobian of the cell for which the cells were built."""
        self.reset()

    def reset(self) -> None:
        """Sets the neurons to the resting state and removes all traces."""
        self.state: tuple[Tensor, ...] | None = None
        self.same_step: list[Tensor] = []
        """Values of :attr:`Jacobian.same_step` at the last step."""
        self.traces: dict[str, InputTraces | SynapseTraces] = {}
        self.parameter_traces: rule_cells.ParameterTraces = []
        self.effects: tuple[Tensor, ...] = ()
        """The extra states of an EffectCell after the last step, without the first, which is zero."""
        self.pending: Chunk | None = None
        """The last chunk; the next chunk updates the traces with it."""

    def state_dict(self) -> dict[str, Any]:
        """Copies of the states and traces after the last chunk."""
        self._advance()
        traces = {name: (type(each) is InputTraces, each.tensor()) for name, each in self.traces.items()}
        neurons = {"state": self.state, "coupling": self.same_step, "of_parameters": self.parameter_traces}
        state: dict[str, Any] = _copy({**neurons, "effects": self.effects, "traces": traces})
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Copies the states and traces from a result of :meth:`state_dict`."""
        self.reset()
        state = _copy(state)
        self.state, self.same_step = state["state"], state["coupling"]
        self.parameter_traces, self.effects = state["of_parameters"], state["effects"]
        for name, (of_inputs, tensor) in state["traces"].items():
            self.traces[name] = InputTraces(tensor) if of_inputs else SynapseTraces(tensor)

    @property
    def learned_parameters(self) -> list[nn.Parameter]:
        """All parameters of the layer that require a gradient, each once."""
        modules = (self.layer.synapses, self.layer.recurrent)
        weights = [p for synapses in modules if synapses is not None for p in synapses.parameters]
        unique = dict.fromkeys((*weights, *self.layer.cell.parameters()))
        return [parameter for parameter in unique if parameter.requires_grad]

    @property
    def trace_numbers(self) -> int:
        """The number of elements in the traces of the synapses."""
        tensors = [each.tensor() for each in self.traces.values()]
        return sum(tensor.numel() for tensor in tensors if tensor is not None)

    def plan(self, step: Tensor) -> TracePlan:
        """How the rule computes the layer's traces; also builds the cells for it if the layer has changed.

        `step` is an example of the neurons' input at one step, ``[batch, ...]``. Raises ValueError, naming
        the layer, if its step can't be followed or the rule does not support it.
        """
        layer, rule, kind = self.layer, self.rule, type(self.layer.cell).__name__
        has_self_synapse = layer.recurrent is not None and rule.keeps_self_synapse
        by_synapse = layer.readout is not None or has_self_synapse
        try:
            jacobian, traced_cell = jacobian_of(layer.cell, step), self.silent_cell or layer.cell
            traced_states = jacobian_of(traced_cell, step).independent_states
            recursion = None if by_synapse else recursion_of(traced_cell, step)
            if recursion is None and self.silent_cell is not None:
                raise ValueError(
                    f"layer {layer.name!r}, {kind}: rule {rule.name!r} keeps one trace for each input, "
                    'so the leak must be one number for all neurons at all times; use "d-rtrl", or "pp-prop"'
                )
            if recursion is None and isinstance(rule, PPProp):
                decay = torch.full([1, 1], rule.decay, dtype=step.dtype, device=step.device)
                plan = TracePlan(jacobian, (), Recursion(decay, torch.ones_like(decay[0])), is_rank_one=True)
            else:
                remembers = traced_states and layer.readout is not None
                memory = (jacobian.states,) if remembers else ()
                plan = TracePlan(jacobian, (*traced_states, *memory), recursion)
            if jacobian is not self._jacobian:
                self._build_cells(plan, step)
        except Unsupported as error:
            raise ValueError(f"layer {layer.name!r}, {kind}, can't be learned online: {error}") from error
        return plan

    def _build_cells(self, plan: TracePlan, step: Tensor) -> None:
        """Builds the cells that run the layer, for neurons' inputs like `step`, ``[batch, ...]``."""
        layer, rule, learns = self.layer, self.rule, bool(self.layer.cell_parameters)
        self.expanded_cell = ExpandedCell(layer.cell, step) if learns else None
        cell = layer.cell if self.expanded_cell is None else self.expanded_cell.cell
        self.neuron_cell = rule_cells.NeuronTraceCell(
            layer, cell, plan.jacobian, self_synapse=rule.keeps_self_synapse
        )
        self.weight_cell = self.neuron_cell
        if plan.is_rank_one and isinstance(rule, PPProp):
            self.weight_cell = rule_cells.EffectCell(layer, plan.jacobian, rule.decay)
        elif self.silent_cell is not None:
            self.weight_cell = rule_cells.SilentTraceCell(layer, plan.jacobian, plan.traced_states)
        self._jacobian = plan.jacobian

    def run(self, inputs: Tensor) -> Tensor:
        """The layer's outputs over a chunk, with a gradient for its parameters and for `inputs`."""
        self._advance()
        outputs: Tensor = _OnlineStep.apply(  # type: ignore[no-untyped-call] # torch's apply
            self, torch.is_grad_enabled(), inputs, *self.learned_parameters
        )
        return outputs

    def run_chunk(self, inputs: Tensor, with_graph: bool) -> Chunk:
        """Runs the layer over a chunk, stores the chunk as :attr:`pending`, and returns it.

        Args:
            inputs: the inputs of the layer, ``[T, batch, ...]``.
            with_graph: whether to keep the graph of the input module, for the gradients of its weights.

        Raises:
            TypeError: if the neurons' inputs are not float32 or float64.
            ValueError: if the batch differs from that of the current state, or the rule does not support the
                layer.
        """
        layer = self.layer
        with torch.set_grad_enabled(with_graph):
            by_matrix = layer.synapses is not None and layer.synapses.is_linear
            leaf = inputs.detach().requires_grad_(inputs.requires_grad and not by_matrix)
            neuron_inputs = leaf if layer.input_module is None else layer.input_module(leaf)
        if neuron_inputs.dtype not in (torch.float32, torch.float64):
            raise TypeError(
                f"layer {layer.name!r} must be given float32 or float64 to be learned online, "
                f"got {neuron_inputs.dtype}"
            )
        drive, step = neuron_inputs.detach(), neuron_inputs[0].detach()
        previous_state = layer.cell.initial_state(step) if self.state is None else self.state
        if previous_state[0].shape != step.shape:
            raise ValueError(
                f"layer {layer.name!r} carries a state of shape {tuple(previous_state[0].shape)}, but this "
                f"step is of {tuple(step.shape)}; call reset() before a batch of another size"
            )
        plan = self.plan(step)
        leak = None if layer.readout is None else layer.readout.decay(step)
        parameter_run = None
        if self.expanded_cell is not None:
            parameters, traces = self.expanded_cell.expand(step), self.parameter_traces
            parameter_run = rule_cells.run_cell(
                self.neuron_cell, drive, previous_state, leak, parameters, traces
            )
        weight_run = parameter_run
        if weight_run is None or self.weight_cell is not self.neuron_cell:
            weight_run = rule_cells.run_cell(
                self.weight_cell, drive, previous_state, leak, carried=self.effects
            )
        self.pending = Chunk(plan, leaf, neuron_inputs, previous_state, weight_run, parameter_run)
        return self.pending

    @torch.no_grad()
    def _advance(self) -> None:
        """Updates the states and traces by the pending chunk."""
        chunk, self.pending = self.pending, None
        if chunk is None:
            return
        has_traces = chunk.plan.traced_states or chunk.plan.is_rank_one
        for name, synapses, inputs in self._learned_synapses(chunk) if has_traces else ():
            rows = synapses.rows(inputs)
            if chunk.plan.recursion is not None:
                self._traces_of(name, InputTraces).advance(rows, chunk.plan.recursion)
            else:
                self._traces_of(name, SynapseTraces).advance(
                    rows, self._ends(synapses, chunk), synapses.stored
                )
        if (run := chunk.parameter_run) is not None:
            by_state = [run.end_gradients(state).parameters for state in range(len(run.last))]
            self.parameter_traces = [list(traces) for traces in zip(*by_state, strict=True)]
        run = chunk.weight_run
        self.state = tuple([value.detach() for value in run.last[: len(chunk.previous_state)]])
        if chunk.plan.is_rank_one:
            self.effects = tuple([value.detach() for value in run.extra[1:]])
        else:
            self.same_step = [value.detach() for value in run.extra]

    def _traces_of(self, name: str, kind: type[TracesT]) -> TracesT:
        """The traces called `name`; new ones of the class `kind` before the first chunk."""
        traces = self.traces.setdefault(name, kind())
        if not isinstance(traces, kind):
            raise ValueError(  # noqa: TRY004 - no argument has a wrong type
                f"layer {self.layer.name!r} has the traces of a cell with other derivatives: call reset()"
            )
        return traces

    def _learned_synapses(self, chunk: Chunk) -> list[tuple[str, Synapses, Tensor]]:
        """The name in `traces`, the synapses, and their inputs over the chunk, if they require a gradient."""
        learned = []
        if self.layer.synapses is not None and self.layer.synapses.is_learned:
            learned.append(("feeds", self.layer.synapses, chunk.inputs.detach()))
        if self.layer.recurrent is not None and self.layer.recurrent.is_learned:
            spikes_before = torch.cat([chunk.previous_state[-1][None], chunk.outputs[:-1]])
            learned.append(("recurrent", self.layer.recurrent, spikes_before))
        return learned

    def _ends(self, synapses: Synapses, chunk: Chunk) -> list[End]:
        """For each part of the traces after the chunk: its factors of the inputs and of the traces before."""
        ends, memory = [], chunk.plan.jacobian.states
        for state in chunk.plan.traced_states:
            grads = chunk.weight_run.end_gradients(state)
            by_part = dict(zip(chunk.plan.traced_states, self._traced_gradients(chunk, grads), strict=True))
            if state != memory and memory in by_part:
                by_part[memory] = None  # no state of a neuron depends on a readout's memory
            factors = [
                None if grad is None else synapses.output_rows(grad[None])[0] for grad in by_part.values()
            ]
            ends.append(End(synapses.output_rows(grads.neuron_inputs), factors))
        return ends

    def gradients(
        self, chunk: Chunk, signal: Tensor, *, to_inputs: bool
    ) -> tuple[Tensor | None, dict[nn.Parameter, Tensor]]:
        """The gradients of the chunk's inputs, within each step, and of the layer's parameters.

        Args:
            chunk: the last chunk.
            signal: the gradient of its outputs, ``[T, batch, ...]``.
            to_inputs: whether to compute the gradient of the inputs; otherwise it is None.

        Raises:
            RuntimeError: if another chunk has run since.
        """
        layer, totals = self.layer, dict[nn.Parameter, Tensor]()
        if chunk is not self.pending:
            raise RuntimeError(
                f"layer {layer.name!r} is past the step that this backward is of: call backward for each "
                "step's loss before the next step, or use Online.sequence"
            )
        run = chunk.weight_run
        grads = run.gradients(run.outputs, signal)
        drive_grad = grads.neuron_inputs
        by_part = grads.extra[:1] if chunk.plan.is_rank_one else self._traced_gradients(chunk, grads)
        part_grads = [torch.zeros_like(signal[0]) if grad is None else grad for grad in by_part]
        for name, synapses, inputs in self._learned_synapses(chunk):
            if name == "recurrent":
                scale, learned = layer.gradient_scale, synapses.parameters
                scaled = drive_grad if scale == 1 else drive_grad * scale
                weight_grads: Sequence[Tensor] = synapses.linear_gradients(inputs, scaled)
            else:
                scale, learned = 1.0, [p for p in synapses.parameters if p.requires_grad]
                weight_grads = torch.autograd.grad(
                    chunk.neuron_inputs, learned, drive_grad, retain_graph=True
                )
            _add(totals, learned, weight_grads)
            if name in self.traces:
                factors = [synapses.output_rows(grad[None])[0] * scale for grad in part_grads]
                trace_grad = self.traces[name].gradient(factors, synapses.stored)
                _add(totals, synapses.parameters, synapses.split_gradient(trace_grad))
        if chunk.parameter_run is not None and self.expanded_cell is not None:
            if chunk.parameter_run is not run:
                grads = chunk.parameter_run.gradients(chunk.parameter_run.outputs, signal)
            for parameter, grad in zip(self.expanded_cell.parameters, grads.parameters, strict=True):
                _add(totals, [parameter], [grad.sum_to_size(parameter.shape)])
        return self._input_gradient(chunk, signal) if to_inputs else None, totals

    def _traced_gradients(self, chunk: Chunk, grads: rule_cells.Gradients) -> list[Tensor | None]:
        """The gradients of the states before the chunk that have a trace, ``[batch, ...]``; None is zero."""
        totals = chunk.plan.jacobian.state_gradients(grads.states, self.same_step)
        return [totals[state] for state in chunk.plan.traced_states]

    def _input_gradient(self, chunk: Chunk, signal: Tensor) -> Tensor:
        """The gradient of the layer's inputs at each step, through the outputs of the same step alone.

        `signal` is the gradient of the outputs, ``[T, batch, ...]``.
        """
        states, recursion = chunk.plan.traced_states, chunk.plan.recursion
        if recursion is not None and states and states[-1] == len(chunk.previous_state) - 1:
            grad = signal * recursion.input_factor[-1]  # the output is linear in the input
        else:
            run = rule_cells.run_cell(self.step_cell, chunk.neuron_inputs, chunk.previous_state)
            grad = run.gradients(run.outputs, signal).neuron_inputs
        if self.layer.synapses is not None and self.layer.synapses.is_linear:
            return grad @ self.layer.synapses.parameters[0].detach()
        if self.layer.input_module is not None:
            (grad,) = torch.autograd.grad(chunk.neuron_inputs, chunk.inputs, grad, retain_graph=True)
        return grad


def _copy(value: Any) -> Any:
    """A copy of nested dictionaries and sequences of tensors."""
    return tree_map(lambda leaf: leaf.detach().clone() if isinstance(leaf, Tensor) else leaf, value)


def _add(
    totals: dict[nn.Parameter, Tensor], parameters: Sequence[nn.Parameter], grads: Sequence[Tensor]
) -> None:
    """Adds gradients to `totals`; a parameter may belong to two sets of synapses."""
    for parameter, grad in zip(parameters, grads, strict=True):
        if parameter.requires_grad:
            totals[parameter] = totals[parameter] + grad if parameter in totals else grad


class _OnlineStep(torch.autograd.Function):
    """Runs a chunk of a layer; its backward is the rule's gradient."""

    @staticmethod
    def forward(
        ctx: Any, layer: OnlineLayer, with_graph: bool, inputs: Tensor, *learned: nn.Parameter
    ) -> Tensor:
        """The outputs of `layer` for a chunk of `inputs`; `learned` are the parameters that get gradients."""
        ctx.layer, ctx.learned, ctx.chunk = layer, learned, layer.run_chunk(inputs, with_graph)
        outputs: Tensor = ctx.chunk.outputs
        return outputs

    @staticmethod
    def backward(ctx: Any, signal: Tensor) -> Any:
        """The gradients of `inputs` and of the learned parameters for `signal`, that of the outputs."""
        grad, totals = ctx.layer.gradients(ctx.chunk, signal, to_inputs=ctx.needs_input_grad[2])
        return None, None, grad, *(totals.get(parameter) for parameter in ctx.learned)
