"""Runs the network of a wiring diagram in NEST, which distributes it over threads and MPI processes.

    python examples/connectome_in_nest.py EDGES.csv NEURONS.csv --activate kind=Sensory --threads 2
    mpirun -n 4 python examples/connectome_in_nest.py EDGES.csv NEURONS.csv --activate ... --no-hibana

NEST (at least 3.10) comes with ``pip install nest-simulator``; for MPI it must be built with MPI.
The neurons are ``iaf_psc_exp``, which ``hb.models.connectome(..., keeps_current=True)`` equals. Without
``--no-hibana``, hibana runs the same stimulus, and the spikes that differ are counted.
"""

import argparse
import time

import nest
import numpy as np
import torch

import hibana as hb
from hibana.data.connectome import read_connectome_table

STEP = 0.1
"""Milliseconds."""


def to_nest(net: hb.Recurrent) -> "nest.NodeCollection":
    """Creates the neurons and synapses of `net` in NEST: ``ExactLIFCell(keeps_current=True)``, in mV.

    A capacity of tau pF makes 1 pA of the synaptic current equal to 1 mV. A spike takes a step and the delay.
    """
    cell, synapses = net.cell, net.recurrent
    assert isinstance(cell, hb.ExactLIFCell)
    assert cell.keeps_current
    parameters = {"E_L": 0.0, "V_m": 0.0, "V_reset": 0.0, "V_th": cell.threshold, "C_m": cell.tau * STEP}
    parameters |= {"tau_m": cell.tau * STEP, "tau_syn_ex": cell.tau_synapse * STEP}
    neurons = nest.Create("iaf_psc_exp", net.features, parameters | {"tau_syn_in": cell.tau_synapse * STEP})
    neurons.t_ref = ((cell.period.double() - 1) * STEP).round(decimals=6).tolist()
    ids = np.array(neurons.tolist())
    delays = torch.zeros_like(synapses.targets) if synapses.delays is None else synapses.delays
    nest.Connect(
        ids[synapses.sources.numpy()],
        ids[synapses.targets.numpy()],
        "one_to_one",
        {"weight": synapses.weight.detach().double().numpy(), "delay": (delays.numpy() + 1) * STEP},
    )
    return neurons


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("edges")
    parser.add_argument("neurons")
    parser.add_argument("--activate", required=True, help="COLUMN=VALUE, or ID,ID")
    parser.add_argument("--rate", type=float, default=150.0, help="Hz")
    parser.add_argument("--weight", type=float, default=68.75, help="of the stimulus, in mV of the current")
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--sign-seed", type=int, help="draw the sign of each neuron; 30%% inhibit")
    parser.add_argument("--no-hibana", action="store_true")
    options = parser.parse_args()
    table = read_connectome_table(options.neurons)
    if options.sign_seed is not None:
        random = np.random.default_rng(options.sign_seed)
        table["sign"] = np.where(random.random(len(table)) < 0.3, -1, 1)
    net, order = hb.models.connectome(options.edges, table, keeps_current=True, dtype=torch.float64)
    column, mark, value = options.activate.partition("=")
    driven = order.select(**{column: value}) if mark else order.select(*options.activate.split(","))
    steps = round(options.seconds * 1000 / STEP)
    random = torch.Generator().manual_seed(0)
    spikes = torch.rand(steps, len(driven), generator=random) < options.rate * STEP / 1000
    spikes[0] = False  # the first step in which a generator of NEST can act is step 1
    event_steps, places = spikes.nonzero(as_tuple=True)

    nest.verbosity = nest.VerbosityLevel.WARNING
    nest.set(resolution=STEP, local_num_threads=options.threads)
    neurons = to_nest(net)
    times = [
        (event_steps[places == i].double() * STEP).round(decimals=6).tolist() for i in range(len(driven))
    ]
    generators = nest.Create("spike_generator", len(driven), [{"spike_times": each} for each in times])
    synapse = {"weight": options.weight, "delay": STEP}
    nest.Connect(generators, neurons[driven.tolist()], "one_to_one", synapse)
    recorder = nest.Create("spike_recorder")
    nest.Connect(neurons, recorder)
    nest.Prepare()
    start = time.perf_counter()
    nest.Run(steps * STEP)
    seconds = (time.perf_counter() - start) / options.seconds
    events = recorder.events
    print(f"NEST: {len(events['times']):,} spikes of this process, {seconds:.2f} s per s")
    if options.no_hibana:
        return

    trains = hb.SpikeTrains(event_steps, driven[places], (steps, net.features))
    torch.set_num_threads(options.threads)
    stimulus = hb.Stimulus(spikes=trains, weight=options.weight)
    hb.simulate(net, 1, stimulus=stimulus)  # compiles
    start = time.perf_counter()
    record, _ = hb.simulate(net, steps, stimulus=stimulus)
    seconds = (time.perf_counter() - start) / options.seconds
    ours = set(zip(record.spikes.steps.tolist(), record.spikes.neurons.tolist(), strict=True))
    theirs = set(
        zip(
            np.rint(events["times"] / STEP).astype(int) - 1,
            events["senders"] - neurons[0].global_id,
            strict=True,
        )
    )
    print(f"hibana: {len(ours):,} spikes, {seconds:.2f} s per s; {len(ours ^ theirs):,} spikes differ")


if __name__ == "__main__":
    main()
