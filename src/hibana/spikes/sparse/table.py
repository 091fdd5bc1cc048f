"""``hb.connect.from_table``: synapses from a table with one row per connection, and a table of the neurons.

Columns are recognized by the names that published wiring diagrams use. Files are read by
:mod:`hibana.data.connectome`.
"""

import logging
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hibana.compiler import NetworkWarning
from hibana.spikes.sparse.connections import Connections
from hibana.spikes.sparse.neurons import Ids, Neurons, as_ids, read_ids

if TYPE_CHECKING:
    from pandas import DataFrame, Series

__all__ = ["NAMES", "find_columns", "from_table", "read_tables"]

NAMES: dict[str, tuple[str, ...]] = {
    "source": (
        *("presynaptic_id", "pre_root_id", "pre_pt_root_id", "source_id", "source", "pre_id", "pre"),
        *("presynaptic", "bodyid_pre", "body_pre", "skeleton_id_pre", "from", "neuron_1"),
        *("presynaptic_index", "pre_index", "source_index"),
    ),
    "target": (
        *("postsynaptic_id", "post_root_id", "post_pt_root_id", "target_id", "target", "post_id", "post"),
        *("postsynaptic", "bodyid_post", "body_post", "skeleton_id_post", "to", "neuron_2"),
        *("postsynaptic_index", "post_index", "target_index"),
    ),
    "weight": (
        *("excitatory_x_connectivity", "signed_weight", "synapses", "syn_count", "connectivity", "weight"),
        *("n_syn", "n_synapses", "synapse_count", "count", "nbr"),
    ),
    "sign": ("sign", "excitatory"),
    "transmitter": (
        *("transmitter", "neurotransmitter", "nt_type", "top_nt", "nt", "predicted_nt", "predictednt"),
        *("consensus_nt", "consensusnt"),
    ),
    "delay": ("delay",),
}
"""For each role of a column its names, the preferred one first; in lower case, with ``_`` for spaces."""
_HAS_SIGN = ("excitatory_x_connectivity", "signed_weight")
_SIGNS = {
    1.0: ("ach", "acetylcholine", "da", "dopamine", "oct", "octopamine", "ser", "serotonin", "tyramine"),
    -1.0: ("gaba", "glut", "glutamate", "his", "histamine"),
    0.0: ("", "nan", "none", "unclear", "unknown", "<na>"),
}
"""Transmitters that excite, that inhibit, and texts that name none."""


def from_table(
    edges: "DataFrame | Mapping[str, Any]",
    neurons: "DataFrame | Mapping[str, Any] | None" = None,
    *,
    duplicates: str = "add",
    dtype: torch.dtype | None = None,
    **columns: Any,
) -> tuple[Connections, Ids]:
    """The synapses of a table of connections for :class:`hibana.SparseLinear`, and the ids of the neurons.

    Columns are recognized by their names: ``source``, ``pre``, ``Presynaptic_ID``, ``pre_root_id``,
    ``Presynaptic_Index`` and similar names of sources and targets; ``Excitatory x Connectivity``,
    ``synapses``, ``syn_count``, ``weight`` and similar names of weights; ``sign``, ``nt_type``, ``delay`` (in
    steps). Ids win over indices, weights with signs over those without. The logger ``hibana`` says which
    columns were taken.

    The sign of a connection is that of its weight; or a column of signs of the connections or of their
    source neurons; or follows from the transmitter in such a column: GABA, glutamate and histamine inhibit,
    all others excite. Without any of them, all synapses excite, and a warning says so.

    Args:
        edges: a DataFrame or arrays by name, one row per connection.
        neurons: a DataFrame or arrays by name, one row per neuron, with a column of ids (``id``, ``root_id``
            or similar, a column without a name, or the index of the DataFrame). The neurons are in the order
            of its rows; without it, in ascending order of the ids in `edges`.
        duplicates: ``"add"`` the weights of rows with the same source, target and delay, or ``"keep"`` them
            as several synapses.
        dtype: the dtype of the weights; None: torch's default.
        columns: names of the columns `source`, `target`, `weight`, `sign`, `transmitter`, `delay` and `id`
            where they are not recognized. `weight`, `sign` and `delay` may be one number for all connections.

    Raises:
        TypeError: if an argument is unknown.
        ValueError: if a column is missing, an id is unknown or missing, a number is not finite, or a table is
            empty; the message names table, column and row.

    >>> import hibana as hb
    >>> edges = {"pre": ["B", "A"], "post": ["A", "B"], "synapses": [3, 2], "sign": [1, -1]}
    >>> connections, ids = hb.connect.from_table(edges)
    >>> ids.tolist(), connections.weights
    (['A', 'B'], tensor([-2., 3.]))
    """
    connections, order = read_tables(edges, neurons, duplicates=duplicates, dtype=dtype, **columns)
    for note in order.notes:
        logging.getLogger("hibana").info(note)
    return connections, order.ids


