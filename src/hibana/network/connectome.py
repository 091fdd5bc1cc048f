"""``hb.models.connectome``: the integrate-and-fire network of a wiring diagram, with published constants."""

from pathlib import Path
from typing import Any

import torch

from hibana.cells import ExactLIFCell
from hibana.data.connectome import read_connectome_table
from hibana.nn.layers import Recurrent
from hibana.nn.sparse_linear import SparseLinear
from hibana.spikes.sparse.connections import MAX_DELAY
from hibana.spikes.sparse.neurons import Neurons
from hibana.spikes.sparse.table import read_tables

__all__ = ["connectome"]


def connectome(
    edges: Any,
    neurons: Any = None,
    *,
    dt: float = 0.1,
    weight_per_synapse: float = 0.275,
    delay_ms: float = 1.8,
    tau_membrane: float = 20.0,
    tau_synapse: float = 5.0,
    threshold: float = 7.0,
    refractory: float = 2.2,
    keeps_current: bool = False,
    duplicates: str = "add",
    dtype: torch.dtype | None = None,
    **columns: Any,
) -> tuple[Recurrent, Neurons]:
    """The network of Shiu et al. (2024) on a wiring diagram, and its neurons in the order of the network.

    Every neuron is an :class:`hibana.ExactLIFCell` with the constants below; potentials are in mV relative to
    rest and reset (-52 mV, so the threshold is -45 mV). A connection adds its number of synapses times
    `weight_per_synapse` to the current of its target. :func:`hibana.simulate` runs it.

    Args:
        edges: the connections: a file (CSV, Parquet, Feather), a DataFrame, or arrays by name; the columns
            are those of :func:`hibana.connect.from_table`.
        neurons: the table of neurons in the same forms; None: all neurons in `edges`.
        dt: the length of a step in ms.
        weight_per_synapse: in mV.
        delay_ms: time from a spike to its arrival in ms, of all connections without a column of delays.
        tau_membrane: membrane time constant in ms.
        tau_synapse: time constant of the synaptic current in ms.
        threshold: potential above rest in mV that a spike exceeds.
        refractory: time after a spike in ms in which potential and current stay 0 and arrivals are lost.
        keeps_current: whether the current goes on and receives input in this time, as in NEST's
            ``iaf_psc_exp``.
        duplicates: ``"add"`` rows with the same source and target, or ``"keep"`` them.
        dtype: of weights and states: ``torch.float64`` or ``torch.float32``; None: torch's default.
        columns: names of columns, as of :func:`hibana.connect.from_table`; `delay` in steps between 0 and 255
            in addition to the step that every spike takes.

    Raises:
        TypeError: if an argument is unknown.
        ValueError: if a table or a constant is not valid; the message names file, column and row.

    Source: Shiu et al. (2024), *A Drosophila computational brain model reveals sensorimotor processing*,
    Nature 634; constants after Kakaria & de Bivort (2017).

    >>> import torch, hibana as hb
    >>> net, neurons = hb.models.connectome({"pre": [7, 8], "post": [8, 9], "synapses": [60, -5]})
    >>> taste = hb.Stimulus(
    ...     neurons.select(7), rate=150.0, weight=68.75, state="v", dt=0.1, parameters={"period": 1}
    ... )
    >>> record, state = hb.simulate(net, 1000, stimulus=taste)
    """
    for name, value in (("dt", dt), ("delay_ms", delay_ms), ("refractory", refractory)):
        if not 0 < value < float("inf"):
            raise ValueError(f"{name} must be a positive number of milliseconds, got {value!r}")
    if "delay" not in columns and not 1 <= round(delay_ms / dt) <= MAX_DELAY + 1:
        raise ValueError(f"delay_ms must be 1 to {MAX_DELAY + 1} steps of {dt} ms, got {delay_ms!r}")
    tables: dict[str, Any] = {"edges": edges, "neurons": neurons}
    labels = []
    for name, table in tables.items():
        is_file = isinstance(table, str | Path)
        labels.append(str(table) if is_file else name)
        if is_file:
            tables[name] = read_connectome_table(table, columns if name == "edges" else None)
    connections, order = read_tables(
        *tables.values(),
        labels=(labels[0], labels[1]),
        duplicates=duplicates,
        dtype=dtype,
        default_delay=round(delay_ms / dt) - 1,
        **columns,
    )
    weights = connections.weights
    assert weights is not None
    connections = connections._replace(weights=weights * weight_per_synapse)
    size = len(order)
    cell = ExactLIFCell(
        tau_membrane / dt,
        tau_synapse / dt,
        threshold,
        weights.new_full([size], float(max(1, round(refractory / dt)))),
        keeps_current=keeps_current,
    )
    synapses = SparseLinear(size, size, connections, bias=False)
    return Recurrent(cell, size, synapses), order
