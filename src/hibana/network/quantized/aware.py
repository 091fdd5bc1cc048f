"""Training of a network in the integers that :func:`hibana.quantize` will give it."""

import copy
from collections.abc import Collection
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from hibana.cells import Cell
from hibana.compiler import emits_spikes
from hibana.compiler.analysis.fixed_point import Range, RangesNeeded
from hibana.compiler.analysis.units import row_units
from hibana.compiler.graph.ops import Unsupported
from hibana.compiler.torch_layers import role_of
from hibana.network.c import exact_dtype
from hibana.network.graph import Network
from hibana.network.integer_network import Quantized
from hibana.network.layers import LAYERS
from hibana.network.layers.base import IntegerLayer
from hibana.network.node import Node
from hibana.network.quantized.cell import FixedCell, fixed_cell, measure_ranges
from hibana.network.reader import read
from hibana.nn.delay import fix_delays
from hibana.nn.layers import OverTime, Recurrent, with_gradient
from hibana.nn.sparse_linear import SparseLinear
from hibana.runtime import torch_internals

__all__ = ["QuantizationAware", "quantization_aware"]

_SHARED_SCALE = ("sparse", "delayed sparse")
"""Kinds of layers whose weights, a number for each synapse, have one scale."""
_EXTRA_BITS = 8
"""Most bits beyond those of the network for weights of layers that are added at a common scale."""


