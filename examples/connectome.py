"""Activates neurons of a wiring diagram, then silences the most active other neurons one by one.

    python examples/connectome.py Connectivity_783.parquet Completeness_783.csv
    python examples/connectome.py EDGES.csv NEURONS.csv --activate "name=* ORN *" --read kind=PN --sign-seed 0

The first line is the experiment of Shiu et al. (2024): their 21 sugar-sensing neurons spike at 150 Hz, and
motor neuron MN9, which extends the proboscis, is read. Their two files are in
github.com/philshiu/Drosophila_brain_model. Silenced neurons keep their spikes but lose their synapses; the
network is built once. ``--figures FOLDER`` writes a raster and the most active neurons.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch

import hibana as hb
from hibana.data.connectome import read_connectome_table

STEP = 0.1
"""Milliseconds."""
SUGAR = (
    *("720575940624963786", "720575940630233916", "720575940637568838", "720575940638202345"),
    *("720575940617000768", "720575940630797113", "720575940632889389", "720575940621754367"),
    *("720575940621502051", "720575940640649691", "720575940639332736", "720575940616885538"),
    *("720575940639198653", "720575940639259967", "720575940617937543", "720575940632425919"),
    *("720575940633143833", "720575940612670570", "720575940628853239", "720575940629176663"),
    "720575940611875570",
)
"""The sugar-sensing neurons of Shiu et al., with the id of release 783 for the one that has changed."""
MN9 = "720575940660219265"


def choose(neurons: hb.connect.Neurons, text: str) -> torch.Tensor:
    """The neurons that ``COLUMN=VALUE`` or ``ID,ID`` names."""
    column, mark, value = text.partition("=")
    return neurons.select(**{column: value}) if mark else neurons.select(*text.split(","))


def draw(record: hb.SpikeTrains, rates: np.ndarray, neurons: hb.connect.Neurons, folder: Path) -> None:
    """Writes the raster of the neurons that spiked and the most active neurons, by kind if there is one."""
    from hibana import plot

    table = neurons.table
    has_kind = table is not None and "kind" in table
    kinds = table["kind"].astype(str).tolist() if has_kind else ["neurons"] * len(neurons)
    groups, spiking = {}, np.bincount(record.neurons, minlength=len(neurons))
    totals = {kind: sum(spiking[i] for i in range(len(kinds)) if kinds[i] == kind) for kind in set(kinds)}
    for kind in sorted(totals, key=totals.get)[-8:]:
        members = [i for i in range(len(kinds)) if kinds[i] == kind and spiking[i]]
        place = {neuron: row for row, neuron in enumerate(members)}
        inside = [k for k, neuron in enumerate(record.neurons.tolist()) if neuron in place]
        rows = torch.tensor([place[record.neurons[k].item()] for k in inside], dtype=torch.int64)
        groups[kind] = hb.SpikeTrains(record.steps[inside], rows, (record.shape[0], len(members)))
    folder.mkdir(parents=True, exist_ok=True)
    axes = plot.raster(groups, sort="rate", dt=STEP)
    axes.set_title("")
    axes.figure.savefig(folder / "larva-raster.png", dpi=160)
    names = table["name"].astype(str).tolist() if has_kind else [str(id_) for id_ in neurons.ids]
    axes = plot.most_active(rates, names, kinds if has_kind else None, most=25)
    axes.figure.savefig(folder / "larva-active.png", dpi=160)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("edges")
    parser.add_argument("neurons")
    parser.add_argument("--activate", default=",".join(SUGAR), help="COLUMN=VALUE, or ID,ID")
    parser.add_argument("--read", default=MN9, help="COLUMN=VALUE, or ID,ID")
    parser.add_argument("--rate", type=float, default=150.0, help="Hz")
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--trials", type=int, default=10)
    parser.add_argument("--silenced", type=int, default=10, help="number of neurons to silence in turn")
    parser.add_argument("--sign-seed", type=int, help="draw the sign of each neuron; 30% inhibit")
    parser.add_argument("--figures", type=Path)
    options = parser.parse_args()
    table = read_connectome_table(options.neurons)
    if options.sign_seed is not None:
        random = np.random.default_rng(options.sign_seed)
        table["sign"] = np.where(random.random(len(table)) < 0.3, -1, 1)
    net, neurons = hb.models.connectome(options.edges, table, dtype=torch.float64)
    driven, read = choose(neurons, options.activate), choose(neurons, options.read)
    stimulus = hb.Stimulus(
        driven, options.rate, weight=68.75, state="v", dt=STEP, parameters={"period": 1}, seed=0
    )
    steps, trials = round(options.seconds * 1000 / STEP), options.trials

    def rates_of(silence: torch.Tensor | None = None) -> tuple[np.ndarray, list]:
        """The rate of each neuron in each trial, ``[trials, neurons]``, and the records."""
        records, _ = hb.simulate(
            net, steps, stimulus=stimulus, silence=silence, trials=trials, progress=False
        )
        return np.stack([record.counts.numpy() for record in records]) / options.seconds, records

    start = time.perf_counter()
    rates, records = rates_of()
    seconds = (time.perf_counter() - start) / (options.seconds * trials)
    print(
        f"{len(neurons):,} neurons, {len(driven)} driven at {options.rate:g} Hz: "
        f"{rates.sum(1).mean():,.0f} spikes per second of {(rates.mean(0) > 0).sum():,} neurons, "
        f"{seconds:.3f} s per s\nread: {rates[:, read].mean():.1f} Hz"
    )
    others = rates.mean(0)
    others[torch.cat([driven, read])] = 0
    for neuron in np.argsort(-others)[: options.silenced]:
        silenced, _ = rates_of(torch.tensor([int(neuron)]))
        print(
            f"  without {neurons.ids[neuron]} ({others[neuron]:.0f} Hz): {silenced[:, read].mean():.1f} Hz",
            flush=True,
        )
    if options.figures:
        rates[:, driven] = 0
        draw(records[0].spikes, rates, neurons, options.figures)


if __name__ == "__main__":
    main()
