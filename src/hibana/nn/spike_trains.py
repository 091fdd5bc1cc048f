"""``hb.SpikeTrains``: the spikes of a population, stored as events, with the statistics of its activity."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

__all__ = ["SpikeTrains"]


@dataclass(frozen=True, eq=False)
class SpikeTrains:
    """The spikes of a population: spike k is of neuron ``neurons[k]`` at step ``steps[k]``.

    The memory is proportional to the number of spikes. In all methods, `dt` is the length of a step in
    milliseconds; without it, time is counted in steps.

    Args:
        steps: the step of each spike, ``[spikes]``, ascending, in [0, T).
        neurons: the neuron of each spike, ``[spikes]``, in [0, N).
        shape: the number of steps T and the number of neurons N.

    Raises:
        ValueError: if the lengths differ, an index is not in `shape`, or `steps` descend.

    >>> import torch, hibana as hb
    >>> trains = hb.SpikeTrains(torch.tensor([0, 2, 2, 4]), torch.tensor([1, 0, 1, 1]), shape=(5, 3))
    >>> trains.rates(dt=1.0)
    tensor([200., 600.,   0.], dtype=torch.float64)
    """

    steps: Tensor
    neurons: Tensor
    shape: tuple[int, int]

    def __post_init__(self) -> None:
        """Checks shapes, ranges and order; raises ValueError if they are wrong."""
        if self.steps.ndim != 1 or self.steps.shape != self.neurons.shape:
            shapes = f"{tuple(self.steps.shape)} and {tuple(self.neurons.shape)}"
            raise ValueError(f"steps and neurons must both be [spikes], got {shapes}")
        for name, indices, count in (
            ("steps", self.steps, self.shape[0]),
            ("neurons", self.neurons, self.shape[1]),
        ):
            if indices.numel() and not 0 <= int(indices.min()) <= int(indices.max()) < count:
                bounds = f"{int(indices.min())} to {int(indices.max())}"
                raise ValueError(f"{name} must lie in [0, {count}), got {bounds}")
        if bool((self.steps.diff() < 0).any()):
            raise ValueError("steps must be in ascending order; sort steps and neurons by steps")

    @classmethod
    def from_dense(cls, spikes: Tensor) -> "SpikeTrains":
        """The nonzero elements of `spikes`, ``[T, ...]``; the other dimensions are flattened to neurons."""
        flat = spikes.detach().reshape(len(spikes), -1)
        steps, neurons = flat.nonzero(as_tuple=True)
        return cls(steps, neurons, (flat.shape[0], flat.shape[1]))

    def __len__(self) -> int:
        """The number of spikes."""
        return len(self.steps)

    def between(self, start: int, stop: int | None = None) -> "SpikeTrains":
        """The spikes from step `start` to before step `stop` (the end if None); `start` becomes step 0."""
        start, stop, _ = slice(start, stop).indices(self.shape[0])
        first, last = torch.searchsorted(self.steps, self.steps.new_tensor([start, stop])).tolist()
        shape = max(stop - start, 0), self.shape[1]
        return SpikeTrains(self.steps[first:last] - start, self.neurons[first:last], shape)

    def split(self, sizes: Mapping[str, int]) -> dict[str, "SpikeTrains"]:
        """The spikes of consecutive groups of neurons, by name; in each group, the first neuron is number 0.

        Args:
            sizes: the number of neurons of each group, in order.

        Raises:
            ValueError: if the sizes do not sum to the number of neurons.
        """
        if sum(sizes.values()) != self.shape[1]:
            raise ValueError(f"sizes must sum to {self.shape[1]} neurons, got {sum(sizes.values())}")
        groups = {}
        for (name, size), end in zip(sizes.items(), accumulate(sizes.values()), strict=True):
            inside = (self.neurons >= end - size) & (self.neurons < end)
            neurons = self.neurons[inside] - (end - size)
            groups[name] = SpikeTrains(self.steps[inside], neurons, (self.shape[0], size))
        return groups

    def rates(self, dt: float | None = None) -> Tensor:
        """The rate of each neuron, ``[N]``: spikes per step, or spikes per second with `dt`."""
        counts = torch.bincount(self.neurons, minlength=self.shape[1]).double()
        return counts / self.shape[0] * (1 if dt is None else 1000 / dt)

    def irregularity(self) -> Tensor:
        """The coefficient of variation of each neuron's inter-spike intervals, ``[N]``.

            CV = standard deviation / mean

        A regular neuron has 0, a Poisson process 1. The value is NaN for neurons with fewer than three
        spikes, which have no two intervals to compare.
        """
        order = self.neurons.argsort(stable=True)
        neurons = self.neurons[order].long()
        is_interval = neurons.diff() == 0
        intervals, neurons = self.steps[order].diff()[is_interval].double(), neurons[1:][is_interval]

        def sums(values: Tensor) -> Tensor:
            """The sum of `values`, one per interval, for each neuron."""
            return intervals.new_zeros(self.shape[1]).index_add_(0, neurons, values)

        counts = sums(torch.ones_like(intervals))
        means = sums(intervals) / counts
        variances = sums((intervals - means[neurons]) ** 2) / counts
        return torch.where(counts > 1, variances.sqrt() / means, torch.nan)

    def synchrony(self, bin_width: float = 3.0, dt: float | None = None) -> float:
        """The variance of the population's spike counts in bins of time, divided by their mean.

        Independent Poisson processes have 1. The measure and the bins of 3 ms are those of Potjans and
        Diesmann (2014), *The cell-type specific cortical microcircuit*. NaN without spikes.

        Args:
            bin_width: the width of a bin in milliseconds, or in steps without `dt`; rounded to whole steps.
            dt: the length of a step in milliseconds.
        """
        counts = self._bin(bin_width, dt, self.steps.new_zeros(len(self)), 1)[0]
        return float(counts.var(correction=0) / counts.mean())

    def correlations(self, bin_width: float = 3.0, dt: float | None = None, most: int = 200) -> Tensor:
        """Pearson's correlation coefficients of the spike counts of pairs of neurons, ``[pairs]``.

        Args:
            bin_width: the width of a bin in milliseconds, or in steps without `dt`; rounded to whole steps.
            dt: the length of a step in milliseconds.
            most: the pairs are those of the first `most` neurons that spike.
        """
        spiking = self.neurons.bincount().nonzero()[:most, 0]
        rows = self.neurons.new_full((self.shape[1],), len(spiking))  # all other neurons share the last row
        rows[spiking] = torch.arange(len(spiking), dtype=torch.int64, device="cpu").to(rows)
        counts = self._bin(bin_width, dt, rows[self.neurons.long()], len(spiking) + 1)[:-1]
        first, second = torch.triu_indices(
            len(spiking), len(spiking), offset=1, dtype=torch.int64, device="cpu"
        )
        return torch.corrcoef(counts).view(len(spiking), len(spiking))[first, second]

    def _bin(self, bin_width: float, dt: float | None, rows: Tensor, row_count: int) -> Tensor:
        """Spike counts ``[row_count, bins]``, float64; spike k counts in row ``rows[k]``.

        An incomplete last bin is left out.

        Raises:
            ValueError: if a bin has less than one step, or fewer than two bins fit into the recording.
        """
        width = round(bin_width / (dt or 1))
        bins = self.shape[0] // width if width > 0 else 0
        if bins < 2:
            limits = f"from one step to half of the {self.shape[0]} steps"
            raise ValueError(f"bin_width must be {limits}, got {bin_width} {'steps' if dt is None else 'ms'}")
        inside = self.steps < bins * width
        cells = rows[inside].long() * bins + self.steps[inside] // width
        return torch.bincount(cells, minlength=row_count * bins).view(row_count, bins).double()
