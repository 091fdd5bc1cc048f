"""A network in integers, whose numbers provably fit into 32 bits, and the report of its quantization."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hibana.network.c import exact_dtype
from hibana.network.integer_network import Quantized
from hibana.network.node import Node
from hibana.network.quantized.aware import QuantizationAware, quantization_aware
from hibana.network.reader import read
from hibana.network.report import sum_outputs

__all__ = ["LayerChange", "Quantization", "quantize"]


@dataclass(frozen=True)
class LayerChange:
    """How quantization changed a layer."""

    name: str
    what: str
    """The class of the layer, or of its cell."""
    weight_error: float
    """Norm of the change of the weights, divided by the norm of the weights; 0 without weights."""
    before: float
    """Fraction of the outputs on the calibration data that are not zero, before quantization."""
    after: float
    """The same fraction after quantization."""
    agreement: float
    """Fraction of the outputs that are equal, for spikes; else the correlation of the outputs."""


@dataclass(frozen=True)
class Quantization:
    """The report of :func:`quantize`."""

    layers: tuple[LayerChange, ...]
    same_class: float
    """Fraction of the samples and steps whose largest output has the same index."""

    def __str__(self) -> str:
        """A table with one row per layer, and the share of samples with the same class."""
        head = f"{'layer':12} {'':12} {'weights changed':>15} {'not zero':>10} {'now':>10} {'agreement':>10}"
        rows = [
            f"{c.name:12.12} {c.what:12} {c.weight_error:15.2%} {c.before:10.2%} {c.after:10.2%} "
            f"{c.agreement:10.2%}"
            for c in self.layers
        ]
        return "\n".join([head, *rows, f"same class: {self.same_class:.2%}"])


def quantize(net: nn.Module, calibration: Tensor, bits: int | None = None) -> tuple[Quantized, Quantization]:
    """`net` in integers: weights of `bits` bits, and potentials of 32 bits that provably do not overflow.

        q_oi = round(W_oi / s_o),  s_o = max_i |W_oi| / (2^(bits-1) - 1),  threshold_o / s_o rounded down

    Each output channel before spiking neurons has its own scale, which the threshold of its neuron
    absorbs. Outputs of rectifiers are divided by a power of two, rounded, and limited to 8 bits, which
    hold the largest output on the calibration data. A readout has one scale, so that its outputs can be
    compared, and so have sparse layers, and layers that are added; among these, weights of layers that
    read numbers of another scale than the others, such as the input, have up to 8 bits more than `bits`.
    Weights that are multiples of the smallest one, by at most 2^(bits-1) - 1, are exact. Inputs become
    bytes, unless all are 0 or 1; batch normalization is folded. A leak is a shift if tau is a power of
    two, else a rounded product. Neurons without a leak that read spikes do not multiply. Cells of any
    kind get the fixed-point form of their step (:mod:`hibana.compiler.analysis.fixed_point`), with
    matrices of `bits` bits.

    Args:
        net: a trained network, as :func:`to_c` takes it, or the result of :func:`quantization_aware`, whose
            integers stay the same; it does not change.
        calibration: inputs ``[T, batch, ...]``, such as training samples. They determine the range of inputs
            and of the states of some cells, and the number of steps within which nothing may overflow; the
            report compares the outputs on them.
        bits: bits of a weight, from 2 to 8; None for 8, or for the bits that `net` was trained with.

    Returns:
        The network, with the inputs and outputs of `net`, and the report.

    Raises:
        TypeError: if `calibration` is not a floating-point tensor.
        ValueError: if `bits` is not an integer from 2 to 8, or differs from the bits that `net` was trained
            with, or `calibration` has another shape.
        Unsupported: naming the layer, if it or an operation in its step has no integer form, or a number
            does not fit.

    Source: Jacob et al. (2018), *Quantization and training of neural networks for efficient
    integer-arithmetic-only inference*, for scales per channel and integer sums; that a threshold absorbs the
    scale is particular to spiking neurons.

    >>> import torch, hibana as hb
    >>> net = torch.nn.Sequential(torch.nn.Linear(2, 8), hb.IF(), torch.nn.Linear(8, 3), hb.LI())
    >>> x = torch.rand(16, 4, 2)
    >>> small, report = hb.quantize(net, x)
    >>> program = hb.convert.to_c(small, x)
    >>> program.kind, program.input
    ('int32_t', 'uint8_t')
    """
    is_trained = isinstance(net, QuantizationAware)
    default_bits = 8 if bits is None else bits
    aware = net if isinstance(net, QuantizationAware) else quantization_aware(net, calibration, default_bits)
    if bits not in (None, aware.bits):
        raise ValueError(f"bits must be {aware.bits}, which the network was trained with, got {bits!r}")
    with torch.no_grad():
        small = aware.quantized()
        small.steps, small.dtype = len(calibration), exact_dtype(small, calibration)
        small.net.to(small.dtype)
        network = read(aware.plain, calibration)
        scales = dict(zip(network.nodes, aware.scales, strict=True))
        nodes = [node for node in network.nodes if node.module is not None]
        outputs_after = _outputs(nodes, network.output, small.net, small.integer_input(calibration), scales)
        outputs_before = outputs_after  # the integers of a trained network stay the same
        if not is_trained:
            outputs_before = _outputs(nodes, network.output, aware.plain, calibration)
        layers = []
        for node in nodes:
            error = 0.0 if is_trained else _weight_error(node, aware, small)
            layers.append(_layer_change(node, error, outputs_before[node], outputs_after[node]))
        classes = [
            outputs[network.output].flatten(1).argmax(1) for outputs in (outputs_before, outputs_after)
        ]
        same_class = float((classes[0] == classes[1]).double().mean())
        return small, Quantization(tuple(layers), same_class)


def _outputs(
    nodes: list[Node], output: Node, net: nn.Module, inputs: Tensor, scales: dict[Node, Any] | None = None
) -> dict[Node, Tensor]:
    """The output of each node in `net` for `inputs`, ``[samples of all steps, ...]``, times its scale."""
    with sum_outputs(net, [node.name for node in nodes]) as results:
        result = net(inputs)
    outputs = {node: results[node.name] for node in nodes} | {output: result}
    factors: dict[Node, Any] = scales or dict.fromkeys(outputs, 1.0)
    return {node: x.reshape(-1, *node.shape).double() * factors[node] for node, x in outputs.items()}


def _weight_error(node: Node, aware: QuantizationAware, small: Quantized) -> float:
    """Norm of the change of the weights of `node`, divided by their norm; 0 without weights."""
    layer: Any = small.net.get_submodule(node.name)
    if node.kind == "neurons":
        return max((e for name, e in layer.cell.errors.items() if name.startswith("matrix")), default=0.0)
    if node.name not in aware.units:
        return 0.0
    plain: Any = aware.plain.get_submodule(node.name)
    weight, unit = plain.weight.double(), aware.units[node.name]
    change = layer.weight.double() * unit.view([-1] + [1] * (weight.ndim - 1)) - weight
    return float(change.norm() / weight.norm().clamp(min=1e-30))


def _layer_change(node: Node, weight_error: float, before: Tensor, after: Tensor) -> LayerChange:
    """The change of `node`, from its outputs `before` and `after` quantization, in the same units."""
    if node.kind == "neurons" and bool(((before == 0) | (before == 1)).all()):
        agreement = float((before == after).double().mean())
    else:
        centered = torch.stack([before.flatten(), after.flatten()])
        centered = centered - centered.mean(1, keepdim=True)
        norms = centered.norm(dim=1).prod()
        agreement = 1.0 if float(norms) == 0 else float((centered[0] * centered[1]).sum() / norms)
    module: Any = node.module
    layer = type(getattr(module, "cell", module)).__name__.removesuffix("Cell")
    density_before, density_after = (float(x.count_nonzero()) / x.numel() for x in (before, after))
    return LayerChange(node.name, layer, weight_error, density_before, density_after, agreement)
