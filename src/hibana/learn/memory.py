"""What a layer of neurons carries from chunk to chunk, and one chunk of it with its gradient."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from hibana.compiler.graph.ops import Unsupported
from hibana.compiler.graph.walk import followed
from hibana.compiler.tensors import tensors_of
from hibana.learn.chunk import Block, Chunk
from hibana.learn.coefficients import Coefficient, like_chunk, scaled, scan
from hibana.learn.compiled import Kernels
from hibana.learn.derivatives import Linearised, StepDerivatives
from hibana.learn.network import Neurons
from hibana.learn.recursions import ParameterTraces, effect_of, system_of, with_own_synapse
from hibana.learn.rules import PPProp, Rule
from hibana.learn.states import States
from hibana.learn.synapses import Synapses
from hibana.learn.system import System
from hibana.learn.traces import InputTraces, Signals, SynapseTraces, Traces

__all__ = ["Memory"]

BLOCK = 1 << 18
"""Neurons times steps that are linearised together, some dozens of operations each: what a cache holds."""


class Memory:
    """States and traces of one layer."""

    def __init__(self, layer: Neurons, rule: Rule) -> None:
        self.layer, self.rule = layer, rule
        self.derivatives: StepDerivatives | None = None
        self.made_for: Any = None
        self.states, self.kernels = States(layer), Kernels(layer, rule)
        self.reset()

    def reset(self) -> None:
        """At rest, without traces."""
        self.state: tuple[Tensor, ...] | None = None
        self.last: list[list[Coefficient]] | None = None
        """C of the last step."""
        self.traces: dict[Synapses, Traces] = {}
        self.of_sums: ParameterTraces | None = None
        self.effects: tuple[Tensor, ...] = ()
        """The neuron's side of a trace of rank one: what its states, and a readout, have of it."""
        self.pending: Chunk | None = None

    def state_dict(self) -> dict[str, Any]:
        """Copies of the states and traces, after the last chunk was taken into the traces."""
        with torch.no_grad():
            self._advance()
            sums = None if self.of_sums is None else [self.of_sums.of_states, self.of_sums.of_readout]
            held = {"state": self.state, "last": self.last, "sums": sums, "effects": self.effects}
            traces = {name: self.traces[one].state() for name, one in self._sets() if one in self.traces}
            return {**{name: _copied(value) for name, value in held.items()}, "traces": _copied(traces)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Replaces the states and traces by copies of those of :meth:`state_dict`."""
        self.reset()
        state = _copied(state)
        self.state, self.last, self.effects = state["state"], state["last"], state["effects"]
        if state["sums"] is not None:
            self.of_sums = ParameterTraces(*state["sums"])
        for name, synapses in self._sets():
            if name in state["traces"]:
                self.traces[synapses] = self._new_traces(bool(self.effects))
                self.traces[synapses].load(state["traces"][name])

    def _sets(self) -> list[tuple[str, Synapses]]:
        """The layer's sets of synapses, by name."""
        sets = (("feeds", self.layer.synapses), ("recurrent", self.layer.recurrent))
        return [(name, one) for name, one in sets if one is not None]

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
        return sum(traces.numbers for traces in self.traces.values())

    def run(self, inputs: Tensor) -> Tensor:
        """What the layer emits over a chunk, with a gradient for its parameters and for `inputs`."""
        self._advance()
        learned = self.learned
        emitted: Tensor = _Layer.apply(self, torch.is_grad_enabled(), inputs, *learned)  # type: ignore[no-untyped-call] # torch leaves it so
        return emitted

    def _advance(self) -> None:
        """Takes the last chunk into the traces."""
        chunk, self.pending = self.pending, None
        if chunk is None:
            return
        for synapses, inputs in self._synapses(chunk):
            if synapses.learns:
                if synapses not in self.traces:
                    self.traces[synapses] = self._new_traces(chunk.effect is not None)
                self.traces[synapses].advance(synapses, inputs, chunk.system)
        self.state = chunk.state
        if chunk.at_last:
            drive, *before = (one[None] for one in chunk.at_last)
            self._keep_last(self._linearised(drive, before)[0])

    def _new_traces(self, rank_one: bool) -> Traces:
        if not rank_one:
            return SynapseTraces()
        assert isinstance(self.rule, PPProp)
        return InputTraces(self.rule.decay)

    def _synapses(self, chunk: Chunk) -> list[tuple[Synapses, Tensor]]:
        found = []
        if self.layer.synapses is not None:
            found.append((self.layer.synapses, chunk.inputs.detach()))
        if self.layer.recurrent is not None and chunk.spikes_before is not None:
            found.append((self.layer.recurrent, chunk.spikes_before))
        return found

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
            by_kernels = len(drive) > 1 and not layer.learned
            emitted = self._by_kernels(own, drive) if by_kernels else None
            return self._by_steps(own, drive) if emitted is None else emitted

    def _by_kernels(self, own: Tensor, drive: Tensor) -> Tensor | None:
        """A chunk by compiled kernels; None where they can't give what the rule needs."""
        given, state = drive.detach(), self.state
        if state is None:
            state = self.layer.cell.initial_state(given[0])
        self.states.check(given[0], state)
        blank = given.new_zeros(1, 1, *given.shape[2:])
        whole, kept = self._linearised(blank, [blank] * len(state), whole=True)
        at_rest = system_of(kept, None, self._leak(given), blank.shape)
        ran = self.kernels.run(given, self.state, self.effects, self.last or [], whole, at_rest)
        if ran is None:
            return None
        spikes = self.states.spikes_before(state[-1], ran.emitted)
        self.effects = ran.effects
        if not ran.at_last:
            self._keep_last(whole)
        self.pending = Chunk(
            own, drive, spikes, ran.system, [], ran.effect, ran.state, ran.at_last, ran.instant
        )
        return ran.emitted

    def _by_steps(self, own: Tensor, drive: Tensor) -> Tensor:
        """A chunk of one step, or of a cell that learns: each step linearised."""
        total = drive.detach()
        ran = self.states.after(total, self.state)
        if ran.fed_back is not None:
            total = total + ran.fed_back
        steps = max(1, BLOCK // total[0].numel())
        blocks = [
            self._block(total[first : first + steps], ran.before(first, min(first + steps, len(total))))
            for first in range(0, len(total), steps)
        ]
        system = System.joined([block.system for block in blocks])
        sums = [torch.cat(parts) for parts in zip(*(block.sums for block in blocks), strict=True)]
        effects = [block.effect for block in blocks if block.effect is not None]
        effect = torch.cat(effects) if effects else None
        self.pending = Chunk(own, drive, ran.spikes_before, system, sums, effect, ran.last())
        return ran.after[-1]

    def _block(self, drive: Tensor, previous: list[Tensor]) -> Block:
        """The recursions over some steps; traces of neurons go on to the steps after them."""
        layer = self.layer
        whole, kept = self._linearised(drive, previous)
        system = system_of(kept, self.last, self._leak(drive), drive.shape)
        sums, effect = list[Tensor](), None
        if layer.learned:
            sums, self.of_sums = ParameterTraces.after(self.of_sums, whole, system, drive)
        if isinstance(self.rule, PPProp) and not system.is_alike:
            effect, self.effects = effect_of(self.effects, kept, system, self.rule.decay, drive)
        self._keep_last(whole)
        return Block(system, sums, effect)

    def _keep_last(self, whole: Linearised) -> None:
        """Keeps C of the last of the steps that were linearised."""
        self.last = [[c if c is None or c.ndim == 0 else c[-1].clone() for c in row] for row in whole.to_cut]

    def linearised_at(self, drive: Tensor, previous: list[Tensor]) -> System:
        """The recursion of the traces over steps of that input, from those states."""
        with torch.no_grad():
            _, kept = self._linearised(drive, previous)
            return system_of(kept, self.last, self._leak(drive), drive.shape)

    def _leak(self, like: Tensor) -> Tensor | None:
        readout = self.layer.readout
        return None if readout is None else readout.factor(like)

    def _linearised(
        self, drive: Tensor, previous: list[Tensor], *, whole: bool = False
    ) -> tuple[Linearised, Linearised]:
        """The steps linearised as they are (`whole`, or what the rule needs), and as the rule has them."""
        layer, cell = self.layer, self.layer.cell
        try:
            made_for = (followed(cell).key, drive.shape[2:], drive.dtype)
            if self.derivatives is None or self.made_for != made_for:
                self.derivatives = StepDerivatives(cell, drive.shape[1:], drive.dtype)
                self.made_for = made_for
            silent = layer.spikes and not self.rule.through_spikes
            whole = whole or not silent or bool(layer.learned)
            step = self.derivatives.at(cell, drive, previous, whole=whole)
            if silent:
                return step, self._silent(step, drive, previous)
        except Unsupported as reason:
            kind = type(cell).__name__
            raise ValueError(f"layer {layer.name!r}, {kind}, can't be learned online: {reason}") from reason
        if layer.recurrent is not None and self.rule.own_synapse:
            weights = layer.recurrent.parameters[0].detach() * layer.gradient_scale
            step = with_own_synapse(step, weights)
        return step, step

    def _silent(self, whole: Linearised, drive: Tensor, previous: list[Tensor]) -> Linearised:
        """`whole`, with what a silent neuron's states and input do, and nothing through its spike."""
        assert self.derivatives is not None
        to_input, to_states = self.derivatives.at_silent(self.layer.cell, drive, previous)
        if any(c is not None and c.ndim for row in (*to_states, to_input) for c in row):
            raise ValueError(
                f"layer {self.layer.name!r}, {type(self.layer.cell).__name__}: rule {self.rule.name!r} keeps "
                "one trace for each input, so the leak must be one number for all neurons at all times; "
                'use "d-rtrl", or "pp-prop"'
            )
        return replace(whole, to_input=to_input, to_states=to_states)

    def signals(self, chunk: Chunk, signal: Tensor) -> Signals:
        """What a learning signal over `chunk`, like it, comes to for the weights."""
        system = chunk.system
        if chunk.effect is None:
            none: list[Coefficient] = [None] * system.count
            factor, before, of_readout = system.backward(signal, none, None)
            return Signals(like_chunk(factor, signal), [*before, of_readout])
        assert isinstance(self.rule, PPProp)
        filtered = signal * chunk.effect
        decay = torch.tensor(self.rule.decay, dtype=filtered.dtype, device=filtered.device)
        scan([filtered], [[decay]], [None], back=True)
        return Signals(filtered, [filtered[0] * decay])

    def gradients(
        self, chunk: Chunk, signal: Tensor, *, to_inputs: bool
    ) -> tuple[Tensor | None, dict[nn.Parameter, Tensor]]:
        """The gradient of the chunk's input within each step, if wanted, and those of the parameters."""
        layer, found = self.layer, dict[nn.Parameter, Tensor]()
        if chunk is not self.pending:
            raise RuntimeError(
                f"layer {layer.name!r} is past the step that this backward is of: call backward for each "
                "step's loss before the next step, or use Online.sequence"
            )
        signals = self.signals(chunk, signal)
        if layer.synapses is not None and layer.synapses.learns:
            learned = [p for p in layer.synapses.parameters if p.requires_grad]
            grads = torch.autograd.grad(chunk.drive, learned, signals.of_input, retain_graph=True)
            _add(found, learned, grads)
            self._add_before(found, layer.synapses, signals, chunk)
        if layer.recurrent is not None and layer.recurrent.learns:
            of_input = signals.of_input * layer.gradient_scale
            assert chunk.spikes_before is not None
            of_weights = layer.recurrent.of_product(chunk.spikes_before, of_input)
            _add(found, layer.recurrent.parameters, of_weights)
            before = [scaled(layer.gradient_scale, c) for c in signals.before]
            self._add_before(found, layer.recurrent, Signals(of_input, before), chunk)
        if layer.learned:
            self._add_sums(found, chunk, signal)
        return self._within_step(chunk, signal) if to_inputs else None, found

    def _within_step(self, chunk: Chunk, signal: Tensor) -> Tensor:
        """The gradient of each step's input, of what is emitted in that step."""
        if chunk.instant is not None:
            grad = chunk.instant(signal)
        else:
            assert isinstance(chunk.system, System)
            instant = chunk.system.instant
            grad = torch.zeros_like(signal) if instant is None else signal * instant
        if self.layer.synapses is not None and self.layer.synapses.is_linear:
            return grad @ self.layer.synapses.parameters[0].detach()
        if self.layer.feeds is not None:
            (grad,) = torch.autograd.grad(chunk.drive, chunk.inputs, grad, retain_graph=True)
        return grad

    def _add_before(
        self, found: dict[nn.Parameter, Tensor], synapses: Synapses, signals: Signals, chunk: Chunk
    ) -> None:
        if synapses in self.traces:
            of_rows = self.traces[synapses].gradient(synapses, signals.before, chunk.system.shape)
            if of_rows is not None:
                _add(found, synapses.parameters, synapses.gradients(of_rows))

    def _add_sums(self, found: dict[nn.Parameter, Tensor], chunk: Chunk, signal: Tensor) -> None:
        assert self.derivatives is not None
        sums = [(signal * one).sum(0) for one in chunk.sums]
        tensors = tensors_of(self.layer.cell)
        grads = self.derivatives.step.epilogue(*(t.detach() for t in tensors.values()), *sums)
        there = [
            (tensor, grad.reshape(tensor.shape))
            for tensor, grad in zip(tensors.values(), grads, strict=True)
            if isinstance(tensor, nn.Parameter) and grad is not None
        ]
        _add(found, [parameter for parameter, _ in there], [grad for _, grad in there])


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
    """A chunk of a layer, to autograd: within a step its derivative, over time its rule."""

    @staticmethod
    def forward(ctx: Any, memory: Memory, with_graph: bool, inputs: Tensor, *learned: nn.Parameter) -> Tensor:
        emitted = memory.begin(inputs, with_graph)
        ctx.memory, ctx.chunk, ctx.learned = memory, memory.pending, learned
        return emitted

    @staticmethod
    def backward(ctx: Any, signal: Tensor) -> Any:
        grad, found = ctx.memory.gradients(ctx.chunk, signal, to_inputs=ctx.needs_input_grad[2])
        return None, None, grad, *(found.get(parameter) for parameter in ctx.learned)
