"""What the layers of a program cost, and what may be looked at after a step."""

from dataclasses import dataclass

from hibana.network.graph import Node

__all__ = ["Cost", "Spiking", "neurons_below"]


@dataclass(frozen=True)
class Cost:
    """What one layer costs at a step."""

    name: str
    what: str
    numbers: int
    """It gives so many."""
    additions: int
    """Of weights, at most; of neurons, all their operations."""
    seen: float
    """At the rates of the example."""
    multiplies: bool
    """Whether each of the additions is of a product."""
    dense: int
    """Products of the dense layer of this shape."""
    source: str
    """The layer whose numbers it goes over: the neurons below, or itself if they are recurrent."""
    size: int
    """How many numbers that has."""


@dataclass(frozen=True)
class Spiking:
    """A layer of neurons that spike, as it can be looked at after a step."""

    name: str
    what: str
    neurons: int
    array: str
    """The array of a byte for each neuron, 1 where it spiked, in the order in which they lie."""


def neurons_below(node: Node) -> Node:
    """The nearest neurons, or the input, that `node` reads."""
    below = node.inputs[0]
    return below if below.kind in ("neurons", "delayed recurrent", "input") else neurons_below(below)
