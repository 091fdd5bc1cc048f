"""``hb.Stimulus``: spikes from outside that a simulation adds to neurons; and their events of some steps.

A chunk of steps receives its stimuli as one list of :class:`Events` for the input and one for each state.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from hibana.compiler.draws import new_seed
from hibana.nn.spike_trains import SpikeTrains

__all__ = ["Drive", "Events", "Stimulus", "check_indices"]

Words = np.ndarray[Any, np.dtype[np.uint64]]

GOLDEN = 0x9E3779B97F4A7C15
"""Increment of the generator: 2^64 / golden ratio, odd."""
BITS = 53
"""Bits of a random number."""
NUMBERS = 1 << 17
"""Random numbers that are drawn at once; they stay in the second-level cache."""


@dataclass(frozen=True, eq=False)
class Stimulus:
    """Spikes from outside that add a weight to the input or a state of neurons in :func:`hibana.simulate`.

    With a `rate`, a neuron gets a spike in each step with probability ``rate * dt / 1000``, as from Brian2's
    ``PoissonInput`` with one source. Its random numbers are a function of `seed`, trial, neuron and step.

    Args:
        neurons: the indices of the neurons, in any order, each once. None: all neurons of `spikes`.
        rate: spikes per second, a number or one for each of `neurons`; per step if `dt` is None.
        spikes: the spikes themselves instead of a rate: step and neuron of the network.
        weight: the amount that a spike adds; a number, or with a `rate` one for each of `neurons`.
        state: the state of the cell that it adds to, after the update of its step, or None: the input of the
            step.
        dt: the length of a step in milliseconds.
        parameters: values of the cell for `neurons` during the simulation, by the name of a tensor with one
            number per neuron: ``{"period": 1}``.
        seed: seed of the random numbers, at most 64 bits; None: a new one from torch's generator at each
            call.
        first_step: the number of the first simulated step, in a simulation that continues another one.

    Raises:
        TypeError: if `neurons` or `spikes` have a wrong type.
        ValueError: if neither or both of `rate` and `spikes` are given, or a value is out of range.

    Source of the random numbers: Steele, Lea & Flood (2014), *Fast splittable pseudorandom number
    generators* (SplitMix64).

    >>> import torch, hibana as hb
    >>> net = hb.Recurrent(hb.LIFCell(), 100, hb.SparseLinear(100, 100, bias=False))
    >>> taste = hb.Stimulus(torch.tensor([3, 7]), rate=150.0, weight=2.0, dt=0.1, seed=0)
    >>> records, state = hb.simulate(net, 1000, stimulus=taste, trials=2)
    """

    neurons: Tensor | None = None
    rate: float | Tensor | None = None
    spikes: SpikeTrains | None = None
    weight: float | Tensor = 1.0
    state: str | None = None
    dt: float | None = None
    parameters: Mapping[str, float] = field(default_factory=dict)
    seed: int | None = None
    first_step: int = 0

    def __post_init__(self) -> None:
        """Checks the arguments; see the class."""
        if (self.rate is None) == (self.spikes is None):
            raise ValueError("a stimulus must have either a rate or spikes: write rate=150.0, dt=0.1")
        if self.spikes is not None and not isinstance(self.spikes, SpikeTrains):
            raise TypeError(f"spikes must be hb.SpikeTrains, got {type(self.spikes).__name__}")
        if self.dt is not None and not self.dt > 0:
            raise ValueError(f"dt must be a positive number of milliseconds, got {self.dt!r}")
        if self.rate is not None:
            if self.neurons is None:
                raise ValueError("neurons must be the indices of the stimulated neurons, got None")
            probabilities = self.probabilities()
            if not bool(((probabilities >= 0) & (probabilities <= 1)).all()):
                unit = "steps, 0 to 1; give dt for spikes/s" if self.dt is None else f"steps of {self.dt} ms"
                raise ValueError(f"rate must be at most one spike per step in {unit}, got {self.rate!r}")
        elif isinstance(self.weight, Tensor):
            raise ValueError("weight must be a number with spikes; several weights need several stimuli")
        if self.neurons is not None:
            check_indices("neurons", self.neurons)
        weight = self.weight
        if not (weight.isfinite().all() if isinstance(weight, Tensor) else math.isfinite(weight)):
            raise ValueError(f"weight must be finite, got {self.weight!r}")

    def probabilities(self) -> Tensor:
        """The probability of a spike of each of `neurons` in a step, float64."""
        assert self.rate is not None
        assert self.neurons is not None
        rate = torch.as_tensor(self.rate, dtype=torch.float64, device="cpu")
        return (rate if self.dt is None else rate * self.dt / 1000).expand(len(self.neurons))

    def targets(self) -> Tensor:
        """The stimulated neurons."""
        if self.neurons is not None:
            return self.neurons
        assert self.spikes is not None
        neurons: Tensor = torch.unique(self.spikes.neurons)
        return neurons

    def events(self, trial: int, first: int, steps: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
        """Step, neuron and value of the events of `steps` steps from `first` on, by step; steps from 0."""
        first += self.first_step
        if self.spikes is not None:
            bounds = self.spikes.steps.new_tensor([first, first + steps])
            low, high = torch.searchsorted(self.spikes.steps.contiguous(), bounds).tolist()
            neurons = self.spikes.neurons[low:high]
            values = torch.full((len(neurons),), float(self.weight), dtype=torch.float64, device="cpu")
            return self.spikes.steps[low:high] - first, neurons, values
        assert self.neurons is not None
        limits = (self.probabilities() * 2.0**BITS).numpy().astype(np.uint64)
        stream = _mixed(_mixed(_words([seed])) + _words([trial * GOLDEN]))
        streams = _mixed(stream + self.neurons.numpy().astype(np.uint64) * _words([GOLDEN]))
        rows = max(1, NUMBERS // max(1, len(limits)))
        hits = []
        for begin in range(0, steps, rows):
            numbers = np.arange(first + begin, first + min(begin + rows, steps), dtype=np.uint64)
            random = _mixed(streams + (numbers * _words([GOLDEN]))[:, None]) >> np.uint64(64 - BITS)
            hits.append(np.argwhere(random < limits) + np.array([begin, 0]))
        spike_steps, places = torch.from_numpy(np.concatenate(hits)).unbind(1)
        weights = torch.as_tensor(self.weight, dtype=torch.float64, device="cpu").expand(len(limits))
        return spike_steps, self.neurons[places], weights[places]


class Events(NamedTuple):
    """Numbers that are added to one state or the input during some steps, by step."""

    row_starts: Tensor
    """The first event of each step, then the number of all, ``[steps + 1]``, int64."""
    neurons: Tensor
    """The neuron of each event, int32."""
    values: Tensor
    """The number that each event adds."""


class Drive:
    """All stimuli of a simulation and its silenced neurons.

    Args:
        stimuli: the stimuli.
        silenced: the indices of the neurons whose synapses have the weight 0.
        silences_inputs: whether also the synapses to these neurons have the weight 0.

    Raises:
        TypeError: if an argument has a wrong type.
        ValueError: if indices repeat.
    """

    def __init__(
        self,
        stimuli: Stimulus | Sequence[Stimulus] | None = None,
        silenced: Tensor | None = None,
        *,
        silences_inputs: bool = False,
    ) -> None:
        self.stimuli = [stimuli] if isinstance(stimuli, Stimulus) else list(stimuli or ())
        if wrong := [each for each in self.stimuli if not isinstance(each, Stimulus)]:
            raise TypeError(f"stimulus must be hb.Stimulus or a list of them, got {type(wrong[0]).__name__}")
        if silenced is not None:
            check_indices("silence", silenced)
        self.silenced, self.silences_inputs = silenced, silences_inputs
        self.seeds = [new_seed() if each.seed is None else each.seed for each in self.stimuli]

    def __bool__(self) -> bool:
        """Whether there are stimuli or silenced neurons."""
        return bool(self.stimuli) or self.silenced is not None

    def check(self, neurons: int, states: Sequence[str]) -> None:
        """Raises a ValueError unless all stimuli fit a network of `neurons` with these `states`."""
        for each in self.stimuli:
            check_indices("neurons", each.targets(), neurons)
            if each.state is not None and each.state not in states:
                raise ValueError(f"state must be one of {', '.join(states)}, or None, got {each.state!r}")
        if self.silenced is not None:
            check_indices("silence", self.silenced, neurons)

    def parameters(self, tensors: dict[str, Tensor], neurons: int) -> dict[str, Tensor]:
        """The `tensors` of the cell by name, with the values that stimuli set.

        Raises:
            ValueError: if a stimulus sets a value that is no tensor with one number per neuron.
        """
        tensors = dict(tensors)
        for each in self.stimuli:
            for name, value in each.parameters.items():
                tensor = tensors.get(name)
                if tensor is None or tensor.shape != (neurons,):
                    sizes = ", ".join(key for key, x in tensors.items() if x.shape == (neurons,)) or "none"
                    raise ValueError(
                        f"parameters must name tensors of the cell with one number for each of {neurons} "
                        f"neurons ({sizes}), got {name!r}"
                    )
                tensors[name] = tensor.detach().index_fill(0, each.targets().long(), float(value))
        return tensors

    def weights(self, weights: Tensor, row_starts: Tensor, targets: Tensor) -> Tensor:
        """The `weights` of the synapses, with 0 where a neuron is silenced."""
        if self.silenced is None:
            return weights
        is_silenced = torch.zeros(len(row_starts) - 1, dtype=torch.bool, device="cpu")
        is_silenced[self.silenced.long()] = True
        weights = weights.detach().clone()
        for neuron in self.silenced.tolist():
            weights[row_starts[neuron] : row_starts[neuron + 1]] = 0
        if self.silences_inputs:
            weights[is_silenced[targets]] = 0
        return weights

    def events(self, trial: int, first: int, steps: int, dtype: torch.dtype) -> dict[str | None, Events]:
        """The events of `steps` steps from `first` on, by the state they add to; None is the input."""
        parts: dict[str | None, list[tuple[Tensor, Tensor, Tensor]]] = {}
        for each, seed in zip(self.stimuli, self.seeds, strict=True):
            parts.setdefault(each.state, []).append(each.events(trial, first, steps, seed))
        lists = {}
        for state, events in parts.items():
            event_steps, neurons, values = (torch.cat(part) for part in zip(*events, strict=True))
            order = event_steps.argsort(stable=True) if len(events) > 1 else slice(None)
            bounds = event_steps.new_tensor(range(steps + 1))
            row_starts = torch.searchsorted(event_steps[order].contiguous(), bounds)
            lists[state] = Events(row_starts, neurons[order].to(torch.int32), values[order].to(dtype))
        return lists


def check_indices(name: str, neurons: object, count: int | None = None) -> None:
    """Raises TypeError or ValueError unless `neurons` are different indices ``[selected]`` below `count`."""
    if not isinstance(neurons, Tensor):
        raise TypeError(f"{name} must be a tensor of indices, got {neurons!r}: write torch.tensor(...)")
    if neurons.ndim != 1 or neurons.is_floating_point() or neurons.dtype == torch.bool:
        raise ValueError(f"{name} must be indices [selected] of an integer dtype, got {neurons!r}")
    if len(torch.unique(neurons)) < len(neurons):
        raise ValueError(f"{name} must be different indices, got {neurons!r}")
    if neurons.numel() and not 0 <= int(neurons.min()) <= int(neurons.max()) < (count or 1 << 31):
        bounds = f"{int(neurons.min())} to {int(neurons.max())}"
        raise ValueError(f"{name} must lie in [0, {count or 1 << 31}), got {bounds}")


def _words(numbers: Sequence[int]) -> Words:
    """`numbers` modulo 2^64 as an array, whose arithmetic wraps around without a warning."""
    return np.array([number % (1 << 64) for number in numbers], dtype=np.uint64)


def _mixed(words: Words) -> Words:
    """SplitMix64's function of 64 bits, a bijection."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))
