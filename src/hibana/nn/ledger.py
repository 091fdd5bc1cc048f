"""Counts of operations and of reads and writes, layer by layer, while a network runs; and their prices.

Nothing here decides what is run, or prints.
"""

import math
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import Any, NamedTuple, final

from torch import Tensor, nn

from hibana.compiler import emits_spikes
from hibana.compiler.graph.analysis import reachable
from hibana.compiler.graph.ops import Unsupported
from hibana.compiler.graph.trace import trace
from hibana.compiler.torch_layers import role_of
from hibana.nn.delayed_linear import DelayedLinear
from hibana.nn.operations import Neurons, Weighted, are_spikes, operations
from hibana.nn.window import Window

__all__ = ["ARITHMETIC", "LEVELS", "Account", "Arithmetic", "Ledger"]


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


@final
@dataclass(frozen=True)
class Account:
    """What a network does for one sample, and what that takes.

    Attributes:
        additions: of synapses, biases and neurons; a maximum is one, a comparison with 0 none.
        multiplications: the same; a function such as ``exp`` is one.
        reads: words read, by what they are (``weights``, ``states``, ``activations``) and level of memory.
        writes: words written, likewise.
        arithmetic: joules of additions and multiplications.
        memory: joules of reads and writes.
        layers: joules by layer.
        uncounted: classes of layers that were called, and of which nothing is counted.
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
        """Of operations and memory together, estimated."""
        return self.arithmetic + self.memory


class Ledger:
    """Counts of all layers of a network that is watched, see :func:`hibana.nn.operations.watch_layers`."""

    def __init__(self, price: Arithmetic, dense: bool) -> None:
        self.price, self.dense = price, dense
        self.additions: Counter[str] = Counter()
        self.multiplications: Counter[str] = Counter()
        self.accesses: Counter[tuple[str, str, str, str]] = Counter()
        """Words, by layer, ``reads`` or ``writes``, what they are, and level."""
        self.uncounted: set[str] = set()
        self._steps: dict[str, tuple[int, int]] = {}

    def others(self, name: str, layer: nn.Module, outputs: Tensor) -> None:
        """Counts a layer without weights that gave `outputs`."""
        if isinstance(layer, Neurons):
            self.neurons(name, layer, outputs)
        elif role_of(layer) not in _FREE:
            self.uncounted.add(type(layer).__name__)

    def synapses(self, name: str, layer: Weighted, inputs: Tensor, outputs: Tensor) -> None:
        """Counts a layer of weights that made `outputs` of `inputs`."""
        seen = inputs
        if self.dense and are_spikes(inputs):
            same = inputs.stride(0) == 0
            half = inputs.new_full((1,) if same else inputs.shape, 0.5)
            seen = half.expand(inputs.shape)
        kind, counted = operations(layer, seen)
        count = int(counted)
        once = kind == "macs" and inputs.stride(0) == 0 and not isinstance(layer, Window | DelayedLinear)
        inputs, outputs = (inputs[:1], outputs[:1]) if once else (inputs, outputs)
        taken = _taken(layer, inputs)
        given = outputs.numel() * taken // inputs.numel()
        bias = outputs.numel() if layer.bias is not None else 0
        self.additions[name] += count + bias
        self._touch(name, "weights", sum(each.numel() for each in layer.parameters()), reads=count + bias)
        if kind == "acs":
            self._touch(name, "activations", taken, reads=int(inputs.count_nonzero()))
            self._touch(name, "states", given * _slots(layer), reads=count, writes=count)
            return
        self.multiplications[name] += count
        reads = inputs.numel() if role_of(layer) == "linear" else count
        self._touch(name, "activations", taken, reads=reads)
        self._touch(name, "activations", given, writes=outputs.numel())

    def neurons(self, name: str, layer: Neurons, outputs: Tensor) -> None:
        """Counts a layer of neurons that emitted `outputs`, ``[T, batch, ...]``."""
        updates, size = outputs.numel(), outputs[0, 0].numel()
        if name not in self._steps:
            self._steps[name] = self._operations(layer, outputs)
        additions, multiplications = self._steps[name]
        self.additions[name] += additions * updates
        self.multiplications[name] += multiplications * updates
        spiking = emits_spikes(layer.cell)
        states = len(layer.cell.state_names()) - spiking
        self._touch(name, "states", size * states, reads=states * updates, writes=states * updates)
        self._touch(name, "activations", size, reads=updates)
        if spiking:
            self._touch(name, "activations", size, writes=int(outputs.count_nonzero()))

    def _operations(self, layer: Neurons, outputs: Tensor) -> tuple[int, int]:
        """Additions and multiplications of a step of one neuron."""
        try:
            step = trace(layer.cell, outputs.shape[1:], outputs.dtype)
        except Unsupported:
            self.uncounted.add(f"the step of {type(layer.cell).__name__}")
            return 0, 0
        counts = Counter(v.operation.energy for v in reachable(step.nexts) if v.operation is not None)
        return counts["addition"], counts["multiplication"]

    def _touch(self, layer: str, what: str, words: int, *, reads: int = 0, writes: int = 0) -> None:
        """Enters accesses of the memory that holds so many `words` of a layer."""
        size = words * self.price.bits / 8
        level = next(name for name, (most, _) in LEVELS.items() if size <= most)
        for verb, count in (("reads", reads), ("writes", writes)):
            if count:
                self.accesses[layer, verb, what, level] += count

    def account(self, samples: int) -> Account:
        """What was counted, of one sample."""
        counts: dict[str, Counter[tuple[str, str]]] = {"reads": Counter(), "writes": Counter()}
        layers: defaultdict[str, float] = defaultdict(float)
        for (layer, verb, what, level), count in self.accesses.items():
            counts[verb][what, level] += count
            layers[layer] += count * LEVELS[level][1] * self.price.bits / 64 / samples
        memory = sum(layers.values())
        arithmetic = (self.additions, self.price.addition), (self.multiplications, self.price.multiplication)
        for many, price in arithmetic:
            for layer, count in many.items():
                layers[layer] += count * price / samples
        reads, writes = ({key: n / samples for key, n in each.items()} for each in counts.values())
        return Account(
            self.additions.total() / samples,
            self.multiplications.total() / samples,
            reads,
            writes,
            sum(many.total() * price for many, price in arithmetic) / samples,
            memory,
            dict(layers),
            tuple(sorted(self.uncounted)),
        )


def _taken(layer: Any, inputs: Tensor) -> int:
    """Numbers that `layer` takes of one sample and step."""
    if hasattr(layer, "in_features"):
        return int(layer.in_features)
    sides = inputs.shape[3:] if isinstance(layer, Window) else inputs.shape[-len(layer.kernel_size) :]
    return int(layer.in_channels * math.prod(sides))


def _slots(layer: Weighted) -> int:
    """Steps whose sums a layer keeps at a time."""
    return layer.reach + 1 if isinstance(layer, Window | DelayedLinear) else 1
