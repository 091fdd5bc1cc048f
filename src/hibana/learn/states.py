"""The states of a layer's neurons at every step of a chunk."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hibana.cells import Cell
from hibana.cells.base import check_states
from hibana.compiler import unrolled
from hibana.learn.network import Neurons

__all__ = ["States"]


class States:
    """Runs a layer of neurons, and shows what their states were."""

    def __init__(self, layer: Neurons) -> None:
        self.layer = layer
        self.showing: list[Showing] = []

    def after(
        self, drive: Tensor, state: tuple[Tensor, ...] | None
    ) -> tuple[Tensor, list[Tensor], tuple[Tensor, ...]]:
        """Of a chunk of input: all that neurons got, the states before each step, and those after the last.

        Raises:
            ValueError: if `state` is that of another batch.
        """
        cell, recurrent = self.layer.cell, self.layer.recurrent
        if state is None:
            state = cell.initial_state(drive[0])
        if state[0].shape != drive.shape[1:]:
            raise ValueError(
                f"layer {self.layer.name!r} carries a state of shape {tuple(state[0].shape)}, but this step "
                f"is of {tuple(drive.shape[1:])}; call reset() before a batch of another size"
            )
        if len(drive) > 1:
            return self._compiled(drive, state)
        (step,) = drive
        if recurrent is not None:
            step = step + recurrent.module(state[-1])
        return step[None], [one[None] for one in state], check_states(cell, cell(step, *state))

    def _compiled(
        self, drive: Tensor, state: tuple[Tensor, ...]
    ) -> tuple[Tensor, list[Tensor], tuple[Tensor, ...]]:
        """As :meth:`after`, by the kernels of the cell: they run once for each of its states."""
        step = self.layer.step
        if not self.showing or self.showing[0].cell is not step:
            self.showing = [Showing(step, at) for at in range(len(state))]
        found = [unrolled(one, drive, one.turned(state))[0] for one in self.showing]
        previous = [torch.cat([begun[None], after[:-1]]) for begun, after in zip(state, found, strict=True)]
        if self.layer.recurrent is not None:
            drive = drive + self.layer.recurrent.module(previous[-1])
        return drive, previous, tuple(after[-1].clone() for after in found)


class Showing(Cell):
    """A cell that emits one of its states, so that its kernels give that state at every step."""

    def __init__(self, cell: Cell, shown: int) -> None:
        nn.Module.__init__(self)
        self.cell, self.shown = cell, shown
        self._enter()

    def turned(self, state: Sequence[Any]) -> tuple[Any, ...]:
        """The states of the cell, or their names, with the one that is emitted last."""
        return (*state[: self.shown], *state[self.shown + 1 :], state[self.shown])

    def forward(self, input_: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        as_cell = (*state[: self.shown], state[-1], *state[self.shown : -1])
        return self.turned(self.cell(input_, *as_cell))

    def state_names(self) -> tuple[str, ...]:  # type: ignore[override] # they are those of the cell it has
        return self.turned(self.cell.state_names())

    def initial_state(self, input_: Tensor) -> tuple[Tensor, ...]:
        return self.turned(self.cell.initial_state(input_))

    def rests_at_zero(self) -> bool:
        return self.cell.rests_at_zero()
