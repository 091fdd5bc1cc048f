"""A layer in the graph of a network, for one sample and one step, and orders of its numbers in memory."""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

__all__ = ["Node", "Shape", "channels_last", "in_order"]

Shape = tuple[int, ...]


@dataclass(eq=False)
class Node:
    """One layer of a network, for one sample and step."""

    name: str
    """The layer's path in the network; ``"input"`` for the network's input."""
    kind: str
    """The name of its kind of layer, in the table :data:`hibana.network.layers.LAYERS`."""
    module: Any
    """An ``nn.Module``; None for arithmetic in a ``forward``."""
    inputs: tuple["Node", ...]
    input_shapes: tuple[Shape, ...]
    """The shape of one sample of each input, as the layer reads it; a source may have another shape."""
    shape: Shape
    density: float = 1.0
    """Fraction of the outputs on the example that are not zero."""
    value_range: tuple[float, float] = (0.0, 0.0)
    """Smallest and largest output on the example."""
    binary: bool = False
    """Whether all outputs on the example are 0 or 1."""
    users: list["Node"] = field(default_factory=list)

    @property
    def size(self) -> int:
        """Number of outputs of one sample."""
        return math.prod(self.shape)


def in_order(count: int) -> Tensor:
    """The indices 0 to `count` - 1, which describe numbers in PyTorch's own order in memory."""
    return torch.arange(count, dtype=torch.int64, device="cpu")


def channels_last(shape: Shape) -> Tensor:
    """PyTorch's index of the number at each place of an image whose channels are last in memory."""
    return in_order(math.prod(shape)).view(shape[0], -1).T.flatten()
