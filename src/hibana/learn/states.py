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
        self, drive: Tensor, state: tuple[Tensor, ...] | None, *, with_graph: bool
    ) -> tuple[Tensor | None, list[Tensor], tuple[Tensor, ...]]:
        """Of a chunk of input: what recurrent synapses add, the states before each step and after the last.

        Args:
            drive: the input, ``[T, batch, ...]``.
            state: before the first step; at rest if None.
            with_graph: whether what recurrent synapses add has its graph.

        Raises:
            ValueError: if `state` is that of another batch.
        """
        cell = self.layer.cell
        if state is None:
            state = cell.initial_state(drive[0])
        if state[0].shape != drive.shape[1:]:
            raise ValueError(
                f"layer {self.layer.name!r} carries a state of shape {tuple(state[0].shape)}, but this step "
                f"is of {tuple(drive.shape[1:])}; call reset() before a batch of another size"
            )
        if len(drive) > 1:
            previous, after = self._compiled(drive, state)
            return self._fed_back(previous[-1], with_graph), previous, after
        added = self._fed_back(state[-1][None], with_graph)
        step = drive[0] if added is None else drive[0] + added[0].detach()
        return added, [one[None] for one in state], check_states(cell, cell(step, *state))

    def _fed_back(self, spikes: Tensor, with_graph: bool) -> Tensor | None:
        if self.layer.recurrent is None:
            return None
        with torch.set_grad_enabled(with_graph):
            return self.layer.recurrent.product(spikes)

    def _compiled(self, drive: Tensor, state: tuple[Tensor, ...]) -> tuple[list[Tensor], tuple[Tensor, ...]]:
        """The states before each step and after the last, by kernels: one run for each of a cell's states."""
        step = self.layer.step
        if not self.showing or self.showing[0].cell is not step:
            self.showing = [Showing(step, at) for at in range(len(state))]
        found = [unrolled(one, drive, one.turned(state))[0] for one in self.showing]
        previous = [torch.cat([begun[None], after[:-1]]) for begun, after in zip(state, found, strict=True)]
        return previous, tuple(after[-1].clone() for after in found)


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
