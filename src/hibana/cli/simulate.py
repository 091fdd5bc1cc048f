"""The command ``simulate``: the network of a wiring diagram, some of whose neurons are driven."""

import math
import sys
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import cyclopts

from hibana.cli.common import Integer, Refusal, progress, refuse_errors

if TYPE_CHECKING:
    import numpy as np
    import pandas
    from torch import Tensor

    from hibana.network.simulate import Recording
    from hibana.spikes.sparse.neurons import Neurons

STEP = 0.1
"""Milliseconds of a step."""
WEIGHT = 68.75
"""What a spike of the stimulus adds to the potential in mV: 250 synapses, as in Shiu et al. (2024)."""
KINDS = ("kind", "cell_type", "type", "super_class", "class")
"""Columns of the table of neurons that say their kind; the first one that exists is used."""
MOST_KINDS = 8
"""Most kinds of neurons in the raster."""
MOST_SPIKES = 50_000
"""Most spikes in the raster."""
Selection = Annotated[tuple[str, ...], cyclopts.Parameter(show_default=False)]


def simulate(
    edges: Path,
    /,
    *,
    neurons: Path | None = None,
    activate: Selection = (),
    rate: float = 150.0,
    silence: Selection = (),
    seconds: float = 1.0,
    trials: Integer = 1,
    seed: Integer = 0,
    out: Path = Path("hibana-simulation"),
    csv: Annotated[bool, cyclopts.Parameter(negative=())] = False,
    source: str | None = None,
    target: str | None = None,
    weight: str | None = None,
    sign: str | None = None,
    transmitter: str | None = None,
    id: str | None = None,  # noqa: A002 - the name of the option
) -> None:
    """Simulates a wiring diagram: integrate-and-fire neurons of Shiu et al. (2024), steps of 0.1 ms.

    Args:
        edges: table of connections: CSV, Parquet or Feather.
        neurons: table of neurons.
        activate: neurons to drive: ID,ID or COLUMN=VALUE, * for any text; may be repeated.
        rate: spikes per second of the drive.
        silence: neurons whose synapses get weight 0, in the same form.
        seconds: simulated time.
        trials: simulations with different random numbers.
        seed: seed of the random numbers.
        out: folder for spikes, rates and figures.
        csv: write CSV, not Parquet.
        source: column of edges: the source neuron.
        target: column of edges: the target neuron.
        weight: column of edges: the synapses.
        sign: column of signs in a table, or 1.
        transmitter: column of transmitters in a table.
        id: column of neurons: their ids.
    """
    if not activate:
        raise Refusal(
            "no neuron is activated, so none would spike: name some by --activate COLUMN=VALUE, a column of "
            "--neurons, or --activate ID,ID"
        )
    if not 0 < seconds < math.inf or round(seconds * 1000 / STEP) < 1:
        raise Refusal(f"--seconds must be at least one step of {STEP} ms, got {seconds}")
    if trials < 1:
        raise Refusal(f"--trials must be at least 1, got {trials}")
    if not 0 < rate <= 1000 / STEP:
        raise Refusal(f"--rate must be above 0 and at most {1000 / STEP:g} spikes per second, got {rate}")
    columns: dict[str, Any] = {"source": source, "target": target, "weight": weight}
    columns |= {"sign": _number_or_name(sign), "transmitter": transmitter, "id": id}
    with progress(f"reading {edges}"), refuse_errors(), warnings.catch_warnings():
        import torch

        from hibana.compiler import NetworkWarning
        from hibana.network.connectome import connectome
        from hibana.network.simulate import simulate as run
        from hibana.network.stimulus import Stimulus
        from hibana.plot import raster  # noqa: F401 - names a missing extra before the simulation

        warnings.simplefilter("ignore", NetworkWarning)  # the notes below say the same
        net, order = connectome(edges, neurons, dtype=torch.float64, **columns)
        driven = _select("--activate", order, activate)
        silenced = _select("--silence", order, silence) if silence else None
        out.mkdir(parents=True, exist_ok=True)
    for note in order.notes:
        print(note)
    print(
        f"{len(order):,} neurons, {len(driven)} driven at {rate:g} Hz"
        f"{'' if silenced is None else f', {len(silenced)} silenced'}",
        flush=True,
    )
    stimulus = Stimulus(
        driven, rate, weight=WEIGHT, state="v", dt=STEP, parameters={"period": 1.0}, seed=seed
    )
    start = time.perf_counter()
    steps = round(seconds * 1000 / STEP)
    records, _ = run(net, steps, stimulus=stimulus, silence=silenced, trials=trials)
    duration = time.perf_counter() - start
    simulated = sum(record.steps for record in records) * STEP / 1000
    if simulated < seconds * trials * (1 - 1e-9):
        print(f"\ninterrupted: {len(records)} of {trials} trials, {simulated:.1f} s of model time in all")
    spikes = sum(int(record.counts.sum()) for record in records)
    print(
        f"{simulated:g} s of model time in {duration:.2f} s: real-time factor {duration / simulated:.3f}; "
        f"{spikes:,} spikes, {spikes / simulated:,.0f} per second{_memory()}"
    )
    with progress(f"writing {out}"), refuse_errors():
        for path in _write(out, records, order, driven.numpy(), csv=csv):
            print(path)


