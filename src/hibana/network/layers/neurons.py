"""Layers of neurons: any cell over time, with or without synapses back to itself."""

from typing import TYPE_CHECKING

import torch
from torch import nn

from hibana.network.graph import Node
from hibana.network.layers.base import LayerKind, Operations
from hibana.network.neurons import layer
from hibana.nn.delayed_recurrent import DelayedRecurrent
from hibana.nn.layers import OverTime, Recurrent

if TYPE_CHECKING:
    from hibana.network.scan import OnnxStep

__all__ = ["DelayedRecurrentNeurons", "Neurons"]


class Neurons(LayerKind):
    """:class:`hibana.OverTime` (:class:`hibana.LIF`, ...) and :class:`hibana.Recurrent`."""

    name = "neurons"
    types: tuple[type[nn.Module], ...] = (OverTime, Recurrent)
    over_time = True
    feedback = 0
    """Matrices that the layer multiplies with besides those of its step."""

    def title(self, node: Node) -> str:
        module = node.module
        cell = type(module.cell).__name__.removesuffix("Cell")
        return f"recurrent {cell}" if isinstance(module, Recurrent) else cell

    def operations(self, node: Node, dtype: torch.dtype) -> Operations:
        traced = layer(node, 0, torch.arange(node.size, dtype=torch.int64, device="cpu"), dtype)
        products = (len(traced.products) + self.feedback) * node.size**2
        neurons = traced.operations * node.size
        at_rates = neurons + products * (node.density if traced.emits_spikes else 1.0)
        return Operations(neurons + products, at_rates, products)

    def to_onnx(self, node: Node, inputs: list[str], step: "OnnxStep") -> str:
        return step.neurons(node, inputs[0])


class DelayedRecurrentNeurons(Neurons):
    """:class:`hibana.DelayedRecurrent`: spikes come back through synapses with a delay each."""

    name = "delayed recurrent"
    types = (DelayedRecurrent,)
    feedback = 1

    def check(self, node: Node) -> None:
        synapses = node.seen[0] * 2
        self.require(node, node.seen[0], {"recurrent.weight": synapses, "recurrent.delay": synapses})

    def title(self, node: Node) -> str:
        return f"delayed recurrent {super().title(node)}"

    def to_onnx(self, node: Node, inputs: list[str], step: "OnnxStep") -> str:
        self.refuse(node, "ONNX")
