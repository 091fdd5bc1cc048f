"""The native program of :func:`hibana.simulate`: recurrent neurons with sparse synapses over many steps.

The neurons are divided into parts of consecutive neurons, at least one per thread, which take a step
together and wait for each other once per step. At each step, a part

1. adds the weights of the spikes that arrive at its neurons. The spikes of all steps are bits; for each delay
   d, the synapses with delay d of the neurons that fired d + 1 steps ago are read. Weights are added in the
   order of delays, then of source neurons, so sums do not depend on the number of parts.
2. computes the step of its neurons, by the row functions that the compiler writes for the cell, which store
   the neurons that fired as bits.
"""

import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from hibana.compiler.cpu.kernel_writer import scalar_arguments, write_call
from hibana.compiler.cpu.row_pass import row_pass
from hibana.compiler.cpu.vector_functions import vector_functions
from hibana.compiler.graph.leaf import INPUT, OUTPUT, Leaf
from hibana.compiler.graph.ops import Unsupported
from hibana.compiler.graph.passes import Stores, forward_pass, leaves, substitute
from hibana.compiler.graph.step import Step
from hibana.compiler.graph.step import Value as GraphValue
from hibana.runtime.kernels import (
    INT,
    LONG,
    Code,
    Doubles,
    Floats,
    Ints,
    Kind,
    Longs,
    Pointer,
    Value,
    assemble,
    external_function,
    function,
    kernel,
    module,
)

__all__ = ["BLOCK", "SEGMENTS", "WORD", "WORDS", "NeuronProgram", "Program", "index_parts"]

WORD = 64
"""Parts begin at multiples of this number of neurons, whose spikes are one word of bits."""
WORDS = 8
"""Words of spikes that are compared with zero at once: a cache line. Each step has a multiple of them."""
BLOCK = 1024
"""Neurons that take a step at once; rows of intermediate results then stay in the first-level cache."""
SEGMENTS = 4096
"""Runs of synapses that are listed before their weights are added."""
AHEAD = 4
"""Distance in segments of the prefetched synapses from those being added."""
LINE = 16
"""Numbers in a cache line."""
SLEEPS = {"x86_64": 202, "aarch64": 98}.get(platform.machine()) if sys.platform == "linux" else None
"""Number of Linux's system call ``futex``, with which a thread sleeps until it is woken; None without it.

If each core is shared with a busy process, a thread that only yields waits for the time slices of that
process at each step; a thread that slept runs at once when it is woken.
"""
SPINS = 100 if SLEEPS is None else 300
"""Reads of the barrier's counter, some microseconds, before a waiting thread sleeps, or lets others run.

Measured on two cores of an AMD EPYC (Zen 4) with 5,000 neurons: with 100 a simulation alone takes up to twice
as long, and with 3,000 beside busy processes 1.2 to 1.7 times as long as with 300.
"""

INTEGERS = (
    *("steps", "time", "seed", "parts", "delays", "keys", "words"),
    *("input_stride", "every", "selected"),
)
"""Integer arguments of a program: the number of steps, the number of the first step, the seed of the draws,
the numbers of parts and of delays, ``delays * parts``, the words of spikes of a step, the distance between
the inputs of two steps, and how many neurons are recorded at which steps.
"""


def _stores(step: Step) -> Stores:
    """The values that a step stores: all states but the last, and the spikes as the bits of the output."""
    stores = forward_pass(step, None)
    spikes = stores[OUTPUT].as_boolean
    if spikes is None:
        spikes = GraphValue("ne", (stores[OUTPUT], GraphValue("number")))
    stores[OUTPUT] = spikes
    previous = leaves(stores).get(step.carried[-1])
    if previous is None:
        return stores
    return substitute(stores, {previous: GraphValue("to_float", (GraphValue("bits", leaf=OUTPUT.at(-1)),))})


