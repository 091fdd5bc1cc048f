"""A recurrent layer with sparse synapses in simulation: its memory, its native program, and its state."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor

from hibana.cells import Cell
from hibana.compiler import State
from hibana.compiler.analysis.binary import check_spikes, is_binary
from hibana.compiler.draws import new_seed
from hibana.compiler.graph.dependencies import remembered
from hibana.compiler.graph.leaf import Leaf
from hibana.compiler.graph.ops import Unsupported
from hibana.compiler.graph.step import Step
from hibana.compiler.graph.trace import trace
from hibana.compiler.memory_layout import unpack_bits
from hibana.compiler.tensors import evaluate_parametrizations, tensors_of
from hibana.network.native.state import pack_bits
from hibana.network.simulate_kernel import BLOCK, SEGMENTS, WORD, WORDS, Program, index_parts
from hibana.network.stimulus import GOLDEN, Drive
from hibana.nn.layers import Recurrent
from hibana.nn.sparse_linear import SparseLinear
from hibana.nn.window import LooksBack
from hibana.runtime import available
from hibana.runtime.synapses import read_once
from hibana.runtime.threads import pack_arguments, run

__all__ = ["Chunk", "Simulation", "check_neurons"]

LONGEST_CHUNK = 1000
"""Most steps of a chunk, whose spikes are in memory as bits."""
INDEXED_ROWS = 64
"""Fewest rows of synapses whose parts a thread computes."""


class Chunk(NamedTuple):
    """The record of some steps of a simulation."""

    steps: int
    spike_steps: Tensor
    """The step of each spike, counted from the start of the chunk, ascending, ``[spikes]``, int64."""
    neurons: Tensor
    """The neuron of each spike, ``[spikes]``, int32."""
    states: dict[str, Tensor]
    """The states of the selected neurons, ``[samples, selected]``, by the name of the state."""


class Simulation:
    """A layer :class:`hibana.Recurrent` with :class:`hibana.SparseLinear` synapses during a simulation.

    All neurons take each step. The memory of a trial are the tensors `trial_memory`.

    Args:
        layer: the layer.
        steps: the number of steps of the simulation.
        inputs: the input of every step, ``[neurons]``, or of each step, ``[steps, neurons]``; None: zeros.
        state: the state of the layer as in :func:`hibana.run`; None: at rest.
        selected: the ascending indices of the neurons whose states are recorded, or None.
        every: states are recorded after each `every` steps.
        drive: the stimuli and the silenced neurons.
        trials: the number of trials that :meth:`trial` returns, each for one thread; None: this simulation
            is the only one and runs on all threads.
        dtype: the dtype of all numbers but the weights; None: that of the weights.

    Raises:
        Unsupported: if the layer has no native program.
        ValueError: if an argument has the wrong shape, or the synapses are not sorted.
    """

    trial_memory: ClassVar[Sequence[str]] = ("work", "scratch", "sums")

    def __init__(
        self,
        layer: Recurrent,
        steps: int,
        inputs: Tensor | None,
        state: State | None,
        selected: Tensor | None,
        every: int,
        drive: Drive | None = None,
        trials: int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        synapses = layer.recurrent
        assert isinstance(synapses, SparseLinear)
        kind = synapses.weight.dtype
        self.neurons, self.every, self.dtype = layer.features, every, dtype or kind
        if kind not in (torch.float32, torch.float64) or not synapses.weight.is_cpu:
            raise Unsupported(f"weights of {kind} on {synapses.weight.device}; float32 on the CPU runs")
        if reason := available.unavailable_reason():
            raise Unsupported(reason)
        cell, shape = evaluate_parametrizations(layer.cell), torch.Size([1, self.neurons])
        step = remembered(
            cell, (trace, shape, self.dtype), lambda: trace(cell, shape, self.dtype, draws=True)
        )
        self.time, self.longest_chunk = 0, LONGEST_CHUNK
        self.tensors: dict[str, Any] = {
            "constants": torch.tensor(step.constants or [0.0], dtype=self.dtype, device="cpu"),
            "bias": None if synapses.bias is None else self._row("bias", synapses.bias),
        }
        self.names = cell.state_names()
        self.drive, self.trials, self.index_of_trial = drive or Drive(), trials, 0
        self.drive.check(self.neurons, self.names[:-1])
        tensors = step.prologue(*self.drive.parameters(tensors_of(cell), self.neurons).values())
        for i, numbers in enumerate(tensors[: step.parameters]):
            row = numbers.detach().to(self.dtype).expand(shape).flatten().contiguous()
            self.tensors[str(Leaf("parameter", i))] = row
        self._set_inputs(steps, inputs)
        example = torch.zeros(shape, dtype=self.dtype, device="cpu")
        initial = cell.initial_state(example)
        self.program = self._program(cell, step, initial, kind)
        self.seed = new_seed() if step.draws else 0
        functions = self.program.addresses or [0]
        self.tensors["functions"] = torch.tensor(functions, dtype=torch.int64, device="cpu")
        self._divide(torch.get_num_threads() if trials is None else 1)
        self._set_synapses(synapses)
        check_neurons(selected, self.neurons)
        self.selected = 0 if selected is None else selected.numel()
        self.tensors["neurons"] = None if selected is None else selected.to(torch.int32).contiguous()
        self.has_history = isinstance(synapses, LooksBack)
        history = [example.new_zeros(self.delays - 1, *shape, dtype=torch.bool)] * self.has_history
        self.start = state or (*initial, *history)
        """The state before the first step; with trials, its batch has 1 or all of them."""
        if trials is None:
            self.set_state(self.start)
        else:
            self.trial(trials - 1)  # raises if a state has a wrong shape

    def _program(self, cell: Cell, step: Step, initial: State, weights: torch.dtype) -> Any:
        """The program of `step` of `cell`, whose synapses have weights of the dtype `weights`."""
        check_spikes(step, initial)
        key = Program, self.neurons, self.dtype, weights
        return remembered(cell, key, lambda: Program(step, self.dtype, weights))

    def trial(self, index: int) -> Self:
        """The simulation of trial `index`, which shares the synapses and may run in a thread of its own."""
        trial = copy.copy(self)
        trial.index_of_trial, trial.tensors, start = index, dict(self.tensors), self.start
        if len(start[0]) > 1:
            if len(start[0]) != self.trials:
                raise ValueError(f"state must have a batch of 1 or {self.trials} trials, got {len(start[0])}")
            states = [part[index : index + 1] for part in start[: len(self.names)]]
            start = *states, *(part[:, index : index + 1] for part in start[len(self.names) :])
        for name in self.trial_memory:
            trial.tensors[name] = self.tensors[name].clone()
        trial.seed = _signed(self.seed + index * GOLDEN)
        trial.set_state(start)
        return trial

    def _row(self, name: str, values: Tensor) -> Tensor:
        """`values` as a contiguous row ``[neurons]`` in the dtype of the simulation."""
        if values.numel() != self.neurons or values.shape[-1:] != (self.neurons,):
            raise ValueError(f"{name} must have {self.neurons} neurons, got shape {tuple(values.shape)}")
        return values.detach().to(self.dtype).resolve_neg().flatten().contiguous()

    def _divide(self, threads: int) -> None:
        """Divides the neurons into at most one part for each of the `threads`."""
        words = -(-self.neurons // WORD)
        size = -(-words // min(threads, words, 128))
        bounds = torch.arange(0, words + size, size, dtype=torch.int64, device="cpu").clamp(max=words)
        self.parts = len(bounds) - 1
        self.part_of_word = torch.repeat_interleave(bounds.diff()).to(torch.int32)
        self.words = -(-words // WORDS) * WORDS
        self.tensors["bounds"] = (bounds * WORD).clamp(max=self.neurons)
        self.tensors["work"] = torch.empty(self.parts * SEGMENTS * 2, dtype=torch.int64, device="cpu")
        scratch = max(1, self.parts * self.program.scratch_rows * BLOCK)
        self.tensors["scratch"] = torch.empty(scratch, dtype=self.dtype, device="cpu")
        self.tensors["sums"] = torch.zeros(self.neurons, dtype=self.dtype, device="cpu")

    def _set_synapses(self, synapses: SparseLinear) -> None:
        """Checks the synapses, and computes where those with each delay to each part begin."""
        if synapses.in_features != self.neurons or synapses.out_features != self.neurons:
            shape = f"{synapses.in_features} to {synapses.out_features}"
            raise ValueError(f"recurrent must connect {self.neurons} neurons with themselves, got {shape}")
        checked, weights = synapses.index, synapses.weight
        self.delays = 1 + checked.reach
        if weights.shape != synapses.targets.shape:
            raise ValueError(f"weight must have {checked.synapses} synapses, got {tuple(weights.shape)}")
        index = read_once(
            _index_of_parts, checked.offsets, checked.row_starts, self.part_of_word, self.delays, self.parts
        )
        self.tensors |= {"row_starts": checked.row_starts, "targets": synapses.targets, "index": index}
        weights = self.drive.weights(weights, checked.row_starts, synapses.targets)
        self.tensors["weights"] = weights.detach().contiguous()

    def _set_inputs(self, steps: int, inputs: Tensor | None) -> None:
        """Stores the inputs, and the distance in numbers between those of two steps."""
        self.tensors["inputs"], self.input_stride = None, 0
        if inputs is None:
            return
        is_constant = inputs.ndim == 1
        if inputs.shape != ((self.neurons,) if is_constant else (steps, self.neurons)):
            shapes = f"[{self.neurons}] or [{steps}, {self.neurons}]"
            raise ValueError(f"inputs must have the shape {shapes}, got {tuple(inputs.shape)}")
        self.tensors["inputs"] = inputs.detach().to(self.dtype).resolve_neg().contiguous()
        self.input_stride = 0 if is_constant else self.neurons

    def set_state(self, state: State) -> None:
        """Copies `state` into the memory of the program."""
        shapes: list[tuple[int, ...]] = [(1, self.neurons)] * len(self.names)
        shapes += [(self.delays - 1, 1, self.neurons)] if self.has_history else []
        if [tuple(part.shape) for part in state] != shapes:
            names = f"{', '.join(self.names)}{' and the spikes before the last' * self.has_history}"
            raise ValueError(f"state must be {names}, {shapes}, got {[tuple(part.shape) for part in state]}")
        *states, spikes = state[: len(self.names)]
        emitted = [state[-1], spikes[None]] if self.has_history else [spikes[None]]
        if not all(part.dtype == torch.bool or is_binary(part) for part in emitted):
            raise ValueError(f"state {self.names[-1]} and the spikes before must be 0 or 1")
        fired = torch.cat([part.bool() for part in emitted]).flatten(1)
        rows = zip(self.names, states, strict=False)
        self._start({name: self._row(f"state {name}", value).clone() for name, value in rows}, fired)

    def _start(self, states: dict[str, Tensor], fired: Tensor) -> None:
        """Begins with `states` and with the spikes `fired`, ``[delays, neurons]``, of the steps before."""
        self.tensors |= {f"{name}_state": value for name, value in states.items()}
        self.fired = torch.zeros(self.delays, self.words, dtype=torch.int64, device="cpu")
        packed = pack_bits(fired)
        self.fired.view(torch.uint8)[:, : packed.shape[1]] = packed

    def state(self) -> dict[str, State]:
        """The state after the last step, in the format of :func:`hibana.run`."""
        spikes = unpack_bits(self.fired.view(torch.uint8), self.neurons)
        return self._as_state([self.tensors[f"{name}_state"].clone() for name in self.names[:-1]], spikes)

    def _as_state(self, states: Sequence[Tensor], fired: Tensor) -> dict[str, State]:
        """The state of the layer from the rows of its `states` and its spikes, ``[delays, neurons]``."""
        spikes = fired.to(self.dtype)[:, None]
        rows = [value[None] for value in states]
        return {"": (*rows, spikes[-1].clone(), *([spikes[:-1]] if self.has_history else []))}

    def advance(self, steps: int) -> Chunk:
        """Runs `steps` steps, and returns their record."""
        fired = torch.zeros(self.delays + steps, self.words, dtype=torch.int64, device="cpu")
        fired[: self.delays] = self.fired
        samples = self._empty_samples(steps)
        arrived = torch.zeros(2, dtype=torch.int64, device="cpu")
        inputs = self.tensors["inputs"]
        if inputs is not None and self.input_stride:
            inputs = inputs[self.time :]
        arguments = {
            **self.tensors,
            **self._events(steps),
            **{"fired": fired, "samples": samples, "arrived": arrived, "inputs": inputs},
            **{"steps": steps, "time": self.time, "seed": self.seed, "parts": self.parts},
            **{"delays": self.delays, "keys": self.delays * self.parts, "words": self.words},
            **{"input_stride": self.input_stride, "every": self.every, "selected": self.selected},
        }
        self._run(arguments)
        self.fired = fired[steps:].clone()
        spike_steps, words = fired[self.delays :].nonzero(as_tuple=True)
        octets = fired[spike_steps + self.delays, words][:, None].view(torch.uint8)
        places, bits = unpack_bits(octets, WORD).nonzero(as_tuple=True)
        neurons = (words[places] * WORD + bits).to(torch.int32)
        return self._chunk(steps, spike_steps[places], neurons, samples)

    def _samples_of(self, steps: int) -> int:
        """How often states are recorded in the next `steps` steps."""
        return (self.time + steps) // self.every - self.time // self.every

    def _empty_samples(self, steps: int) -> Tensor:
        """Memory for the states of the selected neurons in the next `steps` steps."""
        sizes = self._samples_of(steps), len(self.names) - 1, self.selected
        return torch.empty(*sizes, dtype=self.dtype, device="cpu")

    def _chunk(self, steps: int, spike_steps: Tensor, neurons: Tensor, samples: Tensor) -> Chunk:
        """The record of the next `steps` steps, which have run; counts them."""
        by_state = samples[: self._samples_of(steps)].unbind(1) if self.selected else ()
        self.time += steps
        states = {name: values.clone() for name, values in zip(self.names, by_state, strict=False)}
        return Chunk(steps, spike_steps, neurons, states)

    def _events(self, steps: int) -> dict[str, Any]:
        """The arguments of the program with the events of the next `steps` steps; without events, None."""
        events: dict[str, Any] = {}
        for target in self.program.events:
            events |= dict.fromkeys(f"{target}_{part}" for part in ("starts", "neurons", "values"))
        drawn = self.drive.events(self.index_of_trial, self.time, steps, self.dtype)
        for state, (starts, neurons, values) in drawn.items():
            target = "input" if state is None else f"{state}_state"
            events |= {f"{target}_starts": starts, f"{target}_neurons": neurons}
            events[f"{target}_values"] = values.contiguous()
        return events

    def _run(self, arguments: Mapping[str, Any]) -> None:
        """Runs the program with `arguments`, by name; None is the address 0."""
        leaves = [arguments[name] for name in self.program.names]
        numbers = [value.data_ptr() if isinstance(value, Tensor) else value or 0 for value in leaves]
        run(self.program.kernel.address, self.parts, pack_arguments(numbers))


def _index_of_parts(
    offsets: Tensor, row_starts: Tensor, part_of_word: Tensor, delays: int, parts: int
) -> Tensor:
    """Where the synapses with each delay to each part begin in their row; see :func:`index_parts`.

    Raises:
        ValueError: if the synapses are not sorted.
    """
    neurons, keys = len(row_starts) - 1, delays * parts
    index = torch.empty(neurons, keys + 1, dtype=torch.int32, device="cpu")
    unsorted = torch.zeros(1, dtype=torch.int64, device="cpu")
    tensors = {"row_starts": row_starts, "offsets": offsets, "part_of_word": part_of_word}
    sizes = {"outputs": neurons, "parts": parts, "keys": keys}
    index_parts(neurons, INDEXED_ROWS, index=index, unsorted=unsorted, **tensors, **sizes)
    if unsorted.item():
        raise ValueError(
            "each row of synapses must be sorted by delay, then target: use Connections.from_pairs"
        )
    return index


def _signed(seed: int) -> int:
    """`seed` modulo 2^64 as a signed number of 64 bits."""
    return (seed + (1 << 63)) % (1 << 64) - (1 << 63)


def check_neurons(selected: object, neurons: int) -> None:
    """Raises TypeError or ValueError unless `selected` are ascending indices ``[selected]``, or None."""
    if selected is None:
        return
    if not isinstance(selected, Tensor):
        raise TypeError(f"neurons must be a tensor of indices, got {selected!r}: write torch.tensor(...)")
    if selected.ndim == 1 and not selected.numel():
        return
    if selected.ndim != 1 or selected.is_floating_point() or not bool((selected.diff() > 0).all()):
        raise ValueError(f"neurons must be ascending indices [selected], got {selected!r}")
    if not 0 <= int(selected[0]) <= int(selected[-1]) < neurons:
        raise ValueError(f"neurons must lie in [0, {neurons}), got {int(selected[0])} to {int(selected[-1])}")
