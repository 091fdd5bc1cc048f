"""Delays of single values, and the rings that hold later steps."""

import numpy as np
import torch
from torch import Tensor, nn

from hibana.compiler.c.integers import Bounds
from hibana.network.layers.base import LayerKind, Operations
from hibana.network.layers.linear import linear_node
from hibana.network.lowering import Activations, Lowering, StateArray
from hibana.network.nir_node import NirNode, check_broadcasts, full_array, subgraph
from hibana.network.node import Node, Shape, in_order
from hibana.network.onnx_step import OnnxStep, int64_tensor
from hibana.nn.delay import Delay
from hibana.runtime.kernels import LONG, Longs, Pointer, Value

__all__ = ["Delays", "Ring", "sum_of_delays"]

_MAX_STEPS = 2**24
"""Longest delay read from NIR, in steps: float32 represents every integer up to it."""
_ROUNDING = 1e-6
"""Relative rounding error of a delay in seconds."""


class Delays(LayerKind):
    """:class:`hibana.Delay`: each value some steps later."""

    name = "delay"
    types = (Delay,)
    nir_types = ("Delay",)
    over_time = elementwise = has_integers = keeps_channels = True

    def operations(self, node: Node, dtype: torch.dtype) -> Operations:
        """No operations."""
        return Operations(0, 0, 0)

    def integer_bounds(self, node: Node, inputs: list[Bounds]) -> list[Bounds]:
        """The bounds of the input, and the zeros of the steps before the first."""
        low, high = inputs[0]
        return [(min(0, low), max(0, high))]

    def to_onnx(self, node: Node, inputs: list[str], step: OnnxStep) -> str:
        """Writes the inputs of the current and previous steps, and a ``Gather`` of the delayed values."""
        delays = node.module.steps.detach().expand(node.shape).flatten()
        longest = int(delays.max())
        past = step.op("Flatten", [step.past(inputs[0], node.size, 1, longest)], axis=1)
        places = in_order(node.size) * (longest + 1) + longest - delays
        delayed = step.op("Gather", [past, step.constant(places)], axis=1)
        return step.op("Reshape", [delayed, step.constant(int64_tensor([-1, *node.shape]))])

    def lower(self, node: Node, to: Lowering) -> Activations:
        """Writes loops that store the inputs in a ring, and read the numbers of `delays` steps ago."""
        inputs = to.activations[node.inputs[0]]
        order, binary = inputs.order, inputs.binary
        numbers, out = to.numbers(inputs), to.temporary(node.size, binary=binary)
        delays = node.module.steps.detach().expand(node.shape).flatten()[order]
        ring = Ring(to, node, order, node.module.reach + 1, binary=binary)
        (ring.numbers + ring.now * node.size).copy(numbers, node.size)
        # in a ring, the step that lies `delay` steps back is `ring.steps - delay` steps ahead
        if bool((delays == delays[0]).all()):
            out.copy(ring.place((ring.steps - int(delays[0])) * node.size), node.size)
        else:
            places = to.indices((ring.steps - delays) * node.size + in_order(node.size), "d")
            with to.code.loop(0, node.size, name="o") as o:
                (out + o).copy(ring.place(places[o].to(LONG)), 1)
        ring.advance()
        return Activations(node, order, out, binary=binary)

    def to_nir(self, node: Node, dt: float) -> NirNode:
        """A ``Delay`` node, in seconds."""
        return _delay_node(node.module.steps, node.shape, dt)

    def from_nir(self, node: NirNode, shape: Shape, dt: float | None) -> nn.Module:
        """A :class:`hibana.Delay` with the delays in steps; raises ValueError if they are not whole."""
        check_broadcasts(node.fields["delay"], shape)
        exact = torch.as_tensor(node.in_steps("delay", dt), dtype=torch.float64, device="cpu")
        steps = exact.round()
        if bool(((exact - steps).abs() > _ROUNDING * steps.clamp(min=1)).any()) or bool((exact < 0).any()):
            raise ValueError(
                f"delay must be whole steps of dt, 0 or more, got {exact} steps; give another dt"
            )
        if bool((steps > _MAX_STEPS).any()):
            raise ValueError(f"delay must be at most {_MAX_STEPS:,} steps of dt, got {exact} steps")
        return Delay(float(steps) if steps.ndim == 0 else steps.float())


