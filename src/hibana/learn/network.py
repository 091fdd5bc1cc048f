"""A network as a chain of layers of neurons, each with its weights; what can't be learned online.

What rules make of it is not here. A chain of modules suffices, so that no example is needed to read a graph.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hibana.cells import Cell
from hibana.compiler import emits_spikes
from hibana.compiler.graph.ops import Unsupported
from hibana.compiler.reference import state_dtype
from hibana.compiler.tensors import is_parametrized, tensors_of
from hibana.compiler.torch_layers import role_of
from hibana.learn.derivatives import FollowedStep
from hibana.learn.synapses import Synapses, is_synapses
from hibana.nn.each_step import EachStep
from hibana.nn.layers import OverTime, Recurrent
from hibana.nn.normalized import NormalizingSequential
from hibana.nn.running import Stateful

__all__ = ["Leak", "Layer", "Neurons", "Plain", "layers_of"]


@dataclass(eq=False)
class Plain:
    """A module without a memory."""

    name: str
    module: nn.Module


@dataclass(eq=False)
class Neurons:
    """A layer of neurons and the weights in front of it."""

    name: str
    module: OverTime | Recurrent
    feeds: nn.Module | None
    """What is called on a sequence for the neurons' input; None if that is the input itself."""
    synapses: Synapses | None
    """The weights in `feeds`."""
    recurrent: Synapses | None
    gradient_scale: float
    """Of the gradient through `recurrent`."""
    spikes: bool
    readout: "Leak | None" = None
    """That of the leaky readout behind it, if there is one."""

    @property
    def cell(self) -> Cell:
        """One step of a neuron."""
        return self.module.cell

    @property
    def step(self) -> Cell:
        """One step of the layer, recurrent synapses included."""
        return self.module.step() if isinstance(self.module, Recurrent) else self.module.cell

    @property
    def learned(self) -> list[nn.Parameter]:
        """The parameters of the cell that have a gradient."""
        return [p for p in self.cell.parameters() if p.requires_grad]


Layer = Plain | Neurons


def layers_of(net: nn.Module, keeps_readout: bool) -> list[Layer]:
    """The layers of `net` in order.

    Raises:
        TypeError: if `net` is no module, or naming the layer that no rule knows.
        ValueError: naming the layer that can't be learned online as it is, and what to do.
    """
    if not isinstance(net, nn.Module):
        raise TypeError(f"net must be a torch.nn.Module, got {type(net).__name__}")
    found: list[Layer] = []
    for name, module in _chain("", net):
        if isinstance(module, OverTime | Recurrent):
            before = found[-1] if found else None
            weights = before.module if isinstance(before, Plain) else None
            inner = weights.module if isinstance(weights, EachStep) else weights
            feeds = weights if inner is not None and is_synapses(inner) else None
            if feeds is not None:
                found.pop()
            synapses = Synapses(before.name, inner) if before and inner and feeds is not None else None
            found.append(_neurons(name, module, feeds, synapses))
        else:
            _check_plain(name, module)
            found.append(Plain(name, module))
    neurons = [layer for layer in found if isinstance(layer, Neurons)]
    if not neurons:
        raise ValueError("net must hold a layer of neurons, such as hibana.LIF; without one it has no memory")
    for layer in found[: found.index(neurons[-1])]:
        if isinstance(layer, Plain) and any(p.requires_grad for p in layer.module.parameters()):
            raise ValueError(
                f"layer {layer.name!r}, {type(layer.module).__name__}, has parameters to learn but does not "
                "feed neurons directly; only a linear layer, Conv1d or Conv2d right before a layer of "
                "neurons, and layers behind the last one, can be learned online: freeze it "
                "(requires_grad_(False))"
            )
    if keeps_readout:
        _find_readouts(neurons)
    return found


def _chain(name: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules that run one after the other, by name."""
    if type(module) in (nn.Sequential, NormalizingSequential):
        for inner, child in module.named_children():
            yield from _chain(f"{name}.{inner}" if name else inner, child)
    else:
        yield name, module


def _neurons(
    name: str, layer: OverTime | Recurrent, feeds: nn.Module | None, synapses: Synapses | None
) -> Neurons:
    recurrent, scale = None, 1.0
    if is_parametrized(layer.cell):
        raise ValueError(f"layer {name!r}: its cell has parametrisations, which rules don't see through")
    if isinstance(layer, Recurrent):
        if role_of(layer.recurrent) != "linear":
            kind = type(layer.recurrent).__name__
            raise TypeError(
                f"layer {name!r}: recurrent must be an nn.Linear to be learned online, got {kind}"
            )
        recurrent, scale = Synapses(f"{name}.recurrent", layer.recurrent), layer.gradient_scale
    try:
        spikes = emits_spikes(layer.cell)
    except Unsupported as reason:
        raise ValueError(f"layer {name!r}: {reason}") from reason
    return Neurons(name, layer, feeds, synapses, recurrent, scale, spikes)


def _check_plain(name: str, module: nn.Module) -> None:
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


def _find_readouts(neurons: list[Neurons]) -> None:
    """Has each layer know the leaky readout behind it."""
    for i, layer in enumerate(neurons):
        leaky = [other for other in neurons[i + 1 :] if not other.spikes]
        if len(leaky) > 1:
            names = " and ".join(repr(other.name) for other in leaky)
            raise ValueError(
                f"net must hold one leaky layer behind layer {layer.name!r}, got {names}: "
                "the memory of the others would be lost"
            )
        if leaky:
            layer.readout = Leak(leaky[0])


class Leak:
    """The factor by which the memory of a leaky readout decays in a step: ``1 - 1/tau`` of LI.

    Raises:
        ValueError: if it is not one constant for all neurons.
    """

    def __init__(self, layer: Neurons) -> None:
        self.name, self.layer = layer.name, layer
        self._step = FollowedStep(layer.cell)
        if layer.recurrent is not None:
            raise self._refusal("it has recurrent synapses")
        self.factor(_example(layer.cell))

    def factor(self, like: Tensor) -> Tensor:
        """The factor now, of the dtype and on the device of a tensor."""
        one_step = like.new_zeros(1, 1)
        try:
            recursion = self._step.recursion(one_step)
        except Unsupported as reason:
            raise self._refusal(f"its step can't be followed: {reason}") from reason
        if recursion is None or self._step.structure(one_step).states > 1:
            raise self._refusal("its derivative changes with its state or input, or it has several states")
        return recursion.transition[0, 0]

    def _refusal(self, reason: str) -> ValueError:
        return ValueError(
            f"layer {self.name!r}, {type(self.layer.cell).__name__}: a layer that does not spike must leak "
            f"by one factor for all neurons, or what it remembers would be lost to the layers before it: "
            f"{reason}; "
            'rule "ottt" takes no account of it'
        )


def _example(cell: Cell) -> Tensor:
    """A tensor of the dtype and device of the tensors of `cell`."""
    found = (tensor for tensor in tensors_of(cell).values() if tensor.is_floating_point())
    own = next(found, torch.zeros((), dtype=torch.float32, device="cpu"))
    return torch.zeros((), dtype=state_dtype(own.dtype), device=own.device)
