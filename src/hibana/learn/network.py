"""Reads a network as a chain of layers of neurons and layers without memory, for online learning.

It reads a chain of modules instead of a graph, because a chain needs no example input. How a rule learns the
layers does not belong here.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hibana.cells import Cell
from hibana.compiler import emits_spikes
from hibana.compiler.graph.ops import Unsupported
from hibana.compiler.reference import state_dtype
from hibana.compiler.tensors import is_parametrized, tensors_of
from hibana.compiler.torch_layers import ORIGINAL_CLASS, role_of
from hibana.learn.derivatives import recursion_of
from hibana.learn.synapses import Synapses, is_sparse, is_synapses
from hibana.nn.each_step import EachStep
from hibana.nn.layers import OverTime, Recurrent
from hibana.nn.over_steps import EagerNetwork
from hibana.nn.running import Stateful

__all__ = ["Layer", "MemorylessLayer", "NeuronLayer", "layers_of"]


@dataclass(eq=False)
class MemorylessLayer:
    """A module whose output at a step depends on its input at that step alone."""

    name: str
    module: nn.Module


@dataclass(eq=False)
class NeuronLayer:
    """A layer of neurons and the weights in front of it."""

    name: str
    module: OverTime | Recurrent
    input_module: nn.Module | None
    """The module that computes the neurons' input from the layer's input; None if both are the same."""
    synapses: Synapses | None
    """The weights in `input_module`."""
    recurrent: Synapses | None
    gradient_scale: float
    """Factor of the gradient through `recurrent`."""
    spikes: bool
    """Whether the neurons emit spikes."""
    readout: "NeuronLayer | None" = None
    """The leaky readout behind the layer: neurons that do not spike; None without a readout."""

    @property
    def cell(self) -> Cell:
        """One step of a neuron."""
        return self.module.cell

    @property
    def cell_parameters(self) -> list[nn.Parameter]:
        """The parameters of the cell that require a gradient."""
        return [p for p in self.cell.parameters() if p.requires_grad]

    def zeros(self, shape: Sequence[int]) -> Tensor:
        """Zeros with the dtype and device of the cell's tensors; float32 on the CPU without tensors."""
        tensors = (tensor for tensor in tensors_of(self.cell).values() if tensor.is_floating_point())
        like = next(tensors, torch.empty(0, dtype=torch.float32, device="cpu"))
        return torch.zeros(tuple(shape), dtype=state_dtype(like.dtype), device=like.device)

    def decay(self, example: Tensor) -> Tensor:
        """The decay factor of a leaky readout's memory per step, such as ``1 - 1/tau`` of LI.

        `example` is a tensor with the dtype and device of the result, a scalar.

        Raises:
            ValueError: if the factor is not the same for all neurons and steps.
        """
        reason = "it has recurrent synapses"
        if self.recurrent is None:
            reason = "its derivative changes with its state or input, or it has several states"
            try:
                recursion = recursion_of(self.cell, example.new_zeros(1, 1))
            except Unsupported as error:
                recursion, reason = None, f"its step can't be followed: {error}"
            if recursion is not None and len(self.cell.state_names()) == 1:
                return recursion.transition[0, 0]
        raise ValueError(
            f"layer {self.name!r}, {type(self.cell).__name__}: a layer that does not spike must leak by one "
            f"factor for all neurons, or what it remembers would be lost to the layers before it: {reason}; "
            'rule "ottt" takes no account of it'
        )


Layer = MemorylessLayer | NeuronLayer


