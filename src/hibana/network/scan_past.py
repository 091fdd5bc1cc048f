"""Layers that look back, in the step of an ONNX model: their past is a state, as long as they reach."""

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from hibana.network.graph import Node
from hibana.network.sliding import whole

__all__ = ["Body", "looking_back"]


class Body(ABC):
    """The step that is being written."""

    @abstractmethod
    def op(self, op: str, given: list[str], name: str = "", outer: bool = False, **settings: Any) -> str:
        """Writes an operation, and gives the name of what it makes."""

    @abstractmethod
    def constant(self, values: Tensor) -> str:
        """The name of a constant."""

    @abstractmethod
    def state(self, name: str, shape: tuple[int, ...]) -> tuple[str, str]:
        """The names of a state of zeros before and after the step, ``[batch, *shape]``."""


def looking_back(body: Body, node: Node, at: int, given: str) -> str:
    """The layer `node`, of which `given` is the input at this step, ``[batch, ...]``."""
    written = {"window": _window, "delay": _delay, "delayed": _delayed}[node.kind]
    return written(body, node, at, given)


def _seen(body: Body, at: int, given: str, sides: tuple[int, int], reach: int) -> str:
    """``[batch, channels, reach + 1, pixels]`` of the steps up to this one, the earliest first."""
    channels, pixels = sides
    now = body.op("Reshape", [given, body.constant(whole([-1, channels, 1, pixels]))])
    if reach == 0:
        return now
    before, after = body.state(f"past{at}", (channels, reach, pixels))
    steps = body.op("Concat", [before, now], axis=2)
    one, end, axis = (body.constant(whole([number])) for number in (1, reach + 1, 2))
    body.op("Slice", [steps, one, end, axis], name=after)
    return steps


def _window(body: Body, node: Node, at: int, given: str) -> str:
    """A convolution over the steps, with the bias."""
    module: Any = node.module
    channels, outputs, kernel = module.in_channels, module.out_channels, module.kernel_size
    pixels = node.size // outputs
    steps = _seen(body, at, given, (channels, pixels), module.reach)
    bias = [] if module.bias is None else [body.constant(module.bias)]
    weight = module.weight.detach()
    if module.groups == 1 and pixels == 1:
        if module.dilation > 1:
            taps = whole(range(0, module.reach + 1, module.dilation))
            steps = body.op("Gather", [steps, body.constant(taps)], axis=2)
        flat = body.op("Flatten", [steps], axis=1)
        made = body.op("Gemm", [flat, body.constant(weight.flatten(1)), *bias], transB=1)
    else:
        made = body.op(
            "Conv",
            [steps, body.constant(weight[..., None]), *bias],
            kernel_shape=[kernel, 1],
            dilations=[module.dilation, 1],
            group=module.groups,
        )
    return body.op("Reshape", [made, body.constant(whole([-1, *node.shape]))])


def _delay(body: Body, node: Node, at: int, given: str) -> str:
    """Each number as it was so many steps ago."""
    module: Any = node.module
    steps = module.steps.detach().expand(node.shape).flatten()
    reach = int(steps.max())
    flat = body.op("Flatten", [_seen(body, at, given, (node.size, 1), reach)], axis=1)
    places = torch.arange(node.size, dtype=torch.int64, device="cpu") * (reach + 1) + reach - steps.long()
    late = body.op("Gather", [flat, body.constant(places)], axis=1)
    return body.op("Reshape", [late, body.constant(whole([-1, *node.shape]))])


def _delayed(body: Body, node: Node, at: int, given: str) -> str:
    """The sum over inputs of each as it was so many steps ago, by the weight of its synapse."""
    module: Any = node.module
    steps = module.steps.detach().long()  # [outputs, inputs]
    reach = int(steps.max())
    flat = body.op("Flatten", [_seen(body, at, given, (steps.shape[1], 1), reach)], axis=1)
    places = torch.arange(steps.shape[1], dtype=torch.int64, device="cpu") * (reach + 1) + reach - steps
    late = body.op("Gather", [flat, body.constant(places)], axis=1)  # [batch, outputs, inputs]
    products = body.op("Mul", [late, body.constant(module.weight.detach())])
    # not ReduceSum: of one, and a bias added to it, OpenVINO 2026.4 made other numbers
    one = body.constant(torch.ones_like(module.weight[0]))
    total = body.op("MatMul", [products, one])
    return total if module.bias is None else body.op("Add", [total, body.constant(module.bias)])
