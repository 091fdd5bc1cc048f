"""Convolutions over images and sequences."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from hibana.network.graph import Node
from hibana.network.layers.base import Operations
from hibana.network.layers.linear import dense_operations
from hibana.network.layers.sliding import SlidingKind, each_side
from hibana.network.sliding import sliding_of

if TYPE_CHECKING:
    from hibana.network.scan import OnnxStep

__all__ = ["Convolution", "rows_of_channels"]


class Convolution(SlidingKind):
    """``nn.Conv1d`` and ``nn.Conv2d``, padded with zeros."""

    name = "convolution"
    types = (nn.Conv1d, nn.Conv2d)
    weighted = True

    def check(self, node: Node) -> None:
        super().check(node)
        module = node.module
        if module.padding_mode != "zeros":
            self.refuse_setting(node, f"padding_mode={module.padding_mode!r}")
        inner = node.seen[0][0] // module.groups if node.seen[0][0] == module.in_channels else -1
        weight = (module.out_channels, inner, *module.kernel_size)
        self.require(node, (module.out_channels, *self.output_sides(node)), {"weight": weight})

    def operations(self, node: Node, dtype: torch.dtype) -> Operations:
        module = node.module
        per_tap = module.in_channels // module.groups * module.out_channels
        return dense_operations(node, sliding_of(node).taps * per_tap)

    def weights(self, node: Node, places: Tensor) -> tuple[Tensor, Tensor | None]:
        module = node.module
        weight = module.weight.detach()
        image = weight if weight.ndim == 4 else weight[:, :, None]
        return rows_of_channels(image, module.groups), module.bias

    def to_onnx(self, node: Node, inputs: list[str], step: "OnnxStep") -> str:
        module = node.module
        bias = [] if module.bias is None else [step.constant(module.bias)]
        settings = self.onnx_settings(node)
        dilations = each_side(module.dilation, len(node.shape) - 1)
        arrays = [*inputs, step.constant(module.weight), *bias]
        return step.op("Conv", arrays, **settings, dilations=dilations, group=module.groups)


def rows_of_channels(weight: Tensor, groups: int) -> Tensor:
    """Weights ``[outputs, inputs / groups, *kernel]`` as ``[inputs, *kernel, outputs / groups]``."""
    outputs, inner, *kernel = weight.shape
    grouped = weight.view(groups, outputs // groups, inner, *kernel)
    return grouped.movedim(1, -1).reshape(groups * inner, *kernel, outputs // groups)
