"""Energy of an inference: operations, and reads and writes of memory by level, at the prices of one process.

The estimate is for a machine that stores the weights, states and activations of each layer in separate
memories of the smallest sufficient size, and computes per spike if the input of a layer is spikes. It is for
comparisons; nothing is measured. The result lists its assumptions.

Source: Lemaire et al. (2022), *An analytical estimation of spiking neural networks energy efficiency*, for
reads and writes; Yan, Bai & Wong (2024), *Reconsidering the energy efficiency of spiking neural networks*,
arXiv 2409.08290, for why operations alone mislead; Horowitz (2014), *Computing's energy problem (and what we
can do about it)*, for the prices, at 45 nm.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple, final

import torch
from torch import Tensor, nn

from hibana.compiler import emits_spikes
from hibana.compiler.analysis.binary import is_binary
from hibana.compiler.graph.analysis import reachable
from hibana.compiler.graph.ops import Unsupported
from hibana.compiler.graph.trace import trace
from hibana.compiler.torch_layers import role_of
from hibana.nn.operations import Neurons, Weighted, operations, watch_layers
from hibana.nn.running import evaluating
from hibana.nn.sparse_linear import SparseLinear
from hibana.nn.window import LooksBack, Window

__all__ = ["Account", "Energy", "energy"]


class Arithmetic(NamedTuple):
    """Bits of a number, and joules of an addition and a multiplication."""

    bits: int
    addition: float
    multiplication: float


ARITHMETIC = {
    "float32": Arithmetic(32, 0.9e-12, 3.7e-12),
    "float16": Arithmetic(16, 0.4e-12, 1.1e-12),
    "int32": Arithmetic(32, 0.1e-12, 3.1e-12),
    "int8": Arithmetic(8, 0.03e-12, 0.2e-12),
}
LEVELS = {
    "8 KiB SRAM": (8 << 10, 10e-12),
    "32 KiB SRAM": (32 << 10, 20e-12),
    "1 MiB SRAM": (1 << 20, 100e-12),
    "DRAM": (math.inf, 1.3e-9),
}
"""Levels of memory: bytes, and joules of an access of 64 bits."""
_FREE = ("reshape", "dropout", "batch normalization")
"""Roles of layers without operations in inference."""


@final
@dataclass(frozen=True)
class Account:
    """The operations, memory accesses and energy of a network for one sample.

    Attributes:
        additions: additions of synapses, biases and neurons; a maximum is one, a comparison with 0 none.
        multiplications: the same; a function such as ``exp`` is one.
        reads: words that are read, by content (``weights``, ``states``, ``activations``) and memory level.
        writes: words that are written, likewise.
        arithmetic: joules of additions and multiplications.
        memory: joules of reads and writes.
        layers: joules by layer.
        uncounted: classes of layers that ran and are not counted.
    """

    additions: float
    multiplications: float
    reads: dict[tuple[str, str], float]
    writes: dict[tuple[str, str], float]
    arithmetic: float
    memory: float
    layers: dict[str, float]
    uncounted: tuple[str, ...]

    @property
    def joules(self) -> float:
        """Estimated energy of operations and memory together."""
        return self.arithmetic + self.memory


@final
@dataclass(frozen=True)
class Energy:
    """The result of :func:`energy`. ``print`` shows it as a table with its assumptions.

    Attributes:
        network: the account of the network.
        against: the account of the dense network, or None.
        arithmetic: the number format of both.
    """

    network: Account
    against: Account | None
    arithmetic: str

    def __str__(self) -> str:
        """A table of operations, memory accesses and energies, and the list of assumptions."""
        accounts = [account for account in (self.network, self.against) if account is not None]
        table: dict[str, list[str]] = {"": ["network", "dense"][: len(accounts)]}
        for name in ("additions", "multiplications"):
            table[name] = [f"{getattr(account, name):,.0f}" for account in accounts]
        for name in ("reads", "writes"):
            counts: list[dict[tuple[str, str], float]] = [getattr(account, name) for account in accounts]
            keys = {*counts[0], *counts[-1]}
            for key in sorted(keys, key=lambda key: (key[0], list(LEVELS).index(key[1]))):
                table[f"{name}, {key[0]} in {key[1]}"] = [f"{count.get(key, 0):,.0f}" for count in counts]
        table["energy of operations"] = [_joules(account.arithmetic) for account in accounts]
        table["energy of memory"] = [_joules(account.memory) for account in accounts]
        table["energy, estimated"] = [_joules(account.joules) for account in accounts]
        width = max(map(len, table))
        widths = [max(map(len, column)) for column in zip(*table.values(), strict=True)]
        lines = ["  ".join([n.ljust(width), *map(str.rjust, v, widths)]).rstrip() for n, v in table.items()]
        return "\n".join([*lines, "", *(f"- {assumption}" for assumption in self.assumptions())])

    def assumptions(self) -> list[str]:
        """The assumptions of the estimate, one sentence each."""
        price = ARITHMETIC[self.arithmetic]
        levels = ", ".join(f"{name} {joules * 1e12:,.0f}" for name, (_, joules) in LEVELS.items())
        uncounted = {*self.network.uncounted, *(self.against.uncounted if self.against else ())}
        return [
            f"all figures are of one sample; {self.arithmetic}: {price.addition * 1e12:g} pJ an addition, "
            f"{price.multiplication * 1e12:g} pJ a multiplication (45 nm, Horowitz 2014)",
            f"an access of 64 bits takes, in pJ: {levels}; one of {price.bits} bits its share of that",
            "weights, states and activations of a layer lie each in the smallest memory that holds them",
            "a spike is written and read once; for each output that it reaches, a weight is read, and a sum "
            "read and written",
            "a layer of values reads an input and a weight for each multiplication (a linear layer each "
            "input once), adds up in a register, and writes each output once; of equal steps only the first",
            "at each step a neuron reads its input and its states, writes its states, and computes its "
            "step as it is written: a product with a spike is a multiplication",
            "batch normalization is folded into weights; addressing, communication and idle power are free",
            *([f"not counted: {', '.join(sorted(uncounted))}"] if uncounted else []),
        ]


@torch.no_grad()
def energy(
    net: nn.Module,
    data: Tensor | Iterable[Any],
    *,
    against: nn.Module | tuple[nn.Module, Tensor | Iterable[Any]] | None = None,
    arithmetic: str = "float32",
) -> Energy:
    """Estimates the additions, multiplications, memory accesses and joules of an inference of `net`.

        joules = additions * e_add + multiplications * e_mul + sum over levels of accesses * e_level

    Both networks run in evaluation mode; their mode does not change. ``print`` shows the assumptions of the
    estimate (:meth:`Energy.assumptions`).

    Args:
        net: called with ``[T, batch, ...]``.
        data: samples ``[T, batch, ...]``, or batches: tensors, or tuples that begin with a tensor.
        against: a dense network to compare with, on the same data; or ``(network, data)`` with its own data,
            of one step ``[1, batch, ...]`` for a network without time. All its inputs count as values, zeros
            included.
        arithmetic: the number format: ``float32``, ``float16``, ``int32`` or ``int8``.

    Raises:
        ValueError: if `arithmetic` is another format, or there is no sample.

    Source: as of this module.

    >>> import torch, hibana as hb
    >>> net = nn.Sequential(nn.Linear(8, 16), hb.IF(), nn.Linear(16, 4), hb.LI())
    >>> dense = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    >>> x = torch.rand(3, 8)
    >>> result = energy(net, x.expand(5, 3, 8), against=(dense, x[None]))
    >>> result.against.multiplications
    192.0
    """
    if arithmetic not in ARITHMETIC:
        raise ValueError(f"arithmetic must be one of {', '.join(ARITHMETIC)}, got {arithmetic!r}")
    batches, price = _batches(data), ARITHMETIC[arithmetic]
    network = _account(net, batches, price, dense=False)
    if against is None:
        return Energy(network, None, arithmetic)
    dense, dense_data = against if isinstance(against, tuple) else (against, data)
    dense_batches = batches if dense_data is data else _batches(dense_data)
    return Energy(network, _account(dense, dense_batches, price, dense=True), arithmetic)


def _batches(data: Tensor | Iterable[Any]) -> list[Tensor]:
    """The tensors ``[T, batch, ...]`` in `data`."""
    items = [data] if isinstance(data, Tensor) else list(data)
    batches = [item if isinstance(item, Tensor) else item[0] for item in items]
    if not batches or any(batch.ndim < 2 or batch.numel() == 0 for batch in batches):
        raise ValueError("data must hold at least one sample, [T, batch, ...]")
    return batches


def _account(net: nn.Module, batches: list[Tensor], price: Arithmetic, *, dense: bool) -> Account:
    """Runs `net` on `batches` and returns the account of one sample; if `dense`, spikes count as values."""
    counts, samples = _Counts(price, dense), sum(batch.shape[1] for batch in batches)
    with evaluating(net), watch_layers(net, counts.add_synapses, counts.add_other):
        for batch in batches:
            net(batch)
    return counts.account(samples)


class _Counts:
    """Operations and memory accesses of the layers that :func:`watch_layers` reports."""

    def __init__(self, price: Arithmetic, dense: bool) -> None:
        self.price, self.dense = price, dense
        self.additions = self.multiplications = 0
        self.reads: Counter[tuple[str, str]] = Counter()
        """Words that are read, by content and memory level."""
        self.writes: Counter[tuple[str, str]] = Counter()
        self.layers: defaultdict[str, float] = defaultdict(float)
        """Joules by layer."""
        self.uncounted: set[str] = set()
        self._step_operations: dict[str, tuple[int, int]] = {}
        """Additions and multiplications of one neuron in one step, by layer."""

    def add_other(self, name: str, layer: nn.Module, outputs: Tensor) -> None:
        """Counts a run of a layer without weights."""
        if isinstance(layer, Neurons):
            self._add_neurons(name, layer, outputs)
        elif role_of(layer) not in _FREE:
            self.uncounted.add(type(layer).__name__)

    def add_synapses(self, name: str, layer: Weighted, inputs: Tensor, outputs: Tensor) -> None:
        """Counts a run of a weighted layer."""
        counted = inputs
        if self.dense and is_binary(inputs):  # values that are not 0 or 1 count as values
            is_constant = inputs.stride(0) == 0
            counted = inputs.new_full((1,) if is_constant else inputs.shape, 0.5).expand(inputs.shape)
        kind, number = operations(layer, counted)
        count, over_time = int(number), isinstance(layer, LooksBack)
        if kind == "macs" and inputs.stride(0) == 0 and not over_time:
            inputs, outputs = inputs[:1], outputs[:1]  # equal steps are computed once
        input_size = _input_size(layer, inputs)
        output_size = outputs.numel() * input_size // inputs.numel()
        biases = outputs.numel() if layer.bias is not None else 0
        self._compute(name, count + biases, count if kind == "macs" else 0)
        weights = sum(parameter.numel() for parameter in layer.parameters())
        self._access(name, "weights", weights, reads=count + biases)
        if kind == "acs":
            sums = output_size * (layer.reach + 1 if isinstance(layer, LooksBack) else 1)
            self._access(name, "activations", input_size, reads=int(inputs.count_nonzero()))
            self._access(name, "states", sums, reads=count, writes=count)
            return
        is_linear = role_of(layer) == "linear" or isinstance(layer, SparseLinear)
        reads = inputs.numel() if is_linear else count
        self._access(name, "activations", input_size, reads=reads)
        self._access(name, "activations", output_size, writes=outputs.numel())

    def _add_neurons(self, name: str, layer: Neurons, outputs: Tensor) -> None:
        """Counts a run of a layer of neurons with `outputs` ``[T, batch, ...]``."""
        updates, size = outputs.numel(), outputs[0, 0].numel()
        if name not in self._step_operations:
            self._step_operations[name] = self._operations_of_step(layer, outputs)
        additions, multiplications = self._step_operations[name]
        self._compute(name, additions * updates, multiplications * updates)
        spiking = emits_spikes(layer.cell)
        states = len(layer.cell.state_names()) - spiking
        self._access(name, "states", size * states, reads=states * updates, writes=states * updates)
        self._access(name, "activations", size, reads=updates)
        if spiking:
            self._access(name, "activations", size, writes=int(outputs.count_nonzero()))

    def _operations_of_step(self, layer: Neurons, outputs: Tensor) -> tuple[int, int]:
        """Additions and multiplications of one neuron in one step."""
        try:
            step = trace(layer.cell, outputs.shape[1:], outputs.dtype, sparse=True)
        except Unsupported:
            self.uncounted.add(f"the step of {type(layer.cell).__name__}")
            return 0, 0
        counts = Counter(v.operation.energy for v in reachable(step.nexts) if v.operation is not None)
        return counts["addition"], counts["multiplication"]

    def _compute(self, layer: str, additions: int, multiplications: int) -> None:
        """Counts the arithmetic of a layer."""
        self.additions += additions
        self.multiplications += multiplications
        self.layers[layer] += additions * self.price.addition + multiplications * self.price.multiplication

    def _access(self, layer: str, content: str, words: int, *, reads: int = 0, writes: int = 0) -> None:
        """Counts accesses of the memory that holds the `words` of `content` of a layer."""
        size = words * self.price.bits / 8
        level = next(name for name, (capacity, _) in LEVELS.items() if size <= capacity)
        for counter, count in ((self.reads, reads), (self.writes, writes)):
            if count:
                counter[content, level] += count
                self.layers[layer] += count * LEVELS[level][1] * self.price.bits / 64

    def account(self, samples: int) -> Account:
        """All counts divided by the number of `samples`, and their energy."""
        additions, multiplications = self.additions / samples, self.multiplications / samples
        reads, writes = ({key: n / samples for key, n in all_.items()} for all_ in (self.reads, self.writes))
        accesses = [(level, n) for counts in (reads, writes) for (_, level), n in counts.items()]
        return Account(
            additions,
            multiplications,
            reads,
            writes,
            additions * self.price.addition + multiplications * self.price.multiplication,
            sum(n * LEVELS[level][1] for level, n in accesses) * self.price.bits / 64,
            {layer: joules / samples for layer, joules in self.layers.items()},
            tuple(sorted(self.uncounted)),
        )


def _input_size(layer: Any, inputs: Tensor) -> int:
    """The number of inputs of `layer` for one sample and step."""
    if hasattr(layer, "in_features"):
        return int(layer.in_features)
    sides = inputs.shape[3:] if isinstance(layer, Window) else inputs.shape[-len(layer.kernel_size) :]
    return int(layer.in_channels * math.prod(sides))


def _joules(value: float) -> str:
    """`value` joules with a unit, in three digits."""
    for unit, size in (("J", 1.0), ("mJ", 1e-3), ("uJ", 1e-6), ("nJ", 1e-9)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value / 1e-12:.3g} pJ"
