"""What a rule keeps and leaves out of each layer of a network, in words."""

from collections.abc import Iterator

import torch
from torch import nn

from hibana.compiler.tensors import tensors_of
from hibana.compiler.torch_layers import role_of
from hibana.learn.memory import Memory, Plan
from hibana.learn.network import Layer, Neurons, Plain, layers_of
from hibana.learn.rules import Rule, named
from hibana.nn.each_step import EachStep

__all__ = ["explain"]


def explain(net: nn.Module, rule: Rule | str = "d-rtrl") -> str:
    """For each layer of neurons of `net`: the traces that `rule` keeps, and what it leaves out.

    Args:
        net: as of :func:`hibana.learn.online`.
        rule: likewise.

    Raises:
        TypeError: as :func:`hibana.learn.online`.
        ValueError: likewise, and for a cell whose step can't be followed or that the rule does not suit.

    >>> import torch, hibana as hb
    >>> net = torch.nn.Sequential(torch.nn.Linear(3, 8), hb.LIF(), torch.nn.Linear(8, 2), hb.LI(tau=5.0))
    >>> print(hb.learn.explain(net))
    rule d-rtrl
    layer '1', LIFCell: 2 numbers for each sample and synapse, 1 of them for what the readout remembers
      nothing is left out: the gradient of backpropagation through time
    layer '3', LICell: 1 number for each sample and input
      nothing is left out: the gradient of backpropagation through time
    """
    chosen = named(rule)
    chain = layers_of(net, chosen.keeps_readout)
    layers = [one for one in chain if isinstance(one, Neurons)]
    lines = [f"rule {chosen.name}"]
    for i, layer in enumerate(layers):
        plan = _plan(layer, chosen)
        lines.append(f"layer {layer.name!r}, {type(layer.cell).__name__}: {_traces(layer, plan)}")
        left_out = [*_left_out(layer, layers[i + 1 :], plan, chosen), *_changing(layer, chain)]
        lines += [f"  left out: {one}" for one in left_out]
        if not left_out:
            lines.append("  nothing is left out: the gradient of backpropagation through time")
    return "\n".join(lines)


def _plan(layer: Neurons, rule: Rule) -> Plan:
    """How the traces of one sample are computed."""
    cell = layer.cell
    held = list(tensors_of(cell).values())
    one: torch.Size = torch.broadcast_shapes(*(tensor.shape for tensor in held))  # type: ignore[no-untyped-call] # torch leaves it so
    if layer.synapses is not None and one.numel() == 1:
        one = torch.Size([layer.synapses.parameters[0].shape[0]])
    dtype = next((tensor.dtype for tensor in held if tensor.is_floating_point()), torch.float32)
    device = held[0].device if held else torch.device("cpu")
    return Memory(layer, rule).plan(torch.zeros(1, *one, dtype=dtype, device=device))


def _traces(layer: Neurons, plan: Plan) -> str:
    count, leaky = len(plan.structure.components), layer.readout is not None
    if plan.is_rank_one:
        return f"1 number for each sample and input, {count + leaky} for each sample and neuron"
    if plan.recursion is not None:
        return f"{_numbers(len(plan.components))} for each sample and input"
    remembered = ", 1 of them for what the readout remembers" if leaky else ""
    return f"{_numbers(count + leaky)} for each sample and synapse{remembered}"


def _numbers(count: int) -> str:
    return f"{count} number{'' if count == 1 else 's'}"


def _left_out(layer: Neurons, behind: list[Neurons], plan: Plan, rule: Rule) -> Iterator[str]:
    if layer.recurrent is not None:
        yield rule.of_recurrence
    if not rule.through_spikes and layer.spikes:
        yield "the reset, and what else its spikes change in its own later states"
    if plan.is_rank_one:
        yield "which input met which state of the neuron"
    spiking = [repr(one.name) for one in behind if one.spikes]
    if spiking:
        yield f"what the neurons of {', '.join(spiking)} remember of earlier steps"
    leaky = [repr(one.name) for one in behind if not one.spikes]
    if leaky and not rule.keeps_readout:
        yield f"what {', '.join(leaky)} remembers of earlier steps"


def _changing(layer: Neurons, chain: list[Layer]) -> Iterator[str]:
    """Modules between `layer` and its leaky readout whose derivative changes from step to step."""
    if layer.readout is None:
        return
    between = chain[chain.index(layer) + 1 : chain.index(layer.readout.layer)]
    names = [repr(one.name) for one in between if isinstance(one, Plain) and not _is_linear(one.module)]
    if names:
        of, readout = ", ".join(names), layer.readout.name
        yield f"the derivative of {of} at the earlier steps that {readout!r} remembers"


def _is_linear(module: nn.Module) -> bool:
    """Whether the derivative of `module` is known to be the same at all steps."""
    if isinstance(module, EachStep):
        return _is_linear(module.module)
    role = role_of(module)
    if role == "sequence":
        return all(_is_linear(child) for child in module.children())
    if role in ("batch normalization", "dropout"):
        return not module.training
    return role in ("linear", "convolution", "average", "reshape")
