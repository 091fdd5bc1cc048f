"""Some steps of a layer that were run together, and what their gradient needs."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from hibana.learn.compiled import AnySystem
from hibana.learn.system import System

__all__ = ["Block", "Chunk"]


@dataclass(eq=False)
class Chunk:
    """Some steps of a layer, run."""

    inputs: Tensor
    """What the layer was given, ``[T, batch, ...]``, a leaf of its own graph."""
    drive: Tensor
    """What the weights made of it, with that graph."""
    spikes_before: Tensor | None
    """What recurrent synapses were given: what the neurons emitted one step earlier."""
    system: AnySystem
    sums: list[Tensor]
    """Of each sum for the cell's parameters: what a learning signal is multiplied by, like the chunk."""
    effect: Tensor | None
    """The neuron's side of a trace of rank one, like the chunk."""
    state: tuple[Tensor, ...]
    """After the last step."""
    at_last: tuple[Tensor, ...] = ()
    """The neurons' input in the last step and their states before it, if C of that step is to be found."""
    instant: Callable[[Tensor], Tensor] | None = None
    """From the gradient of what is emitted in each step to that of the step's input, if kernels have it."""


class Block(NamedTuple):
    """What some steps of a chunk come to, which lie in a processor's cache together."""

    system: System
    sums: list[Tensor]
    effect: Tensor | None
