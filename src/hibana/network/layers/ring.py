"""Rings of steps: the memory of layers whose output depends on earlier inputs."""

import torch
from torch import Tensor

from hibana.network.graph import Node
from hibana.network.lowering import Activations, Lowering, StateArray, times
from hibana.runtime.kernels import LONG, Longs, Pointer, Value

__all__ = ["Ring"]


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

    def step(self, delay: Value | int) -> Pointer:
        """The address of the sums `delay` steps after the current step; the ring has more steps than that."""
        index = (self.now + delay).named("at")
        # select is compiled without a branch
        wrapped = (index < self.steps).select(0, self.to.code.constant(self.steps))
        return self.numbers + (index - wrapped) * self.size

    def place(self, index: Value) -> Pointer:
        """The address `index` numbers after the start of the current step, around the end of the ring."""
        after = (self.now * self.size + index).named("after")
        total = self.steps * self.size
        # select is compiled without a branch
        wrapped = (after < total).select(0, self.to.code.constant(total))
        return self.numbers + (after - wrapped)

    def scatter(self, inputs: Activations, rows: Pointer, delays: Pointer) -> None:
        """Adds the weights of each nonzero input to the steps at which they arrive.

        Args:
            inputs: the layer's input at the current step.
            rows: the weights ``[inputs, size]``.
            delays: the delay of each synapse in steps, ``[inputs, size]``.
        """
        with self.to.each_nonzero(inputs) as (i, x), self.to.code.loop(0, self.size, name="o") as o:
            synapse = i * self.size + o
            target = self.step(delays[synapse].to(LONG)) + o
            target.store(target.load() + times(rows[synapse], x))

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