class NeuronProgram:
    """What the native programs of :func:`hibana.simulate` share: arguments, functions and events of a step.

    Args:
        step: the traced step.
        stores: the values that a step stores.
        dtype: the dtype of all numbers but the weights.

    Raises:
        Unsupported: if an operation has no function for `dtype`.
    """

    events: tuple[str, ...]
    """The input and the states that events are added to, by the names of their arguments."""

    def __init__(self, step: Step, stores: Stores, dtype: torch.dtype) -> None:
        functions = vector_functions(step, dtype)
        self.number: type[Doubles | Floats] = Doubles if dtype == torch.float64 else Floats
        self.carried = step.carried[:-1]
        self.neurons_pass = row_pass("neurons", stores, self.number, frozenset(functions))
        self.operations = sorted(self.neurons_pass.operations & self.neurons_pass.calls)
        self.addresses = [functions[op] for op in self.operations]
        """Addresses of the vector functions that the program calls."""
        self.events = ("input", *map(str, self.carried))

    def assemble(self, integers: Sequence[str], tables: Mapping[str, Kind], weights: torch.dtype) -> None:
        """Writes and assembles the program.

        Args:
            integers: the names of its integers.
            tables: its addresses, but for those of events, weights, functions and synapses.
            weights: the dtype of the synapses' weights.
        """
        kinds: dict[str, Kind] = dict.fromkeys(integers, LONG)
        kinds |= {"functions": Longs, "row_starts": Longs, "targets": Ints, "index": Ints, "neurons": Ints}
        for name in self.events:
            kinds |= {f"{name}_starts": Longs, f"{name}_neurons": Ints, f"{name}_values": self.number}
        kinds |= {"weights": Doubles if weights == torch.float64 else Floats, **tables}
        self.names = tuple(kinds)
        """The names of the arguments in order: integers, then addresses."""
        self.code = Code()
        self.arguments: dict[str, Any] = self.code.arguments(kinds)
        addresses = self.arguments["functions"]
        self.functions = {op: Pointer.from_address(addresses[i]) for i, op in enumerate(self.operations)}
        self.scalars: Mapping[Leaf, Value] = scalar_arguments(
            [self.neurons_pass], self.arguments["constants"], lambda leaf: self.arguments[str(leaf)][0]
        )
        self.write()
        self.kernel = assemble(module(self.code.kernel("simulate")), "simulate")

    def write(self) -> None:
        """Writes the code of all steps."""
        raise NotImplementedError

    def each_event(self, name: str, t: Value, add: Callable[[Value, Value], None]) -> None:
        """Calls `add` with the neuron and the value of each event `name` of step `t`."""
        code, a = self.code, self.arguments
        starts = a[f"{name}_starts"]
        with code.when(starts.is_not_null()), code.loop(starts[t], starts[t + 1]) as event:
            add(a[f"{name}_neurons"][event].to(LONG), a[f"{name}_values"][event])