class QuantizationAware(Quantized):
    """A network in training that computes in the integers that :func:`quantize` gives it.

    `plain` is the float network with the learned tensors. `net` computes in integers: weights, biases,
    thresholds, leaks and potentials, which each call computes from `plain`. With the initial weights, `dtype`
    holds each integer exactly.
    """

    def __init__(self, network: Network, bits: int, calibration: Tensor) -> None:
        fix_delays(network.net)
        for node in network.nodes:
            if isinstance(node.module, Recurrent) and type(node.module.recurrent) is SparseLinear:
                node.module.recurrent = _MaskedLinear(node.module.recurrent)
        index = {node: i for i, node in enumerate(network.nodes)}
        modules = dict(network.net.named_modules(remove_duplicate=False))
        layers = tuple(_layer(node, network.output, index, modules) for node in network.nodes)
        super().__init__(_integer_copy(network.net, layers), *_input_scale(network.input), 1.0, bits)
        self.plain, self.layers, self.limit = network.net, layers, 2 ** (bits - 1) - 1
        self.groups = _groups_of_one_scale(network.nodes, self.input_scale)
        self.output = index[network.output]
        self.scales: list[Tensor] = []
        """Since the last call, the real number that 1 of each layer's output stands for, or one per channel.
        """
        self.units: dict[str, Tensor] = {}
        """The real number that 1 of an integer weight stands for, ``[outputs]`` or ``[1]``, by layer."""
        self.ranges: dict[str, list[Range]] = {}
        """Measured ranges of the values in a step whose integer form depends on them, by layer."""
        with torch.no_grad():
            for _ in self.layers:
                try:
                    self.refresh()
                    break
                except RangesNeeded:
                    self._measure(self.layers[len(self.scales)], calibration)

    def forward(self, inputs: Tensor) -> Tensor:
        """The output for ``[T, batch, ...]``, in the units of the float network."""
        self.refresh()
        try:
            return super().forward(inputs)
        finally:  # detaches the integers from the autograd graph, so that the network can be copied
            for module in self.net.modules():
                for name, values in module._buffers.items():
                    if values is not None and values.grad_fn is not None:
                        module._buffers[name] = values.detach()

    def quantized(self) -> Quantized:
        """A copy of the network in integers, with the current weights, for inference."""
        with torch.no_grad():
            self.refresh()  # without gradients, cells have no float cell in them
        net = copy.deepcopy(self.net).eval().to(torch.float64)
        for module in list(net.modules()):
            if isinstance(module, FixedCell):
                continue
            excluded = torch_internals.non_persistent_buffers(module)
            for name in [n for n in excluded if n in ("weight", "bias")]:
                numbers = module._buffers[name]
                delattr(module, name)
                assert numbers is not None
                module.register_parameter(name, nn.Parameter(numbers, requires_grad=False))
            excluded.clear()
        return Quantized(net, self.input_scale, self.input_range, self.output_scale, self.bits)

    whole = quantized  # deprecated name, for one release

    def refresh(self) -> None:
        """Computes all scales and integers from the current tensors of `plain`."""
        self.scales = []
        for layer in self.layers:
            self.scales.append(self._refresh_layer(layer, [self.scales[i] for i in layer.inputs]))
        if self.scales[self.output].numel() > 1:
            name = self.layers[self.output].name
            raise Unsupported(f"layer {name!r}: its output channels have different scales")
        self.output_scale = float(self.scales[self.output])

    def _refresh_layer(self, layer: IntegerLayer, scales: list[Tensor]) -> Tensor:
        """Computes the integers of `layer`, whose inputs have `scales`, and returns its output's scale."""
        if layer.kind == "input":
            return torch.tensor(self.input_scale, dtype=torch.float64, device="cpu")
        if layer.kind == "neurons":
            return self._refresh_cell(layer, scales[0])
        if LAYERS[layer.kind].weighted:
            return self._refresh_weights(layer, scales[0])
        return LAYERS[layer.kind].integer_scale(layer, _module(self.net, layer), scales)

    def _refresh_weights(self, layer: IntegerLayer, scale: Tensor) -> Tensor:
        """Rounds the weight and bias of `layer`, straight through, and returns its output's scale."""
        plain: Any = self.plain.get_submodule(layer.name)
        if layer.per_channel:
            units = row_units(plain.weight.detach().double().flatten(1), self.limit)
            output_units = units * layer.one_scale(scale)
        else:
            output_units = self._common_unit(layer, layer.one_scale(scale))
            units = output_units / scale
        self.units[layer.name] = units
        buffers = self.net.get_submodule(layer.name)._buffers
        for name, unit in (("weight", units), ("bias", output_units)):
            values: Tensor | None = getattr(plain, name)
            if values is not None:
                real = values.double() / unit.view([-1] + [1] * (values.ndim - 1))
                buffers[name] = with_gradient(real.detach().round(), real, 1.0).to(self.dtype)
        channels = [-1] + [1] * (len(layer.shape) - 1)
        return output_units.view(channels) if layer.per_channel else output_units[0]

    def _common_unit(self, layer: IntegerLayer, scale: Tensor) -> Tensor:
        """The unit, [1], of outputs of `layer`, whose input has the `scale`, and of numbers added to them.

        It is the smallest unit that one of them would have alone, and at least a 256th of the largest: the
        weights of the others then have up to 8 bits more.
        """
        group = self.groups.get(layer.name, {layer.name: float(scale)})
        if group[layer.name] != float(scale):
            raise Unsupported(f"layer {layer.name!r}: its output is added, and its input is not spikes")
        units = []
        for input_scale in sorted({*group.values()}):
            members: list[Any] = [self.plain.get_submodule(n) for n, s in group.items() if s == input_scale]
            weights = torch.cat([member.weight.detach().double().flatten() for member in members])
            if weights.count_nonzero():
                units.append(row_units(weights[None], self.limit) * input_scale)
        largest = max(units, default=scale.new_full((1,), max(group.values())))
        return torch.maximum(min(units, default=largest), largest / 2**_EXTRA_BITS)

    def _refresh_cell(self, layer: IntegerLayer, scale: Tensor) -> Tensor:
        """Computes the integer form of the cell of `layer`, and returns the scale of its output."""
        ranges, training = self.ranges.get(layer.name), torch.is_grad_enabled()
        plain = self._cell(layer)
        cell = fixed_cell(layer.name, plain, layer.shape, scale, self.limit, ranges, training)
        neurons: Any = self.net.get_submodule(layer.name)
        if not isinstance(neurons.cell, FixedCell) or not neurons.cell.copy_numbers(cell.to(self.dtype)):
            neurons.cell = cell.to(self.dtype)
        return cell.unit.double() if cell.unit.numel() > 1 else cell.unit.double().reshape(())

    def _cell(self, layer: IntegerLayer) -> Cell:
        """The float cell of `layer`, whose step includes the recurrent synapses."""
        plain = self.plain.get_submodule(layer.name)
        assert isinstance(plain, OverTime | Recurrent)
        return plain.step() if isinstance(plain, Recurrent) else plain.cell

    def _measure(self, layer: IntegerLayer, calibration: Tensor) -> None:
        """Measures the ranges in the step of `layer`, a layer of neurons, on `calibration`."""
        inputs: list[Tensor] = []
        module = self.plain.get_submodule(layer.name)
        with module.register_forward_pre_hook(lambda module, args: inputs.append(args[0])):
            self.plain(calibration)
        self.ranges[layer.name] = measure_ranges(layer.name, self._cell(layer), layer.shape, inputs[0])


