"""``hb.learn.RewardModulatedSTDP``: pairs of spikes change weights as far as a reward follows."""

from typing import final

import torch
from torch import Tensor, nn

from hibana.cells.spiking import decay
from hibana.learn.plasticity.base import PairRule
from hibana.learn.plasticity.pairs import Pairs, check_time_constant
from hibana.learn.runs import filtered
from hibana.nn.layers import OverTime

__all__ = ["RewardModulatedSTDP"]


@final
class RewardModulatedSTDP(PairRule):
    """Spike-timing-dependent plasticity that a reward modulates: MSTDP, and MSTDPET with eligibility traces.

        e_t = a_plus f(w) x_t z_t - a_minus g(w) y_t s_t        as :class:`hibana.learn.STDP` has it
        c_t = (1 - 1/tau_eligibility) c_(t-1) + e_t / tau_eligibility
        dw = sum_t r_t c_t                                      (of e_t without `tau_eligibility`)

    `r_t` is the reward that follows step t. Weights are constant over a call, and change when its reward is
    given. No trace of a synapse is kept: the sum is that of ``e_t`` times the rewards that follow it,

        dw = sum_t g_t e_t,   g_t = (1 - 1/tau_eligibility) g_(t+1) + r_t / tau_eligibility

    Args:
        linear: the weights, ``[outputs, inputs]``, which change in place; the bias stays.
        neurons: a layer of spiking neurons.
        tau_pre: time constant of the inputs' traces, in steps, at least 1.
        tau_post: that of the neurons' traces.
        tau_eligibility: that of the eligibility traces (MSTDPET); None for a reward that counts for the pairs
            of its own step alone (MSTDP).
        a_plus: how much a pair potentiates under a reward of 1, at least 0.
        a_minus: how much a pair depresses, at least 0.
        bounds: ``(lower, upper)`` of the weights, beyond which they are clipped; None for no bounds.
        soft: whether changes get smaller towards the bounds (multiplicative), or not (additive).
        nearest: pairs of nearest spikes alone, or of all spikes.

    Raises:
        TypeError: if `linear` is no ``nn.Linear`` or `neurons` no layer of neurons.
        ValueError: for a time constant below 1, a negative rate, bounds that are no interval, neurons that do
            not spike.

    Source: Florian (2007), *Reinforcement learning through modulation of spike-timing-dependent synaptic
    plasticity*.

    >>> import torch, hibana as hb
    >>> linear = torch.nn.Linear(20, 5)
    >>> rule = hb.learn.RewardModulatedSTDP(
    ...     linear, hb.LIF(tau=10.0), tau_pre=20.0, tau_post=20.0, tau_eligibility=25.0
    ... )
    >>> spikes = rule((torch.rand(50, 4, 20) < 0.2).float())
    >>> rule.reward(torch.tensor([1.0, -1.0, 0.0, 0.5]))  # one for each sample, at all of its steps
    """

    def __init__(
        self,
        linear: nn.Linear,
        neurons: OverTime,
        *,
        tau_pre: float,
        tau_post: float,
        tau_eligibility: float | None = None,
        a_plus: float = 0.01,
        a_minus: float = 0.01,
        bounds: tuple[float, float] | None = None,
        soft: bool = False,
        nearest: bool = False,
    ) -> None:
        pairs = Pairs(tau_pre, tau_post, a_plus, a_minus, bounds, soft, nearest)
        super().__init__(linear, neurons, pairs)
        if tau_eligibility is not None:
            check_time_constant("tau_eligibility", tau_eligibility)
        self.tau_eligibility = tau_eligibility
        self._ran: tuple[Tensor, Tensor] | None = None

    def __call__(self, inputs: Tensor, state: tuple[Tensor, ...] | None = None) -> Tensor:
        """Runs a sequence with constant weights, and keeps its spikes until the reward is given.

        Args:
            inputs: spikes, ``[T, batch, inputs]``.
            state: the neurons' states to begin with; traces begin at zero.

        Returns:
            The neurons' spikes, ``[T, batch, outputs]``, without a graph.

        Raises:
            TypeError: if `inputs` are no tensor of the weights' dtype.
            ValueError: if `inputs` are no spikes, a shape is wrong, or weights lie outside the bounds.
        """
        inputs = self._checked(inputs)
        spikes = self._run_fixed(inputs, state)
        self._ran = inputs.clone(), spikes.clone()
        return spikes

    def reward(self, reward: float | Tensor) -> None:
        """Changes the weights, in place, by the reward for the last call.

        Args:
            reward: the reward that follows each step, ``[T, batch]`` or what broadcasts to it: ``[T, 1]`` for
                all samples, ``[batch]`` or a number at all steps.

        Raises:
            RuntimeError: if no call came before, or its reward has been given.
            ValueError: if the shape is another, or a number is not finite.
        """
        if self._ran is None:
            raise RuntimeError("reward is for a call: run a sequence first, once for each reward")
        inputs, spikes = self._ran
        gain = torch.as_tensor(reward, dtype=inputs.dtype, device=inputs.device).detach()
        try:
            gain = gain.expand(inputs.shape[:2])
        except RuntimeError:
            raise ValueError(
                f"reward must broadcast to [T, batch], {tuple(inputs.shape[:2])}, "
                f"got shape {tuple(gain.shape)}"
            ) from None
        if not bool(gain.isfinite().all()):
            raise ValueError("reward must be finite, got infinity or NaN")
        weight = self.linear.weight.detach()
        with torch.no_grad():
            if self.tau_eligibility is not None:
                kept = torch.tensor(decay(self.tau_eligibility), dtype=gain.dtype, device=gain.device)
                gain = filtered(gain / self.tau_eligibility, kept)
            self.pairs.apply(weight, self.pairs.summed(weight, inputs, spikes, gain))
        self._ran = None
