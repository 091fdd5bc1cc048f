"""``hb.learn.Oja``: Hebbian learning with weights that stay bounded."""

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor, nn

from hibana.learn.plasticity.pairs import PairRule, Pairs, check_rate, pair_sums
from hibana.nn.layers import OverTime
from hibana.nn.sparse_linear import SparseLinear

__all__ = ["Oja"]


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