class _MaskedLinear(nn.Linear):
    """A dense linear layer in place of recurrent `synapses`; weights without a synapse are and stay zero."""

    mask: Tensor
    """1 for each weight of a synapse, ``[outputs, inputs]``, and 0 elsewhere."""

    def __init__(self, synapses: SparseLinear) -> None:
        inputs, outputs, bias = synapses.in_features, synapses.out_features, synapses.bias
        super().__init__(inputs, outputs, bias is not None, device="meta")
        self.weight = nn.Parameter(synapses.to_dense().detach(), synapses.weight.requires_grad)
        self.register_parameter("bias", cast(nn.Parameter | None, bias))
        mask = torch.zeros_like(self.weight.detach())
        mask[synapses.targets.long(), synapses.sources] = 1
        self.register_buffer("mask", mask)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch.nn.Linear's name for it
        """The sums over all synapses, ``[..., outputs]``."""
        return functional.linear(input, self.weight * self.mask, self.bias)


def quantization_aware(net: nn.Module, calibration: Tensor, bits: int = 8) -> QuantizationAware:
    """`net` for training in the integers of :func:`quantize`, bit for bit.

        q = round(w / s),   dq/dw = 1/s

    Weights, biases, inputs, thresholds, leaks and potentials are the integers of the quantized network. The
    gradient passes straight through each rounding, and spikes have their surrogate in the units of `net`.
    After training give the result to :func:`quantize`. Batch normalization is folded and delays become whole
    steps (:func:`hibana.fix_delays`) before training.

    Args:
        net: a network, as :func:`quantize` takes it; it does not change.
        calibration: inputs ``[T, batch, ...]``, which determine the range of inputs and the number of steps.
        bits: bits of a weight, from 2 to 8.

    Returns:
        A module with the inputs and outputs of `net`; its ``plain`` is the float network with the learned
        tensors.

    Raises:
        TypeError: if `calibration` is not a floating-point tensor.
        ValueError: if `bits` is not an integer from 2 to 8, or `calibration` has another shape.
        Unsupported: naming the layer, if it has no integer form.

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
    if isinstance(bits, bool) or not isinstance(bits, int) or not 2 <= bits <= 8:
        raise ValueError(f"bits must be a whole number from 2 to 8, got {bits!r}")
    with torch.no_grad():
        aware = QuantizationAware(read(net, calibration), bits, calibration)
        cells = [module for module in aware.plain.modules() if isinstance(module, Cell)]
        if not any(values.requires_grad for cell in cells for values in cell.parameters()):
            # else a time constant may become one that multiplies, and numbers larger, in training
            aware.dtype = exact_dtype(aware.quantized(), calibration)
    return aware.train(net.training)


def _layer(node: Node, output: Node, index: dict[Node, int], modules: Collection[str]) -> IntegerLayer:
    """The record of `node`; raises Unsupported, naming the layer, if it has no integer form.

    `modules` are the names of all modules of the network.
    """
    module, kind = node.module, LAYERS[node.kind]
    if not kind.has_integers:
        kind.refuse(node, "integer")
    if kind.types and node.name not in modules:
        classes = ", ".join(t.__name__ for t in kind.types if t.__module__.startswith("torch."))
        raise Unsupported(
            f"layer {node.name!r}: {kind.title(node)} in a forward has no integer form; call one of {classes}"
        )
    if isinstance(module, Recurrent) and role_of(module.recurrent) != "linear":
        synapses = type(module.recurrent).__name__
        raise Unsupported(f"layer {node.name!r}: recurrent synapses of class {synapses} have no integer form")
    has_channels = kind.weighted and node.kind not in _SHARED_SCALE
    per_channel = has_channels and _feeds_only_spiking_neurons(node, output)
    inputs = tuple(index[source] for source in node.inputs)
    return IntegerLayer(
        node.name, node.kind, inputs, node.input_shapes, node.shape, node.value_range, per_channel
    )


def _module(net: nn.Module, layer: IntegerLayer) -> Any:
    """The module of `layer` in `net`; None for an input or a function."""
    return net.get_submodule(layer.name) if LAYERS[layer.kind].types else None


def _integer_copy(plain: nn.Module, layers: tuple[IntegerLayer, ...]) -> nn.Module:
    """A copy of `plain` with modules of integers, whose weights are buffers that ``refresh`` sets."""
    net = copy.deepcopy(plain).requires_grad_(False)
    for layer in layers:
        kind, module = LAYERS[layer.kind], _module(net, layer)
        if module is not None and (replacement := kind.integer_module(layer, module)) is not module:
            net.set_submodule(layer.name, replacement)
        if isinstance(module, Recurrent):
            net.set_submodule(layer.name, OverTime(module.cell))
        for name in ("weight", "bias") if kind.weighted else ():
            if (values := getattr(module, name)) is not None:
                delattr(module, name)
                module.register_buffer(name, values.detach(), persistent=False)
    return net


def _groups_of_one_scale(nodes: tuple[Node, ...], input_scale: float) -> dict[str, dict[str, float]]:
    """Groups of layers that need one scale, as their outputs are added, by the name of each layer in them.

    A group has the scale of the input of each layer by name. `input_scale` is that of the network's input.
    """

    def terms(node: Node) -> list[Node]:
        """The layers whose outputs `node` adds, also through other sums; `node` itself if it is not a sum."""
        return [node] if node.kind != "sum" else [term for source in node.inputs for term in terms(source)]

    groups = {}
    for node in nodes:
        if node.kind == "sum" and not any(user.kind == "sum" for user in node.users):
            summed = terms(node)
            scales = {term.name: _fixed_scale(term.inputs[0], input_scale) for term in summed if term.inputs}
            if all(LAYERS[term.kind].weighted for term in summed) and None not in scales.values():
                groups.update(dict.fromkeys(scales, cast(dict[str, float], scales)))
    return groups


def _fixed_scale(node: Node, input_scale: float) -> float | None:
    """The scale of the output of `node` if it does not depend on weights, as that of spikes; else None."""
    if node.kind == "input":
        return input_scale
    if node.kind == "neurons":
        return 1.0 if _are_spiking_neurons(node) else None
    kind, scales = LAYERS[node.kind], {_fixed_scale(source, input_scale) for source in node.inputs}
    if kind.weighted or len(scales) > 1 or None in scales:
        return None
    layer = _layer(node, node, dict.fromkeys(node.inputs, 0), (node.name,))
    module = kind.integer_module(layer, node.module) if kind.types else None
    scale = torch.tensor(scales.pop(), dtype=torch.float64, device="cpu")
    return float(kind.integer_scale(layer, module, [scale] * len(node.inputs)))


def _are_spiking_neurons(node: Node) -> bool:
    """Whether `node` is a layer of neurons whose output is spikes."""
    cell = getattr(node.module, "cell", None)
    return node.kind == "neurons" and cell is not None and emits_spikes(cell)


def _feeds_only_spiking_neurons(node: Node, output: Node) -> bool:
    """Whether all users of `node` are spiking neurons, with pooling and delays between them at most."""
    for user in node.users:
        is_spiking = _are_spiking_neurons(user)
        if LAYERS[user.kind].keeps_channels:
            is_spiking = _feeds_only_spiking_neurons(user, output)
        if not is_spiking or user.input_shapes[user.inputs.index(node)] != node.shape:
            return False  # a reshaped value has no channels with a scale each
    return node is not output and bool(node.users)


def _input_scale(node: Node) -> tuple[float, tuple[int, int]]:
    """The scale of the input, and the smallest and largest integer that it becomes."""
    low, high = node.value_range
    if node.binary or low == high == 0:
        return 1.0, (0, 1)
    return (high / 255, (0, 255)) if low >= 0 else (max(-low, high) / 127, (-127, 127))
