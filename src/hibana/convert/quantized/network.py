"""A network in whole numbers: weights of few bits, potentials in 32, nothing that overflows."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hibana.convert.c import proved
from hibana.convert.graph import Network, Node, read
from hibana.convert.quantized.cells import Scale, whole_cell
from hibana.convert.quantized.rounding import without_rounding
from hibana.convert.sliding import sliding_of
from hibana.convert.whole import Quantized
from hibana.layers import OverTime, Recurrent
from hibana.loop import emits_spikes
from hibana.loop.graph.ops import Unsupported

__all__ = ["LayerChange", "Quantization", "quantize"]


@dataclass(frozen=True)
class LayerChange:
    """What quantisation made of a layer."""

    name: str
    what: str
    weight_error: float
    """Root mean square of what the weights changed by, over that of the weights; 0 without weights."""
    before: float
    """The part of its numbers that are not zero on the calibration data, before;"""
    after: float
    """and after."""
    agreement: float
    """The part of its numbers that are as they were, of what spikes; else the correlation."""


@dataclass(frozen=True)
class Quantization:
    """The report of :func:`quantize`, layer by layer."""

    layers: tuple[LayerChange, ...]
    same_class: float
    """The part of the samples and steps whose largest output is at the same place."""

    def __str__(self) -> str:
        head = f"{'layer':12} {'':12} {'weights changed':>15} {'not zero':>10} {'now':>10} {'agreement':>10}"
        rows = [
            f"{c.name:12.12} {c.what:12} {c.weight_error:15.2%} {c.before:10.2%} {c.after:10.2%} "
            f"{c.agreement:10.2%}"
            for c in self.layers
        ]
        return "\n".join([head, *rows, f"same class: {self.same_class:.2%}"])


def quantize(net: nn.Module, calibration: Tensor, bits: int = 8) -> tuple[Quantized, Quantization]:
    """`net` in whole numbers: weights of `bits` bits, potentials in 32 bits that provably do not overflow.

        q_oi = round(W_oi / s_o),  s_o = max_i |W_oi| / (2^(bits-1) - 1),  threshold_o / s_o rounded down

    Each output channel below spiking neurons has a scale of its own, which goes into its neuron's threshold;
    what is read out has one for all, so that its numbers can be compared. Inputs become bytes, unless all are
    0 or 1; batch normalisation is folded. A leak is a shift where tau is a power of two, else a product that
    is rounded. With neurons that do not leak, on spikes, nothing is multiplied.

    Args:
        net: a trained network, as :func:`to_c` takes it; it is left as it is.
        calibration: inputs ``[T, batch, ...]``, such as training samples: they say what range inputs have,
            for how many steps nothing may overflow, and what the report compares.
        bits: of a weight, from 2 to 8.

    Returns:
        The network, which takes and gives what `net` does, and the report.

    Raises:
        ValueError: if `bits` is none of these.
        Unsupported: naming the layer, if it has no form in whole numbers, or a number does not fit.

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
    limit = check_bits(bits)
    with torch.no_grad():
        network = read(without_rounding(net), calibration)
        before = _outputs(network, network.net, calibration)
        made = _Quantizing(network, limit)
        for node in network.nodes:
            made.node(node)
        output = made.scales[network.output]
        if isinstance(output, Tensor):
            raise Unsupported(f"layer {network.output.name!r} puts out numbers of different scales")
        whole = Quantized(network.net.double().eval(), *made.input, output, bits)
        whole.steps, whole.dtype = len(calibration), proved(whole, calibration)
        whole.net.to(whole.dtype)
        after = _outputs(network, whole.net, whole.whole_input(calibration))
        return whole, Quantization(
            tuple(made.change(node, before, after) for node in network.nodes if node.module is not None),
            _same_class(before[network.output], after[network.output]),
        )


