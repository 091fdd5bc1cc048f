"""``hb.DelayedRecurrent``: neurons whose spikes return to them through synapses with learned delays."""

from typing import final

import torch
from torch import Tensor

from hibana import cells
from hibana.cells.base import check_cell
from hibana.compiler import State, check_backend
from hibana.nn.delayed_linear import DelayedLinear
from hibana.nn.layers import GRADIENT_SCALE, check_gradient_scale, scale_gradient, unroll_with_delays
from hibana.nn.running import Stateful

__all__ = ["DelayedRecurrent"]


@final
class DelayedRecurrent(Stateful):
    """`cell` over time, its spikes fed back through delayed synapses: ``[T, B, F] -> [T, B, F]``.

        state_t,o = cell(input_t,o + sum_i W_oi s_(t - 1 - d_oi),i , state_(t-1),o),   s the output state

    With delays of 0 it equals :class:`hibana.Recurrent`. Its synapses, `recurrent`, are a
    :class:`hibana.DelayedLinear`: weights and delays are learned together, and :func:`hibana.narrow_delays`
    and :func:`hibana.fix_delays` apply to them. The state in :func:`hibana.run` is the cell's state and then
    the spikes of the `max_delay` steps before the last one, ``[max_delay, B, F]``. A Python loop runs the
    steps, with only the cell compiled. The product of each step is dense, with F inputs at each of
    ``max_delay + 1`` steps.

    Args:
        cell: one step of a neuron.
        features: F, the number of neurons.
        max_delay: the longest delay, in steps, in addition to the one step that every spike takes.
        sigma: as of :class:`hibana.DelayedLinear`.
        gradient_scale: the factor of the gradient through the synapses, as of :class:`hibana.Recurrent`.
        backend: the backend that runs the cell, as in :func:`hibana.unroll`.

    Raises:
        TypeError: if `cell` is not a cell.
        ValueError: if `gradient_scale` is not in [0, 1], or the input is not ``[T, B, F]``.

    Source: Hammouamri, Khalfaoui-Hassani & Masquelier (2023), *Learning delays in spiking neural networks
    using dilated convolutions with learnable spacings*, for the delays; here on the synapses within a layer.

    >>> import torch, hibana as hb
    >>> layer = hb.DelayedRecurrent(hb.LIFCell(), 3, max_delay=5)
    >>> layer(torch.rand(8, 1, 3)).shape
    torch.Size([8, 1, 3])
    """

    def __init__(
        self,
        cell: cells.Cell,
        features: int,
        max_delay: int,
        *,
        sigma: float = 0.5,
        gradient_scale: float = GRADIENT_SCALE,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        check_cell(cell)
        check_backend(backend)
        self.cell, self.features, self.backend = cell, features, backend
        self.gradient_scale = check_gradient_scale(gradient_scale)
        self.recurrent = DelayedLinear(features, features, max_delay, bias=False, sigma=sigma)

    def over_time(self, inputs: Tensor, state: State | None) -> tuple[Tensor, State]:
        """The outputs for `inputs`, both ``[T, B, F]``, from `state`, and the last state."""
        if inputs.ndim != 3 or inputs.shape[0] == 0 or inputs.shape[2] != self.features:
            raise ValueError(
                f"inputs must be [T, B, {self.features}] with T at least 1, got shape {tuple(inputs.shape)}"
            )
        weights = self.recurrent.kernel().permute(2, 1, 0).flatten(0, 1)  # [steps * F, F], current step last

        def feedback(spikes: list[Tensor]) -> Tensor:
            """The products of the weights with the spikes of the last ``max_delay + 1`` steps."""
            return scale_gradient(torch.cat(spikes, dim=1) @ weights, self.gradient_scale)

        longest = self.recurrent.max_delay
        return unroll_with_delays(self.cell, inputs, state, longest, feedback, backend=self.backend)

    def extra_repr(self) -> str:
        return f"gradient_scale={self.gradient_scale}"
