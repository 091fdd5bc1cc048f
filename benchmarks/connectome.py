"""``python -m benchmarks.connectome``: spikes and time of a wiring diagram in hibana and in Brian2.

    python -m benchmarks.connectome --brian2 PYTHON [--edges FILE --neurons FILE --source name="* ORN *"]
                                    [--driven 21 --scale 2.1] [--seconds 1] [--mode cython] [--repeat 1]

Both simulators get the same synapses and the same spikes of the stimulus. Without ``--edges`` the network is
a random graph with the numbers of the adult fly's brain. Weights are multiples of 2^-10 mV, so their sums are
exact. ``--brian2`` is the interpreter of an environment with Brian2 (``pip install brian2 "numpy<2.4"``).
"""

import argparse
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

import hibana as hb
from hibana.data.connectome import read_connectome_table

STEP = 0.1
"""Milliseconds."""
RATE = 150.0
"""Spikes per second of a driven neuron."""
WEIGHT = 282 / 1024
"""Weight of one synapse in mV: 0.275 as a multiple of 2^-10."""


def random_graph(n=138_639, connections=15_091_983, module=700, inside=0.7, seed=1):
    """Sources, targets and signed synapses of a graph with modules and lognormal degrees."""
    random = np.random.default_rng(seed)
    out, into, modules = random.lognormal(0, 1, n), random.lognormal(0, 1, n), n // module
    sources = np.sort(random.choice(n, connections, p=out / out.sum()).astype(np.int32))
    module_of = np.minimum(np.arange(n) // module, modules - 1)
    targets = random.choice(n, connections, p=into / into.sum()).astype(np.int32)
    is_local = random.random(connections) < inside
    total = np.concatenate([[0], np.cumsum(into)])
    first = np.searchsorted(module_of, np.arange(modules))
    last = np.append(first[1:], n)
    module_of_source = module_of[sources[is_local]]
    low, high = total[first[module_of_source]], total[last[module_of_source]]
    places = np.searchsorted(total, low + random.random(is_local.sum()) * (high - low), "right") - 1
    targets[is_local] = np.clip(places, 0, n - 1)
    synapses = np.minimum(random.geometric(0.25, connections), 200)
    return sources, targets, synapses * np.where(random.random(n) < 0.3, -1, 1)[sources]


def random_drive(driven, steps, seed=2, module=700):
    """Rows (step, neuron) of Poisson spikes of `driven` neurons in the first modules."""
    random = np.random.default_rng(seed)
    chosen = np.sort(random.choice(max(module, 2 * driven), driven, replace=False))
    rows = np.argwhere(random.random((steps, driven)) < RATE * STEP / 1000)
    rows[:, 1] = chosen[rows[:, 1]]
    return rows


def table_network(options, steps):
    """The synapses of the tables with one sign per source neuron, and the drive."""
    table = read_connectome_table(options.edges)
    neurons = read_connectome_table(options.neurons)
    neurons["sign"] = np.where(np.random.default_rng(1).random(len(neurons)) < 0.3, -1, 1)
    net, order = hb.models.connectome(table, neurons, weight_per_synapse=1.0, dtype=torch.float64)
    column, _, value = options.source.partition("=")
    stimulus = hb.Stimulus(order.select(**{column: value}), RATE, dt=STEP, seed=2)
    event_steps, indices, _ = stimulus.events(0, 0, steps, 2)
    synapses = net.recurrent
    pairs = synapses.sources.numpy(), synapses.targets.numpy(), synapses.weight.detach().numpy()
    return pairs, len(order), np.stack([event_steps.numpy(), indices.numpy()], 1)


def run_hibana(pre, post, weight, n, steps, drive):
    """The spikes as rows (step, neuron), and the seconds of the simulation."""
    edges = {"pre_index": pre, "post_index": post, "weight": weight}
    net, _ = hb.models.connectome(
        edges, {"id": np.arange(n)}, weight_per_synapse=1.0, duplicates="keep", dtype=torch.float64
    )
    trains = hb.SpikeTrains(*torch.from_numpy(drive.copy()).unbind(1), (steps, n))
    stimulus = hb.Stimulus(spikes=trains, weight=68.75, state="v", parameters={"period": 1})
    start = time.perf_counter()
    record, _ = hb.simulate(net, steps, stimulus=stimulus)
    seconds = time.perf_counter() - start
    return np.stack([record.spikes.steps.numpy(), record.spikes.neurons.numpy()], 1), seconds


def run_brian2(python, mode, **arrays):
    """The spikes as rows (step, neuron), or their numbers in all trials, and the seconds of one."""
    with tempfile.TemporaryDirectory() as folder:
        source, out = Path(folder, "in.npz"), Path(folder, "out.npz")
        np.savez(source, **arrays)
        script = Path(__file__).with_name("connectome_brian2.py")
        command = [python, script, source, out, mode]
        result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=folder)
        spikes = np.load(out)
        if "counts" in spikes:
            return spikes["counts"], 0.0
        return np.stack([spikes["steps"], spikes["neurons"]], 1), float(result.stdout.split()[-1])


