"""What a layer of neurons carries from chunk to chunk, and one chunk of it with its gradient.

A chunk is some steps that run together, by a cell whose gradient over time is that of the rule
(:mod:`hibana.learn.rule_cells`): its gradients are those of automatic differentiation. The steps before the
chunk are in traces. What a chunk adds to them is differentiated in the same way, from the states after it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from hibana.compiler import unroll_layer
from hibana.compiler.graph.ops import Unsupported
from hibana.learn import parameters
from hibana.learn.derivatives import FollowedStep, Recursion, Structure
from hibana.learn.network import Neurons
from hibana.learn.rule_cells import EffectCell, InputTraceCell, NeuronTraceCell, Silent
from hibana.learn.rules import PPProp, Rule
from hibana.learn.runs import Run, filtered, run
from hibana.learn.synapses import Synapses
from hibana.learn.traces import End, InputTraces, SynapseTraces

__all__ = ["Memory", "Plan"]

TracesT = TypeVar("TracesT", InputTraces, SynapseTraces)


class Plan(NamedTuple):
    """How the traces of a layer's synapses are computed."""

    structure: Structure
    components: Sequence[int]
    """States with a number in a trace."""
    recursion: Recursion | None
    """That of a trace of an input; None if each synapse has a trace."""
    is_rank_one: bool = False
    """Whether a trace is the product of one of an input and one of a neuron."""


@dataclass(eq=False)
class Chunk:
    """Some steps of a layer, run."""

    plan: Plan
    leak: Tensor | None
    """The factor of a readout behind the layer."""
    inputs: Tensor
    """The inputs of the layer, ``[T, batch, ...]``, a leaf of their own graph."""
    drive: Tensor
    """The product of inputs and weights, with that graph."""
    before: tuple[Tensor, ...]
    """The states before the first step."""
    outputs: Tensor
    state: tuple[Tensor, ...]
    """The states after the last step."""
    of_weights: Run | None
    """The run that has the gradients of weights; None for a trace of rank one."""
    of_neurons: Run | None
    """The run that has those of the cell's parameters."""
    effect: Tensor | None
    """The neuron's side of a trace of rank one, ``[T, batch, ...]``."""
    effects: tuple[Tensor, ...]
    """What it goes on from."""

    @property
    def spikes_before(self) -> Tensor:
        """The inputs of recurrent synapses: the outputs of the step before each."""
        return torch.cat([self.before[-1][None], self.outputs[:-1]])


