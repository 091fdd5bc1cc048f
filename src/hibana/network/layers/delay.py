"""Delays of single values, and linear layers with a delay per synapse."""

import numpy as np
import torch
from torch import Tensor, nn

from hibana.network.graph import Node, Shape
from hibana.network.layers.base import LayerKind, Operations
from hibana.network.layers.linear import Linear, linear_node
from hibana.network.layers.ring import Ring
from hibana.network.lowering import Activations, Lowering, in_order
from hibana.network.nir_node import NirNode, check_broadcasts, full_array
from hibana.network.onnx_export import OnnxStep
from hibana.network.sliding_window import int64_tensor
from hibana.nn.delay import Delay
from hibana.nn.delayed_linear import DelayedLinear
from hibana.runtime.kernels import LONG, Value

__all__ = ["DelayedSynapses", "Delays", "sum_of_delays"]

_LONGEST = 2**24
"""Steps of a delay read from NIR: float32 holds every whole number up to this."""
_ROUNDING = 1e-6
"""Relative rounding of a delay in seconds."""


class Delays(LayerKind):
    """:class:`hibana.Delay`: each value some steps later."""

    name = "delay"
    types = (Delay,)
    nir_types = ("Delay",)
    over_time = elementwise = True

    def operations(self, node: Node, dtype: torch.dtype) -> Operations:
        return Operations(0, 0, 0)

    def check(self, node: Node) -> None:
        self.require(node, node.input_shapes[0], {})

    def delays(self, node: Node, places: Tensor) -> Tensor:
        module = node.module
        steps: Tensor = module.steps
        return steps.expand(node.shape).flatten()[places]

    def to_onnx(self, node: Node, inputs: list[str], step: OnnxStep) -> str:
        steps = self.delays(node, torch.arange(node.size, dtype=torch.int64, device="cpu")).detach()
        late = _delayed(steps, step.past(inputs[0], node.size, 1, int(steps.max())), step)
        return step.op("Reshape", [late, step.constant(int64_tensor([-1, *node.shape]))])

    def lower(self, node: Node, to: Lowering) -> Activations:
        module = node.module
        read = to.activations[node.inputs[0]]
        numbers, out = to.numbers(read), to.temporary(node.size, binary=read.binary)
        steps = self.delays(node, read.order)
        uniform = bool((steps == steps[0]).all())
        late = None if uniform else to.indices(steps, "d")
        ring = Ring(to, node, read.order, module.reach + 1, binary=read.binary)
        (ring.numbers + ring.now * node.size).copy(numbers, node.size)
        before: Value | int = ring.steps - int(steps[0]) if uniform and steps[0] else 0
        with to.code.loop(0, node.size, name="o") as o:
            if late is not None:
                ago = late[o].to(LONG).named("ago")
                before = ago.equals(0).select(ago, ring.steps - ago)
            (out + o).copy(ring.step(before) + o, 1)
        ring.advance()
        return Activations(node, read.order, out, binary=read.binary)

    def to_nir(self, node: Node, dt: float) -> NirNode:
        return _delay_node(node.module.steps, node.shape, dt)

    def from_nir(self, node: NirNode, shape: Shape, dt: float | None) -> nn.Module:
        check_broadcasts(node.fields["delay"], shape)
        steps = torch.as_tensor(node.in_steps("delay", dt), dtype=torch.float64, device="cpu")
        whole = steps.round()
        if bool(((steps - whole).abs() > _ROUNDING * whole.clamp(min=1)).any()) or bool((steps < 0).any()):
            raise ValueError(
                f"delay must be whole steps of dt, 0 or more, got {steps} steps; give another dt"
            )
        if bool((whole > _LONGEST).any()):
            raise ValueError(f"delay must be at most {_LONGEST:,} steps of dt, got {steps} steps")
        return Delay(float(whole) if whole.ndim == 0 else whole.float())


