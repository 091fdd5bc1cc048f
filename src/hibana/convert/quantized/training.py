"""Training with the weights that a network in whole numbers will have."""

import copy

from torch import Tensor, nn
from torch.nn.utils import parametrize

from hibana.convert.graph import WEIGHTED, read
from hibana.convert.quantized.network import check_bits, reaches_spikes
from hibana.convert.quantized.rounding import Rounded

__all__ = ["quantization_aware"]


def quantization_aware(net: nn.Module, calibration: Tensor, bits: int = 8) -> nn.Module:
    """A copy of `net` to be trained on: its layers compute with weights rounded as :func:`quantize` rounds.

    The gradient passes through the rounding as if it were not there. After training give the copy to
    :func:`quantize`, with the same `bits`: its weights then change nothing. What it rounds besides is not
    seen in training: biases, inputs, leaks, and the weights of :class:`hibana.Recurrent`.

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
            module = aware.get_submodule(node.name)
            parametrize.register_parametrization(
                module, "weight", Rounded(limit, reaches_spikes(node, network.output)), unsafe=True
            )
    return aware
