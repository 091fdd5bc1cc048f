"""``hb.simulate``: runs a network for many steps with constant memory, and records its spikes and states."""

import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple, overload

import torch
from torch import Tensor, nn

from hibana.cells import Cell
from hibana.compiler import State
from hibana.compiler.checks import warn_slow
from hibana.compiler.graph.ops import Unsupported
from hibana.network.passive import PassiveSimulation
from hibana.network.simulation import Chunk, Simulation, check_neurons
from hibana.network.stimulus import Drive, Stimulus
from hibana.nn.layers import Recurrent, run
from hibana.nn.sparse_linear import SparseLinear
from hibana.nn.spike_trains import SpikeTrains

__all__ = ["Recording", "simulate"]

Method = Literal["auto", "steps", "passive"]

LONGEST_RUN = 100
"""Steps of a chunk of a network that :func:`hibana.run` runs, whose inputs and outputs are in memory."""


class Recording(NamedTuple):
    """The record of a simulation: the spikes of the network's output neurons, and states of some of them."""

    spikes: SpikeTrains | None
    """Step and neuron of each spike; None if only counts were recorded."""
    counts: Tensor
    """The number of spikes of each neuron, ``[neurons]``, int64."""
    states: dict[str, Tensor]
    """The states of the selected neurons, ``[samples, selected]``, by the name of the state."""
    steps: int
    """The number of steps that were simulated, fewer than requested after Ctrl-C."""


@overload
def simulate(
    net: nn.Module,
    steps: int,
    inputs: Tensor | None = None,
    state: dict[str, State] | None = None,
    *,
    stimulus: Stimulus | Sequence[Stimulus] | None = None,
    silence: Tensor | None = None,
    silence_inputs: bool = False,
    trials: None = None,
    method: Method = "auto",
    record: Literal["spikes", "counts"] = "spikes",
    neurons: Tensor | None = None,
    every: int = 1,
    progress: bool | None = None,
) -> tuple[Recording, dict[str, State]]: ...


@overload
def simulate(
    net: nn.Module,
    steps: int,
    inputs: Tensor | None = None,
    state: dict[str, State] | None = None,
    *,
    stimulus: Stimulus | Sequence[Stimulus] | None = None,
    silence: Tensor | None = None,
    silence_inputs: bool = False,
    trials: int,
    method: Method = "auto",
    record: Literal["spikes", "counts"] = "spikes",
    neurons: Tensor | None = None,
    every: int = 1,
    progress: bool | None = None,
) -> tuple[list[Recording], dict[str, State]]: ...