class Ring:
    """A ring buffer in the network's state: the sums of a layer for the current and later steps.

    A counter in the state is the index of the current step.
    """

    def __init__(self, to: Lowering, node: Node, order: Tensor, steps: int, *, binary: bool = False) -> None:
        self.to, self.steps, self.size = to, steps, node.size
        zeros = torch.zeros(steps * node.size, dtype=to.dtype, device="cpu")
        array = StateArray(node.name, "ring", (steps, *node.shape), order, binary)
        self.numbers = to.state(array, zeros).of(to.number)
        zero = torch.zeros(1, dtype=torch.int64, device="cpu")
        self._counter = to.state(StateArray(node.name, "counter", (), order), zero).of(Longs)
        self.now = self._counter.load().named("now")

    def place(self, index: Value | int) -> Pointer:
        """The address `index` numbers after the start of the current step, around the end of the ring.

        `index` is at most the size of the ring.
        """
        after = (self.now * self.size + index).named("after")
        total = self.steps * self.size
        # select is compiled without a branch
        wrapped = (after < total).select(0, self.to.code.constant(total))
        return self.numbers + (after - wrapped)

    def take(self, bias: Tensor | None) -> Pointer:
        """The sums of the current step plus a bias for each channel; clears them, and advances the ring."""
        to, out = self.to, self.to.temporary(self.size)
        current = self.numbers + self.now * self.size
        out.copy(current, self.size)
        if bias is not None:
            to.add_bias(out, bias, self.size)
        current.clear(self.size)
        self.advance()
        return out

    def advance(self) -> None:
        """Makes the next step the current one."""
        following = self.now + 1
        self.now = (following < self.steps).select(following, 0).named("next")
        self._counter.store(self.now)


def sum_of_delays(weights: dict[int, Tensor], bias: Tensor | None, shape: Shape, dt: float) -> NirNode:
    """The NIR graph that sums delayed linear maps: a branch with a delay and a linear node for each delay.

    NIR's own convolutions go over the axes of a sample, not over time.

    Args:
        weights: the weights ``[outputs, inputs]`` of each delay in steps, in rising order of delays or
            falling; the bias is part of the branch with the longest one.
        bias: ``[outputs]``.
        shape: the shape of one sample of the input.
        dt: seconds per step.
    """
    outputs, inputs = next(iter(weights.values())).shape
    if shape != (inputs,):
        raise ValueError(f"only samples of one axis, ({inputs},), can be written, got the shape {shape}")
    longest = max(weights)
    if longest == 0:
        return linear_node(weights[0], bias)
    nodes: dict[str, NirNode] = {}
    edges: list[tuple[str, str]] = []
    for delay, weight in weights.items():
        source, name = "input", f"weight{delay}"
        if delay:
            source = f"delay{delay}"
            nodes[source] = _delay_node(torch.tensor(delay, dtype=torch.int64, device="cpu"), shape, dt)
            edges.append(("input", source))
        nodes[name] = linear_node(weight, bias if delay == longest else None)
        edges += [(source, name), (name, "output")]
    return subgraph(nodes, edges, shape, (outputs,))


def _delay_node(steps: Tensor, shape: Shape, dt: float) -> NirNode:
    """The NIR node of a delay in `steps`, one number or one per value of a sample of `shape`."""
    in_steps = full_array(steps.double(), shape, "delay")
    return NirNode("Delay", {"delay": in_steps.astype(np.float64) * dt}, {"delay_steps": in_steps})