def layers_of(net: nn.Module, keeps_readout: bool) -> list[Layer]:
    """The layers of `net` in order; a linear layer or convolution before neurons is part of their layer.

    Args:
        net: a chain of modules.
        keeps_readout: whether the traces include the leaky readout behind a layer of neurons.

    Raises:
        TypeError: if `net` is not a module, or contains a layer that online rules do not support.
        ValueError: if `net` has no neurons, or a layer with parameters that online rules cannot learn.
    """
    if not isinstance(net, nn.Module):
        raise TypeError(f"net must be a torch.nn.Module, got {type(net).__name__}")
    layers: list[Layer] = []
    for name, module in _chain("", net):
        if isinstance(module, OverTime | Recurrent):
            previous = layers[-1] if layers else None
            weights = previous.module if isinstance(previous, MemorylessLayer) else None
            inner = weights.module if isinstance(weights, EachStep) else weights
            synapses = None
            if previous is not None and inner is not None and is_synapses(inner):
                synapses = Synapses(previous.name, inner)
                layers.pop()
            layers.append(_neuron_layer(name, module, weights if synapses else None, synapses))
        else:
            _check_memoryless(name, module)
            layers.append(MemorylessLayer(name, module))
    neuron_layers = [layer for layer in layers if isinstance(layer, NeuronLayer)]
    if not neuron_layers:
        raise ValueError("net must hold a layer of neurons, such as hibana.LIF; without one it has no memory")
    for layer in layers[: layers.index(neuron_layers[-1])]:
        if isinstance(layer, MemorylessLayer) and any(p.requires_grad for p in layer.module.parameters()):
            raise ValueError(
                f"layer {layer.name!r}, {type(layer.module).__name__}, has parameters to learn but does not "
                "feed neurons directly; only a linear layer, Conv1d or Conv2d right before a layer of "
                "neurons, and layers behind the last one, can be learned online: freeze it "
                "(requires_grad_(False))"
            )
    if keeps_readout:
        _set_readouts(neuron_layers)
    return layers


def _chain(name: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules of nested ``nn.Sequential``s in the order of execution, with their names."""
    was = module.__dict__.get(ORIGINAL_CLASS) if isinstance(module, EagerNetwork) else type(module)
    if was is nn.Sequential:
        for child_name, child in module.named_children():
            yield from _chain(f"{name}.{child_name}" if name else child_name, child)
    else:
        yield name, module


def _neuron_layer(
    name: str, layer: OverTime | Recurrent, input_module: nn.Module | None, synapses: Synapses | None
) -> NeuronLayer:
    """The record of a layer of neurons; raises if it can't be learned online."""
    recurrent, scale = None, 1.0
    if is_parametrized(layer.cell):
        raise ValueError(f"layer {name!r}: its cell has parametrizations, which rules don't see through")
    if isinstance(layer, Recurrent):
        if role_of(layer.recurrent) != "linear" and not is_sparse(layer.recurrent):
            kind = type(layer.recurrent).__name__
            raise TypeError(
                f"layer {name!r}: recurrent must be an nn.Linear to be learned online, or a "
                f"hibana.SparseLinear without delays, got {kind}"
            )
        recurrent, scale = Synapses(f"{name}.recurrent", layer.recurrent), layer.gradient_scale
    try:
        spikes = emits_spikes(layer.cell)
    except Unsupported as error:
        raise ValueError(f"layer {name!r}: {error}") from error
    return NeuronLayer(name, layer, input_module, synapses, recurrent, scale, spikes)


def _check_memoryless(name: str, module: nn.Module) -> None:
    """Raises if a module in `module` has a memory, or mixes steps (batch normalization in training)."""
    for inner in module.modules():
        kind = type(inner).__name__
        if isinstance(inner, Stateful):
            raise TypeError(
                f"layer {name or 'net'!r}: no rule knows {kind}; net must be an nn.Sequential of layers "
                "without time, hibana.OverTime (hibana.LIF, ...) and hibana.Recurrent"
            )
        if role_of(inner) == "recurrent":
            raise TypeError(f"layer {name!r}: no rule knows {kind}; use hibana.Recurrent")
        if role_of(inner) == "batch normalization" and inner.training:
            raise ValueError(
                f"layer {name!r}: {kind} in training takes its statistics of all steps; "
                "fold it into the weights (hibana.fold_batchnorm) or set it to eval()"
            )


def _set_readouts(layers: list[NeuronLayer]) -> None:
    """Sets the `readout` of each layer that has a leaky layer behind it; raises if it has two."""
    for i, layer in enumerate(layers):
        leaky = [other for other in layers[i + 1 :] if not other.spikes]
        if len(leaky) > 1:
            names = " and ".join(repr(other.name) for other in leaky)
            raise ValueError(
                f"net must hold one leaky layer behind layer {layer.name!r}, got {names}: "
                "the memory of the others would be lost"
            )
        if leaky:
            layer.readout = leaky[0]
            layer.readout.decay(layer.readout.zeros(()))  # raises if the layer can't be a readout
