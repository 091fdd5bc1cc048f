"""Convolutions over time."""

import torch
from torch import Tensor

from hibana.network.layers.base import LayerKind, Operations
from hibana.network.layers.convolution import rows_of_channels
from hibana.network.layers.delay import Ring, sum_of_delays
from hibana.network.layers.linear import dense_operations
from hibana.network.lowering import Activations, Lowering
from hibana.network.nir_node import NirNode
from hibana.network.node import Node, channels_last
from hibana.network.onnx_step import OnnxStep, int64_tensor
from hibana.nn.window import Window

__all__ = ["OverWindow"]


class OverWindow(LayerKind):
    """:class:`hibana.Window`."""

    name = "window"
    types = (Window,)
    over_time = weighted = has_integers = True

    def check(self, node: Node) -> None:
        """Raises Unsupported unless the weight has the size of the settings."""
        module = node.module
        channels, *sides = node.input_shapes[0]
        group_inputs = channels // module.groups if channels == module.in_channels else -1
        weight = (module.out_channels, group_inputs, module.kernel_size)
        self.require(node, (module.out_channels, *sides), {"weight": weight})

    def operations(self, node: Node, dtype: torch.dtype) -> Operations:
        """One product for each weight and pixel."""
        module = node.module
        per_input = module.kernel_size * module.out_channels // module.groups
        return dense_operations(node, node.inputs[0].size * per_input)

    def weights(self, node: Node, order: Tensor) -> tuple[Tensor, Tensor | None]:
        """Rows ``[in_channels, kernel_size, out_channels / groups]``, and the bias."""
        return rows_of_channels(node.module.weight.detach(), node.module.groups), node.module.bias

    def to_onnx(self, node: Node, inputs: list[str], step: OnnxStep) -> str:
        """Writes a product with the inputs of all steps of the kernel: a ``Gemm`` or a ``Conv``."""
        module = node.module
        pixels = node.size // module.out_channels
        steps = step.past(inputs[0], module.in_channels, pixels, module.reach)
        bias = [] if module.bias is None else [step.constant(module.bias)]
        weight = module.weight.detach()
        if module.groups == 1 and pixels == 1:
            if module.dilation > 1:
                taps = int64_tensor(range(0, module.reach + 1, module.dilation))
                steps = step.op("Gather", [steps, step.constant(taps)], axis=2)
            flat = step.op("Flatten", [steps], axis=1)
            sums = step.op("Gemm", [flat, step.constant(weight.flatten(1)), *bias], transB=1)
        else:
            kernel, dilations = [module.kernel_size, 1], [module.dilation, 1]
            arrays = [steps, step.constant(weight[..., None]), *bias]
            sums = step.op("Conv", arrays, kernel_shape=kernel, dilations=dilations, group=module.groups)
        return step.op("Reshape", [sums, step.constant(int64_tensor([-1, *node.shape]))])

    def lower(self, node: Node, to: Lowering) -> Activations:
        """Writes loops that add each nonzero input, for each step of the kernel, to a ring of sums."""
        module, order = node.module, channels_last(node.shape)
        inputs, is_channels_last = to.image(to.activations[node.inputs[0]], node.input_shapes[0])
        weights, bias = self.weights(node, inputs.order)
        channels, outputs, taps = module.in_channels, module.out_channels, module.kernel_size
        per_group, pixels, rows = outputs // module.groups, node.size // outputs, to.constant(weights)
        ring = Ring(to, node, order, module.reach + 1)
        with to.each_nonzero(inputs) as (i, x):
            c, pixel = (i % channels, i // channels) if is_channels_last else (i // pixels, i % pixels)
            first = pixel * outputs
            if module.groups > 1:
                first = first + c // (channels // module.groups) * per_group
            with to.code.loop(0, taps, name="k") as k:
                steps_later = (to.code.constant(taps - 1) - k) * module.dilation
                target = ring.place(steps_later * node.size + first)
                row = rows + (c * taps + k) * per_group
                to.accumulate(target.named("target"), row.named("weights"), per_group, x)
        return Activations(node, order, ring.take(bias))

    def to_nir(self, node: Node, dt: float) -> NirNode:
        """A NIR graph with a delay and a linear node for each step of the kernel."""
        module = node.module
        weight, groups = module.weight.detach(), module.groups
        dense = [torch.block_diag(*tap.chunk(groups)) for tap in weight.unbind(2)]  # type: ignore[no-untyped-call] # torch leaves it so
        weights = {k * module.dilation: tap for k, tap in enumerate(reversed(dense))}
        return sum_of_delays(weights, module.bias, node.input_shapes[0], dt)
