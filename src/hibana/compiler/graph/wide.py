"""Float64 intermediate values of a float32 step, as ``torch.float_power`` has.

A power within two units in the last place is no better for it, once it is rounded to 32 bits, and a gradient
agrees to the tolerance of 32 bits anyway. So these are computed in 32. Whatever else a step's states are made
of in 64 bits is refused: it would have another last bit.
"""

import torch
from torch import fx

from hibana.compiler.graph.nodes import name_of

__all__ = ["Wide"]


class Wide:
    """Which nodes of `graph` in 64 bits may be computed in `dtype`; its first ends are the `states`."""

    def __init__(self, graph: fx.Graph, states: int, dtype: torch.dtype) -> None:
        self.narrow = dtype
        (ends,) = graph.output_node().args
        assert isinstance(ends, tuple)
        self.forward: set[fx.Node] = set()
        """What the states are made of."""
        waiting = [node for node in ends[:states] if isinstance(node, fx.Node)]
        self.ends = set(waiting)
        while waiting:
            node = waiting.pop()
            if node not in self.forward:
                self.forward.add(node)
                waiting += node.all_input_nodes

    def serves(self, node: fx.Node) -> bool:
        """Whether `node` is one of them."""
        if self.narrow != torch.float32 or node.meta["val"].dtype != torch.float64:
            return False
        if node not in self.forward or name_of(node.target) in ("_to_copy", "detach", "alias"):
            return node not in self.ends and self._is_of_function(node)
        copies = all(self._is_narrow_copy(other) for other in node.all_input_nodes)
        return self.is_power(node) and copies and node not in self.ends

    def is_power(self, node: fx.Node) -> bool:
        """Whether `node` is a power in 64 bits that states are made of, whatever its exponent."""
        wide = node.meta["val"].dtype == torch.float64 and self.narrow == torch.float32
        return wide and node in self.forward and name_of(node.target) == "pow"

    def _is_of_function(self, node: fx.Node) -> bool:
        """Whether what the states are made of takes `node` to a power alone, or rounds it."""
        users = [user for user in node.users if user in self.forward]
        return all(
            name_of(user.target) in ("pow", "detach", "alias") or user.meta["val"].dtype == self.narrow
            for user in users
        )

    def _is_narrow_copy(self, node: fx.Node) -> bool:
        """Whether `node` is a number of 32 bits, in 64."""
        return name_of(node.target) == "_to_copy" and node.all_input_nodes[0].meta["val"].dtype == self.narrow
