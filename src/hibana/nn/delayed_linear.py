"""A linear layer with a delay for each synapse, all of them learned."""

from typing import final

import torch
from torch import Tensor, nn

from hibana.nn.delay import Delayed
from hibana.nn.window import Weighted, check_sizes
from hibana.spikes import select
from hibana.spikes.bits import density_of
from hibana.spikes.checks import kernels_accept, shape_error
from hibana.spikes.convolution.causal import causal_convolution
from hibana.spikes.convolution.synapse_delays import delayed_product, delayed_product_forward
from hibana.spikes.layer import needs_gradient, pack_binary
from hibana.spikes.planes import Planes
from hibana.spikes.provenance import Provenance, lookup

__all__ = ["DelayedLinear"]


@final
class DelayedLinear(Weighted, Delayed):
    """A linear layer with a delay for each synapse: ``[T, batch, in_features] -> [T, batch, out_features]``.

        y_t,o = bias_o + sum_i W_oi x_(t - d_oi),i,   x_t = 0 for t < 0

    Weights and delays are learned together. In training a synapse is a kernel over time, ``W_oi κ(d_oi)``
    (see `sigma`), and for an input of spikes rows of weights are added per spike, as in
    :class:`hibana.Window`; in evaluation its delay is rounded to whole steps. Between two steps (`sigma` of
    0) and at whole ones each spike is two additions for each synapse, or one, forward and backward, however
    long the delays. Its state in :func:`hibana.run` are the last `max_delay` steps of its input.

    Args:
        in_features: neurons before the synapses.
        out_features: neurons after them.
        max_delay: the longest delay, in steps; delays start spread evenly over [0, `max_delay`].
        bias: whether there is one.
        sigma: width of the kernel in steps: κ_k ~ exp(-(k - d)^2 / (2 sigma^2)); 0 is linear interpolation
            between the two nearest steps. :meth:`narrow`, or :func:`hibana.narrow_delays` for a whole
            network, narrows it over a training, and :func:`hibana.fix_delays` makes whole steps of delays;
            without, what is trained and what is rounded stay apart.

    Raises:
        ValueError: if the input is not ``[T, batch, in_features]``.

    Source: Hammouamri, Khalfaoui-Hassani & Masquelier (2023), *Learning delays in spiking neural networks
    using dilated convolutions with learnable spacings*.

    >>> import torch, hibana as hb
    >>> layer = hb.DelayedLinear(3, 2, max_delay=10)
    >>> layer(torch.rand(30, 4, 3)).shape
    torch.Size([30, 4, 2])
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        max_delay: int,
        bias: bool = True,
        *,
        sigma: float = 0.5,
    ) -> None:
        check_sizes(in_features=in_features, out_features=out_features)
        super().__init__(
            torch.empty(out_features, in_features, dtype=torch.get_default_dtype(), device=None),
            max_delay,
            True,
            sigma,
        )
        self.in_features, self.out_features = in_features, out_features
        self._hold((out_features, in_features), bias)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws weight and bias as ``torch.nn.Linear`` does, and delays evenly from [0, max_delay]."""
        self._draw()
        nn.init.uniform_(self.delay, 0.0, float(self.max_delay))

    def extra_repr(self) -> str:
        sizes = f"{self.in_features}, {self.out_features}, max_delay={self.max_delay}"
        return f"{sizes}{', bias=False' * (self.bias is None)}"

    def kernel(self) -> Tensor:
        """``[out_features, in_features, max_delay + 1]``: the weights over time, the present last."""
        return self.weight[..., None] * self._kernel(self.delay)

    def after(self, history: Tensor | None, inputs: Tensor) -> Tensor:
        if inputs.ndim != 3 or inputs.shape[0] == 0 or inputs.shape[2] != self.in_features:
            raise ValueError(
                f"inputs must be [T, batch, {self.in_features}] with T at least 1, "
                f"got shape {tuple(inputs.shape)}"
            )
        known = inputs.requires_grad and not torch.compiler.is_compiling() and kernels_accept(inputs)
        under = lookup(inputs) if known else None
        synapses = self.weight, self.bias, self.delay  # each read once: reading may run a parametrisation
        if (found := self._one_by_one(inputs, history, under, *synapses)) is not None:
            return found
        weight, bias, delay = synapses
        kernel = weight[..., None] * self._kernel(delay)
        out, self._reason = causal_convolution(inputs, kernel, bias, 1, history, under, self.mode)
        return out

    def _one_by_one(
        self,
        inputs: Tensor,
        history: Tensor | None,
        below: Provenance | None,
        weight: Tensor,
        bias: Tensor | None,
        delay: Tensor,
    ) -> Tensor | None:
        """What comes out by an addition for each spike and synapse, at one step, or at two between them.

        None if the kernels are wider, the gradient of the input is wanted at many places, the input is
        dense, or no spikes, or the tensors have other shapes or sizes than the kernel takes.
        """
        if torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"):
            return None
        if not kernels_accept(inputs, weight, bias, delay):
            return None
        of_bias = None if bias is None else bias.shape
        fits = not shape_error(weight.shape, of_bias, self.in_features, 2) and delay.shape == weight.shape
        if not fits or 0 in weight.shape:
            return None
        between = self._interpolates(delay)
        if self.mode == "dense" or (between and self.sigma > 0):
            return None
        seen = inputs if history is None else torch.cat([history, inputs])
        if inputs.requires_grad and not (history is None and _at_few_places(inputs, below)):
            return None
        if len(weight) * (len(seen) + self.max_delay + 1) >= 1 << 31:  # places are 32 bits wide
            return None
        found = pack_binary(seen.detach().reshape(-1, self.in_features).contiguous())
        if found is None:
            return None
        self._reason = f"events: {found.density:.0%} of the input spiked; an addition for each synapse, later"
        skip = len(seen) - len(inputs)
        if between:
            lags, later = self._between(delay)
            taps = torch.stack([weight * (1 - later), weight * later])
        else:
            lags, taps = self._whole(delay), weight[None]
        if self.mode == "auto" and not self._is_faster(seen, found, taps, lags, bias, weight, delay):
            return None
        if needs_gradient(inputs, taps, bias):
            return delayed_product(seen, found.bits[0], taps, lags, bias, skip, below)
        return delayed_product_forward(found.bits[0], taps, lags, bias, len(seen), skip)

    def _is_faster(
        self,
        seen: Tensor,
        spikes: Planes,
        taps: Tensor,
        lags: Tensor,
        bias: Tensor | None,
        weight: Tensor,
        delay: Tensor,
    ) -> bool:
        """Whether an addition for each spike, synapse and tap takes less time than kernels over time."""
        steps, rows, inputs = seen.shape
        longest, number = self.max_delay, len(taps)
        density, sizes = select.density_bucket(spikes.density), (steps, rows, longest, number)
        key = select.Key("delays", sizes, steps * rows, inputs, self.out_features, density)

        def calls() -> list[select.Call]:
            of_bias = None if bias is None else bias.detach()
            kernel = (weight[..., None] * self._kernel(delay)).detach()
            numbers = seen.detach()
            return [
                lambda: delayed_product_forward(spikes.bits[0], taps.detach(), lags, of_bias, steps, 0),
                lambda: causal_convolution(numbers, kernel, of_bias, 1, None, None, "events"),
            ]

        return select.prefers_events(key, calls, PER_SYNAPSE * number <= longest)


PER_SYNAPSE = 8
"""Longest delay per tap from which on additions for each synapse beat kernels over time."""


def _at_few_places(inputs: Tensor, below: Provenance | None) -> bool:
    """Whether the gradient of `inputs`, ``[T, batch, features]``, is wanted where few of their bits are."""
    batch, features = inputs.shape[1:]
    if below is None or below.observers is None or not inputs.is_contiguous() or features % 64:
        return False
    mask = below.explicit_mask
    rows = None if mask is None else below.rows(mask, batch * features)
    return rows is not None and density_of(rows, batch * features) <= ONE_BY_ONE_UP_TO


ONE_BY_ONE_UP_TO = 0.2
"""Part of the inputs up to which their gradient is computed place by place."""
