"""The layers of a program for one sample: where their numbers lie in memory, and the loops over them."""

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from hibana.compiler.c.source import library_functions
from hibana.compiler.graph.leaf import Leaf
from hibana.compiler.graph.passes import Stores, leaves
from hibana.network.c.arithmetic import Arithmetic
from hibana.network.c.memory import SIZES, Memory, index_type
from hibana.network.graph import Network
from hibana.network.lowering import Activations, Lowering, StateArray, times
from hibana.network.neurons import NeuronLayer
from hibana.network.node import Node, in_order
from hibana.runtime.kernels import (
    BIT,
    BYTE,
    INT,
    LONG,
    SHORT,
    Bytes,
    Code,
    Doubles,
    Floats,
    Ints,
    Longs,
    Pointer,
    Type,
    Value,
)
from hibana.runtime.loops import Array, Body, Parameter, Statement, count_uses

__all__ = ["Emitter", "Spiking"]


@dataclass(frozen=True)
class Spiking:
    """A layer of spiking neurons, for readers of the struct."""

    name: str
    neurons: int
    array: str
    """The C expression of its array: a byte per neuron in memory order, 1 if it spiked in the last step."""


class Emitter(Lowering):
    """The parts of a C program that layers add to: constants, struct, resets, and the current function."""

    target = "C"

    def __init__(self, network: Network, arithmetic: Arithmetic, name: str) -> None:
        self.network, self.arithmetic, self.name = network, arithmetic, name
        self.code, self.dtype = Code(), network.dtype
        self.number = {"float": Floats, "double": Doubles, "int32_t": Ints}[arithmetic.kind]
        self.index = "uint16_t" if all(node.size < 1 << 16 for node in network.nodes) else "uint32_t"
        """C's type of an index of a neuron or an input."""
        self.position = {node: i for i, node in enumerate(network.nodes)}
        self.static_nodes = set(network.static_nodes)
        self.activations: dict[Node, Activations] = {}
        self.reads_events = False
        """Whether the code under construction reads the input as a list of the indices that are 1."""
        self.memory = Memory()
        self.constants: list[tuple[str, str, Tensor]] = []
        """The name, C's type, and the values of each constant array."""
        self.resets: list[Statement] = []
        """They set the state to rest."""
        self.spiking: list[Spiking] = []
        self.functions: set[str] = set()
        """Functions of math.h that neurons call."""
        self._arrays: dict[str, Pointer] = {}
        self._node = network.input
        """The layer under construction."""
        self._temporaries = 0
        """Number of temporary arrays of that layer."""
        self._counter_type = ""
        """C's type of the counter of the last ring."""
        self._spike_lists: dict[Activations, tuple[Pointer, Pointer]] = {}
        """Arrays of the places of ones, and the address of their count."""

    def _pointer(self, array: Array) -> Pointer:
        """The address of an array of numbers."""
        return self.number(self.code.builder, array)

    def number_of(self, name: str, kind: str) -> Longs:
        """The address of a new number of the struct, an index of C's type `kind`."""
        return Longs(self.code.builder, self.memory.add(name, kind))

    def array(self, pointer: Pointer) -> Array:
        """The array that `pointer` points into."""
        assert pointer.array is not None
        return pointer.array

    def constant_array(self, name: str, kind: str, values: Tensor) -> Pointer:
        """The constant array `name` of C's type `kind`, which is defined by the first call."""
        if name not in self._arrays:
            self._arrays[name] = self._pointer(Array(None, name=name, kind=kind, access="constant"))
            self.constants.append((name, kind, values))
        return self._arrays[name]

    def drop_unused_constants(self, bodies: Iterable[Body]) -> None:
        """Removes the constant arrays that no statement of `bodies` reads."""
        uses = Counter[object]()
        for body in bodies:
            count_uses(body, uses)
        self.constants = [row for row in self.constants if uses[self.array(self._arrays[row[0]])]]

    @property
    def constant_bytes(self) -> int:
        """The size of the constant arrays, in bytes."""
        return sum(SIZES[kind] * values.numel() for _, kind, values in self.constants)

    def constant(self, values: Tensor, name: str = "w") -> Pointer:
        """A constant array of C with `values`, of the smallest type that holds them."""
        kind = self.arithmetic.constant_type(self._node.name, values)
        return self.constant_array(f"{self.name}_{name}{self.position[self._node]}", kind, values)

    def indices(self, values: Tensor, name: str = "i") -> Pointer:
        """A constant array of C with the indices `values`, of the smallest type that holds them."""
        kind = index_type(int(values.max()) + 1)
        return self.constant_array(f"{self.name}_{name}{self.position[self._node]}", kind, values).of(Longs)

    def temporary(self, count: int, *, binary: bool = False) -> Pointer:
        """An array that lives until the last layer has read the current layer's output."""
        self._temporaries += 1
        suffix = f"_{self._temporaries}" if self._temporaries > 1 else ""
        name = f"{'flags' if binary else 'current'}{self.position[self._node]}{suffix}"
        if name not in self._arrays:
            kind = "uint8_t" if binary else self.arithmetic.kind
            self._arrays[name] = self._pointer(self._output_array(name, kind, count, self._node))
        return self._arrays[name]

    def _output_array(self, name: str, kind: str, count: int, node: Node) -> Array:
        """A new array, for the current layer until the last layer has read `node`."""
        read_later = node in self.static_nodes and any(user not in self.static_nodes for user in node.users)
        if node is self.network.output or read_later:
            return self.memory.add(name, kind, count)
        reads_input = self._node in self.static_nodes and self.network.input in self._node.inputs
        first = 0 if reads_input else self.position[self._node]  # all of these run before other static nodes
        last = max((self.position[user] for user in node.users), default=first)
        return self.memory.add_shared(name, kind, count, first, last)

    def state(self, array: StateArray, initial: Tensor) -> Pointer:
        """An array of the struct, which the reset sets to `initial`, or the counter of a ring."""
        position = self.position[self._node]
        if array.kind == "counter":
            counter = self.number_of(f"now{position}", self._counter_type)
            with self.code.builder.inside() as reset:
                counter.store(0)
            self.resets += reset
            return counter
        if array.kind == "ring":
            self._counter_type = index_type(array.shape[0])
        name = f"{array.name}_{position}" if array.name else f"{array.kind}{position}"
        kind = "uint8_t" if array.binary else self.arithmetic.kind
        pointer = self._pointer(self.memory.add(name, kind, initial.numel()))
        with self.code.builder.inside() as reset, self.code.loop(0, initial.numel(), name="j") as j:
            if bool((initial == initial[0]).all()):
                pointer[j] = float(initial[0])
            else:
                constant_type = self.arithmetic.constant_type(self._node.name, initial)
                pointer[j] = self.constant_array(f"{self.name}_{name}_initial", constant_type, initial)[j]
        self.resets += reset
        return pointer

    def _list_ones(self, activations: Activations) -> tuple[Pointer, Pointer]:
        """The array of the places of the ones in binary `activations`, and the address of their count.

        The first call for these `activations` writes the loop that fills the list.
        """
        if activations not in self._spike_lists:
            node, code, flags = activations.node, self.code, self.numbers(activations).of(Longs)
            lists = sum(listed.node is node for listed in self._spike_lists)
            name = f"{self.position[node]}_{lists + 1}" if lists else str(self.position[node])
            places = self._output_array(f"spikes{name}", self.index, node.size, node)
            count, spikes = self.number_of(f"count{name}", self.index), Longs(code.builder, places)
            end = code.variable(0)  # without branches, which would be mispredicted at spikes
            with code.loop(0, node.size, name="j") as j:
                spikes[end.value] = j
                end.value = end.value + flags[j]
            count.store(end.value)
            self._spike_lists[activations] = spikes, count
        return self._spike_lists[activations]

    @contextmanager
    def each_event(self) -> Iterator[Value]:
        """Writes a loop over the caller's list of the inputs that are 1; yields the input."""
        code = self.code
        events = Longs(code.builder, Array(None, name="events", kind=self.index, access="read-only"))
        count = Value(code.builder, LONG, Parameter(LONG, name="count"))
        with code.loop(0, count, name="k") as k, code.when(events[k] < self.network.input.size):
            yield events[k]

    @contextmanager
    def each_nonzero(self, activations: Activations) -> Iterator[tuple[Value, Value | None]]:
        """Writes a loop over nonzero values; yields the index and, unless all values are 1, the value."""
        code, size, numbers = self.code, activations.node.size, self.numbers(activations)
        if activations.binary:
            spikes, count = self._list_ones(activations)
            with code.loop(0, count.load().named("n"), name="k") as k:
                yield spikes[k].named("i"), None
        elif self.reads_events and activations.node is self.network.input:
            with self.each_event() as i:
                yield i.named("i"), None
        else:
            with code.loop(0, size, name="i") as i:
                x = numbers[i].named("x")
                with code.when(x.differs(0)):
                    yield i, x

    def product(
        self,
        node: Node,
        inputs: Activations,
        weights: Tensor,
        bias: Tensor | None,
        out: Pointer,
        name: str = "w",
    ) -> None:
        """Writes the product of the inputs with `weights`, plus `bias`, into `out`."""
        rows, size = self.constant(weights, name), node.size
        biases = None if bias is None else self.constant(bias, "b")
        is_exact = self.number is Ints  # integers have the same sum in any order
        if biases is not None and is_exact:
            out.copy(biases, size)
        else:
            out.clear(size)
        self.add_rows(inputs, rows, size, out)
        if biases is not None and not is_exact:
            self.accumulate(out, biases, size, None)

    def add_rows(self, inputs: Activations, rows: Pointer, size: int, out: Pointer) -> None:
        """``out += sum_i x_i rows[i]`` over nonzero inputs x, for `rows` ``[inputs, size]``.

        Each pass over `out` adds the rows of four spikes, or of two numbers, to read and write the sums less
        often. Floating-point numbers are added in rising order of inputs.
        """
        code, count_in = self.code, inputs.node.size
        reads_events = self.reads_events and inputs.node is self.network.input
        if inputs.binary and count_in >= 4:
            spikes, counter = self._list_ones(inputs)
            count = counter.load().named("n")
            grouped = (count - count % 4).named("grouped")
            with code.loop(0, grouped, 4, name="k") as k:
                group = [(rows + spikes[k + j] * size).named(name) for j, name in enumerate("abcd")]
                self._add_group(out, size, [(row, None) for row in group])
            with code.loop(grouped, count, name="k") as k:
                self.accumulate(out, (rows + spikes[k] * size).named("row"), size, None)
        elif reads_events or inputs.binary or count_in < 2:
            with self.each_nonzero(inputs) as (i, x):
                self.accumulate(out, (rows + i * size).named("row"), size, x)
        else:
            numbers, pending = self.numbers(inputs), code.variable(-1)  # a nonzero input without a second
            kinds = [self.array(pointer).kind for pointer in (rows, numbers)]
            fits_16_bits = self.number is Ints and [SIZES[kind] for kind in kinds] == [1, 1]
            with code.loop(0, count_in, name="i") as i, code.when(numbers[i].differs(0)):
                first = pending.value.named("first")
                with code.when(first >= 0):
                    one, other = (rows + first * size).named("a"), (rows + i * size).named("b")
                    x, y = numbers[first].named("x"), numbers[i].named("y")
                    self._add_group(
                        out, size, [(one, x), (other, y)], products=SHORT if fits_16_bits else INT
                    )
                pending.value = (first < 0).select(i, -1)
            last = pending.value.named("last")
            with code.when(last >= 0):
                row, x = (rows + last * size).named("row"), numbers[last].named("x")
                self.accumulate(out, row, size, x)

    def _add_group(
        self, out: Pointer, size: int, group: list[tuple[Pointer, Value | None]], products: Type = INT
    ) -> None:
        """Adds rows of `size` numbers, each times a number unless that is None, to `out` in one loop.

        `products` is the type that holds the products of integers; compilers vectorize narrow ones better.
        """
        with self.code.loop(0, size, name="o") as o:
            total, terms = out[o], [times(row[o], x) for row, x in group]
            if self.number is not Ints:
                out[o] = sum(terms, total)
            else:
                terms = [term.to(products).signed_to(INT) for term in terms]
                out[o] = total + sum(terms[1:], terms[0])

    def compute(self, layer: NeuronLayer, stores: Stores, rows: dict[Leaf, Pointer]) -> None:
        """Writes a loop over the neurons ``j`` that computes `stores`."""
        code, size, type_ = self.code, layer.node.size, self.arithmetic.type
        flags = {leaf for leaf in stores if self.array(rows[leaf]).kind == "uint8_t"}
        stores = {x: (value.as_boolean or value) if x in flags else value for x, value in stores.items()}
        with code.loop(0, size, name="j") as j:
            values = dict[Leaf, Value]()
            for leaf, value in leaves(stores).items():
                if value.is_row:
                    array, place = rows.get(leaf), j
                    if array is None:
                        numbers = layer.parameters[leaf.index]
                        array = self.constant(numbers, f"{leaf}_")
                        place = j if len(numbers) == size else j % len(numbers)
                    values[leaf] = array[place].named(str(leaf))
            for leaf, result in self.arithmetic.results(code, layer, stores, values).items():
                is_boolean = result.type == BIT
                if leaf in flags:
                    spike = result if is_boolean else result.differs(0)
                    rows[leaf].of(Bytes)[j] = spike.to(BYTE)
                else:
                    number = result.to(INT) if is_boolean else result
                    rows[leaf][j] = number.real(type_) if is_boolean and type_.real else number
        self.functions |= library_functions(stores)

    def output(self, place: Value) -> Value:
        """The network's output at a `place` in PyTorch's order."""
        output = self.activations[self.network.output]
        if not torch.equal(output.order, in_order(output.node.size)):
            places = self.constant_array(f"{self.name}_order", self.index, torch.argsort(output.order))
            place = places.of(Longs)[place]
        return self.numbers(output)[place]
