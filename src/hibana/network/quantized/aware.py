"""Training with the whole numbers that a network will have, and those numbers."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hibana.cells import Cell
from hibana.compiler import emits_spikes
from hibana.compiler.analysis.fixed_point import Range, RangesNeeded
from hibana.compiler.analysis.units import row_units
from hibana.compiler.graph.ops import Unsupported
from hibana.network.c import exact_dtype
from hibana.network.graph import Network, Node
from hibana.network.integer_network import Quantized, integer_input
from hibana.network.layers import LAYERS
from hibana.network.quantized.cell import FixedCell, fixed_cell, ranges_of
from hibana.network.reader import read
from hibana.network.sliding_window import sliding_window
from hibana.network.straight import doubles, straight_through
from hibana.nn.delay import fix_delays
from hibana.nn.layers import OverTime, Recurrent

__all__ = ["QuantizationAware", "check_bits", "quantization_aware"]

Scale = float | Tensor
"""Of a layer's numbers, or one for each channel."""


@dataclass(frozen=True)
class _Line:
    """A node, by name, so that a copy of a network has its own."""

    name: str
    kind: str
    sources: tuple[int, ...]
    shape: tuple[int, ...]
    """Of a sample."""
    of_channels: bool
    """Whether each output channel has a scale of its own."""
    area: int
    """What an average divides by."""


class QuantizationAware(nn.Module):
    """A network in training, which computes in the whole numbers that :func:`quantize` makes of it.

    `plain` holds what is learned, in the units that the network was written in, and is a network in floats;
    `net` holds the whole numbers, made anew at each call: weights, biases, thresholds, leaks and potentials.
    """

    def __init__(self, network: Network, bits: int, calibration: Tensor) -> None:
        super().__init__()
        self.bits, self.limit = bits, check_bits(bits)
        self.plain = network.net
        fix_delays(self.plain)
        at = {node: k for k, node in enumerate(network.nodes)}
        self.lines = tuple(_line(node, network.output, at) for node in network.nodes)
        self.added = _added(network.nodes)
        self.output = at[network.output]
        self.input_scale, self.input_range = _input_range(network.input)
        self.dtype = torch.float64
        """In which every number is exact, with weights as they were at the start."""
        self.net = _without_weights(self.plain, self.lines)
        self.scales: list[Scale] = []
        """What a whole number of each line stands for, since the last call."""
        self.units: dict[str, Tensor] = {}
        """What a whole number of each layer's weights stands for."""
        self.ranges: dict[str, list[Range]] = {}
        """Of the values of a step whose form depends on them, by layer."""
        with torch.no_grad():
            for _ in self.lines:
                try:
                    self.refresh()
                    break
                except RangesNeeded:
                    self._measure(self.lines[len(self.scales)], calibration)
        if isinstance(self.scales[self.output], Tensor):
            raise Unsupported(f"layer {network.output.name!r} puts out numbers of different scales")

    def forward(self, inputs: Tensor) -> Tensor:
        """What the network puts out for ``[T, batch, ...]``, in the units that it was written in."""
        self.refresh()
        try:
            outputs: Tensor = self.net(self.integer_input(inputs))
        finally:
            self._let_go()
        return (outputs.double() * self.scales[self.output]).to(inputs.dtype)

    def integer_input(self, inputs: Tensor) -> Tensor:
        """`inputs` as the whole numbers that go in."""
        return integer_input(inputs, self.input_scale, self.input_range, self.dtype)

    whole_input = integer_input  # deprecated name, for one release

    def quantized(self) -> Quantized:
        """The network in whole numbers, as it is now."""
        with torch.no_grad():
            self.refresh()
        net = copy.deepcopy(self.net).eval().to(torch.float64)
        for module in list(net.modules()):
            if isinstance(module, FixedCell):
                module.for_inference()
                continue
            for name in [n for n in module._non_persistent_buffers_set if n in ("weight", "bias")]:
                numbers = module._buffers[name]
                delattr(module, name)
                assert numbers is not None
                module.register_parameter(name, nn.Parameter(numbers, requires_grad=False))
            module._non_persistent_buffers_set.clear()
        scale = self.scales[self.output]
        return Quantized(net, self.input_scale, self.input_range, float(scale), self.bits)

    whole = quantized  # deprecated name, for one release

    def learns_values(self) -> bool:
        """Whether thresholds, time constants or their like are learned."""
        cells = (module for module in self.plain.modules() if isinstance(module, Cell))
        return any(values.requires_grad for cell in cells for values in cell.parameters())

    def refresh(self) -> None:
        """Makes whole numbers of what is learned, as it is now."""
        self.scales = []
        for line in self.lines:
            given = [self.scales[source] for source in line.sources]
            made: Callable[..., Scale] = getattr(self, f"_{line.kind}")
            self.scales.append(made(line, *given))

    def _let_go(self) -> None:
        """Lets go of graphs of autograd, so that the network can be copied."""
        for module in self.net.modules():
            for name, values in module._buffers.items():
                if values is not None and values.grad_fn is not None:
                    module._buffers[name] = values.detach()

    def _input(self, line: _Line) -> Scale:
        return self.input_scale

    def _linear(self, line: _Line, scale: Scale) -> Scale:
        plain: Any = self.plain.get_submodule(line.name)
        weights = plain.weight.detach().double().flatten(1)
        if line.of_channels:
            of_weights = row_units(weights, self.limit)
        else:
            layers: list[Any] = [self.plain.get_submodule(n) for n in self.added.get(line.name, (line.name,))]
            together = torch.cat([layer.weight.detach().double().flatten() for layer in layers])
            of_weights = row_units(together[None], self.limit).expand(len(weights))
        whole = of_weights * _one(line, scale)
        self._put(line.name, of_weights, whole)
        return whole.view([-1] + [1] * (len(line.shape) - 1)) if line.of_channels else float(whole[0])

    _convolution = _window = _delayed = _linear

    def _maximum(self, line: _Line, scale: Scale) -> Scale:
        return scale

    _delay = _maximum

    def _average(self, line: _Line, scale: Scale) -> Scale:
        return scale / line.area

    def _sum(self, line: _Line, one: Scale, two: Scale) -> Scale:
        if _one(line, one) != _one(line, two):
            raise Unsupported(
                f"layer {line.name!r} adds numbers of different scales; spikes have one, and "
                "layers that read spikes and are added nowhere else"
            )
        return one

    def _scale(self, line: _Line, scale: Scale) -> Scale:
        raise Unsupported(f"layer {line.name!r} multiplies by a number, which gives no whole ones")

    def _neurons(self, line: _Line, scale: Scale) -> Scale:
        plain, ranges = self._cell(line), self.ranges.get(line.name)
        cell = fixed_cell(
            line.name, plain, line.shape, doubles(scale), self.limit, ranges, torch.is_grad_enabled()
        )
        layer: Any = self.net.get_submodule(line.name)
        if not isinstance(layer.cell, FixedCell) or not layer.cell.takes(cell.to(self.dtype)):
            layer.cell = cell.to(self.dtype)
        return cell.unit.double() if cell.unit.numel() > 1 else float(cell.unit)

    def _cell(self, line: _Line) -> Cell:
        """The cell of a layer of neurons; its synapses are a part of its step."""
        plain = self.plain.get_submodule(line.name)
        assert isinstance(plain, OverTime | Recurrent)
        return plain.step() if isinstance(plain, Recurrent) else plain.cell

    def _measure(self, line: _Line, calibration: Tensor) -> None:
        """Measures the ranges in the step of a layer of neurons on `calibration`."""
        inputs: list[Tensor] = []
        layer = self.plain.get_submodule(line.name)
        hook = layer.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
        try:
            self.plain(calibration)
        finally:
            hook.remove()
        self.ranges[line.name] = ranges_of(line.name, self._cell(line), line.shape, inputs[0])

    def _put(self, name: str, of_weights: Tensor, of_bias: Tensor) -> None:
        """The weight and the bias of layer `name` as whole numbers, in these units."""
        plain, layer = self.plain.get_submodule(name), self.net.get_submodule(name)
        self.units[name] = of_weights
        for what, step in (("weight", of_weights), ("bias", of_bias)):
            values: Tensor | None = getattr(plain, what)
            if values is not None:
                real = values.double() / step.view([-1] + [1] * (values.ndim - 1))
                layer._buffers[what] = straight_through(real, real.detach().round()).to(self.dtype)


