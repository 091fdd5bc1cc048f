"""The states of a layer's neurons at every step of a chunk."""

from collections.abc import Sequence
from typing import Any, NamedTuple

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

    def after(self, drive: Tensor, state: tuple[Tensor, ...] | None) -> "Ran":
        """Runs the neurons over a chunk of input.

        Args:
            drive: the input, ``[T, batch, ...]``.
            state: before the first step; at rest if None.

        Raises:
            ValueError: if `state` is that of another batch.
        """
        cell = self.layer.cell
        if state is None:
            state = cell.initial_state(drive[0])
        self.check(drive[0], state)
        if len(drive) > 1:
            after = self._compiled(drive, state)
            spikes = self.spikes_before(state[-1], after[-1])
            return Ran(state, after, spikes, self._added(spikes))
        spikes = self.spikes_before(state[-1], drive[:0])
        added = self._added(spikes)
        step = drive[0] if added is None else drive[0] + added[0]
        return Ran(state, [one[None] for one in check_states(cell, cell(step, *state))], spikes, added)

    def check(self, step: Tensor, state: tuple[Tensor, ...]) -> None:
        """Raises ValueError if `state` is not of a `step` like this."""
        if state[0].shape != step.shape:
            raise ValueError(
                f"layer {self.layer.name!r} carries a state of shape {tuple(state[0].shape)}, but this step "
                f"is of {tuple(step.shape)}; call reset() before a batch of another size"
            )

    def spikes_before(self, first: Tensor, emitted: Tensor) -> Tensor | None:
        """What recurrent synapses are given, if there are any: the spikes of the step before each."""
        return None if self.layer.recurrent is None else torch.cat([first[None], emitted[:-1]])

    def _added(self, spikes: Tensor | None) -> Tensor | None:
        """What recurrent synapses make of these."""
        return (
            None if spikes is None or self.layer.recurrent is None else self.layer.recurrent.product(spikes)
        )

    def _compiled(self, drive: Tensor, state: tuple[Tensor, ...]) -> list[Tensor]:
        """The states after each step, by the cell's kernels: one run for each of its states."""
        step = self.layer.step
        if not self.showing or self.showing[0].cell is not step:
            self.showing = [Showing(step, at) for at in range(len(state))]
        return [unrolled(one, drive, one.turned(state))[0] for one in self.showing]


class Ran(NamedTuple):
    """The states of neurons over a chunk."""

    begun: tuple[Tensor, ...]
    """The states before the first step."""
    after: list[Tensor]
    """Each state after each step, ``[T, batch, ...]``."""
    spikes_before: Tensor | None
    """What recurrent synapses were given."""
    fed_back: Tensor | None
    """What they made of it."""

    def before(self, first: int, end: int) -> list[Tensor]:
        """Each state before each of the steps from `first` to `end`."""
        if first:
            return [one[first - 1 : end - 1] for one in self.after]
        return [
            torch.cat([begun[None], one[: end - 1]])
            for begun, one in zip(self.begun, self.after, strict=True)
        ]

    def last(self) -> tuple[Tensor, ...]:
        """The states after the last step."""
        return tuple(one[-1].clone() for one in self.after)


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
