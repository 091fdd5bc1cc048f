"""Simulates the network of Shiu et al. (2024) in Brian2, for :mod:`benchmarks.connectome`.

    python benchmarks/connectome_brian2.py INPUT.npz OUTPUT.npz cython|cpp_standalone

It runs in an environment without hibana. INPUT.npz has the synapses `pre`, `post` and `weight` (mV), the
number of neurons `n` and of `steps`, and the stimulus as `drive`, rows of (step, neuron); with `trials`, the
neurons in `drive` get Poisson spikes of `rate` Hz instead, and OUTPUT has the number of spikes of each neuron
in each trial. It prints the seconds of the simulation without building. Equations and order are those of
github.com/philshiu/Drosophila_brain_model.
"""

import sys
import time

import numpy as np
from brian2 import (
    Hz,
    Network,
    NeuronGroup,
    PoissonGroup,
    SpikeGeneratorGroup,
    SpikeMonitor,
    Synapses,
    defaultclock,
    device,
    ms,
    mV,
    prefs,
    seed,
    set_device,
)

EQUATIONS = """
dv/dt = (rest - v + g) / membrane : volt (unless refractory)
dg/dt = -g / synapse : volt (unless refractory)
period : second
"""
CONSTANTS = {"rest": -52 * mV, "threshold": -45 * mV, "membrane": 20 * ms, "synapse": 5 * ms}


def main(source: str, out: str, mode: str) -> None:
    data = np.load(source)
    if mode == "cpp_standalone":
        set_device("cpp_standalone", build_on_run=False)
    else:
        prefs.codegen.target = mode
    defaultclock.dt = 0.1 * ms
    drive, steps = data["drive"], int(data["steps"])
    neurons = NeuronGroup(
        int(data["n"]), EQUATIONS, method="linear", threshold="v > threshold", reset="v = rest; g = 0*mV",
        refractory="period", namespace=CONSTANTS, name="neurons",
    )  # fmt: skip
    neurons.v = -52 * mV
    periods = np.full(int(data["n"]), 2.2)
    driven = np.unique(drive[:, 1])
    periods[driven] = 0
    neurons.period = periods * ms
    synapses = Synapses(neurons, neurons, "w : volt", on_pre="g += w", delay=1.8 * ms, name="synapses_")
    synapses.connect(i=data["pre"], j=data["post"])
    synapses.w = data["weight"] * mV
    if "trials" in data:
        generator = PoissonGroup(len(driven), float(data["rate"]) * Hz)
    else:
        places = np.searchsorted(driven, drive[:, 1])
        generator = SpikeGeneratorGroup(len(driven), places, drive[:, 0] * 0.1 * ms)
    stimulus = Synapses(generator, neurons, on_pre="v += 68.75*mV", name="stimulus")
    stimulus.connect(i=np.arange(len(driven)), j=driven)
    monitor = SpikeMonitor(neurons)
    network = Network(neurons, synapses, generator, stimulus, monitor)
    if mode == "cython":
        network.run(0 * ms)  # compiles
    if "trials" in data:
        network.store()
        counts = []
        for trial in range(int(data["trials"])):
            network.restore()
            seed(trial)
            network.run(steps * 0.1 * ms)
            counts.append(np.bincount(monitor.i, minlength=int(data["n"])))
        np.savez(out, counts=np.stack(counts))
        print(0)
        return
    start = time.perf_counter()
    network.run(steps * 0.1 * ms)
    if mode == "cpp_standalone":
        device.build(directory=f"{out}-code", compile=True, run=True)
    seconds = device._last_run_time if mode == "cpp_standalone" else time.perf_counter() - start
    np.savez(out, steps=np.round(monitor.t / (0.1 * ms)).astype(np.int64), neurons=np.asarray(monitor.i))
    print(seconds)


if __name__ == "__main__":
    main(*sys.argv[1:])
