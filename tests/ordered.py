"""The specification of programs: networks in PyTorch that add in the same order as native and C programs."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from hibana.network.c.arithmetic import FloatArithmetic
from hibana.network.c.unit import Unit
from hibana.network.layers.sliding import image_shape, sliding_window
from hibana.network.node import Node, channels_last
from hibana.network.reader import read
from hibana.nn.delayed_linear import DelayedLinear
from hibana.nn.layers import OverTime, Recurrent
from hibana.nn.window import Window

__all__ = ["in_order"]


class OrderedLinear(nn.Module):
    """``sum_i x_i w_i + b``, added one by one for the inputs `i` in the order `indices`, then the bias."""

    def __init__(self, layer: nn.Linear, indices: Tensor | None) -> None:
        super().__init__()
        self.layer = layer
        self.indices = range(layer.in_features) if indices is None else indices.tolist()

    def forward(self, inputs: Tensor) -> Tensor:
        weight = self.layer.weight
        total = inputs.new_zeros(*inputs.shape[:-1], len(weight))
        for i in self.indices:
            total = total + inputs[..., i, None] * weight[:, i]
        return total if self.layer.bias is None else total + self.layer.bias


class OrderedConvolution(nn.Module):
    """A convolution that adds one tap after the other, in the memory order of the pixels, then the bias."""

    def __init__(self, node: Node, channels_last: bool) -> None:
        super().__init__()
        assert node.module is not None
        self.layer: Any = node.module
        self.window, self.channels_last = sliding_window(node), channels_last

    def forward(self, inputs: Tensor) -> Tensor:
        window, sequence = self.window, inputs.ndim == 3
        images = inputs[:, :, None] if sequence else inputs
        weight = self.layer.weight[:, :, None] if sequence else self.layer.weight
        (top, left), (rows, columns) = window.padding, window.outputs
        reach = [
            (o - 1) * s + d * (k - 1) + 1
            for o, s, d, k in zip(window.outputs, window.stride, window.dilation, window.kernel, strict=True)
        ]
        below, right = reach[0] - top - images.shape[2], reach[1] - left - images.shape[3]
        padded = functional.pad(images, (left, max(0, right), top, max(0, below)))
        groups, per_group = self.layer.groups, len(weight) // self.layer.groups
        total = images.new_zeros(len(images), groups, per_group, rows, columns)
        for c, ky, kx in self._order(weight.shape[1]):
            y, x = ky * window.dilation[0], kx * window.dilation[1]
            pixels = padded[:, c :: weight.shape[1], y:, x:][:, :, :: window.stride[0], :: window.stride[1]]
            tap = weight[:, c, ky, kx].view(1, groups, per_group, 1, 1)
            total = total + pixels[:, :, None, :rows, :columns] * tap
        flat = total.flatten(1, 2)
        if self.layer.bias is not None:
            flat = flat + self.layer.bias.view(-1, 1, 1)
        return flat[:, :, 0] if sequence else flat

    def _order(self, channels: int) -> list[tuple[int, int, int]]:
        kernel = [(ky, kx) for ky in range(self.window.kernel[0]) for kx in range(self.window.kernel[1])]
        if self.channels_last:
            return [(c, ky, kx) for ky, kx in kernel for c in range(channels)]
        return [(c, ky, kx) for c in range(channels) for ky, kx in kernel]


class OrderedWindow(nn.Module):
    """A convolution over time, or delayed synapses, which adds the earliest step first, and the bias last.

    The inputs of each step are added one by one, in the order `indices`.
    """

    def __init__(self, layer: Window | DelayedLinear, indices: Tensor) -> None:
        super().__init__()
        self.layer, self.indices = layer, indices

    def forward(self, inputs: Tensor) -> Tensor:
        layer = self.layer
        kernel, dilation = layer.kernel() if isinstance(layer, DelayedLinear) else layer.weight, 1
        groups = 1
        if isinstance(layer, Window):
            dilation, groups = layer.dilation, layer.groups
        outputs, inner, taps = kernel.shape
        rows = inputs.movedim(2, -1)  # [T, batch, ..., channels]
        total = rows.new_zeros(*rows.shape[:-1], outputs)
        per_group = outputs // groups
        features = inputs.ndim == 3
        order = self.indices.tolist() if features else range(rows.shape[-1])
        for k in range(taps):
            lag = (taps - 1 - k) * dilation
            if lag >= len(rows):
                continue
            delayed = torch.cat([rows.new_zeros(lag, *rows.shape[1:]), rows[: len(rows) - lag]])
            for c in order:
                group = c // inner
                to = slice(group * per_group, (group + 1) * per_group)
                total[..., to] = total[..., to] + delayed[..., c, None] * kernel[to, c % inner, k]
        total = total if layer.bias is None else total + layer.bias
        return total.movedim(-1, 2)


def in_order(net: nn.Module, example: Tensor) -> nn.Module:
    """A copy of `net` in evaluation mode that adds inputs one by one, the earliest step first, the bias last.

    Products that a cell computes itself (``x @ w``) keep PyTorch's order.
    """
    network = read(net, example)
    activations = Unit(network, FloatArithmetic(network.dtype), "net", "sum", len(example)).activations
    net = network.net
    for node in activations:
        if not node.inputs:
            continue
        source = activations[node.inputs[0]]
        if node.kind == "linear":
            net.set_submodule(node.name, OrderedLinear(node.module, source.order))
        elif node.kind == "convolution":
            last = (
                torch.equal(source.order, channels_last(node.input_shapes[0]))
                and image_shape(node.input_shapes[0])[0] > 1
            )
            net.set_submodule(node.name, OrderedConvolution(node, last))
        elif isinstance(node.module, Window | DelayedLinear):
            net.set_submodule(node.name, OrderedWindow(node.module, source.order))
        elif isinstance(node.module, OverTime | Recurrent):
            node.module.backend = "reference"
            for name, inner in list(node.module.named_modules()):
                if isinstance(inner, nn.Linear):
                    node.module.set_submodule(name, OrderedLinear(inner, source.order))
    return net.eval()
