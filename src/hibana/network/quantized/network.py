"""A network in whole numbers: weights of few bits, potentials in 32, nothing that overflows."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from hibana.network.c import exact_dtype
from hibana.network.graph import Node
from hibana.network.integer_network import Quantized
from hibana.network.quantized.aware import QuantizationAware, quantization_aware
from hibana.network.quantized.changes import Quantization, change, same_class
from hibana.network.reader import read
from hibana.network.straight import doubles

__all__ = ["quantize"]


def quantize(net: nn.Module, calibration: Tensor, bits: int | None = None) -> tuple[Quantized, Quantization]:
    """`net` in whole numbers: weights of `bits` bits, potentials in 32 bits that provably do not overflow.

        q_oi = round(W_oi / s_o),  s_o = max_i |W_oi| / (2^(bits-1) - 1),  threshold_o / s_o rounded down

    Each output channel below spiking neurons has a scale of its own, which goes into its neuron's threshold;
    what is read out has one for all, so that its numbers can be compared, and so have layers that read spikes
    and whose outputs are added. Weights of which each is a multiple of the smallest, at most 2^(bits-1) - 1
    times it, are represented exactly. Inputs become bytes, unless all are 0 or 1; batch normalisation is
    folded. A leak is a shift where tau is a power of two, else a product that is rounded. With neurons that
    do not leak, on spikes, nothing is multiplied. Cells of any kind get the fixed-point form of their step
    (:mod:`hibana.compiler.analysis.fixed_point`), with matrices of `bits` bits.

    Args:
        net: a trained network, as :func:`to_c` takes it, or one that :func:`quantization_aware` made, which
            is taken as it computes; it is left as it is.
        calibration: inputs ``[T, batch, ...]``, such as training samples: they say what range inputs, and the
            states of some cells, have, for how many steps nothing may overflow, and what the report compares.
        bits: of a weight, from 2 to 8; 8 if none are given, or those that `net` was trained with.

    Returns:
        The network, which takes and gives what `net` does, and the report.

    Raises:
        ValueError: if `bits` is none of these, or not what `net` was trained with.
        Unsupported: naming the layer, if it or an operation in its step has no form in whole numbers, or a
            number does not fit.

    Source: Jacob et al. (2018), *Quantization and training of neural networks for efficient
    integer-arithmetic-only inference*, for scales per channel and integer sums; that a threshold takes the
    scale is the neuron's own.

    >>> import torch, hibana as hb
    >>> net = torch.nn.Sequential(torch.nn.Linear(2, 8), hb.IF(), torch.nn.Linear(8, 3), hb.LI())
    >>> x = torch.rand(16, 4, 2)
    >>> small, report = hb.quantize(net, x)
    >>> program = hb.convert.to_c(small, x)
    >>> program.kind, program.input
    ('int32_t', 'uint8_t')
    """
    trained = isinstance(net, QuantizationAware)
    if isinstance(net, QuantizationAware):
        if bits not in (None, net.bits):
            raise ValueError(f"bits must be {net.bits}, which the network was trained with, got {bits!r}")
        aware = net
    else:
        aware = quantization_aware(net, calibration, 8 if bits is None else bits)
    with torch.no_grad():
        whole = aware.quantized()
        whole.steps, whole.dtype = len(calibration), exact_dtype(whole, calibration)
        whole.net.to(whole.dtype)
        network = read(aware.plain, calibration)
        nodes = [node for node in network.nodes if node.module is not None]
        scales = dict(zip(network.nodes, map(doubles, aware.scales), strict=True))
        now = _outputs(nodes, network.output, whole.net, whole.integer_input(calibration))
        if trained:
            net = copy.deepcopy(aware.net).eval()
            given = _outputs(nodes, network.output, net, aware.integer_input(calibration))
            was = {node: values * scales[node] for node, values in given.items()}
        else:
            was = _outputs(nodes, network.output, aware.plain, calibration)
        errors = {} if trained else _errors(nodes, aware, whole)
        changes = [change(node, errors.get(node, 0.0), was[node], now[node] * scales[node]) for node in nodes]
        return whole, Quantization(tuple(changes), same_class(was[network.output], now[network.output]))


def _errors(nodes: list[Node], aware: QuantizationAware, whole: Quantized) -> dict[Node, float]:
    """What the weights of each layer changed by, over the weights, root mean squares."""
    errors = {}
    for node in nodes:
        layer: Any = whole.net.get_submodule(node.name)
        if node.name in aware.units:
            plain: Any = aware.plain.get_submodule(node.name)
            weight, unit = plain.weight.double(), aware.units[node.name]
            changed = layer.weight.double() * unit.view([-1] + [1] * (weight.ndim - 1)) - weight
            errors[node] = float(changed.norm() / weight.norm().clamp(min=1e-30))
        elif node.kind == "neurons":
            of_matrices = [e for what, e in layer.cell.errors.items() if what.startswith("matrix")]
            errors[node] = max(of_matrices, default=0.0)
    return errors


def _outputs(nodes: list[Node], output: Node, net: nn.Module, inputs: Tensor) -> dict[Node, Tensor]:
    """What each layer of `net` gives for `inputs`, ``[samples, ...]`` of all steps, and the network."""
    found: dict[Node, Tensor] = {}
    hooks = []
    for node in nodes:

        def keep(module: nn.Module, args: Any, outputs: Tensor, node: Node = node) -> None:
            found[node] = outputs.reshape(-1, *node.shape).double()

        hooks.append(net.get_submodule(node.name).register_forward_hook(keep))
    try:
        outputs = net(inputs)
    finally:
        for hook in hooks:
            hook.remove()
    found[output] = outputs.reshape(-1, *output.shape).double()
    return found