def read_tables(
    edges: Any,
    neurons: Any = None,
    *,
    labels: tuple[str, str] = ("edges", "neurons"),
    duplicates: str = "add",
    dtype: torch.dtype | None = None,
    default_delay: int | None = None,
    **columns: Any,
) -> tuple[Connections, Neurons]:
    """As :func:`from_table`; returns the neurons with their table.

    `labels` name the tables in messages; `default_delay` is the delay without a column of delays, None for 0.
    """
    if unknown := sorted(columns.keys() - {*NAMES, "id"}):
        raise TypeError(f"columns must be among {', '.join(NAMES)} and id, got {unknown[0]}")
    if duplicates not in ("add", "keep"):
        raise ValueError(f'duplicates must be "add" or "keep", got {duplicates!r}')
    table = _Table.read(edges, labels[0], columns)
    rows = None if neurons is None else _Table.read(neurons, labels[1], columns)
    ends, ids = _ends(table, rows, columns.get("id"))
    size = len(ids)
    delays = table.numbers("delay")
    if delays is None and default_delay is not None:
        delays = np.full(len(table.frame), default_delay, np.uint8)
    weights = table.numbers("weight")
    if weights is None:
        table.notes.append(f"{table.label}: each row is one synapse, since no column has weights")
        weights = np.ones(len(table.frame))
    weights = weights * _signs(table, rows, weights, ends[0])
    source, target = (torch.from_numpy(end) for end in ends)
    connections = Connections.from_pairs(
        source,
        target,
        (size, size),
        None if delays is None else torch.from_numpy(delays),
        torch.from_numpy(weights).to(dtype or torch.get_default_dtype()),
    )
    if duplicates == "add":
        connections = _added(connections, table.notes)
    frame = None if rows is None else rows.frame
    return connections, Neurons(ids, frame, (*table.notes, *(rows.notes if rows else ())))