def simulate(
    net: nn.Module,
    steps: int,
    inputs: Tensor | None = None,
    state: dict[str, State] | None = None,
    *,
    stimulus: Stimulus | Sequence[Stimulus] | None = None,
    silence: Tensor | None = None,
    silence_inputs: bool = False,
    trials: int | None = None,
    method: Method = "auto",
    record: Literal["spikes", "counts"] = "spikes",
    neurons: Tensor | None = None,
    every: int = 1,
    progress: bool | None = None,
) -> tuple[Recording | list[Recording], dict[str, State]]:
    """Runs a network for many steps without gradients, and returns its record and its last state.

    A :class:`hibana.Recurrent` layer whose synapses are a :class:`hibana.SparseLinear`, with or without
    delays, runs as one native program on all of torch's threads. Its spikes do not depend on the number of
    threads. One seed of torch's generator determines all random numbers of the simulation. Other networks
    run by :func:`hibana.run` in chunks of steps, each with a seed of its own. Memory does not grow with the
    number of steps, except for the record.

    Where a neuron's step without input and without a spike is affine in its states, x' = M x + c, powers of M
    bring it up to date when something arrives, and bound its potential until then. A neuron whose bound is
    below the threshold is *passive* and takes no step: cost follows the spikes instead of neurons times
    steps. Spikes equal those of a simulation of all steps in float64, up to ties within rounding. It runs on
    one thread; :func:`hibana.explain` of the layer shows whether its neurons can be passive, and why not.

    Ctrl-C ends the simulation after the current chunk of at most 1000 steps; the record so far is returned.

    Args:
        net: a network without a batch dimension in its inputs, whose outputs are spikes.
        steps: the number of steps.
        inputs: the input of every step, ``[features]``, or of each step, ``[steps, features, ...]``. None is
            no input current; other networks than recurrent layers need inputs.
        state: the state that an earlier simulation or :func:`hibana.run` returned, with a batch of 1, or of
            all `trials`; None: the network starts at rest. The state of recurrent synapses with
            delays ends in the spikes before the last step, ``[longest delay, 1, neurons]``.
        stimulus: spikes from outside, of a recurrent layer with sparse synapses.
        silence: the indices of neurons whose synapses have weight 0; they still spike and are recorded.
        silence_inputs: whether also the synapses to these neurons have weight 0.
        trials: the number of simulations that differ in their random numbers and share the synapses; each
            runs on one thread, as many at once as torch has threads. A list of records is returned, and a
            state with a batch of trials; after Ctrl-C of those that began. None: one simulation.
        method: ``"steps"``: all neurons take each step, in the dtype of the weights. ``"passive"``: passive
            neurons take no step; all states are float64, also the returned ones. ``"auto"``: ``"passive"``
            for weights in float64 and for calls with a stimulus, if the neurons can be passive and each step
            has the same `inputs`; once too many neurons are active, it goes on step by step in float64.
        record: ``"spikes"``, or ``"counts"`` for only the number of spikes of each neuron.
        neurons: the indices of output neurons whose states are recorded, ascending; None for no neuron.
        every: states are recorded after each `every` steps.
        progress: whether a progress bar is shown on the error output; None: if that is a terminal.

    Raises:
        TypeError: if `neurons` is no tensor.
        ValueError: if an argument is out of range or has the wrong shape, an output is no spike, or neurons
            cannot be passive with ``method="passive"``.

    Source: Brette (2007), *Exact simulation of integrate-and-fire models with exponential currents*, Neural
    Computation 19, for passive neurons.

    >>> import torch, hibana as hb
    >>> net = hb.Recurrent(hb.LIFCell(), 100, hb.SparseLinear(100, 100, bias=False))
    >>> record, state = hb.simulate(net, 1000, torch.full([100], 0.3), neurons=torch.tensor([0, 7]), every=10)
    >>> record.states["v"].shape
    torch.Size([100, 2])
    >>> more, state = hb.simulate(net, 500, torch.full([100], 0.3), state, record="counts")
    """
    if record not in ("spikes", "counts"):
        raise ValueError(f'record must be "spikes" or "counts", got {record!r}')
    if method not in ("auto", "steps", "passive"):
        raise ValueError(f'method must be "auto", "steps" or "passive", got {method!r}')
    for name, value in (("steps", steps), ("every", every)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
    if trials is not None and (isinstance(trials, bool) or not isinstance(trials, int) or trials < 1):
        raise ValueError(f"trials must be a whole number of at least 1, or None, got {trials!r}")
    with torch.no_grad(), torch.device("cpu"):
        drive = Drive(stimulus, silence, silences_inputs=silence_inputs)
        runner: Simulation | _Chunks | None = None
        if isinstance(net, Recurrent) and isinstance(net.recurrent, SparseLinear):
            if state is not None and state.keys() != {""}:
                names = ", ".join(state) or "none"
                raise ValueError(f"state must have the entry '' of the layer, got {names}")
            try:
                layer_state = None if state is None else state[""]
                if method == "auto" and not (drive.stimuli or net.recurrent.weight.dtype == torch.float64):
                    method = "steps"
                runner = _simulation(method, net, steps, inputs, layer_state, neurons, every, drive, trials)
            except Unsupported as error:
                if drive or trials is not None:
                    raise ValueError(
                        f"stimulus, silence and trials need a native program: {error}"
                    ) from error
                warn_slow(net.cell, str(error))
                zeros = torch.zeros(net.features, dtype=torch.get_default_dtype(), device="cpu")
                inputs = zeros if inputs is None else inputs
        elif drive or trials is not None or method == "passive":
            raise ValueError(
                "stimulus, silence, trials and passive neurons need a hb.Recurrent layer with "
                f"hb.SparseLinear synapses, got {type(net).__name__}"
            )
        show = sys.stderr.isatty() if progress is None else progress
        bar = _Progress(steps * (trials or 1), show=show)
        with _interruption() as interrupted:
            if trials is None:
                runner = runner or _Chunks(net, steps, inputs, state, neurons, every)
                recording = _record(runner, steps, interrupted, bar, keep_spikes=record == "spikes")
                return recording, runner.state()
            assert isinstance(runner, Simulation)
            return _run_trials(runner, steps, trials, interrupted, bar, keep_spikes=record == "spikes")


def _simulation(method: Method, *arguments: Any) -> Simulation:
    """The simulation by `method`, ``"auto"`` only if it prefers passive neurons.

    Args:
        method: the method.
        arguments: those of :class:`Simulation` in order, without the dtype.

    Raises:
        Unsupported: if the layer has no native program.
        ValueError: if the neurons are never passive, but must be.
    """
    if method == "steps":
        return Simulation(*arguments)
    try:
        return PassiveSimulation(*arguments, torch.float64, switches=method == "auto")
    except Unsupported as error:
        if method == "auto":
            return Simulation(*arguments)
        reason = f'{error}; write method="auto" or "steps"'
        raise ValueError(f"the neurons of net are never passive: {reason}") from error


def _run_trials(
    runner: Simulation,
    steps: int,
    trials: int,
    interrupted: threading.Event,
    bar: "_Progress",
    *,
    keep_spikes: bool,
) -> tuple[list[Recording], dict[str, State]]:
    """Runs each trial of `runner` on one thread; returns the records and states of those that began."""

    def run_trial(index: int) -> tuple[Recording, State] | None:
        """Runs one trial; None if the user interrupted the simulation before."""
        if interrupted.is_set() and index:
            return None
        with torch.no_grad(), torch.device("cpu"):  # which hold for one thread
            trial = runner.trial(index)
            return _record(trial, steps, interrupted, bar, keep_spikes=keep_spikes), trial.state()[""]

    with ThreadPoolExecutor(min(trials, torch.get_num_threads())) as threads:
        results = [result for result in threads.map(run_trial, range(trials)) if result is not None]
    recordings, states = zip(*results, strict=True)
    inner = len(runner.names)
    parts = enumerate(zip(*states, strict=True))
    return list(recordings), {"": tuple(torch.cat(part, int(i >= inner)) for i, part in parts)}


def _record(
    runner: "Simulation | _Chunks",
    steps: int,
    interrupted: threading.Event,
    bar: "_Progress",
    *,
    keep_spikes: bool,
) -> Recording:
    """Runs `steps` steps, or fewer after Ctrl-C but at least one chunk, and returns their record."""
    counts = torch.zeros(runner.neurons, dtype=torch.int64, device="cpu")
    chunks: list[tuple[Tensor, Tensor]] = []
    samples: dict[str, list[Tensor]] = {}
    done = 0
    while done < steps and not (done and interrupted.is_set()):
        chunk = runner.advance(min(runner.longest_chunk, steps - done))
        counts += torch.bincount(chunk.neurons, minlength=runner.neurons)
        if keep_spikes:
            chunks.append((chunk.spike_steps + done, chunk.neurons))
        for name, values in chunk.states.items():
            samples.setdefault(name, []).append(values)
        done += chunk.steps
        bar.add(chunk.steps)
    spikes = None
    if keep_spikes:
        spike_steps, neurons = (torch.cat(parts) for parts in zip(*chunks, strict=True))
        spikes = SpikeTrains(spike_steps, neurons, (done, runner.neurons))
    return Recording(spikes, counts, {name: torch.cat(values) for name, values in samples.items()}, done)


class _Progress:
    """A bar on the error output, if `show`: how many of `steps` steps of all trials have run."""

    def __init__(self, steps: int, *, show: bool) -> None:
        self.steps, self.show, self.done = steps, show, 0
        self.start, self.lock = time.perf_counter(), threading.Lock()

    def add(self, steps: int) -> None:
        """Adds `steps`, of any thread."""
        with self.lock:
            self.done += steps
            if self.show:
                seconds, end = time.perf_counter() - self.start, "\n" if self.done == self.steps else ""
                bar, total = "#" * (30 * self.done // self.steps), f"{self.steps:,} steps, {seconds:.1f} s"
                print(f"\r[{bar:30}] {self.done:,} of {total}", end=end, file=sys.stderr)


@contextmanager
def _interruption() -> Iterator[threading.Event]:
    """A context manager that yields an event. Ctrl-C sets the event, if the code runs in the main thread."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    previous = signal.signal(signal.SIGINT, lambda *_: event.set())
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, previous)


class _Chunks:
    """A network that :func:`hibana.run` runs in chunks; the arguments are those of :func:`simulate`."""

    def __init__(
        self,
        net: nn.Module,
        steps: int,
        inputs: Tensor | None,
        state: dict[str, State] | None,
        selected: Tensor | None,
        every: int,
    ) -> None:
        if inputs is None:
            raise ValueError("inputs must be a tensor for this network, got None")
        if inputs.ndim > 1 and len(inputs) != steps:
            raise ValueError(f"inputs must have {steps} steps like `steps`, got shape {tuple(inputs.shape)}")
        self.net, self.selected, self.every = net, selected, every
        self.inputs = (inputs.expand(steps, -1) if inputs.ndim == 1 else inputs)[:, None]
        self.last_state, self.done = state, 0
        self.neurons = run(net, self.inputs[:1], state)[0][0].numel()
        check_neurons(selected, self.neurons)
        self.longest_chunk = LONGEST_RUN

    def advance(self, steps: int) -> Chunk:
        """Runs at most `steps` steps, until states are recorded."""
        if self.selected is not None:
            steps = min(steps, self.every - self.done % self.every)
        outputs, self.last_state = run(self.net, self.inputs[self.done : self.done + steps], self.last_state)
        outputs = outputs.reshape(steps, -1)
        spike_steps, neurons = (indices.cpu() for indices in outputs.nonzero(as_tuple=True))
        if bool((outputs[spike_steps, neurons] != 1).any()):
            raise ValueError(
                "net must return spikes, 0 or 1, got other numbers: end it in a spiking layer, or use hb.run"
            )
        self.done += steps
        states = {}
        if self.selected is not None and self.done % self.every == 0:
            layer, values = next(reversed(self.last_state.items()))
            cell = self.net.get_submodule(layer.partition("#")[0]).cell
            assert isinstance(cell, Cell)
            rows = [value.reshape(1, -1).cpu()[:, self.selected] for value in values]
            states = dict(zip(cell.state_names()[:-1], rows, strict=False))
        return Chunk(steps, spike_steps, neurons.to(torch.int32), states)

    def state(self) -> dict[str, State]:
        """The state after the last step."""
        assert self.last_state is not None
        return self.last_state
