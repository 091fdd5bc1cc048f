"""Counts of operations and of reads and writes, layer by layer, while a network runs; and their prices.

Nothing here decides what is run, or prints.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, final

from torch import Tensor, nn

from hibana.compiler import emits_spikes
from hibana.compiler.graph.ops import CALLS, Unsupported
from hibana.compiler.graph.plan import reachable
from hibana.compiler.graph.trace import trace
from hibana.nn.delayed_linear import DelayedLinear
from hibana.nn.delayed_recurrent import DelayedRecurrent
from hibana.nn.layers import OverTime, Recurrent
from hibana.nn.operations import Weighted, are_spikes, feedback, one_step_later, operations
from hibana.nn.window import Window

__all__ = ["ARITHMETIC", "LEVELS", "Account", "Arithmetic", "Ledger"]

Neurons = OverTime | Recurrent | DelayedRecurrent


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
_ADDITIONS = frozenset({"add", "sub", "maximum", "minimum"})
_MULTIPLICATIONS = frozenset({"mul", "div", "root", "fmod", "fma"}) | CALLS
_FREE: tuple[type[nn.Module], ...] = (nn.Flatten, nn.Unflatten, nn.Identity, nn.Dropout, nn.Dropout2d)
_FREE += (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


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
        measured: joules of the whole processor a sample, by its own counters; ``None`` where it shows none.
    """

    additions: float
    multiplications: float
    reads: dict[tuple[str, str], float]
    writes: dict[tuple[str, str], float]
    arithmetic: float
    memory: float
    layers: dict[str, float]
    uncounted: tuple[str, ...]
    measured: float | None

    @property
    def joules(self) -> float:
        """Of operations and memory together, estimated."""
        return self.arithmetic + self.memory


