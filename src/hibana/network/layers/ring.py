"""Rings of steps: the memory of layers that look back."""

from typing import Any

import torch
from torch import Tensor

from hibana.network.graph import Node
from hibana.network.lowering import Activations, Lowering, times
from hibana.runtime.kernels import LONG, Longs, Pointer

__all__ = ["Ring"]


class Ring:
    """An array of the numbers of several steps in the state; a counter tells which is the current one."""

    def __init__(self, to: Lowering, node: Node, places: Tensor, steps: int, *, binary: bool = False) -> None:
        self.to, self.steps, self.size = to, steps, node.size
        rest = torch.zeros(steps * node.size, dtype=to.dtype, device="cpu")
        array = to.lasting("ring", rest, node, places, (steps, *node.shape), binary=binary)
        self.numbers = array.of(to.number)
        zero = torch.zeros(1, dtype=torch.int64, device="cpu")
        self._now = to.lasting("counter", zero, node, places, ()).of(Longs)
        self.now = self._now.load().named("now")

    def step(self, later: Any) -> Pointer:
        """The numbers of the step that is `later` than the current one, by fewer than the ring has."""
        at = (self.now + later).named("at")
        ahead = (at < self.steps).select(
            0, self.to.code.constant(self.steps)
        )  # compilers make no branch of it
        row: Pointer = self.numbers + (at - ahead) * self.size
        return row

    def scatter(self, held: Activations, rows: Pointer, late: Pointer) -> None:
        """Adds the weights of each nonzero input, each to the step at which it arrives."""
        with self.to.each_active(held) as (i, x), self.to.code.loop(0, self.size, name="o") as o:
            synapse = i * self.size + o
            target = self.step(late[synapse].to(LONG)) + o
            target.store(target.load() + times(rows[synapse], x))

    def taken(self, bias: Tensor | None) -> Pointer:
        """The sums of the current step plus a bias for each channel; clears them, and advances the ring."""
        to, out = self.to, self.to.temporary(self.size)
        present = self.numbers + self.now * self.size
        out.copy(present, self.size)
        if bias is not None:
            to.add_bias(out, bias, self.size)
        present.clear(self.size)
        self.advance()
        return out

    def advance(self) -> None:
        """Makes the next step the current one."""
        later = self.now + 1
        self.now = (later < self.steps).select(later, 0).named("next")
        self._now.store(self.now)