class Memory:
    """States and traces of one layer."""

    def __init__(self, layer: Neurons, rule: Rule) -> None:
        self.layer, self.rule = layer, rule
        self.step = FollowedStep(layer.cell)
        silent = layer.spikes and not rule.through_spikes
        self.silent = FollowedStep(Silent(layer), layer.cell) if silent else None
        self.expanded: parameters.Expanded | None = None
        self.step_cell: NeuronTraceCell | None = None
        self.neuron_cell: NeuronTraceCell | None = None
        self.input_cell: InputTraceCell | None = None
        self.effect_cell: EffectCell | None = None
        self._cells_key: Any = None
        self.reset()

    def reset(self) -> None:
        """At rest, without traces."""
        self.state: tuple[Tensor, ...] | None = None
        self.coupling: list[Tensor] = []
        """The derivatives of :attr:`Structure.within` in the last step."""
        self.traces: dict[str, InputTraces | SynapseTraces] = {}
        self.of_parameters: parameters.ParameterTraces = []
        self.effects: tuple[Tensor, ...] = ()
        """The neuron's side of a trace of rank one: what its states, and a readout, have of it."""
        self.pending: Chunk | None = None

    def state_dict(self) -> dict[str, Any]:
        """Copies of the states and traces, after the last chunk was taken into the traces."""
        self._advance()
        held = {name: getattr(self, name) for name in ("state", "coupling", "of_parameters", "effects")}
        traces = {name: (type(one) is InputTraces, one.tensor()) for name, one in self.traces.items()}
        copied: dict[str, Any] = _copied({**held, "traces": traces})
        return copied

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Replaces the states and traces by copies of those of :meth:`state_dict`."""
        self.reset()
        state = _copied(state)
        self.state, self.coupling = state["state"], state["coupling"]
        self.of_parameters, self.effects = state["of_parameters"], state["effects"]
        for name, (of_inputs, tensor) in state["traces"].items():
            self.traces[name] = InputTraces(tensor) if of_inputs else SynapseTraces(tensor)

    @property
    def learned(self) -> list[nn.Parameter]:
        """All parameters of the layer that have a gradient."""
        sets = (self.layer.synapses, self.layer.recurrent)
        weights = [p for one in sets if one is not None for p in one.parameters]
        each = dict.fromkeys((*weights, *self.layer.cell.parameters()))
        return [parameter for parameter in each if parameter.requires_grad]

    @property
    def trace_numbers(self) -> int:
        """How many numbers the traces of its synapses are."""
        tensors = [one.tensor() for one in self.traces.values()]
        return sum(tensor.numel() for tensor in tensors if tensor is not None)

    def plan(self, step: Tensor) -> Plan:
        """How the traces are computed, for steps of input like `step`, ``[batch, ...]``.

        Raises:
            ValueError: naming the layer, if its step can't be followed or does not suit the rule.
        """
        layer, kind = self.layer, type(self.layer.cell).__name__
        by_synapse = layer.readout is not None or (layer.recurrent is not None and self.rule.own_synapse)
        try:
            structure = self.step.structure(step)
            if self.silent is not None:
                components = self.silent.structure(step).components
                recursion = self.silent.recursion(step)
            else:
                components = structure.components
                recursion = None if by_synapse else self.step.recursion(step)
            if self.step.key != self._cells_key:
                self._make_cells(structure, components, step)
        except Unsupported as reason:
            raise ValueError(f"layer {layer.name!r}, {kind}, can't be learned online: {reason}") from reason
        if recursion is None and self.silent is not None:
            raise ValueError(
                f"layer {layer.name!r}, {kind}: rule {self.rule.name!r} keeps one trace for each input, "
                'so the leak must be one number for all neurons at all times; use "d-rtrl", or "pp-prop"'
            )
        if recursion is None and isinstance(self.rule, PPProp):
            decay = torch.full([1, 1], self.rule.decay, dtype=step.dtype, device=step.device)
            return Plan(structure, (), Recursion(decay, torch.ones_like(decay[0])), is_rank_one=True)
        return Plan(structure, components, recursion)

    def _make_cells(self, structure: Structure, components: Sequence[int], step: Tensor) -> None:
        layer, rule, self._cells_key = self.layer, self.rule, self.step.key
        self.expanded = parameters.Expanded(layer.cell, step) if layer.learned else None
        cell = layer.cell if self.expanded is None else self.expanded.cell
        self.step_cell = NeuronTraceCell(layer, layer.cell, None)
        self.neuron_cell = NeuronTraceCell(layer, cell, structure, own_synapse=rule.own_synapse)
        if self.silent is not None:
            self.input_cell = InputTraceCell(layer, structure, components, step)
        if isinstance(rule, PPProp):
            self.effect_cell = EffectCell(layer, structure, rule.decay, step)

    def run(self, inputs: Tensor) -> Tensor:
        """The outputs of the layer over a chunk, with a gradient for its parameters and for `inputs`."""
        self._advance()
        emitted: Tensor = _Layer.apply(self, torch.is_grad_enabled(), inputs, *self.learned)  # type: ignore[no-untyped-call] # torch leaves it so
        return emitted

    def begin(self, inputs: Tensor, with_graph: bool) -> Tensor:
        """Runs a chunk and keeps what its gradient needs."""
        layer = self.layer
        with torch.set_grad_enabled(with_graph):
            needed = inputs.requires_grad and not (layer.synapses is not None and layer.synapses.is_linear)
            own = inputs.detach().requires_grad_(needed)
            drive = own if layer.feeds is None else layer.feeds(own)
        if drive.dtype not in (torch.float32, torch.float64):
            raise TypeError(
                f"layer {layer.name!r} must be given float32 or float64 to be learned online, "
                f"got {drive.dtype}"
            )
        with torch.no_grad():
            self.pending = self._chunk(own, drive)
        return self.pending.outputs

    def _chunk(self, inputs: Tensor, drive: Tensor) -> Chunk:
        layer, given, step = self.layer, drive.detach(), drive[0].detach()
        before = layer.cell.initial_state(step) if self.state is None else self.state
        if before[0].shape != step.shape:
            raise ValueError(
                f"layer {layer.name!r} carries a state of shape {tuple(before[0].shape)}, but this step "
                f"is of {tuple(step.shape)}; call reset() before a batch of another size"
            )
        plan = self.plan(step)
        leak = None if layer.readout is None else layer.readout.factor(step)
        assert self.neuron_cell is not None
        of_weights, of_neurons, effect = None, None, None
        effects: tuple[Tensor, ...] = ()
        if layer.learned or not (plan.is_rank_one or self.input_cell is not None):
            values = [] if self.expanded is None else self.expanded.values(step)
            of_neurons = run(self.neuron_cell, given, self.state, values)
        if plan.is_rank_one:
            effect, effects = self._effect(given, leak)
            outputs, state = unroll_layer(layer.step, given, self.state)
        else:
            of_weights = of_neurons
            if self.input_cell is not None and plan.recursion is not None:
                self.input_cell.take(plan.recursion)
                of_weights = run(self.input_cell, given, self.state, [])
            assert of_weights is not None
            outputs = of_weights.outputs.detach()
            state = tuple([one.detach() for one in of_weights.last])
        graphs = of_weights, of_neurons
        return Chunk(plan, leak, inputs, drive, before, outputs, state, *graphs, effect, effects)

    def _effect(self, drive: Tensor, leak: Tensor | None) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The neuron's side of a trace of rank one over a chunk, and what it goes on from."""
        cell = self.effect_cell
        assert cell is not None
        cell.leak.copy_(torch.zeros_like(cell.leak) if leak is None else leak)
        cell.take_weights()
        state = None if self.state is None else (*self.state, *self.effects)
        effect, last = unroll_layer(cell, drive, state)
        return effect, last[len(last) // 2 :]

    @torch.no_grad()
    def _advance(self) -> None:
        """Takes the last chunk into the traces."""
        chunk, self.pending = self.pending, None
        if chunk is None:
            return
        has_traces = chunk.plan.components or chunk.plan.is_rank_one
        for name, synapses, inputs in self._synapses(chunk) if has_traces else ():
            rows = synapses.rows(inputs)
            if chunk.plan.recursion is not None:
                self._traces(name, InputTraces).advance(rows, chunk.plan.recursion)
            else:
                self._traces(name, SynapseTraces).advance(rows, self._ends(synapses, chunk))
        if chunk.of_neurons is not None:
            if self.layer.learned:
                self.of_parameters = parameters.after(self.of_parameters, chunk.of_neurons, chunk.leak)
            self.coupling = [one.detach() for one in chunk.of_neurons.extra]
        self.state, self.effects = chunk.state, chunk.effects

    def _traces(self, name: str, kind: type[TracesT]) -> TracesT:
        found = self.traces.setdefault(name, kind())
        if not isinstance(found, kind):
            raise ValueError(  # noqa: TRY004 - no argument has a wrong type
                f"layer {self.layer.name!r} has the traces of a cell with other derivatives: call reset()"
            )
        return found

    def _synapses(self, chunk: Chunk) -> list[tuple[str, Synapses, Tensor]]:
        """The sets of synapses that learn, by name, with their inputs over the chunk."""
        found = []
        if self.layer.synapses is not None and self.layer.synapses.learns:
            found.append(("feeds", self.layer.synapses, chunk.inputs.detach()))
        if self.layer.recurrent is not None and self.layer.recurrent.learns:
            found.append(("recurrent", self.layer.recurrent, chunk.spikes_before))
        return found

    def _ends(self, synapses: Synapses, chunk: Chunk) -> list[End]:
        """What each part of a trace is made of after the chunk: each component, the memory of a readout."""
        assert chunk.of_weights is not None
        leak, steps = chunk.leak, len(chunk.outputs)
        ends: list[int | None] = [*chunk.plan.components, *([] if leak is None else [None])]
        found = []
        for end in ends:
            grads = chunk.of_weights.at_end(end, leak)
            before = chunk.plan.structure.of_components(grads.of_states, self.coupling)
            of_parts = [None if one is None else synapses.neurons(one[None])[0] for one in before]
            if leak is not None:
                of_parts.append(leak**steps if end is None else None)
            found.append(End(synapses.neurons(grads.of_drive), of_parts))
        return found

    def gradients(
        self, chunk: Chunk, signal: Tensor, *, to_inputs: bool
    ) -> tuple[Tensor | None, dict[nn.Parameter, Tensor]]:
        """The gradient of the chunk's input within each step, if asked for, and those of the parameters."""
        layer, found = self.layer, dict[nn.Parameter, Tensor]()
        if chunk is not self.pending:
            raise RuntimeError(
                f"layer {layer.name!r} is past the step that this backward is of: call backward for each "
                "step's loss before the next step, or use Online.sequence"
            )
        of_input, before = self._of_weights(chunk, signal)
        for name, synapses, inputs in self._synapses(chunk):
            if name == "recurrent":
                scale, learned = layer.gradient_scale, synapses.parameters
                through = of_input if scale == 1 else of_input * scale
                grads: Sequence[Tensor] = synapses.of_product(inputs, through)
            else:
                scale, learned = 1.0, [p for p in synapses.parameters if p.requires_grad]
                grads = torch.autograd.grad(chunk.drive, learned, of_input, retain_graph=True)
            _add(found, learned, grads)
            if name in self.traces:
                factors = [synapses.neurons(one[None])[0] * scale for one in before]
                of_rows = self.traces[name].gradient(factors)
                _add(found, synapses.parameters, synapses.gradients(of_rows))
        if chunk.of_neurons is not None and self.expanded is not None:
            through = filtered(signal, chunk.leak)
            of_readout = None if chunk.leak is None else chunk.leak * through[0]
            at_signal = chunk.of_neurons.gradients(chunk.of_neurons.outputs, through)
            each = parameters.gradients(self.of_parameters, at_signal, of_readout)
            for parameter, grad in zip(self.expanded.parameters, each, strict=True):
                _add(found, [parameter], [grad.sum_to_size(parameter.shape)])
        return self._within_step(chunk, signal) if to_inputs else None, found

    def _of_weights(self, chunk: Chunk, signal: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The gradient of the neurons' input at each step, and of each part of a trace before the chunk."""
        if chunk.of_weights is None:
            assert chunk.effect is not None
            assert chunk.plan.recursion is not None
            decay = chunk.plan.recursion.transition[0, 0]
            of_input = filtered(signal * chunk.effect, decay)
            return of_input, [of_input[0] * decay]
        through = filtered(signal, chunk.leak)
        grads = chunk.of_weights.gradients(chunk.of_weights.outputs, through)
        before = grads.of_extra
        if self.silent is None:
            before = chunk.plan.structure.of_components(grads.of_states, self.coupling)
        found = [torch.zeros_like(signal[0]) if one is None else one for one in before]
        if chunk.leak is not None:
            found.append(chunk.leak * through[0])
        return grads.of_drive, found

    def _within_step(self, chunk: Chunk, signal: Tensor) -> Tensor:
        """The gradient of each step's input, from that of the outputs of the step."""
        components, recursion = chunk.plan.components, chunk.plan.recursion
        if recursion is not None and components and components[-1] == len(chunk.state) - 1:
            grad = signal * recursion.to_input[-1]
        else:
            assert self.step_cell is not None
            one_by_one = run(self.step_cell, chunk.drive, chunk.before, [])
            grad = one_by_one.gradients(one_by_one.outputs, signal).of_drive
        if self.layer.synapses is not None and self.layer.synapses.is_linear:
            return grad @ self.layer.synapses.parameters[0].detach()
        if self.layer.feeds is not None:
            (grad,) = torch.autograd.grad(chunk.drive, chunk.inputs, grad, retain_graph=True)
        return grad


def _copied(value: Any) -> Any:
    """A copy of nested mappings and sequences of tensors."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, Mapping):
        return {name: _copied(one) for name, one in value.items()}
    return type(value)(map(_copied, value)) if isinstance(value, list | tuple) else value


def _add(
    found: dict[nn.Parameter, Tensor], parameters: Sequence[nn.Parameter], grads: Sequence[Tensor]
) -> None:
    """Adds gradients to those `found` of parameters that have one; some are of two sets of synapses."""
    for parameter, grad in zip(parameters, grads, strict=True):
        if parameter.requires_grad:
            found[parameter] = found[parameter] + grad if parameter in found else grad


class _Layer(torch.autograd.Function):
    """A chunk of a layer: within a step its derivative, over time that of its rule."""

    @staticmethod
    def forward(ctx: Any, memory: Memory, with_graph: bool, inputs: Tensor, *learned: nn.Parameter) -> Tensor:
        emitted = memory.begin(inputs, with_graph)
        ctx.memory, ctx.chunk, ctx.learned = memory, memory.pending, learned
        return emitted

    @staticmethod
    def backward(ctx: Any, signal: Tensor) -> Any:
        grad, found = ctx.memory.gradients(ctx.chunk, signal, to_inputs=ctx.needs_input_grad[2])
        return None, None, grad, *(found.get(parameter) for parameter in ctx.learned)