def find_columns(names: Sequence[Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """The column of `names` for each role that has one: the one in `options`, else by :data:`NAMES`."""
    by_name = {_normal(name): name for name in reversed(names)}
    columns_by_role = {}
    for role, aliases in NAMES.items():
        option = options.get(role)
        if isinstance(option, str) and option in names:
            columns_by_role[role] = option
        elif option is None and (matches := [by_name[name] for name in aliases if name in by_name]):
            columns_by_role[role] = matches[0]
    return columns_by_role


@dataclass
class _Table:
    """A table with the columns of each role; `notes` say which were taken."""

    frame: "DataFrame"
    label: str
    options: Mapping[str, Any]
    columns: dict[str, Any]
    notes: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, table: Any, label: str, options: Mapping[str, Any]) -> "_Table":
        """The table of a DataFrame or a mapping of arrays."""
        import pandas

        if not isinstance(table, pandas.DataFrame):
            if not isinstance(table, Mapping):
                kind = type(table).__name__
                raise TypeError(f"{label} must be a DataFrame or a dictionary of arrays, got {kind}")
            table = pandas.DataFrame({name: np.asarray(values) for name, values in table.items()}, copy=False)
        if table.empty and not len(table):
            raise ValueError(f"{label} must have rows, it has none")
        return cls(table, label, options, find_columns([*table.columns], options))

    def column(self, role: str) -> "Series | None":
        """The column of `role`, or None; a note says that it was taken.

        Raises:
            ValueError: if the option names a column that the table does not have.
        """
        if role not in self.columns:
            return None
        name = self.columns[role]
        self.notes.append(f"{self.label}: {role} from column {name!r}")
        return self.frame[name]

    def required(self, role: str) -> "Series":
        """The column of `role`; raises a ValueError without it."""
        values = self.column(role)
        if values is None:
            names, option = ", ".join(map(str, self.frame.columns)), self.options.get(role)
            wrong = f"column {option!r} is" if option is not None else f"a column of {role}s is"
            raise ValueError(f"{self.label}: {wrong} missing; name one of {names} as {role}=")
        return values

    def numbers(self, role: str) -> "np.ndarray[Any, Any] | None":
        """The finite numbers of `role`, float64: a column, or one number for all rows; None without it."""
        import pandas

        option = self.options.get(role)
        if isinstance(option, int | float):
            if not math.isfinite(option):
                raise ValueError(f"{role} must be finite, got {option}")
            return np.full(len(self.frame), float(option))
        values = self.required(role) if option is not None else self.column(role)
        if values is None:
            return None
        values = pandas.to_numeric(values, errors="coerce")
        missing = {} if isinstance(values.dtype, np.dtype) else {"na_value": np.nan}  # which copies
        numbers: np.ndarray[Any, Any] = values.to_numpy(np.float64, **missing)
        self.check(role, np.isfinite(numbers), "is no finite number")
        return numbers

    def check(self, role: str, valid: "np.ndarray[Any, Any]", problem: str) -> None:
        """Raises a ValueError that names the first row that is not `valid`."""
        if not valid.all():
            row = int(np.argmin(valid))
            name = self.columns[role]
            raise ValueError(
                f"{self.label}, column {name!r}, row {row + 1}: {self.frame[name].iloc[row]!r} {problem}"
            )


def _ends(table: _Table, rows: _Table | None, id_column: str | None) -> tuple[list[Any], Ids]:
    """The neuron at both ends of each connection, counted from 0, and the ids of all neurons."""
    import pandas

    values = {role: table.required(role) for role in ("source", "target")}
    are_indices = {str(table.columns[role]).lower().endswith("index") for role in values}
    if len(are_indices) > 1:
        names = " and ".join(repr(table.columns[role]) for role in values)
        raise ValueError(
            f"{table.label}: name two columns of ids, or two of indices, as source= and target=, got {names}"
        )
    ends = {role: read_ids(column, table.label, table.columns[role]) for role, column in values.items()}
    ids = None
    if rows is not None:
        ids, name = as_ids(rows.frame, rows.label, id_column)
        rows.notes.append(f"{rows.label}: id from {name}")
    if are_indices == {True}:
        count = 1 + int(max(end.max() for end in ends.values())) if ids is None else len(ids)
        for role, end in ends.items():
            table.check(role, (end >= 0) & (end < count), f"must be an index in [0, {count})")
        return [end.astype(np.int64) for end in ends.values()], np.arange(count) if ids is None else ids
    if len({end.dtype == object for end in (*ends.values(), *([] if ids is None else [ids]))}) > 1:
        ends = {role: end.astype(str).astype(object) for role, end in ends.items()}
        ids = None if ids is None else ids.astype(str).astype(object)
    if ids is None:
        ids = np.sort(pandas.unique(np.concatenate([*ends.values()])))
    if ids.dtype != object and np.array_equal(ids, np.arange(ids[0], ids[0] + len(ids))):
        places = {role: end - ids[0] for role, end in ends.items()}
        for place in places.values():
            place[place >= len(ids)] = -1
    else:
        index = pandas.Index(ids)
        places = {role: index.get_indexer(end) for role, end in ends.items()}
    for role, place in places.items():
        where = rows.label if rows is not None else table.label
        table.check(role, place >= 0, f"is no id of a neuron in {where}")
    return [*places.values()], ids


def _signs(table: _Table, rows: _Table | None, weights: Any, sources: Any) -> Any:
    """The sign of each connection, or 1 if weights have signs; `sources` are the source neurons."""
    has_signs = "weight" in table.columns and _normal(table.columns["weight"]) in _HAS_SIGN
    options = {role: table.options.get(role) for role in ("sign", "transmitter")}
    if has_signs or (weights < 0).any():
        if named := [role for role, option in options.items() if option is not None]:
            raise ValueError(f"{named[0]} must be None: the weights of {table.label} have signs")
        table.notes.append(f"{table.label}: signs from the weights")
        return 1.0
    if isinstance(options["sign"], int | float):
        return float(options["sign"])
    for role, read in (("sign", _read_signs), ("transmitter", _read_transmitters)):
        for each in (table, rows):
            if each is not None and role in each.columns and (role == "sign" or options["sign"] is None):
                signs = read(each)
                return signs if each is table else signs[sources]
        if options[role] is not None:
            table.required(role)
    message = (
        f"{table.label}: all synapses excite, since no column has signs or transmitters; pass sign=1 if that "
        "is meant, or a column of signs of the connections or of the neurons"
    )
    table.notes.append(message)
    warnings.warn(message, NetworkWarning, stacklevel=4)
    return 1.0


def _read_signs(table: _Table) -> Any:
    """The column of signs as 1 and -1; booleans say whether a synapse excites."""
    if table.frame[table.columns["sign"]].dtype == bool:
        return np.where(table.required("sign").to_numpy(), 1.0, -1.0)
    signs = np.sign(table.numbers("sign"))  # type: ignore[arg-type] # the column exists
    table.check("sign", signs != 0, "must be a sign, 1 or -1")
    return signs


def _read_transmitters(table: _Table) -> Any:
    """The sign of each row's transmitter."""
    sign_of = {name: sign for sign, names in _SIGNS.items() for name in names}
    names = table.required("transmitter").astype(str).fillna("").str.strip().str.lower()
    signs = names.map(sign_of).to_numpy(np.float64)
    choice = ", ".join(name for name, sign in sign_of.items() if sign)
    table.check("transmitter", ~np.isnan(signs), f"is no transmitter of {choice}")
    if missing := int((signs == 0).sum()):
        table.notes.append(f"{table.label}: {missing:,} rows without a known transmitter excite")
    return np.where(signs == 0, 1.0, signs)


def _added(connections: Connections, notes: list[str]) -> Connections:
    """The connections, with one synapse for those with equal source, target and delay."""
    row_starts, targets, delays, weights = connections
    assert weights is not None
    is_first = torch.ones(connections.size, dtype=torch.bool, device="cpu")
    is_first[1:] = targets[1:] != targets[:-1]
    if delays is not None:
        is_first[1:] |= delays[1:] != delays[:-1]
    is_first[row_starts[row_starts < connections.size]] = True
    count = int(is_first.sum())
    if count == connections.size:
        return connections
    notes.append(
        f"{connections.size - count:,} rows have the source and target of another row: weights added"
    )
    sums = torch.zeros(count, dtype=torch.float64, device="cpu")
    ends = is_first.cumsum(0)
    sums.index_add_(0, ends - 1, weights.double())
    row_starts = torch.cat([ends.new_zeros(1), ends])[row_starts]
    delays = None if delays is None else delays[is_first]
    return Connections(row_starts, targets[is_first], delays, sums.to(weights.dtype))


def _normal(name: Any) -> str:
    """A column's name in lower case, with ``_`` for spaces."""
    return str(name).strip().lower().replace(" ", "_")