class Ledger:
    """Counts of all layers of a network that is watched."""

    def __init__(self, price: Arithmetic, dense: bool) -> None:
        self.price, self.dense = price, dense
        self.additions: Counter[str] = Counter()
        self.multiplications: Counter[str] = Counter()
        self.accesses: Counter[tuple[str, str, str, str]] = Counter()
        """Words, by layer, ``reads`` or ``writes``, what they are, and level."""
        self.uncounted: set[str] = set()
        self._steps: dict[str, tuple[int, int]] = {}

    @contextmanager
    def watching(self, net: nn.Module) -> Iterator[None]:
        """Counts what runs through `net` within it."""
        within = {feedback(module) for module in net.modules()}
        inside = {i for m in net.modules() if isinstance(m, Neurons) for i in m.modules() if i is not m}
        hooks = []
        for name, module in net.named_modules():
            if module in within:
                continue  # counted with the layer whose spikes they take
            if isinstance(module, Weighted):
                hooks.append(module.register_forward_pre_hook(self._synapses(name)))
            elif isinstance(module, Neurons):
                hooks.append(module.register_forward_hook(self._neurons(name)))
            elif module not in inside and not module._modules and not isinstance(module, _FREE):
                hooks.append(module.register_forward_pre_hook(self._other))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _other(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        self.uncounted.add(type(module).__name__)

    def _synapses(self, name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            assert isinstance(module, Weighted)
            self.synapses(name, module, args[0])

        return hook

    def synapses(self, name: str, layer: Weighted, inputs: Tensor) -> None:
        """Counts a layer of weights on `inputs`."""
        seen = inputs
        if self.dense and are_spikes(inputs):
            same = inputs.stride(0) == 0
            half = inputs.new_full((1,) if same else inputs.shape, 0.5)
            seen = half.expand(inputs.shape)
        kind, counted = operations(layer, seen)
        count = int(counted)
        once = kind == "macs" and inputs.stride(0) == 0 and not isinstance(layer, Window | DelayedLinear)
        inputs = inputs[:1] if once else inputs
        taken, given = _sizes(layer, inputs)
        outputs = inputs.numel() // taken * given
        bias = outputs if layer.bias is not None else 0
        self.additions[name] += count + bias
        self._touch(name, "weights", sum(each.numel() for each in layer.parameters()), reads=count + bias)
        if kind == "acs":
            self._touch(name, "activations", taken, reads=int(inputs.count_nonzero()))
            self._touch(name, "states", given * _slots(layer), reads=count, writes=count)
            return
        self.multiplications[name] += count
        reads = inputs.numel() if isinstance(layer, nn.Linear) else count
        self._touch(name, "activations", taken, reads=reads)
        self._touch(name, "activations", given, writes=outputs)

    def _neurons(self, name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], outputs: Tensor) -> None:
            assert isinstance(module, Neurons)
            self.neurons(name, module, outputs)
            if (synapses := feedback(module)) is not None:
                self.synapses(f"{name}.recurrent", synapses, one_step_later(outputs))

        return hook

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
        found = [value.op for value in reachable(step.nexts)]
        return sum(op in _ADDITIONS for op in found), sum(op in _MULTIPLICATIONS for op in found)

    def _touch(self, layer: str, what: str, words: int, *, reads: int = 0, writes: int = 0) -> None:
        """Enters accesses of the memory that holds so many `words` of a layer."""
        size = words * self.price.bits / 8
        level = next(name for name, (most, _) in LEVELS.items() if size <= most)
        for verb, count in (("reads", reads), ("writes", writes)):
            if count:
                self.accesses[layer, verb, what, level] += count

    def account(self, samples: int, measured: float | None) -> Account:
        """What was counted, of one sample."""
        totals: dict[str, Counter[tuple[str, str]]] = {"reads": Counter(), "writes": Counter()}
        layers: defaultdict[str, float] = defaultdict(float)
        memory = 0.0
        for (layer, verb, what, level), count in self.accesses.items():
            totals[verb][what, level] += count
            joules = count * LEVELS[level][1] * self.price.bits / 64 / samples
            memory += joules
            layers[layer] += joules
        arithmetic = 0.0
        for counts, price in (
            (self.additions, self.price.addition),
            (self.multiplications, self.price.multiplication),
        ):
            for layer, count in counts.items():
                joules = count * price / samples
                arithmetic += joules
                layers[layer] += joules
        reads, writes = (
            {key: count / samples for key, count in totals[verb].items()} for verb in ("reads", "writes")
        )
        return Account(
            self.additions.total() / samples,
            self.multiplications.total() / samples,
            reads,
            writes,
            arithmetic,
            memory,
            dict(layers),
            tuple(sorted(self.uncounted)),
            measured,
        )


def _sizes(layer: Weighted, inputs: Tensor) -> tuple[int, int]:
    """Numbers that `layer` takes and gives, of one sample and step."""
    if isinstance(layer, nn.Linear | DelayedLinear):
        return layer.in_features, layer.out_features
    if isinstance(layer, Window):
        beyond = inputs[0, 0, 0].numel()
        return layer.in_channels * beyond, layer.out_channels * beyond
    taken = tuple(inputs.shape[-len(layer.kernel_size) :])
    given = taken if layer.padding == "same" else _given(layer, taken)
    return layer.in_channels * math.prod(taken), layer.out_channels * math.prod(given)


def _given(layer: nn.Conv1d | nn.Conv2d | nn.Conv3d, taken: tuple[int, ...]) -> tuple[int, ...]:
    """The sides of what a convolution makes of an image with the sides `taken`."""
    padding = (0,) * len(taken) if isinstance(layer.padding, str) else layer.padding
    sides = zip(taken, padding, layer.dilation, layer.kernel_size, layer.stride, strict=True)
    return tuple((side + 2 * p - d * (k - 1) - 1) // s + 1 for side, p, d, k, s in sides)


def _slots(layer: Weighted) -> int:
    """Steps whose sums a layer keeps at a time."""
    return layer.reach + 1 if isinstance(layer, Window | DelayedLinear) else 1