def quantization_aware(net: nn.Module, calibration: Tensor, bits: int = 8) -> QuantizationAware:
    """`net` to be trained on: it computes in the whole numbers of :func:`quantize`, bit for bit.

        q = round(w / s),   dq/dw = 1/s

    Weights, biases, inputs, thresholds, leaks and potentials are what they will be; the gradient passes
    through every rounding as if it were not there, and spikes have their surrogate, in the units that the
    network was written in. After training give it to :func:`quantize`. Batch normalisation is folded, and
    delays become whole steps (:func:`hibana.fix_delays`), before.

    Args:
        net: a network, as :func:`quantize` takes it; it is left as it is.
        calibration: inputs ``[T, batch, ...]``: they say what range inputs have, and for how many steps.
        bits: of a weight, from 2 to 8.

    Returns:
        A module that takes and gives what `net` does. Its ``plain`` is what is learned, a network in floats.

    Raises:
        ValueError: if `bits` is none of these.
        Unsupported: naming the layer, if it has no form in whole numbers.

    Source: Bengio, Léonard & Courville (2013), *Estimating or propagating gradients through stochastic
    neurons for conditional computation*, for the straight-through estimator; Jacob et al. (2018) for
    training with it.

    >>> import torch, hibana as hb
    >>> net = torch.nn.Sequential(torch.nn.Linear(2, 8), hb.IF(), torch.nn.Linear(8, 3), hb.LI())
    >>> x = torch.rand(4, 1, 2)
    >>> aware = hb.convert.quantization_aware(net, x, bits=2)
    >>> _ = aware(x).sum().backward()
    >>> aware.plain[2].weight.grad.shape, aware.net[2].weight.int().unique().tolist()
    (torch.Size([3, 8]), [-1, 0, 1])
    """
    with torch.no_grad():
        check_bits(bits)
        aware = QuantizationAware(read(net, calibration), bits, calibration)
        if not aware.learns_values():  # a leak that is a shift now may be a product after a step
            aware.dtype = exact_dtype(aware.quantized(), calibration)
    return aware.train(net.training)


