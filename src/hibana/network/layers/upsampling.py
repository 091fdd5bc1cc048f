"""``nn.Upsample`` of images and sequences to a whole multiple of their size, by repeating pixels."""

import math
from typing import Any

import torch

from hibana.compiler.torch_layers import TORCH_LAYERS
from hibana.network.layers.base import LayerKind
from hibana.network.layers.sliding import image_shape
from hibana.network.lowering import Activations, Lowering
from hibana.network.node import Node, channels_last, in_order
from hibana.network.onnx_step import OnnxStep

__all__ = ["Upsampling"]


class Upsampling(LayerKind):
    """Each pixel several times in each direction."""

    name = "upsampling"
    types = TORCH_LAYERS["upsampling"]
    has_integers = keeps_channels = True

    def check(self, node: Node) -> None:
        """Raises Unsupported for other modes, factors that are not whole, and volumes."""
        (shape,), module = node.input_shapes, node.module
        if module.mode != "nearest":
            self.refuse_setting(node, f"mode={module.mode!r}")
        pixels = in_order(math.prod(shape)).view(1, *shape).double()
        repeated = pixels
        for axis, (size, source) in enumerate(zip(node.shape, shape, strict=True)):
            repeated = repeated.repeat_interleave(size // source, axis + 1)
        if len(shape) not in (2, 3) or not torch.equal(repeated, module(pixels)):
            self.refuse_setting(node, f"upsampling {shape} to {node.shape}")

    def to_onnx(self, node: Node, inputs: list[str], step: OnnxStep) -> str:
        """Writes a ``Resize``."""
        ratios = [
            1.0,
            *(size / source for size, source in zip(node.shape, node.input_shapes[0], strict=True)),
        ]
        scales = step.constant(torch.tensor(ratios, dtype=torch.float32, device="cpu"))
        settings: dict[str, Any] = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
        return step.op("Resize", [*inputs, "", scales], mode="nearest", **settings)

    def lower(self, node: Node, to: Lowering) -> Activations:
        """Writes loops over the pixels of the result."""
        source, code = to.activations[node.inputs[0]], to.code
        inputs, is_channels_last = to.image(source, node.input_shapes[0])
        channels, height, width = image_shape(node.shape)
        _, input_height, input_width = image_shape(node.input_shapes[0])
        out = to.temporary(node.size, binary=source.binary)
        numbers = to.numbers(inputs)
        images, numbers_per_pixel = (1, channels) if is_channels_last else (channels, 1)
        with (
            code.loop(0, images, name="c") as c,
            code.loop(0, input_height, name="y") as y,
            code.loop(0, height // input_height, name="dy") as dy,
            code.loop(0, input_width, name="x") as x,
            code.loop(0, width // input_width, name="dx") as dx,
        ):
            pixel = ((c * input_height + y) * input_width + x) * numbers_per_pixel
            row = (c * height + y * (height // input_height) + dy) * width
            place = (row + x * (width // input_width) + dx) * numbers_per_pixel
            (out + place).copy(numbers + pixel, numbers_per_pixel)
        order = channels_last(node.shape) if is_channels_last else in_order(node.size)
        return Activations(node, order, out, binary=source.binary)