class DelayedSynapses(Linear):
    """:class:`hibana.DelayedLinear`: a linear layer with a delay for each synapse."""

    name = "delayed"
    types = (DelayedLinear,)
    nir_types = ()
    over_time = True

    def check(self, node: Node) -> None:
        module = node.module
        synapses = (module.out_features, node.input_shapes[0][0])
        self.require(node, (module.out_features,), {"weight": synapses, "delay": synapses})

    def delays(self, node: Node, places: Tensor) -> Tensor:
        module = node.module
        delays: Tensor = module.steps.T[places].contiguous()
        return delays

    def to_onnx(self, node: Node, inputs: list[str], step: OnnxStep) -> str:
        module = node.module
        steps: Tensor = module.steps.detach()  # [outputs, inputs]
        late = _delayed(steps, step.past(inputs[0], steps.shape[1], 1, int(steps.max())), step)
        products = step.op("Mul", [late, step.constant(module.weight.detach())])
        # MatMul, because OpenVINO 2026.4 computes ReduceSum of one number and a bias added to it wrongly
        total = step.op("MatMul", [products, step.constant(torch.ones_like(module.weight[0]))])
        return total if module.bias is None else step.op("Add", [total, step.constant(module.bias)])

    def lower(self, node: Node, to: Lowering) -> Activations:
        module = node.module
        read = to.activations[node.inputs[0]]
        weights, bias = self.weights(node, read.order)
        rows, late = to.constant(weights), to.indices(self.delays(node, read.order), "d")
        ring = Ring(to, node, in_order(node.size), module.reach + 1)
        ring.scatter(read, rows, late)
        return Activations(node, in_order(node.size), ring.taken(bias))

    def to_nir(self, node: Node, dt: float) -> NirNode:
        module = node.module
        lags = sorted({*module.steps.flatten().tolist()})
        weights = {int(lag): module.weight * (module.steps == lag) for lag in lags}
        return sum_of_delays(weights, module.bias, node.input_shapes[0], dt)


def sum_of_delays(lags: dict[int, Tensor], bias: Tensor | None, shape: Shape, dt: float) -> NirNode:
    """Weights ``[outputs, inputs]`` by their lag in steps, as a graph within the graph: a branch for each.

    NIR's own convolutions go over the axes of a sample, not over time.
    """
    outputs, inputs = next(iter(lags.values())).shape
    if shape != (inputs,):
        raise ValueError(f"only samples of one axis, ({inputs},), can be written, got the shape {shape}")
    last = max(lags)
    if last == 0:
        return linear_node(lags[0], bias)
    nodes, edges = {"input": NirNode("Input", {"shape": np.array(shape)})}, []
    for lag, weight in lags.items():
        source, name = "input", f"weight{lag}"
        if lag:
            source = f"delay{lag}"
            nodes[source] = _delay_node(torch.tensor(lag, dtype=torch.int64, device="cpu"), shape, dt)
            edges.append(("input", source))
        nodes[name] = linear_node(weight, bias if lag == last else None)
        edges += [(source, name), (name, "output")]
    nodes["output"] = NirNode("Output", {"shape": np.array([outputs])})
    return NirNode("NIRGraph", {"nodes": nodes, "edges": edges})


def _delay_node(steps: Tensor, shape: Shape, dt: float) -> NirNode:
    in_steps = full_array(steps.double(), shape, "delay")
    return NirNode("Delay", {"delay": in_steps.astype(np.float64) * dt}, {"delay_steps": in_steps})


def _delayed(steps: Tensor, past: str, step: OnnxStep) -> str:
    """The value of each input in `past` as many `steps` ago; inputs are the last dimension of `steps`."""
    inputs, reach = steps.shape[-1], int(steps.max())
    first = torch.arange(inputs, dtype=torch.int64, device="cpu") * (reach + 1)
    flat = step.op("Flatten", [past], axis=1)
    return step.op("Gather", [flat, step.constant(first + reach - steps.long())], axis=1)
