"""Convolutions over images and sequences."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hibana.compiler.torch_layers import TORCH_LAYERS
from hibana.network.layers.base import Operations
from hibana.network.layers.linear import dense_operations
from hibana.network.layers.sliding import SlidingKind, each_output_of, image_shape, sliding_window
from hibana.network.lowering import Activations, Lowering
from hibana.network.nir_node import NirNode, array, integers, load_weights
from hibana.network.node import Node, Shape, channels_last
from hibana.network.onnx_step import OnnxStep
from hibana.nn.each_step import EachStep

__all__ = ["Convolution", "rows_of_channels"]


class Convolution(SlidingKind):
    """``nn.Conv1d`` and ``nn.Conv2d``, padded with zeros."""

    name = "convolution"
    types = TORCH_LAYERS["convolution"]
    nir_types = ("Conv1d", "Conv2d")
    weighted = has_integers = True

    def check(self, node: Node) -> None:
        """Raises Unsupported for padding other than zeros, or a weight of another size than the settings."""
        super().check(node)
        module, channels = node.module, node.input_shapes[0][0]
        if module.padding_mode != "zeros":
            self.refuse_setting(node, f"padding_mode={module.padding_mode!r}")
        group_inputs = channels // module.groups if channels == module.in_channels else -1
        weight = (module.out_channels, group_inputs, *module.kernel_size)
        self.require(node, self.expected_shape(node, module.out_channels), {"weight": weight})

    def operations(self, node: Node, dtype: torch.dtype) -> Operations:
        """One product for each weight and position of the kernel."""
        module = node.module
        per_tap = module.in_channels // module.groups * module.out_channels
        return dense_operations(node, sliding_window(node).taps * per_tap)

    def weights(self, node: Node, order: Tensor) -> tuple[Tensor, Tensor | None]:
        """Rows ``[in_channels, height, width, out_channels / groups]`` of the kernel, and the bias."""
        weight = node.module.weight.detach()
        image = weight if weight.ndim == 4 else weight[:, :, None]
        return rows_of_channels(image, node.module.groups), node.module.bias

    def to_onnx(self, node: Node, inputs: list[str], step: OnnxStep) -> str:
        """Writes a ``Conv`` of the input."""
        module = node.module
        bias = [] if module.bias is None else [step.constant(module.bias)]
        dilations = sliding_window(node).dilation[3 - len(node.shape) :]
        arrays = [*inputs, step.constant(module.weight), *bias]
        return step.op("Conv", arrays, **self.onnx_settings(node), dilations=dilations, group=module.groups)

    def lower(self, node: Node, to: Lowering) -> Activations:
        """Writes loops that add a row of weights to each output pixel that a nonzero input reaches."""
        module = node.module
        inputs, channels_are_last = to.image(to.activations[node.inputs[0]], node.input_shapes[0])
        weights, bias = self.weights(node, inputs.order)
        rows, out = to.constant(weights), to.temporary(node.size)
        channels, _, width = image_shape(node.shape)
        per_group = channels // module.groups
        kernel = sliding_window(node).kernel
        out.clear(node.size)
        with (
            to.each_nonzero(inputs) as (i, x),
            each_output_of(to, node, i, channels_are_last) as (c, ky, kx, oy, ox),
        ):
            pixel = oy * (width * channels) + ox * channels
            if module.groups > 1:
                pixel = pixel + c // (module.in_channels // module.groups) * per_group
            tap = c * (kernel[0] * kernel[1]) + ky * kernel[1] + kx
            target, row = (out + pixel).named("target"), (rows + tap * per_group).named("weights")
            to.accumulate(target, row, per_group, x)
        if bias is not None:
            to.add_bias(out, bias, node.size)
        return Activations(node, channels_last(node.shape), out)

    def to_nir(self, node: Node, dt: float) -> NirNode:
        """A ``Conv1d`` or ``Conv2d`` node; a missing bias becomes zeros."""
        module, (_, *sides) = node.module, node.input_shapes[0]
        bias = module.weight.new_zeros(module.out_channels) if module.bias is None else module.bias
        total = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
        padding = (0,) * len(total) if module.padding == "valid" else module.padding
        if padding == "same" and not any(n % 2 for n in total):  # every version of nir reads numbers
            padding = tuple(n // 2 for n in total)
        stride, dilation = module.stride, module.dilation
        sizes = {"input_shape": sides, "stride": stride, "padding": padding, "dilation": dilation}
        numbers = {name: size for name, size in sizes.items() if not isinstance(size, str)}
        if len(sides) == 1:  # NIR's Conv1d has an integer for each size
            fields = sizes | {name: int(size[0]) for name, size in numbers.items()}
        else:
            fields = sizes | {name: tuple(size) for name, size in numbers.items()}
        arrays = {"weight": array(module.weight), "bias": array(bias)}
        return NirNode(f"Conv{len(sides)}d", {**arrays, **fields, "groups": module.groups})

    def from_nir(self, node: NirNode, shape: Shape, dt: float | None) -> nn.Module:
        """The convolution of the node, called at each step."""
        fields, sides = node.fields, int(node.type[4])
        self.check_sample(shape, sides)
        outputs, group_inputs, *kernel = np.shape(fields["weight"])
        (groups,) = integers(fields, "groups", dimensions=1)
        sizes: dict[str, Any] = {
            name: fields[name] if isinstance(fields[name], str) else integers(fields, name, dimensions=sides)
            for name in ("stride", "padding", "dilation")
        }
        kind: Any = nn.Conv1d if sides == 1 else nn.Conv2d
        layer = kind(group_inputs * groups, outputs, tuple(kernel), groups=groups, device="meta", **sizes)
        return EachStep(load_weights(layer, fields))


def rows_of_channels(weight: Tensor, groups: int) -> Tensor:
    """Weights ``[outputs, inputs / groups, *kernel]`` as ``[inputs, *kernel, outputs / groups]``."""
    outputs, group_inputs, *kernel = weight.shape
    grouped = weight.view(groups, outputs // groups, group_inputs, *kernel)
    return grouped.movedim(1, -1).reshape(groups * group_inputs, *kernel, outputs // groups)