class _Quantizing:
    """The layers of a network made whole, from its input on; a number is its scale times a whole number."""

    def __init__(self, network: Network, limit: int) -> None:
        self.network, self.limit = network, limit
        self.scales: dict[Node, Scale] = {}
        self.errors: dict[Node, float] = {}
        self.input: tuple[float, tuple[int, int]] = (1.0, (0, 1))

    def node(self, node: Node) -> None:
        """Makes `node` whole, and says in what scale its numbers are."""
        if node.kind == "input":
            self.scales[node] = self._input(node)
            return
        scales = [self.scales[source] for source in node.inputs]
        made: Callable[..., Scale] = getattr(self, f"_{node.kind}")
        self.scales[node] = made(node, *scales)

    def _input(self, node: Node) -> float:
        self.input = input_range(node)
        return self.input[0]

    def _linear(self, node: Node, scale: Scale) -> Scale:
        module: Any = node.module
        weight = module.weight.detach().double()
        largest = weight.abs().flatten(1).amax(1)
        if not reaches_spikes(node, self.network.output):
            largest = largest.amax().expand_as(largest)
        of_weights = torch.where(largest > 0, largest / self.limit, 1.0)
        whole = _one(node, scale) * of_weights
        sides = [-1] + [1] * (weight.ndim - 1)
        rounded = (weight / of_weights.view(sides)).round()
        changed = rounded * of_weights.view(sides) - weight
        self.errors[node] = float(changed.norm() / weight.norm().clamp(min=1e-30))
        module.weight = nn.Parameter(rounded, requires_grad=False)
        if module.bias is not None:
            module.bias = nn.Parameter((module.bias.detach().double() / whole).round(), requires_grad=False)
        if bool((whole == whole[0]).all()) and not reaches_spikes(node, self.network.output):
            return float(whole[0])
        return whole.view([-1] + [1] * (len(node.shape) - 1))

    _convolution = _window = _delayed = _linear

    def _maximum(self, node: Node, scale: Scale) -> Scale:
        return scale

    def _delay(self, node: Node, scale: Scale) -> Scale:
        return scale

    def _average(self, node: Node, scale: Scale) -> Scale:
        module: Any = node.module
        if not isinstance(module, nn.AvgPool2d) or (
            any(sliding_of(node).padding) and not module.count_include_pad
        ):
            raise Unsupported(
                f"layer {node.name!r}: only nn.AvgPool2d that counts its padding is a whole sum"
            )
        area = area_of(node)
        module.divisor_override = 1
        return scale / area

    def _sum(self, node: Node, one: Scale, two: Scale) -> Scale:
        if _one(node, one) != _one(node, two):
            raise Unsupported(f"layer {node.name!r} adds numbers of different scales")
        return one

    def _scale(self, node: Node, scale: Scale) -> Scale:
        raise Unsupported(f"layer {node.name!r} multiplies by {node.factor:g}, which is no whole number")

    def _neurons(self, node: Node, scale: Scale) -> Scale:
        module = node.module
        assert isinstance(module, OverTime | Recurrent)
        spikes = emits_spikes(module.cell)
        module.cell = whole_cell(node.name, module.cell, scale)
        if isinstance(module, Recurrent):
            back = module.recurrent
            if not isinstance(back, nn.Linear):
                raise Unsupported(f"layer {node.name!r}: {type(back).__name__} has no form in whole numbers")
            by = torch.as_tensor(scale, dtype=torch.float64, device="cpu").reshape(-1)
            weight = back.weight.detach().double()
            back.weight = nn.Parameter((weight / by[:, None]).round(), requires_grad=False)
            if back.bias is not None:
                back.bias = nn.Parameter((back.bias.detach().double() / by).round(), requires_grad=False)
            changed = back.weight * by[:, None] - weight
            self.errors[node] = float(changed.norm() / weight.norm().clamp(min=1e-30))
        return 1.0 if spikes else scale

    def change(self, node: Node, before: dict[Node, Tensor], after: dict[Node, Tensor]) -> LayerChange:
        """What became of `node`."""
        was, now = before[node], after[node]
        if node.kind == "neurons" and self.scales[node] == 1.0:
            agreement = float((was == now).double().mean())
        else:
            agreement = _correlation(
                was, now * torch.as_tensor(self.scales[node], dtype=now.dtype, device="cpu")
            )
        what = type(getattr(node.module, "cell", node.module)).__name__
        return LayerChange(
            node.name,
            what.removesuffix("Cell"),
            self.errors.get(node, 0.0),
            _not_zero(was),
            _not_zero(now),
            agreement,
        )


def input_range(node: Node) -> tuple[float, tuple[int, int]]:
    """What a unit of the input stands for, and the least and the largest that it may be."""
    low, high = node.extremes
    if node.binary or low == high == 0:
        return 1.0, (0, 1)
    return (high / 255, (0, 255)) if low >= 0 else (max(-low, high) / 127, (-127, 127))


def area_of(node: Node) -> int:
    """What an average divides by."""
    kernel = sliding_of(node).kernel
    return int(getattr(node.module, "divisor_override", None) or kernel[0] * kernel[1])


def reaches_spikes(node: Node, output: Node) -> bool:
    """Whether what `node` gives goes to neurons that spike, and nowhere else."""

    def below(user: Node) -> bool:
        if user.kind in ("maximum", "average", "delay"):
            return reaches_spikes(user, output)
        cell = getattr(user.module, "cell", None)
        return user.kind == "neurons" and cell is not None and emits_spikes(cell)

    return node is not output and bool(node.users) and all(below(user) for user in node.users)


def check_bits(bits: int) -> int:
    """The largest weight of `bits` bits.

    Raises:
        ValueError: if they are not from 2 to 8.
    """
    if isinstance(bits, bool) or not isinstance(bits, int) or not 2 <= bits <= 8:
        raise ValueError(f"bits must be a whole number from 2 to 8, got {bits!r}")
    return int(2 ** (bits - 1) - 1)


def _one(node: Node, scale: Scale) -> float:
    if isinstance(scale, Tensor):
        raise Unsupported(f"layer {node.name!r} takes numbers of different scales together")
    return scale


def _outputs(network: Network, net: nn.Module, inputs: Tensor) -> dict[Node, Tensor]:
    """What each layer of `net` gives for `inputs`, ``[samples, ...]`` of all steps, and the network."""
    found: dict[Node, Tensor] = {}
    hooks = []
    for node in network.nodes:
        if node.module is not None:

            def keep(module: nn.Module, args: Any, outputs: Tensor, node: Node = node) -> None:
                found[node] = outputs.reshape(-1, *node.shape).double()

            hooks.append(net.get_submodule(node.name).register_forward_hook(keep))
    try:
        outputs = net(inputs)
    finally:
        for hook in hooks:
            hook.remove()
    found[network.output] = outputs.reshape(-1, *network.output.shape).double()
    return found


def _not_zero(values: Tensor) -> float:
    return float(values.count_nonzero()) / values.numel()


def _correlation(one: Tensor, two: Tensor) -> float:
    pair = torch.stack([one.flatten(), two.flatten()])
    pair = pair - pair.mean(1, keepdim=True)
    norms = pair.norm(dim=1).prod()
    return 1.0 if float(norms) == 0 else float((pair[0] * pair[1]).sum() / norms)


def _same_class(before: Tensor, after: Tensor) -> float:
    """The part of the samples and steps with the largest output at the same place."""
    same = before.flatten(1).argmax(1) == after.flatten(1).argmax(1)
    return float(same.double().mean())