def check_bits(bits: int) -> int:
    """The largest weight of `bits` bits.

    Raises:
        ValueError: if they are not from 2 to 8.
    """
    if isinstance(bits, bool) or not isinstance(bits, int) or not 2 <= bits <= 8:
        raise ValueError(f"bits must be a whole number from 2 to 8, got {bits!r}")
    return int(2 ** (bits - 1) - 1)


def _line(node: Node, output: Node, at: dict[Node, int]) -> _Line:
    module: Any = node.module
    if not hasattr(QuantizationAware, f"_{node.kind}"):
        node.layer.refuse(node, "integer")
    average = node.kind == "average"
    padded = average and any(sliding_window(node).padding) and not module.count_include_pad
    if average and (padded or type(module) is not nn.AvgPool2d):
        raise Unsupported(f"layer {node.name!r}: only nn.AvgPool2d that counts its padding is a whole sum")
    if isinstance(module, Recurrent) and not isinstance(module.recurrent, nn.Linear):
        kind = type(module.recurrent).__name__
        raise Unsupported(f"layer {node.name!r}: {kind} from spikes back has no form in whole numbers")
    return _Line(
        node.name,
        node.kind,
        tuple(at[source] for source in node.inputs),
        node.shape,
        node.layer.weighted and _reaches_spikes(node, output),
        _area_of(node) if average else 1,
    )


def _without_weights(plain: nn.Module, lines: tuple[_Line, ...]) -> nn.Module:
    """A copy of `plain` whose weights are buffers, to be set, and whose averages are sums."""
    net = copy.deepcopy(plain).requires_grad_(False)
    for line in lines:
        layer: Any = net.get_submodule(line.name) if line.kind not in ("input", "sum", "scale") else None
        if line.kind == "average":
            layer.divisor_override = 1
        if isinstance(layer, Recurrent):
            net.set_submodule(line.name, OverTime(layer.cell))
        for name in ("weight", "bias") if LAYERS[line.kind].weighted else ():
            if (values := getattr(layer, name)) is not None:
                delattr(layer, name)
                layer.register_buffer(name, values.detach(), persistent=False)
    return net


def _added(nodes: tuple[Node, ...]) -> dict[str, tuple[str, ...]]:
    """Of layers that read spikes and whose outputs are added: by name, all that share a scale."""
    groups = {}
    for node in nodes:
        if node.kind == "sum" and not any(user.kind == "sum" for user in node.users):
            terms = _terms(node)
            if all(term.layer.weighted and _are_spikes(term.inputs[0]) for term in terms):
                names = tuple(term.name for term in terms)
                groups.update(dict.fromkeys(names, names))
    return groups


def _terms(node: Node) -> list[Node]:
    """The terms of a sum of sums."""
    if node.kind != "sum":
        return [node]
    return [term for source in node.inputs for term in _terms(source)]


def _are_spikes(node: Node) -> bool:
    cell = getattr(node.module, "cell", None)
    return node.kind == "neurons" and cell is not None and emits_spikes(cell)


def _input_range(node: Node) -> tuple[float, tuple[int, int]]:
    """What a unit of the input stands for, and the least and the largest that it may be."""
    low, high = node.value_range
    if node.binary or low == high == 0:
        return 1.0, (0, 1)
    return (high / 255, (0, 255)) if low >= 0 else (max(-low, high) / 127, (-127, 127))


def _area_of(node: Node) -> int:
    """What an average divides by."""
    kernel = sliding_window(node).kernel
    return int(getattr(node.module, "divisor_override", None) or kernel[0] * kernel[1])


def _reaches_spikes(node: Node, output: Node) -> bool:
    """Whether what `node` gives goes to neurons that spike, and nowhere else."""

    def below(user: Node) -> bool:
        if user.input_shapes[user.inputs.index(node)] != node.shape:
            return False  # numbers in another shape have no channels, each with its scale
        if user.kind in ("maximum", "average", "delay"):
            return _reaches_spikes(user, output)
        cell = getattr(user.module, "cell", None)
        return user.kind == "neurons" and cell is not None and emits_spikes(cell)

    return node is not output and bool(node.users) and all(below(user) for user in node.users)


def _one(line: _Line, scale: Scale) -> float:
    if isinstance(scale, Tensor):
        raise Unsupported(f"layer {line.name!r} takes numbers of different scales together")
    return scale
