"""The cortical microcircuit of Potjans and Diesmann (2014): 77,169 neurons, 299 million delayed synapses.

    python examples/microcircuit.py --scale 1 --seconds 10 [--seed 55] [--threads 2] [--figure FILE.png]

Four layers of a square millimeter of cortex, each with an excitatory (E) and an inhibitory (I) population of
integrate-and-fire neurons. A step is 0.1 ms. ``--scale`` multiplies the number of neurons and the number of
synapses per neuron. Below 1, weights grow by ``1 / sqrt(scale)``, and a constant current replaces the mean of
the removed input. Rates then differ from those of full scale: at a tenth, L2/3E fires at 0.49 instead of 0.90
spikes per second. The first 500 ms are not recorded.

Source: Potjans & Diesmann (2014), *The cell-type specific cortical microcircuit*, Cerebral Cortex 24, 785.
"""

import argparse
import math
import time
from itertools import accumulate, pairwise
from pathlib import Path

import torch
from torch import Tensor

import hibana as hb

NAMES = ("L23E", "L23I", "L4E", "L4I", "L5E", "L5I", "L6E", "L6I")
NEURONS = (20683, 5834, 21915, 5479, 4850, 1065, 14395, 2948)
PROBABILITY = (  # [target][source]: the probability of at least one synapse between two neurons
    (0.1009, 0.1689, 0.0437, 0.0818, 0.0323, 0.0, 0.0076, 0.0),
    (0.1346, 0.1371, 0.0316, 0.0515, 0.0755, 0.0, 0.0042, 0.0),
    (0.0077, 0.0059, 0.0497, 0.135, 0.0067, 0.0003, 0.0453, 0.0),
    (0.0691, 0.0029, 0.0794, 0.1597, 0.0033, 0.0, 0.1057, 0.0),
    (0.1004, 0.0622, 0.0505, 0.0057, 0.0831, 0.3726, 0.0204, 0.0),
    (0.0548, 0.0269, 0.0257, 0.0022, 0.06, 0.3158, 0.0086, 0.0),
    (0.0156, 0.0066, 0.0211, 0.0166, 0.0572, 0.0197, 0.0396, 0.2252),
    (0.0364, 0.001, 0.0034, 0.0005, 0.0277, 0.008, 0.0658, 0.1443),
)
EXTERNAL = (1600, 1500, 2100, 1900, 2000, 1900, 2900, 2100)
"""Synapses per neuron from outside, each a Poisson process of EXTERNAL_RATE spikes per second."""
EXTERNAL_RATE = 8.0
PSP, INHIBITION = 0.15, -4.0
"""Peak potential of an excitatory synapse in mV; strength of inhibitory relative to excitatory synapses."""
DELAY, DELAY_SPREAD = (1.5, 0.75), 0.5
"""Mean delay of excitatory and of inhibitory synapses in ms; standard deviation relative to the mean."""
STEP, MEMBRANE, SYNAPSE, REFRACTORY, CAPACITANCE = 0.1, 10.0, 0.5, 2.0, 250.0
"""Length of a step, time constants of membrane and synapses, refractory period, all in ms; and pF."""
THRESHOLD, REST = 15.0, -65.0
"""The threshold relative to the resting potential, which is also the reset; and that in mV."""
START = (  # mean and standard deviation of the initial potentials in mV
    (-68.28, 5.36),
    (-63.16, 4.57),
    (-63.33, 4.74),
    (-63.45, 4.94),
    (-63.11, 4.94),
    (-61.66, 4.55),
    (-66.72, 5.46),
    (-61.43, 4.48),
)
RATES = (0.903, 2.965, 4.414, 5.876, 7.569, 8.633, 1.105, 7.829)
"""The published mean rates in spikes/s."""
WARM_UP = 5000
"""Steps before the record begins."""


class Neuron(hb.Cell):
    """Integrate-and-fire with exponential synaptic currents and a refractory period, integrated exactly.

    A step computes, in the order of NEST's ``iaf_psc_exp``: the potential from the current of the step
    before, unless the neuron is refractory; the current, which decays and receives the spikes of this step;
    and the spike. Excitatory and inhibitory synapses share one current, because their time constants are
    equal.

    Args:
        rate: mean number of external spikes per step, ``[neurons]``.
        weight: the current of an external spike in pA.
        constant: a constant current in pA, ``[neurons]``.
    """

    def __init__(self, rate: Tensor, weight: float, constant: Tensor) -> None:
        super().__init__()
        self.leak, self.decay = math.exp(-STEP / MEMBRANE), math.exp(-STEP / SYNAPSE)
        time_constant = MEMBRANE * SYNAPSE / (MEMBRANE - SYNAPSE)
        self.from_current = time_constant / CAPACITANCE * (self.leak - self.decay)  # mV per pA
        self.drive = constant * (MEMBRANE / CAPACITANCE * (1 - self.leak))
        self.rate, self.weight, self.pause = rate, weight, float(round(REFRACTORY / STEP))

    def forward(
        self, input_: Tensor, v: Tensor, current: Tensor, pause: Tensor, spikes: Tensor
    ) -> tuple[Tensor, ...]:
        is_active = pause == 0
        v = torch.where(is_active, self.leak * v + self.from_current * current + self.drive, v)
        pause = torch.where(is_active, 0, pause - 1)
        current = self.decay * current + input_ + self.weight * torch.poisson(self.rate.expand_as(v))
        fires = v >= THRESHOLD
        return torch.where(fires, 0, v), current, torch.where(fires, self.pause, pause), fires.to(v.dtype)


