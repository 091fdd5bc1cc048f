"""A layer whose spikes come back to it, each synapse after its own delay."""

from typing import final

import torch
from torch import Tensor

from hibana import cells
from hibana.cells.base import check_cell
from hibana.compiler import State, check_backend, unroll_layer
from hibana.compiler.tensors import cached_parametrizations, evaluate_parametrizations
from hibana.nn.delayed_linear import DelayedLinear
from hibana.nn.layers import GRADIENT_SCALE, checked_gradient_scale, damped
from hibana.nn.running import Stateful

__all__ = ["DelayedRecurrent"]


@final
class DelayedRecurrent(Stateful):
    """`cell` over time, its spikes fed back through delayed synapses: ``[T, B, F] -> [T, B, F]``.

        state_t,o = cell(input_t,o + sum_i W_oi s_(t - 1 - d_oi),i , state_(t-1),o),   s the emitted state

    With delays of 0 it is :class:`hibana.Recurrent`. Weights and delays are learned together, as those of
    :class:`hibana.DelayedLinear`, which is its `recurrent`: :func:`hibana.narrow_delays` and
    :func:`hibana.fix_delays` reach them. Its state in :func:`hibana.run` are the cell's and, last, the spikes
    of the `max_delay` steps before the last, ``[max_delay, B, F]``. Steps are taken one by one in a Python
    loop, with the cell alone compiled: the product of a step is dense, F inputs at each of ``max_delay + 1``
    steps.

    Args:
        cell: one step of a neuron.
        features: F, the number of neurons.
        max_delay: the longest delay, in steps beyond the one that spikes take to come back at all.
        sigma: as of :class:`hibana.DelayedLinear`.
        gradient_scale: of the gradient through the synapses, as of :class:`hibana.Recurrent`.
        backend: what runs the cell, as in :func:`hibana.unroll`.

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
        self.gradient_scale = checked_gradient_scale(gradient_scale)
        self.recurrent = DelayedLinear(features, features, max_delay, bias=False, sigma=sigma)

    def over_time(self, inputs: Tensor, state: State | None) -> tuple[Tensor, State]:
        """What the cell emits over `inputs`, ``[T, B, F]``, from `state`, and its last state."""
        if inputs.ndim != 3 or inputs.shape[0] == 0 or inputs.shape[2] != self.features:
            raise ValueError(
                f"inputs must be [T, B, {self.features}] with T at least 1, got shape {tuple(inputs.shape)}"
            )
        longest = self.recurrent.max_delay
        if state is None:
            before = inputs.new_zeros(longest, *inputs.shape[1:])
            state = (*self.cell.initial_state(inputs[0]), before)
        *inner, before = state
        if before.shape != (longest, *inputs.shape[1:]):
            raise ValueError(
                f"state must end in the spikes before the last, {(longest, *inputs.shape[1:])}, "
                f"got {tuple(before.shape)}"
            )
        weights = self.recurrent.kernel().permute(2, 1, 0).flatten(0, 1)  # [steps * F, F], the present last
        cell, held = evaluate_parametrizations(self.cell), tuple(inner)
        seen = [*before.to(inputs.dtype).unbind(), held[-1].to(inputs.dtype)]
        emitted = []
        with cached_parametrizations():
            for input_ in inputs:
                fed_back = torch.cat(seen[len(seen) - longest - 1 :], dim=1) @ weights
                driven = input_ + damped(fed_back, self.gradient_scale)
                outputs, held = unroll_layer(cell, driven[None], held, backend=self.backend)
                emitted.append(outputs)
                seen.append(outputs[0])
        last = seen[len(seen) - longest - 1 : -1]
        return torch.cat(emitted), (*held, torch.stack(last) if last else before)

    def extra_repr(self) -> str:
        return f"gradient_scale={self.gradient_scale}"
