"""Delays of single values, and linear layers with a delay per synapse."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hibana.network.graph import Node
from hibana.network.layers.base import LayerKind, Operations
from hibana.network.layers.linear import dense_operations
from hibana.network.sliding import indices
from hibana.nn.delay import Delay
from hibana.nn.delayed_linear import DelayedLinear

if TYPE_CHECKING:
    from hibana.network.scan import OnnxStep

__all__ = ["DelayedSynapses", "Delays"]


class Delays(LayerKind):
    """:class:`hibana.Delay`: each value some steps later."""

    name = "delay"
    types = (Delay,)
    over_time = True

    def operations(self, node: Node, dtype: torch.dtype) -> Operations:
        return Operations(0, 0, 0)

    def check(self, node: Node) -> None:
        self.require(node, node.seen[0], {})

    def delays(self, node: Node, places: Tensor) -> Tensor:
        module = node.module
        steps: Tensor = module.steps
        return steps.expand(node.shape).flatten()[places]

    def to_onnx(self, node: Node, inputs: list[str], step: "OnnxStep") -> str:
        steps = self.delays(node, torch.arange(node.size, dtype=torch.int64, device="cpu")).detach()
        late = _delayed(steps, step.past(inputs[0], node.size, 1, int(steps.max())), step)
        return step.op("Reshape", [late, step.constant(indices([-1, *node.shape]))])


class DelayedSynapses(LayerKind):
    """:class:`hibana.DelayedLinear`: a linear layer with a delay for each synapse."""

    name = "delayed"
    types = (DelayedLinear,)
    over_time = weighted = True

    def check(self, node: Node) -> None:
        module = node.module
        synapses = (module.out_features, node.seen[0][0])
        self.require(node, (module.out_features,), {"weight": synapses, "delay": synapses})

    def operations(self, node: Node, dtype: torch.dtype) -> Operations:
        return dense_operations(node, node.inputs[0].size * node.size)

    def weights(self, node: Node, places: Tensor) -> tuple[Tensor, Tensor | None]:
        module = node.module
        return module.weight.detach().T[places].contiguous(), module.bias

    def delays(self, node: Node, places: Tensor) -> Tensor:
        module = node.module
        delays: Tensor = module.steps.T[places].contiguous()
        return delays

    def to_onnx(self, node: Node, inputs: list[str], step: "OnnxStep") -> str:
        module = node.module
        steps: Tensor = module.steps.detach()  # [outputs, inputs]
        late = _delayed(steps, step.past(inputs[0], steps.shape[1], 1, int(steps.max())), step)
        products = step.op("Mul", [late, step.constant(module.weight.detach())])
        # MatMul, because OpenVINO 2026.4 computes ReduceSum of one number and a bias added to it wrongly
        total = step.op("MatMul", [products, step.constant(torch.ones_like(module.weight[0]))])
        return total if module.bias is None else step.op("Add", [total, step.constant(module.bias)])


def _delayed(steps: Tensor, past: str, step: "OnnxStep") -> str:
    """The value of each input in `past` as many `steps` ago; inputs are the last dimension of `steps`."""
    inputs, reach = steps.shape[-1], int(steps.max())
    first = torch.arange(inputs, dtype=torch.int64, device="cpu") * (reach + 1)
    flat = step.op("Flatten", [past], axis=1)
    return step.op("Gather", [flat, step.constant(first + reach - steps.long())], axis=1)