def synapse_count(target: int, source: int) -> int:
    """The number of synapses between two populations at full scale."""
    pairs = NEURONS[target] * NEURONS[source]
    probability = PROBABILITY[target][source]
    return round(math.log(1 - probability) / math.log(1 - 1 / pairs)) if probability else 0


def weight_of(target: int, source: int) -> float:
    """The mean current of a synapse between two populations at full scale, in pA."""
    ratio, time_constant = MEMBRANE / SYNAPSE, MEMBRANE * SYNAPSE / (SYNAPSE - MEMBRANE)
    peak = time_constant / CAPACITANCE
    peak *= ratio ** (-MEMBRANE / (MEMBRANE - SYNAPSE)) - ratio ** (-SYNAPSE / (MEMBRANE - SYNAPSE))
    doubled = 2 if (target, source) == (0, 2) else 1
    return PSP / peak * doubled * (INHIBITION if source % 2 else 1)


def microcircuit(scale: float, seed: int) -> tuple[hb.Recurrent, dict[str, int], Tensor]:
    """The network, the size of each population, and the initial potentials."""
    sizes = [round(count * scale) for count in NEURONS]
    ranges = [range(start, end) for start, end in pairwise(accumulate(sizes, initial=0))]
    rules, constants = [], []
    for target in range(8):
        removed = EXTERNAL[target] * EXTERNAL_RATE * weight_of(0, 0)
        for source in range(8):
            weight, delay = weight_of(target, source), DELAY[source % 2] / STEP
            removed += synapse_count(target, source) / NEURONS[target] * RATES[source] * weight
            weight /= math.sqrt(scale)
            low, high = (0.0, math.inf) if weight > 0 else (-math.inf, 0.0)
            rules.append(
                hb.connect.fixed_total(
                    round(synapse_count(target, source) * scale**2),
                    source=ranges[source],
                    target=ranges[target],
                    weight=hb.connect.normal(weight, abs(weight) * 0.1, low, high),
                    delay=hb.connect.normal(delay - 1, delay * DELAY_SPREAD, low=0),  # hibana adds a step
                    seed=seed * 64 + 8 * target + source,
                )
            )
        constants.append(1e-3 * SYNAPSE * (1 - math.sqrt(scale)) * removed)
    counts = torch.tensor(sizes)
    rate = torch.tensor(EXTERNAL) * (EXTERNAL_RATE * scale * STEP * 1e-3)
    cell = Neuron(
        rate.repeat_interleave(counts),
        weight_of(0, 0) / math.sqrt(scale),
        torch.tensor(constants).repeat_interleave(counts),
    )
    total = sum(sizes)
    net = hb.Recurrent(cell, total, hb.SparseLinear(total, total, rules, bias=False))
    mean, spread = (torch.tensor(values).repeat_interleave(counts) for values in zip(*START, strict=True))
    start = torch.normal(mean, spread, generator=torch.Generator().manual_seed(seed)) - REST
    return net, dict(zip(NAMES, sizes, strict=True)), start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--scale", type=float, default=0.1)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=55)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--figure", help="file of the figure; a raster is written beside it")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    start = time.perf_counter()
    net, sizes, potentials = microcircuit(options.scale, options.seed)
    zeros = torch.zeros(1, net.features)
    state = {"": (potentials[None], zeros, zeros, zeros, zeros.expand(net.recurrent.reach, 1, -1))}
    built = time.perf_counter()
    _, state = hb.simulate(net, WARM_UP, state=state, record="counts")
    warm = time.perf_counter()
    record, _ = hb.simulate(net, round(options.seconds * 1e3 / STEP), state=state)
    duration, simulated = time.perf_counter() - warm, record.steps * STEP * 1e-3
    print(
        f"hibana {hb.__version__}: scale {options.scale}, {net.features:,} neurons, "
        f"{net.recurrent.weight.numel():,} connections, {options.threads} threads: built in "
        f"{built - start:.1f} s, simulated {simulated * 1e3:.0f} ms in {duration:.2f} s: "
        f"real-time factor {duration / simulated:.2f}"
    )
    populations = record.spikes.split(sizes)
    for (name, trains), published in zip(populations.items(), RATES, strict=True):
        print(
            f"  {name:5} {trains.rates(STEP).mean():6.2f} /s (full scale {published}), irregularity "
            f"{trains.irregularity().nanmean():.2f}, synchrony {trains.synchrony(dt=STEP):.1f}"
        )
    if options.figure:
        draw(populations, Path(options.figure))


def draw(populations: dict[str, hb.SpikeTrains], file: Path) -> None:
    """Writes the statistics of all populations to `file`, and a raster of 300 ms beside it."""
    from hibana import plot

    top_down = dict(reversed(populations.items()))
    plot.activity(top_down, dt=STEP, published={"rate": RATES[::-1]}).savefig(file)
    excerpts = {name: trains.between(0, 3000) for name, trains in top_down.items()}
    plot.raster(excerpts, dt=STEP).figure.savefig(file.with_stem(f"{file.stem}-raster"))


if __name__ == "__main__":
    main()
