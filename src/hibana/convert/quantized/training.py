"""Training with the weights that a network in whole numbers will have."""

import copy
from typing import Any, cast

from torch import Tensor, nn
from torch.nn.utils import parametrize

from hibana.convert.graph import WEIGHTED, Node, read
from hibana.convert.quantized.network import area_of, check_bits, input_range, reaches_spikes
from hibana.convert.quantized.rounding import Rounded, RoundedBias
from hibana.loop import emits_spikes

__all__ = ["quantization_aware"]


def quantization_aware(net: nn.Module, calibration: Tensor, bits: int = 8) -> nn.Module:
    """A copy of `net` to be trained on: it computes with weights and biases rounded as by :func:`quantize`.

    The gradient passes through the rounding as if it were not there. After training give the copy to
    :func:`quantize`, with the same `bits`: its weights and biases then change nothing. What it rounds besides
    is not seen in training: inputs, leaks, and the weights of :class:`hibana.Recurrent`. The bias of a layer
    whose input are potentials (of :class:`hibana.LI`) is not either.

    Args:
        net: a network, as :func:`quantize` takes it; it is left as it is.
        calibration: inputs ``[T, batch, ...]``.
        bits: of a weight, from 2 to 8.

    Raises:
        ValueError: if `bits` is none of these.
        Unsupported: naming the layer, if it can't be written.

    >>> import torch, hibana as hb
    >>> net = torch.nn.Sequential(torch.nn.Linear(2, 8), hb.IF(), torch.nn.Linear(8, 3), hb.LI())
    >>> aware = hb.convert.quantization_aware(net, torch.rand(4, 1, 2), bits=2)
    >>> len(aware[2].weight.unique())  # minus one, zero and one, times one scale
    3
    """
    limit = check_bits(bits)
    network = read(net, calibration)
    aware = copy.deepcopy(net)
    for node in network.nodes:
        if node.kind in WEIGHTED:
            module: Any = aware.get_submodule(node.name)
            weight, rounded = module.weight, Rounded(limit, reaches_spikes(node, network.output))
            parametrize.register_parametrization(module, "weight", rounded, unsafe=True)
            of_input = unit_of(node.inputs[0])
            if module.bias is not None and of_input is not None:
                bias = RoundedBias(rounded, weight, of_input)
                parametrize.register_parametrization(module, "bias", bias, unsafe=True)
    return aware


def unit_of(node: Node) -> float | None:
    """What a whole number of `node` will stand for; None if it depends on weights."""
    if node.kind == "input":
        return input_range(node)[0]
    if node.kind == "neurons":
        return 1.0 if emits_spikes(cast(Any, node.module).cell) else None
    units = [unit_of(source) for source in node.inputs]
    if None in units or node.kind in (*WEIGHTED, "scale"):
        return None
    return units[0] / area_of(node) if node.kind == "average" and units[0] is not None else units[0]
