"""What the layers of a program share: its memory, its constants, its functions, and what is reset."""

import torch
from torch import Tensor

from hibana.network.c.delays import Ring
from hibana.network.c.memory import FOREVER, Held, Memory, index_kind
from hibana.network.c.numbers import Numbers
from hibana.network.c.text import array as array_of
from hibana.network.graph import Network, Node

__all__ = ["Parts"]


class Parts:
    """The parts of one program, to which its layers add theirs."""

    def __init__(self, network: Network, numbers: Numbers, name: str) -> None:
        self.network, self.numbers, self.name = network, numbers, name
        self.index = "uint16_t" if all(node.size < 1 << 16 for node in network.nodes) else "uint32_t"
        self.at = {node: k for k, node in enumerate(network.nodes)}
        self.still = set(network.still)
        self.memory = Memory()
        self.constants: list[str] = []
        self.constant_bytes = 0
        self.helpers: list[str] = []
        """Functions of C that add rows of weights."""
        self.resets: list[str] = []

    def last(self, node: Node) -> int:
        """The last node of a step that reads `node`."""
        later = any(user not in self.still for user in node.users)
        if node is self.network.output or (node in self.still and later):
            return FOREVER
        return max((self.at[user] for user in node.users), default=self.at[node])

    def array(self, node: Node, name: str, kind: str, size: int) -> str:
        """An array of `node` that lives as long as it is read; gives its expression."""
        last = self.last(node)
        if last == FOREVER:
            return self.memory.lasting(f"{name}{self.at[node]}", kind, size)
        return self.memory.between(f"{name}{self.at[node]}", kind, size, self.at[node], last)

    def delays(self, node: Node, read: Held, kind: str) -> tuple[str, Ring]:
        """What stands for the delay of number i, or of synapse i, o; and a ring for the longest."""
        steps = node.layer.delays(node, read.places)
        longest = int(steps.max())
        name = f"{self.name}_d{self.at[node]}"
        if node.kind == "delay" and bool((steps == longest).all()):
            name = str(longest)
        else:
            self.constant(name, index_kind(longest + 1), steps)
            name += "[i]" if node.kind == "delay" else ""
        return name, self.ring(node, longest + 1, kind)

    def ring(self, node: Node, steps: int, kind: str) -> Ring:
        """A ring of so many steps for `node`, empty after a reset."""
        at, now_kind = self.at[node], index_kind(steps)
        array = self.memory.lasting(f"ring{at}", kind, steps * node.size)
        ring = Ring(array, steps, node.size, self.memory.counter(f"now{at}", now_kind), now_kind)
        self.resets += ring.resets()
        return ring

    def order(self, node: Node, read: Held) -> str:
        """An array of the channel at each place, if what a window reads lies in another order."""
        order = torch.arange(read.node.size, dtype=torch.int64, device="cpu")
        if len(node.seen[0]) > 1 or torch.equal(read.places, order):
            return ""
        name = f"{self.name}_c{self.at[node]}"
        self.constant(name, self.index, read.places)
        return name

    def constant(self, name: str, kind: str, values: Tensor) -> None:
        """A constant array."""
        self.constants += array_of(name, kind, values)
        self.constant_bytes += self.numbers.bytes(kind) * values.numel()
