"""Lowers layers to C: where their numbers lie in memory, and the loops over them."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from hibana.compiler.c.source import library_functions
from hibana.network.c.arithmetic import Arithmetic
from hibana.network.c.code import CWriter
from hibana.network.c.costs import Spiking
from hibana.network.c.memory import SIZES, Memory, index_kind
from hibana.network.c.neurons import neurons
from hibana.network.c.rows import merged_rows
from hibana.network.c.text import array, each
from hibana.network.graph import Network, Node
from hibana.network.lowering import Activations, Kind, Lowering, in_order
from hibana.network.neurons import trace_layer
from hibana.runtime.kernels import LONG, Code, Doubles, Floats, Ints, Longs, Pointer, Value

__all__ = ["Emitter"]


class Emitter(Lowering):
    """The parts of a program, to which each layer adds its own."""

    target = "C"

    def __init__(self, network: Network, numbers: Arithmetic, name: str) -> None:
        self.network, self.arithmetic, self.name = network, numbers, name
        self.writer = CWriter()
        self.code, self.dtype = Code(self.writer), network.dtype
        self.number = {"float": Floats, "double": Doubles, "int32_t": Ints}[numbers.kind]
        self.index = "uint16_t" if all(node.size < 1 << 16 for node in network.nodes) else "uint32_t"
        self.at = {node: k for k, node in enumerate(network.nodes)}
        self.static_nodes = set(network.static_nodes)
        self.activations: dict[Node, Activations] = {}
        self.events = False
        """Whether the input is a list of the places that are 1."""
        self.memory = Memory()
        self.constants: list[str] = []
        self.constant_bytes = 0
        self.helpers: list[str] = []
        """Functions of C that add rows of weights."""
        self.resets: list[str] = []
        """Statements that set the state to rest."""
        self.spiking: list[Spiking] = []
        self.functions: set[str] = set()
        """Functions of math.h that neurons call."""
        self._arrays: dict[str, Pointer] = {}
        self._node = network.input
        self._temporaries = 0
        self._counter = ""
        """C's type of the counter of the last ring."""
        self._lists: dict[Activations, tuple[Pointer, Pointer]] = {}
        """The list of the places of spikes, and their count in memory."""

    def begin(self, node: Node) -> None:
        """Starts the code of a layer; a layer on the input has it twice, for numbers and for events."""
        self._node, self._temporaries = node, 0

    def pointer(self, name: str, kind: str) -> Pointer:
        """The array called `name` of numbers of C's type `kind`."""
        return self.number(self.writer, self.writer.array(name, kind))

    def array(self, name: str, kind: str, values: Tensor) -> Pointer:
        """The constant array called `name`, of C's type `kind`."""
        if name not in self._arrays:
            self._arrays[name] = self.pointer(name, f"const {kind}")
            self.constants += array(name, kind, values)
            self.constant_bytes += SIZES[kind] * values.numel()
        return self._arrays[name]

    def constant(self, values: Tensor, name: str = "w") -> Pointer:
        kind = self.arithmetic.of(self._node.name, values)
        return self.array(f"{self.name}_{name}{self.at[self._node]}", kind, values)

    def factor(self, number: float) -> Value:
        return Value(self.writer, self.number.element, self.arithmetic.literal(number, self.arithmetic.kind))

    def lowest(self) -> Value:
        return Value(self.writer, self.number.element, self.arithmetic.lowest)

    def indices(self, values: Tensor, name: str = "i") -> Pointer:
        kind = index_kind(int(values.max()) + 1)
        return self.array(f"{self.name}_{name}{self.at[self._node]}", kind, values).of(Longs)

    def temporary(self, count: int, *, binary: bool = False) -> Pointer:
        """An array that lives until the last layer has read the current one."""
        self._temporaries += 1
        more = f"_{self._temporaries}" if self._temporaries > 1 else ""
        name = f"{'flags' if binary else 'current'}{self.at[self._node]}{more}"
        if name not in self._arrays:
            kind = "uint8_t" if binary else self.arithmetic.kind
            self._arrays[name] = self.pointer(self.living(name, kind, count), kind)
        return self._arrays[name]

    def living(self, name: str, kind: str, count: int) -> str:
        """The expression of a new array in the struct that lives until the last layer has read this one."""
        node, later = self._node, any(user not in self.static_nodes for user in self._node.users)
        if node is self.network.output or (node in self.static_nodes and later):
            return self.memory.lasting(name, kind, count)
        last = max((self.at[user] for user in node.users), default=self.at[node])
        return self.memory.between(name, kind, count, self.at[node], last)

    def lasting(
        self,
        kind: Kind,
        rest: Tensor,
        of: Node,
        places: Tensor,
        shape: tuple[int, ...],
        *,
        binary: bool = False,
    ) -> Pointer:
        if kind != "counter":
            self._counter = index_kind(shape[0])
            return self.state(f"{kind}{self.at[of]}", rest, binary=binary)
        counter = self.memory.lasting(f"now{self.at[of]}", self._counter)
        self.resets.append(f"{counter} = 0;")
        return Longs(self.writer, self.writer.number(counter, self._counter))

    def state(self, name: str, rest: Tensor, *, binary: bool = False) -> Pointer:
        """An array in the struct, which ``NAME_reset`` sets to `rest`."""
        kind = "uint8_t" if binary else self.arithmetic.kind
        array = self.pointer(self.memory.lasting(name, kind, rest.numel()), kind)
        value = self.arithmetic.literal(float(rest[0]), kind)
        if not bool((rest == rest[0]).all()):
            initial = self.arithmetic.of(self._node.name, rest)
            value = self.element(self.array(f"{self.name}_{name}_begun", initial, rest), "j")
        self.resets += each("j", rest.numel(), [f"{self.element(array, 'j')} = {value};"])
        return array

    def numbers(self, held: Activations) -> Pointer:
        assert held.numbers is not None
        return held.numbers

    @contextmanager
    def each_active(self, held: Activations) -> Iterator[tuple[Value, Value | None]]:
        code, size, numbers = self.code, held.node.size, self.numbers(held)
        if held in self._lists:
            places, count = self._lists[held]
            with code.loop(0, count.load().named("n"), name="k") as k:
                yield places[k].named("i"), None
        elif self.events and held.node is self.network.input:
            places = Longs(self.writer, self.writer.array("events", self.index))
            with (
                code.loop(0, Value(self.writer, LONG, "(int)count"), name="k") as k,
                code.when(places[k] < size),
            ):
                yield places[k].named("i"), None
        else:
            with code.loop(0, size, name="i") as i:
                x = numbers.of(Longs)[i] if held.binary else numbers[i].named("x")
                with code.when(x.differs(0)):
                    yield i, None if held.binary else x

    def vectors(self, count: int) -> Iterator[tuple[Value | int, int]]:
        with self.code.loop(0, count, name="o") as o:
            yield o, 1

    @contextmanager
    def registers(self, count: int) -> Iterator[list[tuple[Value | int, int]]]:
        with self.code.loop(0, count, name="o") as o:
            yield [(o, 1)]

    def product(
        self, node: Node, read: Activations, weights: Tensor, bias: Tensor | None, out: Pointer
    ) -> None:
        rows, size = self.constant(weights), node.size
        added = None if bias is None else self.constant(bias, "b")
        exact = self.arithmetic.kind == "int32_t"  # in any order
        if added is not None and exact:
            out.copy(added, size)
        else:
            out.clear(size)
        self.add_rows(read, rows, size, out, f"{self.name}_add{self.at[node]}")
        if added is not None and not exact:
            self.accumulate(out, added, size, None)

    def add_rows(self, read: Activations, rows: Pointer, size: int, out: Pointer, helper: str = "") -> None:
        """Adds the row of each nonzero input to `out`, several rows at a time by the function `helper`."""
        events = self.events and read.node is self.network.input
        listed = read in self._lists
        if not helper or events or (read.binary and not listed) or read.node.size < (4 if listed else 2):
            with self.each_active(read) as (i, x):
                self.accumulate(out, (rows + i * size).named("row"), size, x)
            return
        values, weights = self.writer.kind(self.numbers(read).text), self.writer.kind(rows.text)
        array, count = self.numbers(read), None
        if listed:
            array, count = self._lists[read]
        function, lines = merged_rows(
            helper,
            self.writer.expression(out.text),
            self.writer.expression(rows.text),
            self.writer.expression(array.text),
            self.writer.place(count.text) if count else None,
            kinds=(self.arithmetic.kind, weights, values),
            size=size,
            inputs=read.node.size,
        )
        self.helpers += function
        self.writer.write(lines)

    def neurons(self, node: Node, read: Activations) -> Activations:
        traced = trace_layer(node, self.at[node], read.order, self.dtype)
        held = neurons(self, traced, read)
        if held.binary:
            array = self.writer.expression(self.numbers(held).text)
            self.spiking.append(Spiking(node.name, node.layer.title(node), node.size, array))
        self.functions |= library_functions(traced.stores)
        return held

    def allocate_list(self, held: Activations, *, always: bool = False) -> None:
        """Memory for the list of the places of nonzero flags, if a layer reads it, or `always`."""
        node = held.node
        name = f"spikes{self.at[node]}"
        if always:
            spikes = self.memory.lasting(name, self.index, node.size)
        elif any(user.layer.weighted or user.kind == "maximum" for user in node.users):
            spikes = self.living(name, self.index, node.size)
        else:
            return
        count = self.memory.lasting(f"count{self.at[node]}", self.index)
        array, number = self.writer.array(spikes, self.index), self.writer.number(count, self.index)
        self._lists[held] = Longs(self.writer, array), Longs(self.writer, number)
        if always:
            self.resets.append(f"{count} = 0;")

    def list_spikes(self, held: Activations) -> None:
        """Writes the list; without branches, which are mispredicted at spikes."""
        if held not in self._lists:
            return
        (spikes, count), index = self._lists[held], self.index
        flag = self.element(self.numbers(held), "j")
        each_one = [f"{self.element(spikes, 'count')} = ({index})j;", f"count += {flag};"]
        last = f"{self.writer.place(count.text)} = ({index})count;"
        self.writer.write(["size_t count = 0;", *each("j", held.node.size, each_one), last])

    def element(self, array: Pointer, place: str, kind: str = "") -> str:
        """The expression of the number of an array at a `place`, converted to `kind`."""
        number = f"{self.writer.expression(array.text)}[{place}]"
        return f"({kind}){number}" if kind not in ("", self.writer.kind(array.text)) else number

    def output(self, place: str) -> str:
        """The expression of the output at a `place` in PyTorch's order."""
        held = self.activations[self.network.output]
        if not torch.equal(held.order, in_order(held.node.size)):
            order = self.array(f"{self.name}_order", self.index, torch.argsort(held.order))
            place = self.element(order, place)
        return self.element(self.numbers(held), place, self.arithmetic.kind)