def compare_rates(options, pre, post, weight, n, steps, drive):
    """Prints how far the mean rates over trials differ, in standard errors of their difference."""
    edges = {"pre_index": pre, "post_index": post, "weight": weight}
    net, _ = hb.models.connectome(
        edges, {"id": np.arange(n)}, weight_per_synapse=1.0, duplicates="keep", dtype=torch.float64
    )
    driven = torch.from_numpy(np.unique(drive[:, 1]))
    stimulus = hb.Stimulus(
        driven, RATE, weight=68.75, state="v", dt=STEP, parameters={"period": 1}, seed=options.trials
    )
    records, _ = hb.simulate(net, steps, stimulus=stimulus, trials=options.trials, record="counts")
    ours = np.stack([record.counts.numpy() for record in records])
    arrays = {"pre": pre, "post": post, "weight": weight, "n": n, "steps": steps, "drive": drive}
    arrays |= {"trials": options.trials, "rate": RATE}
    theirs, _ = run_brian2(options.brian2, options.mode, **arrays)
    error = np.sqrt((ours.var(0, ddof=1) + theirs.var(0, ddof=1)) / options.trials)
    varies = error > 0
    scores = (ours.mean(0) - theirs.mean(0))[varies] / error[varies]
    print(
        f"{options.trials} trials: {ours.sum(1).mean():,.0f} spikes (standard deviation "
        f"{ours.sum(1).std(ddof=1):,.0f}) in hibana, {theirs.sum(1).mean():,.0f} "
        f"({theirs.sum(1).std(ddof=1):,.0f}) in Brian2; rates of {varies.sum():,} neurons differ by "
        f"{np.sqrt(np.mean(scores**2)):.2f} standard errors (root mean square), "
        f"{np.mean(abs(scores) > 3):.2%} by more than 3"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--brian2", metavar="PYTHON", required=True)
    parser.add_argument("--mode", choices=["cython", "cpp_standalone"], default="cython")
    parser.add_argument("--edges")
    parser.add_argument("--neurons")
    parser.add_argument("--source", default="kind=Sensory", help="driven neurons of the table")
    parser.add_argument("--driven", type=int, default=21)
    parser.add_argument("--scale", type=float, default=1.0, help="factor of the weights")
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument(
        "--trials", type=int, help="compare rates over trials with Poisson stimuli; --mode cython"
    )
    options = parser.parse_args()
    steps = round(options.seconds * 1000 / STEP)
    if options.edges:
        (pre, post, synapses), n, drive = table_network(options, steps)
    else:
        (pre, post, synapses), n = random_graph(), 138_639
        drive = random_drive(options.driven, steps)
    weight = np.round(np.round(WEIGHT * 1024) * synapses * options.scale) / 1024
    if options.trials:
        compare_rates(options, pre, post, weight, n, steps, drive)
        return
    for _ in range(options.repeat):
        ours, seconds = run_hibana(pre, post, weight, n, steps, drive)
        theirs, peer = run_brian2(
            options.brian2, options.mode, pre=pre, post=post, weight=weight, n=n, steps=steps, drive=drive
        )
        different = set(map(tuple, ours.tolist()))
        different ^= set(map(tuple, theirs.tolist()))
        print(
            f"{n:,} neurons, {len(pre):,} synapses, {len(np.unique(drive[:, 1]))} driven: {len(theirs):,} "
            f"spikes in Brian2, {len(ours):,} in hibana, {len(different)} differ; s per s: hibana "
            f"{seconds / options.seconds:.2f}, Brian2 ({options.mode}) {peer / options.seconds:.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