class Program(NeuronProgram):
    """The native program of neurons that take `step` in `dtype`, whose input includes the synapses' sums.

    The output of the step must be 0 or 1.

    Its function runs the parts from ``%begin`` to ``%end`` over all steps.

    Raises:
        Unsupported: if the step multiplies by a matrix, or an operation has no function for `dtype`.
    """

    def __init__(self, step: Step, dtype: torch.dtype, weights: torch.dtype) -> None:
        if step.matrices:
            raise Unsupported("the step multiplies states by a matrix")
        super().__init__(step, _stores(step), dtype)
        self.scratch_rows = len(self.neurons_pass.scratch)
        """Rows of :data:`BLOCK` numbers that each part keeps between the calls of a step."""
        parameters = [Leaf("parameter", i) for i in range(step.parameters)]
        tables: dict[str, Kind] = dict.fromkeys(("bounds", "work", "arrived", "fired"), Longs)
        numbers = ("sums", "bias", "inputs", "scratch", "constants", "samples")
        leaves = (*self.carried, *(leaf for leaf in parameters if leaf in self.neurons_pass.leaves))
        tables |= dict.fromkeys((*numbers, *map(str, leaves)), self.number)
        self.assemble(INTEGERS, tables, weights)

    def write(self) -> None:
        """Writes all steps."""
        code, a = self.code, self.arguments
        begin, end = code.begin, code.end
        with code.loop(0, a["steps"]) as t:
            with code.loop(begin, end) as part:
                self._deliver(part, t)
                self._update(part, t, a["bounds"][part], a["bounds"][part + 1])
                self._sample(part, t)
            _wait(code, a["arrived"], end - begin, (t + 1) * a["parts"])

    def _deliver(self, part: Value, t: Value) -> None:
        """Adds the weights of the spikes that arrive at `part` at step `t` to ``sums``."""
        code, a = self.code, self.arguments
        work, count = a["work"] + part * (2 * SEGMENTS), code.variable(0)
        kinds: dict[str, Kind] = {"sums": self.number, "targets": Ints, "weights": type(a["weights"])}
        add = function("add_segments", _add_segments, kinds | {"work": Longs, "count": LONG})

        def add_listed() -> None:
            add.do(code, a["sums"], a["targets"], a["weights"], work, count.value)

        with code.loop(0, a["delays"]) as delay:
            fired = a["fired"] + (t + a["delays"] - 1 - delay) * a["words"]
            with (
                code.loop(0, a["words"], WORDS) as first_word,
                code.each_bit((fired + first_word).load(WORDS).differs(0).word().to(LONG)) as place_of_word,
                code.each_bit(fired[first_word + place_of_word]) as bit,
            ):
                neuron = (first_word + place_of_word) * WORD + bit
                entry = a["index"] + (neuron * (a["keys"] + 1) + delay * a["parts"] + part)
                row, first, last = a["row_starts"][neuron], entry[0].to(LONG), entry[1].to(LONG)
                place = count.value
                work[place * 2] = row + first
                work[place * 2 + 1] = row + last
                count.value = (first < last).select(place + 1, place)
                with code.when(count.value.equals(SEGMENTS)):
                    add_listed()
                    count.value = 0
        add_listed()

    def _update(self, part: Value, t: Value, low: Value, high: Value) -> None:
        """Computes the step of the neurons from `low` to `high`, and clears their sums."""
        code, a = self.code, self.arguments
        scratch = a["scratch"] + part * (self.scratch_rows * BLOCK)
        self._add_events("input", t, low, high)
        with code.loop(low, high, BLOCK) as first:
            size = (high - first).smaller(BLOCK)
            sums = a["sums"] + first
            for name, offset in (("bias", first), ("inputs", t * a["input_stride"] + first)):
                with code.when(a[name].is_not_null()):
                    row = a[name] + offset
                    for i, mask in code.vectors(size, 32):
                        (sums + i).store((row + i).load(32, mask) + (sums + i).load(32, mask), mask)
            rows: dict[Leaf, Pointer] = {
                leaf: scratch + i * BLOCK for i, leaf in enumerate(self.neurons_pass.scratch)
            }
            before = a["fired"] + ((t + a["delays"] - 1) * a["words"] + first // WORD)
            rows |= {INPUT: sums, OUTPUT.at(-1): before, OUTPUT: before + a["words"]}
            for call in self.neurons_pass.sequence:
                pointers = [rows[leaf] if leaf in rows else a[str(leaf)] + first for leaf in call.rows]
                draws = [a["seed"], a["time"] + t, first] if call.draws else []
                write_call(code, call, pointers, self.scalars, self.functions, size, draws)
            sums.clear(size)
        for name in self.events[1:]:
            self._add_events(name, t, low, high)

    def _add_events(self, name: str, t: Value, low: Value, high: Value) -> None:
        """Adds the events `name` of step `t` at the neurons from `low` to `high`."""
        target = self.arguments["sums" if name == "input" else name]

        def add(neuron: Value, value: Value) -> None:
            """Adds `value` at `neuron`, if it is one of these."""
            with self.code.when((neuron >= low) & (neuron < high)):
                place = target + neuron
                place.store(place.load() + value)

        self.each_event(name, t, add)

    def _sample(self, part: Value, t: Value) -> None:
        """Records the states of the selected neurons of `part` if step `t` is one of each `every` steps."""
        code, a = self.code, self.arguments
        time, carried = a["time"] + t + 1, self.carried
        is_due = (time % a["every"]).equals(0) & (a["selected"] > 0)
        with code.when(is_due):
            row = time // a["every"] - a["time"] // a["every"] - 1
            low, high = a["bounds"][part], a["bounds"][part + 1]
            with code.loop(0, a["selected"]) as i:
                neuron = a["neurons"][i].to(LONG)
                with code.when((neuron >= low) & (neuron < high)):
                    for j, leaf in enumerate(carried):
                        place = (row * len(carried) + j) * a["selected"] + i
                        a["samples"][place] = a[str(leaf)][neuron]


def _add_segments(
    code: Code, sums: Pointer, targets: Ints, weights: Pointer, work: Longs, count: Value
) -> None:
    """Adds the weights of `count` segments, whose first synapses and ends are in `work`, to `sums`."""
    with code.loop(0, count) as j:
        ahead = (j + AHEAD).smaller(count - 1) * 2
        with code.loop(work[ahead], work[ahead + 1], LINE) as k:
            (targets + k).prefetch(to_write=False)
            (weights + k).prefetch(to_write=False)
        with code.loop(work[j * 2], work[j * 2 + 1]) as k:
            sum_ = sums + targets[k].to(LONG)
            sum_.store(sum_.load() + weights[k].to(sums.element))


@kernel
def index_parts(
    code: Code,
    begin: Value,
    end: Value,
    *,
    row_starts: Longs,
    offsets: Ints,
    part_of_word: Ints,
    index: Ints,
    unsorted: Longs,
    outputs: Value,
    parts: Value,
    keys: Value,
) -> None:
    """Writes where the synapses with each delay to each part begin in their row. A work item is a row.

    Entry ``delay * parts + part`` of a row of `index`, ``[neurons, keys + 1]``, is the offset in the row of
    the first synapse with at least this delay and part; the last entry is the length of the row. `unsorted`
    becomes 1 if a row is not sorted by delay and part.
    """
    with code.loop(begin, end) as neuron:
        counts, first, earlier = index + neuron * (keys + 1), row_starts[neuron], code.variable(0)
        counts.clear(keys + 1)
        with code.loop(first, row_starts[neuron + 1]) as synapse:
            offset = offsets[synapse].to(LONG)
            key = offset // outputs * parts + part_of_word[offset % outputs // WORD].to(LONG)
            with code.when(key < earlier.value):
                unsorted[0] = 1
            earlier.value = key
            counts[key + 1] = counts[key + 1] + 1
        with code.loop(0, keys) as key:
            counts[key + 1] = counts[key + 1] + counts[key]


def _wait(code: Code, counter: Longs, arrived: Value, all_arrived: Value) -> None:
    """Adds `arrived` to the first number of `counter` and waits until it is at least `all_arrived`.

    A thread waits only after all its parts have arrived, so it does not matter how many threads run them.
    The second number of `counter` is the number of threads that sleep; the last thread to arrive wakes them.
    """
    sleepers, spins = counter + 1, code.variable(0)
    is_last = ~(counter.atomic_add(arrived) + arrived < all_arrived)
    with code.do_while() as repeat_if:
        count = counter.atomic_load()
        waits = count < all_arrived
        with code.when(waits):
            if platform.machine().lower() in ("x86_64", "amd64"):
                _PAUSE.do(code)
            spins.value = spins.value + 1
            with code.when(spins.value > SPINS):
                if SLEEPS is None:
                    _YIELD(code)
                else:
                    sleepers.atomic_add(1)
                    _futex(code, counter, _WAIT, count & 0xFFFFFFFF)  # returns if the number is another
                    sleepers.atomic_add(-1)
        repeat_if(waits)
    if SLEEPS is not None:
        with code.when(is_last & (sleepers.atomic_load() > 0)):
            _futex(code, counter, _WAKE, code.constant((1 << 31) - 1))


def _futex(code: Code, address: Longs, operation: int, value: Value) -> None:
    """Calls ``futex`` of Linux for the low half of the number at `address`."""
    assert SLEEPS is not None
    arguments = code.constant(SLEEPS), address, code.constant(operation), value, code.constant(0)
    _SYSCALL(code, *arguments)


_PAUSE = external_function("llvm.x86.sse2.pause", None)
_YIELD = external_function("SwitchToThread" if sys.platform == "win32" else "sched_yield", INT)
_SYSCALL = external_function("syscall", LONG, LONG, Longs, LONG, LONG, LONG)
_WAIT, _WAKE = 128, 129  # FUTEX_WAIT_PRIVATE, FUTEX_WAKE_PRIVATE
