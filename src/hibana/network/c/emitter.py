"""The C form of layers: where their numbers lie in memory, and the loops over them."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from hibana.compiler.c.source import library_functions
from hibana.network.c.arithmetic import Arithmetic, number_literal
from hibana.network.c.code import CWriter, each
from hibana.network.c.memory import SIZES, Memory, index_type
from hibana.network.c.neurons import NeuronWriter
from hibana.network.graph import Network, Node
from hibana.network.lowering import Activations, Lowering, StateArray, in_order, times
from hibana.network.neurons import trace_layer
from hibana.runtime.kernels import INT, LONG, SHORT, Code, Doubles, Floats, Ints, Longs, Pointer, Type, Value

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
        self.writer = CWriter()
        self.code, self.dtype = Code(self.writer), network.dtype
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
        self.constant_bytes = 0
        self.resets: list[str] = []
        """Statements that set the state to rest."""
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
        """Arrays of the indices of spikes, and the address of their count."""

    def pointer(self, name: str, kind: str) -> Pointer:
        """The array with the C expression `name`, of numbers of C's type `kind`."""
        return self.number(self.writer, self.writer.array(name, kind))

    def constant_array(self, name: str, kind: str, values: Tensor) -> Pointer:
        """The constant array `name` of C's type `kind`, which is defined by the first call."""
        if name not in self._arrays:
            self._arrays[name] = self.pointer(name, f"const {kind}")
            self.constants.append((name, kind, values))
            self.constant_bytes += SIZES[kind] * values.numel()
        return self._arrays[name]

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
            self._arrays[name] = self.pointer(self._output_array(name, kind, count), kind)
        return self._arrays[name]

    def _output_array(self, name: str, kind: str, count: int) -> str:
        """The C expression of a new array that lives until the last layer has read the current layer."""
        node = self._node
        read_later = node in self.static_nodes and any(user not in self.static_nodes for user in node.users)
        if node is self.network.output or read_later:
            return self.memory.add(name, kind, count)
        first = self.position[node]
        last = max((self.position[user] for user in node.users), default=first)
        return self.memory.add_shared(name, kind, count, first, last)

    def state(self, array: StateArray, initial: Tensor) -> Pointer:
        """An array in the state, or a counter, which starts at 0 and is not larger than its ring."""
        position = self.position[self._node]
        if array.kind != "counter":
            self._counter_type = index_type(array.shape[0])
            return self.state_array(f"{array.kind}{position}", initial, binary=array.binary)
        counter = self.memory.add(f"now{position}", self._counter_type)
        self.resets.append(f"{counter} = 0;")
        return Longs(self.writer, self.writer.number(counter, self._counter_type))

    def state_array(self, name: str, initial: Tensor, *, binary: bool = False) -> Pointer:
        """A new array of the struct, which the reset sets to `initial`."""
        kind = "uint8_t" if binary else self.arithmetic.kind
        pointer = self.pointer(self.memory.add(name, kind, initial.numel()), kind)
        value = number_literal(float(initial[0]), kind)
        if not bool((initial == initial[0]).all()):
            constant_type = self.arithmetic.constant_type(self._node.name, initial)
            numbers = self.constant_array(f"{self.name}_{name}_initial", constant_type, initial)
            value = self.element(numbers, "j")
        self.resets += each("j", initial.numel(), [f"{self.element(pointer, 'j')} = {value};"])
        return pointer

    def numbers(self, activations: Activations) -> Pointer:
        """The array of the numbers of `activations`; in C all activations have one."""
        assert activations.numbers is not None
        return activations.numbers

    @contextmanager
    def each_nonzero(self, activations: Activations) -> Iterator[tuple[Value, Value | None]]:
        """Writes a loop over nonzero values; yields the index and, unless all values are 1, the value."""
        code, size, numbers = self.code, activations.node.size, self.numbers(activations)
        if activations in self._spike_lists:
            spikes, count = self._spike_lists[activations]
            with code.loop(0, count.load().named("n"), name="k") as k:
                yield spikes[k].named("i"), None
        elif self.reads_events and activations.node is self.network.input:
            events = Longs(self.writer, self.writer.array("events", self.index))
            event_count = Value(self.writer, LONG, "(int)count")
            with code.loop(0, event_count, name="k") as k, code.when(events[k] < size):
                yield events[k].named("i"), None
        else:
            with code.loop(0, size, name="i") as i:
                x = numbers.of(Longs)[i] if activations.binary else numbers[i].named("x")
                with code.when(x.differs(0)):
                    yield i, None if activations.binary else x

    def vectors(self, count: int) -> Iterator[tuple[Value | int, int]]:
        """Writes a loop over `count` numbers; yields the index and the width 1, because C has no vectors."""
        with self.code.loop(0, count, name="o") as o:
            yield o, 1

    @contextmanager
    def registers(self, count: int) -> Iterator[list[tuple[Value | int, int]]]:
        """Writes a loop over `count` numbers; yields one vector of width 1 at the index."""
        with self.code.loop(0, count, name="o") as o:
            yield [(o, 1)]

    def product(
        self, node: Node, inputs: Activations, weights: Tensor, bias: Tensor | None, out: Pointer
    ) -> None:
        """Writes the product of the inputs with `weights`, plus `bias`, into `out`."""
        rows, size = self.constant(weights), node.size
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
        is_listed = inputs in self._spike_lists
        if is_listed and count_in >= 4:
            spikes, counter = self._spike_lists[inputs]
            count = counter.load().named("n")
            grouped = (count - count % 4).named("grouped")
            with code.loop(0, grouped, 4, name="k") as k:
                group = [(rows + spikes[k + j] * size).named(name) for j, name in enumerate("abcd")]
                self._add_group(out, size, [(row, None) for row in group])
            with code.loop(grouped, count, name="k") as k:
                self.accumulate(out, (rows + spikes[k] * size).named("row"), size, None)
        elif is_listed or reads_events or inputs.binary or count_in < 2:
            with self.each_nonzero(inputs) as (i, x):
                self.accumulate(out, (rows + i * size).named("row"), size, x)
        else:
            numbers, pending = self.numbers(inputs), code.variable(-1)  # a nonzero input without a second
            kinds = [self.writer.kind(array.text) for array in (rows, numbers)]
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

    def neurons(self, node: Node, currents: Activations) -> Activations:
        """Writes one step of the neurons of `node` on `currents`, and returns their outputs."""
        layer = trace_layer(node, currents.order, self.dtype)
        activations = NeuronWriter(self, layer, currents).write()
        if activations.binary:
            array = self.writer.expression(self.numbers(activations).text)
            self.spiking.append(Spiking(node.name, node.size, array))
        self.functions |= library_functions(layer.stores)
        return activations

    def allocate_list(self, activations: Activations, *, always: bool = False) -> None:
        """Allocates the list of indices of spikes, if a layer reads it, or `always`."""
        node = activations.node
        name = f"spikes{self.position[node]}"
        if always:
            spikes = self.memory.add(name, self.index, node.size)
        elif any(user.layer.weighted or user.kind == "maximum" for user in node.users):
            spikes = self._output_array(name, self.index, node.size)
        else:
            return
        count = self.memory.add(f"count{self.position[node]}", self.index)
        indices, number = self.writer.array(spikes, self.index), self.writer.number(count, self.index)
        self._spike_lists[activations] = Longs(self.writer, indices), Longs(self.writer, number)
        if always:
            self.resets.append(f"{count} = 0;")

    def list_spikes(self, activations: Activations) -> None:
        """Writes the list of spikes; without branches, which would be mispredicted at spikes."""
        if activations not in self._spike_lists:
            return
        spikes, count = self._spike_lists[activations]
        flag = self.element(self.numbers(activations), "j")
        append = [f"{self.element(spikes, 'count')} = ({self.index})j;", f"count += {flag};"]
        last = f"{self.writer.place(count.text)} = ({self.index})count;"
        self.writer.write(["size_t count = 0;", *each("j", activations.node.size, append), last])

    def element(self, array: Pointer, place: str, kind: str = "") -> str:
        """The C expression of the number of `array` at `place`, converted to `kind`."""
        number = f"{self.writer.expression(array.text)}[{place}]"
        return f"({kind}){number}" if kind not in ("", self.writer.kind(array.text)) else number

    def output(self, place: str) -> str:
        """The C expression of the network's output at a `place` in PyTorch's order."""
        output = self.activations[self.network.output]
        if not torch.equal(output.order, in_order(output.node.size)):
            places = self.constant_array(f"{self.name}_order", self.index, torch.argsort(output.order))
            place = self.element(places, place)
        return self.element(self.numbers(output), place, self.arithmetic.kind)
