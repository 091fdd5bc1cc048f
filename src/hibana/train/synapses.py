"""The numbers of synapses of the fully connected layers of a sparse network."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

__all__ = ["LayerSize", "Synapses"]

ENOUGH_SYNAPSES = 16
"""Mean number of synapses per neuron below which only a part of the hidden neurons has synapses."""


class LayerSize(NamedTuple):
    """The size of a fully connected layer."""

    inputs: int
    outputs: int
    from_hidden: bool
    """Whether the inputs are hidden neurons behind a fully connected layer."""
    to_hidden: bool
    """Whether the outputs are hidden neurons, and not classes."""


@dataclass
class Synapses:
    """The synapses of the fully connected layers of a network.

    All layers together have synapses for the fraction c of their pairs of neurons. A neuron with one or two
    synapses computes little. So if the mean number d of synapses per neuron is below 16, only a part of the
    hidden neurons of each layer has synapses at the beginning:

        part = min(1, max(d / 16, 2 sqrt(c)))

    The second term bounds the fraction of pairs with a synapse, between hidden neurons that have any, by a
    quarter. The number of synapses of a layer is proportional to the sum of its source neurons and target
    neurons, and at most that of a dense layer, so that small layers lose fewer synapses. Each target neuron
    has equally many, rounded down.

    Source: Mocanu et al. (2018), *Scalable training of artificial neural networks with adaptive sparse
    connectivity inspired by network science*, for the numbers of synapses of layers. The number 16 was chosen
    by validation on the digits.
    """

    part: float = 1.0
    """The part of the hidden neurons of a layer that have synapses."""
    scale: float = math.inf
    """The number of synapses of a layer that is not dense, divided by its source and target neurons."""
    layers: list[LayerSize] = field(default_factory=list)
    """The fully connected layers that were built, in order."""

    @classmethod
    def of(cls, layers: Sequence[LayerSize], connectivity: float) -> "Synapses":
        """The synapses of `layers`, a fraction `connectivity` of all possible ones.

        >>> hidden = LayerSize(784, 800, False, True), LayerSize(800, 800, True, True)
        >>> layers = *hidden, LayerSize(800, 10, True, False)
        >>> synapses = Synapses.of(layers, 0.01)
        >>> round(synapses.part, 2), [synapses.between(layer) for layer in layers]
        (0.5, [(784, 397, 15), (397, 397, 10), (397, 10, 217)])
        """
        count = connectivity * sum(layer.inputs * layer.outputs for layer in layers)
        per_neuron = count / max(1, sum(layer.outputs for layer in layers))
        synapses = cls(min(1.0, max(per_neuron / ENOUGH_SYNAPSES, 2 * math.sqrt(connectivity))))
        rest = [synapses.between(layer)[:2] for layer in layers]
        while True:
            synapses.scale = count / max(1, sum(map(sum, rest)))
            dense = [size for size in rest if synapses.scale * sum(size) >= math.prod(size)]
            if not dense:
                return synapses
            count -= sum(map(math.prod, dense))
            rest = [size for size in rest if size not in dense]

    def between(self, layer: LayerSize) -> tuple[int, int, int]:
        """Numbers of sources and of targets with synapses in `layer`, and of synapses of such a target."""
        sources = math.ceil(self.part * layer.inputs) if layer.from_hidden else layer.inputs
        targets = math.ceil(self.part * layer.outputs) if layer.to_hidden else layer.outputs
        count = min(sources * targets, self.scale * (sources + targets))
        return sources, targets, max(1, int(count / targets))

    def count(self, layer: LayerSize) -> int:
        """The number of synapses of `layer`."""
        _, targets, per_target = self.between(layer)
        return targets * per_target
