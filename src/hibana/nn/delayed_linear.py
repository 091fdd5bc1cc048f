"""A learned delay for each synapse: of a linear layer, ``hb.DelayedLinear``, and of neurons to themselves."""

from collections.abc import Callable
from typing import final

import torch
from torch import Tensor, nn

from hibana import cells
from hibana.nn.delay import Delayed
from hibana.nn.layers import GRADIENT_SCALE, Recurrent
from hibana.nn.window import Weighted, check_sizes
from hibana.runtime.synapses import SynapseIndex
from hibana.spikes.bits import pack_binary
from hibana.spikes.checks import kernels_accept, shape_error
from hibana.spikes.convolution.causal import causal_convolution
from hibana.spikes.linear.autograd import multiply_planes
from hibana.spikes.provenance import Provenance, lookup
from hibana.spikes.sparse.product import SparseProduct

__all__ = ["DelayedLinear", "DelayedRecurrent"]


@final
class DelayedLinear(Weighted, Delayed):
    """A linear layer with a delay for each synapse: ``[T, batch, in_features] -> [T, batch, out_features]``.

        y_t,o = bias_o + sum_i W_oi x_(t - d_oi),i,   x_t = 0 for t < 0

    Weights and delays are learned together. In training a synapse is a kernel over time, ``W_oi κ(d_oi)``
    (see `sigma`), and each spike adds rows of weights, as in :class:`hibana.Window`. In evaluation delays are
    rounded to integers. A spike then takes one addition per synapse, or two with a `sigma` of 0 in training,
    forward and backward, from a `max_delay` of 8 or 16 on. The state in :func:`hibana.run` is the last
    `max_delay` steps of the input.

    Args:
        in_features: number of neurons before the synapses.
        out_features: number of neurons after the synapses.
        max_delay: the longest delay, in steps; initial delays are uniform in [0, `max_delay`].
        bias: whether the layer adds a learned bias.
        sigma: width of the kernel in steps: κ_k ~ exp(-(k - d)^2 / (2 sigma^2)); 0 is linear interpolation
            between the two nearest steps. :meth:`narrow`, or :func:`hibana.narrow_delays` for a network,
            narrows it over a training, and :func:`hibana.fix_delays` rounds the delays; without them, the
            trained layer differs from the evaluated one.

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
        self, in_features: int, out_features: int, max_delay: int, bias: bool = True, *, sigma: float = 0.5
    ) -> None:
        check_sizes(in_features=in_features, out_features=out_features)
        super().__init__(
            torch.empty(out_features, in_features, dtype=torch.get_default_dtype(), device=None),
            max_delay,
            True,
            sigma,
        )
        self.in_features, self.out_features = in_features, out_features
        self._create_parameters((out_features, in_features), bias)

    def reset_parameters(self) -> None:
        """Draws weight and bias as ``torch.nn.Linear`` does, and delays uniformly from [0, max_delay]."""
        super().reset_parameters()
        nn.init.uniform_(self.delay, 0.0, float(self.max_delay))

    def extra_repr(self) -> str:
        sizes = f"{self.in_features}, {self.out_features}, max_delay={self.max_delay}"
        return f"{sizes}{', bias=False' * (self.bias is None)}"

    def kernel(self) -> Tensor:
        """The weights over time, ``[out_features, in_features, max_delay + 1]``, the current step last."""
        return self.weight[..., None] * self._kernel(self.delay)

    def feedback(self) -> Callable[[list[Tensor]], Tensor]:
        """As :meth:`LooksBack.feedback`, with a dense product; the weights over time are computed once."""
        weights = self.kernel().permute(2, 1, 0).flatten(0, 1)  # [steps * in_features, out_features]
        bias = self.bias
        if bias is None:
            return lambda inputs: torch.cat(inputs, dim=1) @ weights
        return lambda inputs: torch.addmm(bias, torch.cat(inputs, dim=1), weights)

    def outputs_after(self, history: Tensor | None, inputs: Tensor) -> Tensor:
        """The sums of delayed inputs, ``[T, batch, out_features]``; no history means zeros."""
        if inputs.ndim != 3 or inputs.shape[0] == 0 or inputs.shape[2] != self.in_features:
            raise ValueError(
                f"inputs must be [T, batch, {self.in_features}] with T at least 1, "
                f"got shape {tuple(inputs.shape)}"
            )
        has_source = inputs.requires_grad and not torch.compiler.is_compiling() and kernels_accept(inputs)
        source = lookup(inputs) if has_source else None
        synapses = self.weight, self.bias, self.delay  # each read once: reading may run a parametrization
        if (outputs := self._add_per_synapse(inputs, history, source, *synapses)) is not None:
            return outputs
        weight, bias, delay = synapses
        kernel = weight[..., None] * self._kernel(delay)
        outputs, self._reason = causal_convolution(inputs, kernel, bias, 1, history, source, self.mode)
        return outputs

    def _add_per_synapse(
        self,
        inputs: Tensor,
        history: Tensor | None,
        source: Provenance | None,
        weight: Tensor,
        bias: Tensor | None,
        delay: Tensor,
    ) -> Tensor | None:
        """The outputs, by one or two sparse synapses with a delay for each weight.

        Args:
            inputs: ``[T, batch, in_features]``.
            history: the earlier steps; None for zeros.
            source: the provenance of `inputs`.
            weight: ``[out_features, in_features]``.
            bias: ``[out_features]``.
            delay: in steps, ``[out_features, in_features]``.

        Returns:
            None if another kernel must or should compute them: delays are kernels with a `sigma` above 0, the
            input is not spikes, events are slower, or the tensors have other shapes or sizes than the kernel
            takes.
        """
        if torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"):
            return None
        if not kernels_accept(inputs, weight, bias, delay):
            return None
        bias_shape = None if bias is None else bias.shape
        fits = not shape_error(weight.shape, bias_shape, self.in_features, 2) and delay.shape == weight.shape
        if not fits or 0 in weight.shape:
            return None
        interpolates = self._interpolates(delay)
        if self.mode == "dense" or (interpolates and self.sigma > 0):
            return None
        if self.mode == "auto" and self.max_delay < MIN_DELAY_PER_TAP * (2 if interpolates else 1):
            return None
        history_and_inputs = inputs if history is None else torch.cat([history, inputs])
        total_steps = len(history_and_inputs)
        if len(weight) * (self.max_delay + 2) >= 1 << 31:  # the kernel's indices have 32 bits
            return None
        spikes = pack_binary(history_and_inputs.detach().reshape(-1, self.in_features).contiguous())
        if spikes is None:
            return None
        self._reason = f"events: {spikes.density:.0%} of the input spiked; one addition per synapse and spike"
        skip = total_steps - len(inputs)
        if interpolates:
            lags, fraction = self._between(delay)
            taps = torch.stack([weight * (1 - fraction), weight * fraction])
        else:
            lags, taps = self._rounded(delay), weight[None]
        index, weights = _synapses(lags, len(taps)), taps.permute(2, 0, 1).flatten()
        sums = SparseProduct(history_and_inputs.shape, index, skip)
        source, is_contiguous = None if skip else source, inputs.is_contiguous()
        return multiply_planes(sums, history_and_inputs, weights, bias, spikes, source, is_contiguous)


@final
class DelayedRecurrent(Recurrent):
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
        synapses = DelayedLinear(features, features, max_delay, bias=False, sigma=sigma)
        super().__init__(cell, features, synapses, gradient_scale=gradient_scale, backend=backend)

    def extra_repr(self) -> str:
        return f"gradient_scale={self.gradient_scale}"


MIN_DELAY_PER_TAP = 8
"""Smallest `max_delay` per tap at which one addition per synapse is faster than kernels over time."""


def _synapses(lags: Tensor, taps: int) -> SynapseIndex:
    """The index of sparse synapses ``[in_features, taps, out_features]``, one for each tap of each synapse.

    `lags` are the delays of the first taps, ``[out_features, in_features]``. The delay of the second tap is
    one step longer.
    """
    outputs, inputs = lags.shape
    delays = lags.T[:, None] + torch.arange(taps, dtype=torch.int64, device="cpu")[:, None]
    offsets = delays * outputs + torch.arange(outputs, dtype=torch.int64, device="cpu")
    row_starts = torch.arange(inputs + 1, dtype=torch.int64, device="cpu") * (taps * outputs)
    reach = max(1, int(delays.max()))
    return SynapseIndex(row_starts, offsets.flatten().to(torch.int32), inputs, outputs, reach)
