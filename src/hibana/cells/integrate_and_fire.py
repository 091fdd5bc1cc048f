"""Integrate-and-fire: the article's neuron, without a leak."""

from typing import final

import torch
from torch import Tensor

from hibana.cells.spiking import Spiking
from hibana.cells.surrogate import Step, Surrogate
from hibana.cells.values import Learn, Reset, Value, finite

__all__ = ["IFCell"]


@final
class IFCell(Spiking):
    """Integrate-and-fire, exactly as the article writes it.

        v = v_previous * (1 - s_previous) + input_
        s = H(v - threshold)

    The returned `v` is the potential **before** the reset; the reset happens at the start of the next
    step, and the gradient flows through it unless `detach_reset`.

    Args:
        threshold: spikes where ``v > threshold``; positive, in units of `v`.
        surrogate: the derivative of ``H``, or its name.
        detach_reset: stop the gradient at the reset.
        reset: the potential after a spike, or ``"subtract"`` to subtract the threshold.
        initial: the potential at the start, zero by default. Half a threshold rounds the number of spikes to
            the nearest instead of down (:func:`hibana.from_ann`).
        learn: names of values to make parameters of, such as ``"threshold"``; a tensor is one per neuron.

    Source: the article; Lapicque (1907).

    >>> import torch
    >>> IFCell()(torch.tensor([0.5, 0.5]), torch.tensor([0.6, 1.1]), torch.tensor([0.0, 1.0]))
    (tensor([1.1000, 0.5000]), tensor([1., 0.]))
    """

    def __init__(
        self,
        threshold: Value = 1.0,
        surrogate: Surrogate | str = Step(),
        detach_reset: bool = False,
        *,
        reset: Reset = 0.0,
        initial: Value = 0.0,
        learn: Learn = (),
    ) -> None:
        super().__init__(threshold, reset, surrogate, detach_reset)
        self.initial = finite("initial", initial)
        self._learn(learn)

    def forward(self, input_: Tensor, v_previous: Tensor, s_previous: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """The next state, by the equations of the class."""
        v = self._rested(v_previous, s_previous) + input_
        return v, self.surrogate(v - self.threshold)

    def initial_state(self, input_: Tensor) -> tuple[Tensor, ...]:
        """The potential `initial`, and zero spikes."""
        spikes = torch.zeros_like(input_)
        return spikes + self.initial, spikes

    def rests_at_zero(self) -> bool:
        is_zero = not isinstance(self.initial, Tensor) and self.initial == 0
        return is_zero and self._starts_with(IFCell.initial_state)
