"""``hb.learn.explain``: the traces of each layer under a rule, and the omitted parts of the gradient."""

from collections.abc import Iterator

from torch import nn

from hibana.compiler.tensors import fitting_shape
from hibana.compiler.torch_layers import role_of
from hibana.learn.network import Layer, MemorylessLayer, NeuronLayer, layers_of
from hibana.learn.online_layer import OnlineLayer, TracePlan
from hibana.learn.rules import Rule, rule_of
from hibana.learn.synapses import is_sparse
from hibana.nn.each_step import EachStep

__all__ = ["explain"]


def explain(net: nn.Module, rule: Rule | str = "d-rtrl") -> str:
    """Describes the traces of each layer of neurons under `rule`, and the omitted parts of the gradient.

    Args:
        net: a network for :func:`hibana.learn.online`.
        rule: a rule or its name, for :func:`hibana.learn.online`.

    Raises:
        TypeError: for the reasons of :func:`hibana.learn.online`.
        ValueError: for the reasons of :func:`hibana.learn.online`, and for a cell whose step can't be
            followed or that the rule does not support.

    >>> import torch, hibana as hb
    >>> net = torch.nn.Sequential(torch.nn.Linear(3, 8), hb.LIF(), torch.nn.Linear(8, 2), hb.LI(tau=5.0))
    >>> print(hb.learn.explain(net))
    rule d-rtrl
    layer '1', LIFCell: 2 numbers for each sample and synapse, 1 of them for the memory of the readout
      nothing is left out: the gradient of backpropagation through time
    layer '3', LICell: 1 number for each sample and input
      nothing is left out: the gradient of backpropagation through time
    """
    rule = rule_of(rule)
    chain = layers_of(net, rule.keeps_readout)
    layers = [layer for layer in chain if isinstance(layer, NeuronLayer)]
    lines = [f"rule {rule.name}"]
    for i, layer in enumerate(layers):
        plan = OnlineLayer(layer, rule).plan(layer.zeros((1, *fitting_shape(layer.cell))))
        lines.append(f"layer {layer.name!r}, {type(layer.cell).__name__}: {_traces(layer, plan)}")
        omissions = [*_omissions(layer, layers[i + 1 :], plan, rule), *_approximations(layer, chain)]
        lines += [f"  left out: {omission}" for omission in omissions]
        if not omissions:
            lines.append("  nothing is left out: the gradient of backpropagation through time")
    return "\n".join(lines)


def _traces(layer: NeuronLayer, plan: TracePlan) -> str:
    """The numbers that the layer's traces store, in words."""
    count = _numbers(len(plan.traced_states))
    leaky = layer.readout is not None
    if plan.is_rank_one:
        states = len(plan.jacobian.independent_states) + leaky
        return f"1 number for each sample and input, {states} for each sample and neuron"
    if plan.recursion is not None:
        return f"{count} for each sample and input"
    readout = ", 1 of them for the memory of the readout" if leaky else ""
    return f"{count} for each sample and synapse{readout}"


def _numbers(count: int) -> str:
    """The noun "number" with its count: ``1 number`` or ``2 numbers``."""
    return f"{count} number{'' if count == 1 else 's'}"


def _omissions(
    layer: NeuronLayer, later_layers: list[NeuronLayer], plan: TracePlan, rule: Rule
) -> Iterator[str]:
    """The parts of the layer's gradient that `rule` leaves out, in words.

    `later_layers` are the layers of neurons behind `layer`.
    """
    if layer.recurrent is not None:
        yield rule.omitted_recurrence
    if not rule.through_spikes and layer.spikes:
        yield "the reset and other effects of its spikes on its later states"
    if plan.is_rank_one:
        yield "the correlation between single inputs and states of a neuron"
    spiking = [repr(later.name) for later in later_layers if later.spikes]
    if spiking:
        yield f"the memory of the neurons of {', '.join(spiking)} at earlier steps"
    leaky = [repr(later.name) for later in later_layers if not later.spikes]
    if leaky and not rule.keeps_readout:
        yield f"the memory of {', '.join(leaky)} at earlier steps"


def _approximations(layer: NeuronLayer, chain: list[Layer]) -> Iterator[str]:
    """The modules before the leaky readout of `layer` whose past derivatives the rule replaces, in words."""
    if layer.readout is None:
        return
    between = chain[chain.index(layer) + 1 : chain.index(layer.readout)]
    modules = [(each.name, each.module) for each in between if isinstance(each, MemorylessLayer)]
    names = ", ".join(repr(name) for name, module in modules if not _is_linear(module))
    if names:
        yield f"the derivative of {names} at the earlier steps that {layer.readout.name!r} remembers"


def _is_linear(module: nn.Module) -> bool:
    """Whether `module` certainly has the same derivative at all steps."""
    if isinstance(module, EachStep):
        return _is_linear(module.module)
    role = role_of(module)
    if role == "sequence":
        return all(_is_linear(child) for child in module.children())
    if role in ("batch normalization", "dropout"):
        return not module.training
    return is_sparse(module) or role in ("linear", "convolution", "average", "reshape")
