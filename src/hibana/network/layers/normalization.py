"""Normalization of each sample: ``nn.LayerNorm`` and ``nn.GroupNorm``."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from hibana.network.layers.base import LayerKind, Operations
from hibana.network.lowering import Activations, Lowering
from hibana.network.node import Node, in_order
from hibana.network.onnx_step import OnnxStep

__all__ = ["Normalization"]


class Normalization(LayerKind):
    """``(x - mean) / sqrt(variance + eps) * weight + bias`` over groups of numbers of a sample."""

    name = "normalization"
    types = (nn.LayerNorm, nn.GroupNorm)

    def check(self, node: Node) -> None:
        """Raises Unsupported unless the weight and the bias have the sizes of the settings."""
        module = node.module
        tensors = {} if module.weight is None else {"weight": self._weight_shape(module)}
        shape = (*self._weight_shape(module), *node.shape[len(self._weight_shape(module)) :])
        if isinstance(module, nn.LayerNorm):
            shape = (*node.shape[: -len(module.normalized_shape)], *module.normalized_shape)
        bias = {} if module.bias is None else {"bias": self._weight_shape(module)}
        sizes = {name: tuple(getattr(module, name).shape) for name in tensors | bias}
        if node.shape != shape or sizes != tensors | bias:
            self.refuse_setting(node, f"{sizes} for samples of {node.shape}")

    def operations(self, node: Node, dtype: torch.dtype) -> Operations:
        """Three sums and two products for each number."""
        return Operations(5 * node.size, 5 * node.size, 2 * node.size)

    def to_onnx(self, node: Node, inputs: list[str], step: OnnxStep) -> str:
        """Writes a ``LayerNormalization`` of each group, a ``Mul`` and an ``Add``."""
        groups, size = _groups(node)
        grouped = step.reshaped(inputs[0], node.shape, (groups, size))
        ones = step.constant(torch.ones(size, dtype=step.dtype, device="cpu"))
        normal = step.op("LayerNormalization", [grouped, ones], axis=-1, epsilon=node.module.eps)
        normal = step.reshaped(normal, (groups, size), node.shape)
        for name, op in (("weight", "Mul"), ("bias", "Add")):
            if (values := getattr(node.module, name)) is not None:
                normal = step.op(op, [normal, step.constant(_per_sample(values, node).contiguous())])
        return normal

    def lower(self, node: Node, to: Lowering) -> Activations:
        """Writes loops over the groups: their sums, their squared deviations, and the results."""
        (groups, size), module, code = _groups(node), node.module, to.code
        inputs = to.reordered(to.activations[node.inputs[0]], in_order(node.size))
        numbers, out, element = to.numbers(inputs), to.temporary(node.size), to.number.element
        tensors = {"weight": module.weight, "bias": module.bias}
        factors = {
            name: to.constant(_per_sample(values, node).flatten(), name[0])
            for name, values in tensors.items()
            if values is not None
        }
        zero, count = code.constant(0, element), code.constant(size, element)
        with code.loop(0, groups, name="g") as g:
            first = (g * size).named("first")
            total, squares = code.variable(zero), code.variable(zero)
            with code.loop(0, size, name="i") as i:
                total.value = total.value + numbers[first + i]
            mean = (total.value / count).named("mean")
            with code.loop(0, size, name="i") as i:
                deviation = (numbers[first + i] - mean).named("deviation")
                squares.value = squares.value + deviation * deviation
            variance = squares.value / count + code.constant(module.eps, element)
            scale = (1 / variance.call("sqrt")).named("scale")
            with code.loop(0, size, name="i") as i:
                place = (first + i).named("place")
                result = (numbers[place] - mean) * scale
                result = result * factors["weight"][place] if "weight" in factors else result
                out[place] = result + factors["bias"][place] if "bias" in factors else result
        return Activations(node, in_order(node.size), out)

    @staticmethod
    def _weight_shape(module: Any) -> tuple[int, ...]:
        """The shape of the weight and the bias."""
        is_layer = isinstance(module, nn.LayerNorm)
        return tuple(module.normalized_shape) if is_layer else (module.num_channels,)


def _groups(node: Node) -> tuple[int, int]:
    """The number of groups of a sample, and of the numbers in each."""
    module = node.module
    if isinstance(module, nn.GroupNorm):
        return module.num_groups, node.size // module.num_groups
    size = math.prod(module.normalized_shape)
    return node.size // size, size


def _per_sample(values: Tensor, node: Node) -> Tensor:
    """The weight or bias `values` in the shape of a sample of `node`."""
    if isinstance(node.module, nn.GroupNorm):
        values = values.view(-1, *[1] * (len(node.shape) - 1))
    return values.detach().expand(node.shape)
