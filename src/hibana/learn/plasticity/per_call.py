"""Rules whose weights are constant over a call: ``hb.learn.RewardModulatedSTDP`` and ``hb.learn.Oja``."""

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor, nn

from hibana.cells.spiking import decay
from hibana.cells.values import time_constant
from hibana.learn.plasticity.pairs import PairRule, Pairs, check_rate, pair_sums
from hibana.nn.layers import OverTime
from hibana.nn.sparse_linear import SparseLinear

__all__ = ["Oja", "RewardModulatedSTDP"]


@final
class RewardModulatedSTDP(PairRule):
    """Spike-timing-dependent plasticity modulated by a reward: MSTDP, and MSTDPET with eligibility traces.

        e_t = a_plus f(w) x_t z_t - a_minus g(w) y_t s_t        the change of :class:`hibana.learn.STDP`
        c_t = (1 - 1/tau_eligibility) c_(t-1) + e_t / tau_eligibility
        dw = sum_t r_t c_t                                      (c_t = e_t without `tau_eligibility`)

    `r_t` is the reward after step t. Weights are constant over a call, and change at the call of
    :meth:`reward`. The sum is computed without a trace for each synapse:

        dw = sum_t g_t e_t,   g_t = (1 - 1/tau_eligibility) g_(t+1) + r_t / tau_eligibility

    Args:
        linear: the weights, ``[outputs, inputs]``, or a :class:`hibana.SparseLinear` without delays; they
            change in place, the bias stays.
        neurons: a layer of spiking neurons.
        tau_pre: time constant of the inputs' traces, in steps, at least 1.
        tau_post: time constant of the neurons' traces, in steps, at least 1.
        tau_eligibility: time constant of the eligibility traces, in steps, at least 1 (MSTDPET); None for a
            reward that only counts for the pairs of the same step (MSTDP).
        a_plus: rate of potentiation for a reward of 1, at least 0.
        a_minus: rate of depression for a reward of 1, at least 0.
        bounds: ``(lower, upper)``, to which the weights are clipped; None for no bounds.
        soft: whether changes get smaller towards the bounds (multiplicative), or not (additive).
        nearest: whether only pairs of nearest spikes count, or all pairs.

    Raises:
        TypeError: if `linear` is neither ``nn.Linear`` nor a sparse layer without delays, or `neurons` no
            layer of neurons.
        ValueError: if a time constant is below 1, a rate negative, `bounds` no interval, or the neurons emit
            no spikes.

    Source: Florian (2007), *Reinforcement learning through modulation of spike-timing-dependent synaptic
    plasticity*.

    >>> import torch, hibana as hb
    >>> linear = torch.nn.Linear(20, 5)
    >>> rule = hb.learn.RewardModulatedSTDP(
    ...     linear, hb.LIF(tau=10.0), tau_pre=20.0, tau_post=20.0, tau_eligibility=25.0
    ... )
    >>> spikes = rule((torch.rand(50, 4, 20) < 0.2).float())
    >>> rule.reward(torch.tensor([1.0, -1.0, 0.0, 0.5]))  # one reward for each sample, at all steps
    """

    def __init__(
        self,
        linear: nn.Linear | SparseLinear,
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
            time_constant("tau_eligibility", tau_eligibility)
        self.tau_eligibility = tau_eligibility
        self._last_call: tuple[Tensor, Tensor] | None = None
        """Inputs and spikes of a call without a reward so far."""

    def __call__(self, inputs: Tensor, state: tuple[Tensor, ...] | None = None) -> Tensor:
        """Runs a sequence with constant weights, and stores its spikes until :meth:`reward` is called.

        Args:
            inputs: spikes, ``[T, batch, inputs]``.
            state: initial states of the neurons; traces begin at zero.

        Returns:
            The neurons' spikes, ``[T, batch, outputs]``, without a graph.

        Raises:
            TypeError: if `inputs` is not a tensor of the weights' dtype.
            ValueError: if `inputs` are not 0 or 1, a shape is wrong, or weights lie outside the bounds.
        """
        inputs = self._check_inputs(inputs)
        spikes = self._run_constant(inputs, state)
        self._last_call = inputs.clone(), spikes.clone()
        return spikes

    def reward(self, reward: float | Tensor) -> None:
        """Changes the weights in place by the reward for the last call.

        Args:
            reward: the reward after each step, broadcasting to ``[T, batch]``: ``[T, 1]`` is the same for all
                samples, ``[batch]`` or a number the same at all steps.

        Raises:
            RuntimeError: if there was no call since the last reward.
            ValueError: if the shape does not broadcast, or a number is not finite.
        """
        if self._last_call is None:
            raise RuntimeError("reward is for a call: run a sequence first, once for each reward")
        inputs, spikes = self._last_call
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
                factor = torch.tensor(decay(self.tau_eligibility), dtype=gain.dtype, device=gain.device)
                gains = list((gain / self.tau_eligibility).unbind())
                for t in range(len(gains) - 2, -1, -1):
                    gains[t] = torch.addcmul(gains[t], factor, gains[t + 1])
                gain = torch.stack(gains)
            self.pairs.apply(weight, self.pairs.total_change(self.linear, inputs, spikes, gain))
        self._last_call = None


@final
class Oja(PairRule):
    """Oja's rule on the traces of spikes: Hebbian growth, and a decay by the neuron's activity.

        x_t = (1 - 1/tau_pre) x_(t-1) + s_t        a trace of each input's spikes
        y_t = (1 - 1/tau_post) y_(t-1) + z_t       a trace of each neuron's spikes
        dw  = rate * mean over t and batch of y_t (x_t - y_t w)

    The decay normalizes the weights: they converge to ``mean(y x) / mean(y^2)`` for any rate. If a neuron's
    activity is linear in its input, this is the first principal component, with length 1. The rule needs no
    bounds and no scaling of weights. Weights are constant over a call and change at its end.

    Args:
        linear: the weights, ``[outputs, inputs]``, or a :class:`hibana.SparseLinear` without delays; they
            change in place, the bias stays.
        neurons: a layer of spiking neurons.
        tau_pre: time constant of the inputs' traces, in steps, at least 1; 1 for their spikes alone.
        tau_post: time constant of the neurons' traces, in steps, at least 1.
        rate: learning rate, at least 0. Weights converge if ``rate * mean(y^2)`` is below 2.

    Raises:
        TypeError: if `linear` is neither ``nn.Linear`` nor a sparse layer without delays, or `neurons` no
            layer of neurons.
        ValueError: if a time constant is below 1, the rate negative, or the neurons do not emit spikes.

    Source: Oja (1982), *A simplified neuron model as a principal component analyzer*.

    >>> import torch, hibana as hb
    >>> linear = torch.nn.Linear(20, 5, bias=False)
    >>> _ = torch.nn.init.uniform_(linear.weight, 0, 0.5)
    >>> rule = hb.learn.Oja(linear, hb.LIF(tau=10.0), tau_pre=5.0, tau_post=5.0, rate=0.1)
    >>> spikes = rule((torch.rand(50, 2, 20) < 0.2).float())  # linear.weight has changed
    >>> spikes.shape
    torch.Size([50, 2, 5])
    """

    def __init__(
        self,
        linear: nn.Linear | SparseLinear,
        neurons: OverTime,
        *,
        tau_pre: float,
        tau_post: float,
        rate: float = 0.01,
    ) -> None:
        check_rate("rate", rate)
        super().__init__(linear, neurons, Pairs(tau_pre, tau_post, 1.0, 0.0, None, False, False))
        self.rate = float(rate)

    def __repr__(self) -> str:
        times = f"tau_pre={self.pairs.tau_pre}, tau_post={self.pairs.tau_post}"
        return f"Oja({self.linear}, {self.neurons}, {times}, rate={self.rate})"

    def __call__(self, inputs: Tensor, state: Sequence[Tensor] | None = None) -> Tensor:
        """Runs a sequence with constant weights, and then changes them in place.

        Args:
            inputs: spikes, ``[T, batch, inputs]``.
            state: initial states of the neurons; traces begin at zero.

        Returns:
            The neurons' spikes, ``[T, batch, outputs]``, without a graph.

        Raises:
            TypeError: if `inputs` is not a tensor of the weights' dtype.
            ValueError: if `inputs` are not 0 or 1, or a shape is wrong.
        """
        inputs = self._check_inputs(inputs)
        spikes = self._run_constant(inputs, state)
        weight = self.linear.weight.detach()
        with torch.no_grad():
            pre = self.pairs.traces(inputs, self.pairs.tau_pre).flatten(0, 1)
            post = self.pairs.traces(spikes, self.pairs.tau_post).flatten(0, 1)
            correlation = pair_sums(self.linear)(post, pre) / len(post)
            power = post.square().mean(0)
            if isinstance(self.linear, SparseLinear):
                power = power[self.linear.targets.long()]
            else:
                power = power[:, None]
            weight += self.rate * (correlation - power * weight)
        return spikes
