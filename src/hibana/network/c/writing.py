"""A network layer by layer: the constants, the struct and the lines of C that each layer comes to."""

import math

import torch

from hibana.compiler.c.source import functions
from hibana.compiler.graph.ops import Unsupported
from hibana.network.c import delays, layers
from hibana.network.c.costs import Cost, Spiking, neurons_below
from hibana.network.c.memory import Held
from hibana.network.c.neurons import Writer
from hibana.network.c.numbers import Numbers
from hibana.network.c.parts import Parts
from hibana.network.c.rows import Active, Rows
from hibana.network.c.text import block, commented, each
from hibana.network.graph import Network, Node
from hibana.network.neurons import layer
from hibana.network.sliding import channels_last, sliding_of

__all__ = ["Writing"]


class Writing:
    """The layers of one program, written."""

    def __init__(self, network: Network, numbers: Numbers, name: str, scores: str, steps: int) -> None:
        self.network, self.numbers, self.name, self.scores, self.steps = network, numbers, name, scores, steps
        self.parts = Parts(network, numbers, name)
        self.held: dict[Node, Held] = {}
        self.weighted: set[Node] = set()
        """The nodes whose weights are written; one that reads the input is written for numbers and events."""
        self.costs: list[Cost] = []
        self.spiking: list[Spiking] = []
        self.functions: set[str] = set()
        self.first: list[str] = []
        """What a step does first with numbers that are given,"""
        self.events: list[str] = []
        """or with events;"""
        self.still_lines: list[str] = []
        """what only a new input has computed again;"""
        self.go: list[str] = []
        """and what every step does."""
        for node in network.nodes:
            self._node(node)
        self.go += self._scored()

    def _node(self, node: Node) -> None:
        if node.kind == "input":
            numbers, events = self._input(node)
        elif node in self.parts.still and self.network.input in node.inputs and not self._keeps_input():
            over = layers.numbers("input", self.network.input.size, self.numbers.input)
            numbers = self._titled(node, self._layer(node, over))
            events = self._titled(node, self._layer(node, layers.events(self.network.input.size)))
        else:
            (self.still_lines if node in self.parts.still else self.go).extend(
                self._titled(node, self._layer(node))
            )
            return
        self.first += numbers
        self.events += events

    def _keeps_input(self) -> bool:
        """Whether the input must lie in the struct: something else than weights reads it."""
        node = self.network.input
        weighted = all(u.kind in ("linear", "convolution") and u in self.parts.still for u in node.users)
        return not (node.users and weighted) or node is self.network.output

    def _input(self, node: Node) -> tuple[list[str], list[str]]:
        held = self.held[node] = Held(
            node, torch.arange(node.size, dtype=torch.int64, device="cpu"), self.numbers.input, "input"
        )
        if not self._keeps_input():
            return [], []
        held.numbers = self.parts.memory.lasting("input", self.numbers.input, node.size)
        copied = each("i", node.size, [f"{held.numbers}[i] = input[i];"])
        over = layers.events(node.size)
        cleared = each("i", node.size, [f"{held.numbers}[i] = 0;"])
        return copied, [*cleared, *block(over.head, [*over.begins, f"{held.numbers}[i] = 1;"])]

    def _titled(self, node: Node, lines: list[str]) -> list[str]:
        sides, title = "x".join(map(str, node.shape)), f"{node.name}: {node.layer.title(node)}"
        return [*block("", [f"/* {commented(title)}, gives {sides} */", *lines])]

    def _layer(self, node: Node, over: Active | None = None) -> list[str]:
        """One layer; `over` is what it goes over, if that lies not in the struct."""
        if node.kind == "neurons":
            return self._neurons(node)
        reads = [self.held[source] for source in node.inputs]
        written = self.held.get(node)
        if written is None:
            written = self.held[node] = self._blank(node, reads)
        kind = self.numbers.kind
        if node.layer.weighted:
            return self._weighted(node, reads[0], written, over)
        if node.kind == "sum":
            if not torch.equal(reads[0].places, reads[1].places):
                raise Unsupported(f"layer {node.name!r} adds numbers that lie in two orders")
            self._cost(node)
            self.numbers.passed(node, 1)
            return layers.added_up(node, reads[0], reads[1], written.numbers, kind)
        if node.kind == "scale":
            self._cost(node)
            factor = self.numbers.literal(node.factor, kind)
            return layers.scaled(node, reads[0], written.numbers, kind, factor)
        if node.kind == "delay":
            return self._delay(node, reads[0], written)
        if node.kind not in ("maximum", "average"):
            node.layer.refuse(node, "C")
        self._cost(node)
        average = node.kind == "average"
        self.numbers.passed(node, math.prod(sliding_of(node).kernel) if average else 1)
        if average:
            return layers.average(node, reads[0], written.numbers, kind)
        lines = layers.maximum(node, reads[0], written.numbers, written.kind, self.numbers.lowest)
        return [*lines, *self._listed(written)]

    def _blank(self, node: Node, reads: list[Held]) -> Held:
        """Where a layer without state writes."""
        read = reads[0]
        spikes = (node.kind == "maximum" and bool(read.spikes)) or (node.kind == "delay" and read.truths)
        kind = "uint8_t" if spikes else read.kind if node.kind == "delay" else self.numbers.kind
        places = torch.arange(node.size, dtype=torch.int64, device="cpu")
        if node.kind in ("sum", "scale", "delay"):
            places = read.places
        elif node.kind in ("convolution", "window") or (
            node.kind in ("maximum", "average") and read.channels_last(node.seen[0])
        ):
            places = channels_last(node.shape)
        array = self.parts.array(node, "flags" if spikes else "current", kind, node.size)
        held = Held(node, places, kind, array, truths=spikes)
        if spikes:
            self._list(held)
        return held

    def _list(self, held: Held, always: bool = False) -> None:
        """Gives `held` a list of its spikes, if a layer reads one."""
        node = held.node
        if always:
            held.spikes = self.parts.memory.lasting(
                f"spikes{self.parts.at[node]}", self.parts.index, node.size
            )
            held.count = self.parts.memory.counter(f"count{self.parts.at[node]}", self.parts.index)
        elif any(user.layer.weighted or user.kind == "maximum" for user in node.users):
            held.spikes = self.parts.array(node, "spikes", self.parts.index, node.size)
            held.count = self.parts.memory.counter(f"count{self.parts.at[node]}", self.parts.index)

    def _listed(self, held: Held) -> list[str]:
        """Makes the list of the spikes whose flags are set."""
        if not held.spikes:
            return []
        kept = [f"{held.spikes}[count] = ({self.parts.index})j;", f"count += {held.numbers}[j];"]
        each_one = each("j", held.node.size, kept)  # without a branch, which spikes make a guess of
        return ["size_t count = 0;", *each_one, f"{held.count} = ({self.parts.index})count;"]

    def _weighted(self, node: Node, read: Held, written: Held, over: Active | None) -> list[str]:
        weights, bias = node.layer.weights(node, read.places)
        names = (
            f"{self.name}_w{self.parts.at[node]}",
            "" if bias is None else f"{self.name}_b{self.parts.at[node]}",
        )
        again = node in self.weighted
        self.weighted.add(node)
        over = over or layers.active(read, self.numbers.kind if not read.kind else read.kind)
        if not again:
            self.parts.constant(names[0], self.numbers.of(node.name, weights), weights)
            if bias is not None:
                self.parts.constant(names[1], self.numbers.of(node.name, bias), bias)
            self.numbers.added(node, node.inputs[0], weights, bias)
            self._cost(node, over.valued)
        if node.kind == "window":
            ring, order = (
                self.parts.ring(node, delays.reach_of(node) + 1, self.numbers.kind),
                self.parts.order(node, read),
            )
            return delays.window(node, read, over, ring, written.numbers, *names, order)
        if node.kind == "delayed":
            late, ring = self.parts.delays(node, read, self.numbers.kind)
            return delays.delayed(node, over, ring, written.numbers, names[0], late, names[1])
        if node.kind == "linear":
            of = self.numbers.of(node.name, weights)
            rows = Rows(
                f"{self.name}_add{self.parts.at[node]}",
                names[0],
                of,
                self.numbers.kind,
                node.size,
                written.numbers,
                read.node.size,
            )
            self.parts.helpers += [] if again else rows.function(over)
            return layers.linear(rows, over, names[1])
        return layers.convolution(node, read, over, written.numbers, *names, self.numbers.kind)

    def _delay(self, node: Node, read: Held, written: Held) -> list[str]:
        """Numbers as they were some steps ago."""
        self.numbers.passed(node, 1)
        late, ring = self.parts.delays(node, read, written.kind)
        return [*delays.late(read, ring, written.numbers, late), *self._listed(written)]

    def _neurons(self, node: Node) -> list[str]:
        read = self.held[node.inputs[0]]
        made = layer(node, self.parts.at[node], read.places, self.network.dtype)
        self.numbers.settle(made)
        writer = Writer(made, read, self.numbers, self.parts.memory, self.name)
        held = self.held[node] = Held(node, read.places, self.numbers.kind, writer.states[-1])
        if made.emits_spikes:
            held.kind, held.truths = "uint8_t", True
            self.spiking.append(Spiking(node.name, node.layer.title(node), node.size, held.numbers))
            self._list(held, made.reads_spikes())
        writer.prepare()
        self.parts.resets += writer.reset()
        if made.reads_spikes():
            self.parts.resets.append(f"{held.count} = 0;")
        lines = [*writer.step(), *self._listed(held)]
        self.parts.constants += writer.constants
        self.parts.constant_bytes += writer.constant_bytes
        self.functions |= functions(made.stores)
        self._cost(node)
        return lines

    def _cost(self, node: Node, valued: bool = False) -> None:
        most, seen, dense = node.layer.operations(node, self.network.dtype)
        source, size = (
            (node, node.size) if node.kind == "neurons" else (neurons_below(node), node.inputs[0].size)
        )
        self.costs.append(
            Cost(node.name, node.layer.title(node), node.size, most, seen, valued, dense, source.name, size)
        )

    def _scored(self) -> list[str]:
        """Adds what the network put out to the scores."""
        size, out = self.network.output.size, self.out("i")
        scores = self.parts.memory.lasting("scores", self.numbers.kind, size)
        self.numbers.summed(self.network.output, self.steps if self.scores == "sum" else 1)
        lowest = self.numbers.lowest if self.scores == "max" else "0"
        self.parts.resets += each("i", size, [f"{scores}[i] = {lowest};"])
        if self.scores == "first":
            seen = self.parts.memory.lasting("seen", "uint8_t", size)
            self.parts.resets += each("i", size, [f"{seen}[i] = 0;"])
            later = [f"if ({out} != 0)", f"    {seen}[i] = 1;", f"if (!{seen}[i])", f"    {scores}[i] -= 1;"]
            return each("i", size, later)
        if self.scores == "max":
            return each("i", size, [f"if ({out} > {scores}[i])", f"    {scores}[i] = {out};"])
        return each("i", size, [f"{scores}[i] {'+=' if self.scores == 'sum' else '='} {out};"])

    def out(self, place: str) -> str:
        """The number that the network put out at a place of PyTorch's."""
        held = self.held[self.network.output]
        order = torch.arange(held.node.size, dtype=torch.int64, device="cpu")
        if not torch.equal(held.places, order):
            name = f"{self.name}_order"
            if not any(
                line.startswith(f"static const {self.parts.index} {name}[") for line in self.parts.constants
            ):
                self.parts.constant(name, self.parts.index, torch.argsort(held.places))
            place = f"{name}[{place}]"
        number = f"{held.numbers}[{place}]"
        return number if held.kind == self.numbers.kind else f"({self.numbers.kind}){number}"
