"""A network layer by layer: the constants, the struct and the lines of C that each layer comes to."""

from hibana.network.c.costs import Cost, neurons_below
from hibana.network.c.emitter import Emitter
from hibana.network.c.numbers import Numbers
from hibana.network.c.text import block, commented, each
from hibana.network.graph import Network, Node
from hibana.network.lowering import Held, in_order

__all__ = ["Writing"]


class Writing:
    """The layers of one program, written."""

    def __init__(self, network: Network, numbers: Numbers, name: str, scores: str, steps: int) -> None:
        self.network, self.numbers, self.name, self.scores, self.steps = network, numbers, name, scores, steps
        self.parts = Emitter(network, numbers, name)
        self.costs: list[Cost] = []
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
            self._input(node)
        elif node in self.parts.still and self.network.input in node.inputs and not self._keeps_input():
            self.first += self._layer(node)
            self.parts.events = True
            self.events += self._layer(node)
            self.parts.events = False
        else:
            (self.still_lines if node in self.parts.still else self.go).extend(self._layer(node))
        if node.kind not in ("input", "delay"):
            self._count(node)

    def _keeps_input(self) -> bool:
        """Whether the input must lie in the struct: something else than weights reads it."""
        node = self.network.input
        weighted = all(u.kind in ("linear", "convolution") and u in self.parts.still for u in node.users)
        return not (node.users and weighted) or node is self.network.output

    def _input(self, node: Node) -> None:
        array = "input"
        if self._keeps_input():
            array = self.parts.memory.lasting("input", self.numbers.input, node.size)
            self.first += each("i", node.size, [f"{array}[i] = input[i];"])
            listed = [f"if (events[k] < {node.size})", f"    {array}[events[k]] = 1;"]
            self.events += [
                *each("i", node.size, [f"{array}[i] = 0;"]),
                *block("for (size_t k = 0; k < count; k++)", listed),
            ]
        kind = self.numbers.input if array != "input" else f"const {self.numbers.input}"
        self.parts.held[node] = Held(node, in_order(node.size), self.parts.pointer(array, kind))

    def _layer(self, node: Node) -> list[str]:
        """The lines of one layer."""
        parts = self.parts
        parts.begin(node)
        held = parts.held[node] = node.layer.lower(node, parts)
        if held.truths and node.kind not in ("neurons", "delayed recurrent"):
            parts.allocate_list(held)
        parts.list_spikes(held)
        sides, title = "x".join(map(str, node.shape)), f"{node.name}: {node.layer.title(node)}"
        title = f"/* {commented(title)}, gives {sides} */"
        return block("", [title, *parts.writer.take()])

    def _count(self, node: Node) -> None:
        """Counts the operations of a layer."""
        most, seen, dense = node.layer.operations(node, self.network.dtype)
        stateful = node.kind in ("neurons", "delayed recurrent")
        source, size = (node, node.size) if stateful else (neurons_below(node), node.inputs[0].size)
        valued = node.layer.weighted and not self.parts.held[node.inputs[0]].truths
        self.costs.append(
            Cost(node.name, node.layer.title(node), node.size, most, seen, valued, dense, source.name, size)
        )

    def _scored(self) -> list[str]:
        """Adds what the network put out to the scores."""
        size, out = self.network.output.size, self.parts.output("i")
        scores = self.parts.memory.lasting("scores", self.numbers.kind, size)
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
