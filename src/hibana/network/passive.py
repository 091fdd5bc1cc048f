"""A recurrent layer in simulation whose passive neurons take no step until something arrives."""

import threading
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from hibana.cells import Cell
from hibana.compiler import State
from hibana.compiler.analysis.passive import grouped_form
from hibana.compiler.graph.dependencies import remembered
from hibana.compiler.graph.leaf import Leaf
from hibana.compiler.graph.ops import Unsupported
from hibana.compiler.graph.step import Step
from hibana.network.passive_kernel import PassiveProgram
from hibana.network.simulate_kernel import WORD
from hibana.network.simulation import Chunk, Simulation

__all__ = ["PassiveSimulation"]

ROOM = 1 << 20
"""Spikes that fit into the record of a chunk, beyond one for each neuron; a full record ends the chunk."""
BUSY = 0.02
"""Share of the steps of all neurons, on one thread, above which a chunk runs faster step by step.

Measured with 138,639 neurons on an AMD EPYC (Zen 4): an update takes 33 ns, with the arrivals before it, and
a step of all neurons in float64 0.8 ns for each.
"""


class PassiveSimulation(Simulation):
    """A :class:`Simulation` on one thread in which a neuron takes a step only while it could fire.

    All numbers but the weights are float64. :attr:`updates` counts the steps that single neurons took.

    Args:
        arguments: the arguments of :class:`Simulation` in order; the dtype must be float64.
        switches: whether it goes on step by step, on all threads, after a chunk with many active neurons.

    Raises:
        Unsupported: if the neurons are never passive; the message is the reason.
    """

    trial_memory: ClassVar = ("due", "listed", "records", "scratch", "sums")

    def __init__(self, *arguments: Any, switches: bool = False) -> None:
        self.successor: Simulation | None = None
        """The simulation that goes on step by step."""
        self.step_by_step = _Shared(partial(Simulation, *arguments))
        self.switches, self.updates = switches, 0
        super().__init__(*arguments)

    def _program(self, cell: Cell, step: Step, initial: State, weights: torch.dtype) -> PassiveProgram:
        """Derives the passive form, and groups the neurons with equal parameters."""
        if self.input_stride:
            raise Unsupported("each step has inputs of its own; a stimulus or constant inputs run")
        terms = tuple(name for name in ("bias", "inputs") if self.tensors[name] is not None)
        input_ = torch.zeros(self.neurons, dtype=self.dtype, device="cpu")
        for name in terms:
            input_ = self.tensors[name] + input_
        parameters = [self.tensors[str(Leaf("parameter", i))] for i in range(step.parameters)]
        states = [state.expand(1, self.neurons).flatten() for state in initial]
        self.groups, form = grouped_form(cell, step, parameters, input_, states)
        fixed = torch.cat([form.rest[:, :0], *(value[:, None] for value in form.fixed.values())], 1)
        self.tensors |= {"rest": form.rest, "powers": form.powers, "guards": form.guards, "fixed": fixed}
        structure = form.free, *form.fixed, form.guards.shape[1:]
        key = PassiveProgram, self.neurons, weights, terms, structure
        return remembered(cell, key, lambda: PassiveProgram(step, form, weights, terms))

    def _divide(self, threads: int) -> None:
        """Allocates the memory of the one thread."""
        del threads
        super()._divide(1)
        program: PassiveProgram = self.program
        self.tensors["due"] = torch.zeros(self.words, dtype=torch.int64, device="cpu")
        self.tensors["listed"] = torch.empty(self.neurons, dtype=torch.int32, device="cpu")
        self.tensors["records"] = torch.zeros(self.neurons, program.size, dtype=torch.float64, device="cpu")

    def _start(self, states: dict[str, Tensor], fired: Tensor) -> None:
        """Fills the records; all neurons are due at the first step."""
        program, records = self.program, self.tensors["records"]
        numbers = {f"{name}_state": value for name, value in states.items()} | {"emitted": fired[-1]}
        numbers |= {name: self.tensors[name] for name in program.numbers}
        for name, value in numbers.items():
            records[:, program.places[name]] = value
        integers = records.view(torch.int64)
        integers[:, program.places["last"]] = self.time - 1
        integers[:, program.places["group"]] = self.groups
        places = torch.arange(self.words * WORD, dtype=torch.int64, device="cpu").reshape(self.words, WORD)
        bits = torch.ones_like(places) << (places % WORD)
        self.tensors["due"].copy_(((places < self.neurons) * bits).sum(1))
        delays, fired_neurons = fired.nonzero(as_tuple=True)
        self.spikes = fired_neurons.to(torch.int32)
        steps = torch.arange(self.delays + 1, dtype=torch.int64, device="cpu")
        self.starts = torch.searchsorted(delays, steps)
        """The spikes of the last `delays` steps, and where those of each step begin."""

    def state(self) -> dict[str, State]:
        """The state after the last step, in the format of :func:`hibana.run`, in float64."""
        if self.successor is not None:
            return self.successor.state()
        every = torch.arange(self.neurons, dtype=torch.int32, device="cpu")
        samples = torch.empty(1, len(self.names) - 1, self.neurons, dtype=self.dtype, device="cpu")
        arguments = self._arguments(0, self.starts, self.spikes, samples)
        self._run(arguments | {"neurons": every, "selected": self.neurons})
        fired = torch.zeros(self.delays, self.neurons, dtype=self.dtype, device="cpu")
        fired[_step_of_each(self.starts), self.spikes.long()] = 1
        return self._as_state(list(samples[0]), fired)

    def advance(self, steps: int) -> Chunk:
        """Runs `steps` steps, or fewer if many neurons fire, and returns their record."""
        if self.successor is not None:
            return self.successor.advance(steps)
        before = len(self.spikes)
        spikes = torch.empty(before + 2 * self.neurons + ROOM, dtype=torch.int32, device="cpu")
        spikes[:before] = self.spikes
        starts = torch.zeros(self.delays + steps + 1, dtype=torch.int64, device="cpu")
        starts[: self.delays + 1] = self.starts
        arguments = self._arguments(steps, starts, spikes, self._empty_samples(steps)) | self._events(steps)
        self._run(arguments)
        steps, updates = arguments["results"].tolist()
        self.updates += updates
        starts = starts[: self.delays + steps + 1]
        end, dropped = int(starts[-1]), int(starts[steps])
        self.spikes, self.starts = spikes[dropped:end].clone(), starts[steps:] - dropped
        spike_steps, neurons = _step_of_each(starts[self.delays :]), spikes[before:end].clone()
        chunk = self._chunk(steps, spike_steps, neurons, arguments["samples"])
        threads = 1 if self.trials else torch.get_num_threads()
        if self.switches and updates > self.neurons + BUSY / threads * steps * self.neurons:
            self._switch()
        return chunk

    def _switch(self) -> None:
        """Goes on step by step."""
        state, successor = self.state()[""], self.step_by_step()
        if self.trials is not None:
            successor = successor.trial(self.index_of_trial)
        successor.time = self.time
        successor.set_state(state)
        self.successor = successor

    def _arguments(self, steps: int, starts: Tensor, spikes: Tensor, samples: Tensor) -> dict[str, Any]:
        """The arguments of the program without events; `spikes` is their array, `starts` begins each step."""
        results = torch.zeros(2, dtype=torch.int64, device="cpu")
        return {
            **dict.fromkeys(self.program.names),
            **self.tensors,
            **{"starts": starts, "spikes": spikes, "samples": samples, "capacity": len(spikes)},
            "results": results,
            **{"steps": steps, "time": self.time, "delays": self.delays, "words": self.words},
            **{"every": self.every, "selected": self.selected},
        }


def _step_of_each(starts: Tensor) -> Tensor:
    """The step of each spike; `starts` are the first spike of each step, and the end."""
    steps = torch.arange(len(starts) - 1, dtype=torch.int64, device="cpu")
    return steps.repeat_interleave(starts.diff())


class _Shared:
    """The simulation that `create` returns, created by the first of several threads that call it."""

    def __init__(self, create: Callable[[], Simulation]) -> None:
        self.create, self.lock = create, threading.Lock()
        self.simulation: Simulation | None = None

    def __call__(self) -> Simulation:
        """The simulation."""
        with self.lock:
            self.simulation = self.simulation or self.create()
            return self.simulation
