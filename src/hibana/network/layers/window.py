"""Convolutions over time."""

import torch
from torch import Tensor

from hibana.network.graph import Node
from hibana.network.layers.base import LayerKind, Operations
from hibana.network.layers.convolution import rows_of_channels
from hibana.network.layers.delay import sum_of_delays
from hibana.network.layers.linear import dense_operations
from hibana.network.layers.ring import Ring
from hibana.network.lowering import Activations, Lowering, in_order
from hibana.network.nir_node import NirNode
from hibana.network.onnx_export import OnnxStep
from hibana.network.sliding_window import channels_last, int64_tensor
from hibana.nn.window import Window
from hibana.runtime.kernels import LONG

__all__ = ["OverWindow"]


class OverWindow(LayerKind):
    """:class:`hibana.Window`."""

    name = "window"
    types = (Window,)
    over_time = weighted = True

    def check(self, node: Node) -> None:
        module = node.module
        channels, *sides = node.input_shapes[0]
        inner = channels // module.groups if channels == module.in_channels else -1
        weight = (module.out_channels, inner, module.kernel_size)
        self.require(node, (module.out_channels, *sides), {"weight": weight})

    def operations(self, node: Node, dtype: torch.dtype) -> Operations:
        module = node.module
        per_input = module.kernel_size * module.out_channels // module.groups
        return dense_operations(node, node.inputs[0].size * per_input)

    def weights(self, node: Node, places: Tensor) -> tuple[Tensor, Tensor | None]:
        module = node.module
        return rows_of_channels(module.weight.detach(), module.groups), module.bias

    def to_onnx(self, node: Node, inputs: list[str], step: OnnxStep) -> str:
        module = node.module
        channels, outputs, kernel = module.in_channels, module.out_channels, module.kernel_size
        pixels = node.size // outputs
        steps = step.past(inputs[0], channels, pixels, module.reach)
        bias = [] if module.bias is None else [step.constant(module.bias)]
        weight = module.weight.detach()
        if module.groups == 1 and pixels == 1:
            if module.dilation > 1:
                taps = int64_tensor(range(0, module.reach + 1, module.dilation))
                steps = step.op("Gather", [steps, step.constant(taps)], axis=2)
            flat = step.op("Flatten", [steps], axis=1)
            sums = step.op("Gemm", [flat, step.constant(weight.flatten(1)), *bias], transB=1)
        else:
            sums = step.op(
                "Conv",
                [steps, step.constant(weight[..., None]), *bias],
                kernel_shape=[kernel, 1],
                dilations=[module.dilation, 1],
                group=module.groups,
            )
        return step.op("Reshape", [sums, step.constant(int64_tensor([-1, *node.shape]))])

    def lower(self, node: Node, to: Lowering) -> Activations:
        module = node.module
        read, places = to.activations[node.inputs[0]], channels_last(node.shape)
        weights, bias = self.weights(node, read.order)
        channels, outputs, taps = module.in_channels, module.out_channels, module.kernel_size
        of_group, pixels = outputs // module.groups, node.size // outputs
        order, last, rows = None, False, to.constant(weights)
        if pixels > 1:
            read, last = to.image(read, node.input_shapes[0])
        elif not torch.equal(read.order, in_order(len(read.order))):
            order = to.indices(read.order, "order")
        ring = Ring(to, node, places, module.reach + 1)
        with to.each_active(read) as (i, x):
            c, pixel = i if order is None else order[i].to(LONG).named("c"), to.code.constant(0)
            if pixels > 1:
                c, pixel = (i % channels, i // channels) if last else (i // pixels, i % pixels)
            first = pixel * outputs
            if module.groups > 1:
                first = first + c // (channels // module.groups) * of_group
            with to.code.loop(0, taps, name="k") as k:
                target = ring.step((to.code.constant(taps - 1) - k) * module.dilation) + first
                row = rows + (c * taps + k) * of_group
                to.accumulate(target.named("target"), row.named("weights"), of_group, x)
        return Activations(node, places, ring.taken(bias))

    def to_nir(self, node: Node, dt: float) -> NirNode:
        module = node.module
        weight, groups = module.weight.detach(), module.groups
        diagonals = [torch.block_diag(*tap.chunk(groups)) for tap in weight.unbind(2)]  # type: ignore[no-untyped-call] # torch leaves it so
        dense = torch.stack(diagonals, 2)
        taps = enumerate(dense.flip(2).unbind(2))
        return sum_of_delays({k * module.dilation: w for k, w in taps}, module.bias, node.input_shapes[0], dt)