def _number_or_name(text: str | None) -> float | str | None:
    """The number that `text` is, otherwise `text`."""
    try:
        return None if text is None else float(text)
    except ValueError:
        return text


def _select(option: str, neurons: "Neurons", choices: tuple[str, ...]) -> "Tensor":
    """The ascending indices of the neurons that `choices`, the values of `option`, name."""
    import torch

    parts = []
    for choice in choices:
        column, mark, value = choice.partition("=")
        try:
            ids = [part.strip() for part in choice.split(",")]
            parts.append(neurons.select(**{column: value}) if mark else neurons.select(*ids))
        except ValueError as error:
            raise Refusal(f"{option} {choice}: {error}") from error
    return torch.cat(parts).unique()  # type: ignore[no-untyped-call, no-any-return] # untyped in torch


def _memory() -> str:
    """A clause with the largest memory of the process so far; empty where the system does not tell."""
    if sys.platform == "win32":
        return ""
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return f"; {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30:.2f} GiB of memory"


def _write(
    out: Path,
    records: "list[Recording]",
    neurons: "Neurons",
    driven: "np.ndarray[Any, Any]",
    *,
    csv: bool,
) -> list[Path]:
    """Writes the tables and figures of all trials; returns their paths."""
    import numpy as np
    import pandas

    from hibana import plot

    rates = np.stack([record.counts.numpy() / (record.steps * STEP / 1000) for record in records])
    table = neurons.table
    column = None if table is None else next((name for name in KINDS if name in table), None)
    kinds = None if column is None or table is None else table[column].astype(str).to_numpy(object)
    parts = []
    for trial, record in enumerate(records):
        assert record.spikes is not None
        times, indices = record.spikes.steps.numpy() * STEP, record.spikes.neurons.numpy()
        parts.append(pandas.DataFrame({"trial": trial, "ms": times.round(4), "id": neurons.ids[indices]}))
    active = np.flatnonzero(rates.any(0))
    active = active[np.argsort(-rates[:, active].mean(0), kind="stable")]
    columns = {
        "id": neurons.ids[active],
        "rate": rates[:, active].mean(0),
        "deviation": rates[:, active].std(0),
    }
    if kinds is not None:
        columns["kind"] = kinds[active]
    paths = [
        _write_table(pandas.concat(parts), out / "spikes", csv=csv),
        _write_table(pandas.DataFrame(columns), out / "rates", csv=csv),
    ]
    names = [str(id_) for id_ in neurons.ids]
    rates[:, driven] = 0  # the figure shows the other neurons
    raster = plot.raster(_by_kind(records[0], kinds), sort="rate", dt=STEP)
    raster.set_title("Trial 0")
    figures = {
        "raster": raster,
        "active": plot.most_active(rates, names, None if kinds is None else kinds.tolist()),
    }
    for name, axes in figures.items():
        paths.append(out / f"{name}.png")
        figure: Any = axes.figure
        figure.savefig(paths[-1], dpi=160)
    return paths


def _write_table(table: "pandas.DataFrame", path: Path, *, csv: bool) -> Path:
    """Writes `table` to `path` with the ending of its format, which is returned."""
    path = path.with_suffix(".csv" if csv else ".parquet")
    if csv:
        table.to_csv(path, index=False)
    else:
        table.to_parquet(path, index=False)
    return path


def _by_kind(record: "Recording", kinds: "np.ndarray[Any, Any] | None") -> Any:
    """The spikes of the neurons that spiked, by kind: the kinds with most spikes, at most MOST_SPIKES."""
    import numpy as np
    import torch

    from hibana.nn.spike_trains import SpikeTrains

    assert record.spikes is not None
    trains = record.spikes
    if len(trains) > MOST_SPIKES:
        trains = trains.between(0, int(trains.steps[MOST_SPIKES]) + 1)
    indices = trains.neurons.numpy()
    labels = np.full(trains.shape[1], "neurons", object) if kinds is None else kinds
    counts = np.bincount(indices, minlength=len(labels))
    totals = {kind: counts[labels == kind].sum() for kind in dict.fromkeys(labels[np.unique(indices)])}
    groups = {}
    for kind in sorted(totals, key=totals.__getitem__, reverse=True)[:MOST_KINDS][::-1]:
        members = np.flatnonzero((labels == kind) & (counts > 0))
        inside = np.isin(indices, members)
        rows = torch.from_numpy(np.searchsorted(members, indices[inside]))
        shape = (trains.shape[0], len(members))
        groups[kind] = SpikeTrains(trains.steps[torch.from_numpy(inside)], rows, shape)
    return groups or {"neurons": trains}
