"""``hb.Conv2d``."""

import torch
from torch import Tensor, nn

from hibana.events import cost
from hibana.events.checks import misfit, pair, plain
from hibana.events.convolution import autograd, measured
from hibana.events.layer import (
    NO_EVENTS,
    SMALLEST_ROWS,
    SMALLEST_WORK,
    TINY,
    BySpikes,
    check_mode,
    known_bits,
    learns,
    numbers_as_bits,
    too_dense,
    usable,
)
from hibana.events.linear import product
from hibana.events.support import support_of

__all__ = ["Conv2d"]


class Conv2d(BySpikes, nn.Conv2d):
    """``torch.nn.Conv2d``, which for an input of spikes adds a row of weights per spike under its window.

    Takes the same arguments, holds the same parameters, and computes the same sums and gradients, in
    another order; ``[N, channels, height, width]`` comes out channels last in memory, which torch's own
    convolution, normalisation and pooling are several times faster in too. Multiplied densely, by
    torch: an input of neither spikes nor small whole numbers, groups, padding other than zeros, and what
    :class:`hibana.Linear` leaves to torch. The input's gradient is torch's too, unless the stride is 1 and
    either the output's gradient is mostly zero, and gone through value by value, or the input's is needed
    only where the surrogate of the layer below can let it through.

    `mode`, and the bits that a layer below kept, are as in :class:`hibana.Linear`.

    >>> import torch, hibana as hb
    >>> layer = hb.Conv2d(32, 64, 3, padding=1)
    >>> spikes = (torch.rand(16, 32, 16, 16) < 0.05).float()
    >>> torch.allclose(layer(spikes), layer._conv_forward(spikes, layer.weight, layer.bias), atol=1e-5)
    True
    >>> layer.explain()  # doctest: +ELLIPSIS
    'events: ...% of the input spiked; added one by one, as up to ...%...'
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch.nn.Conv2d's name for it
        if (
            type(input) is Tensor
            and input.ndim == 4
            and input.numel() * self.weight.numel() < SMALLEST_WORK * max(1, input.shape[1])
            and self.mode == "auto"
            and input.device.type == "cpu"
            and not torch.compiler.is_compiling()
        ):
            return self._densely(input, TINY)
        if torch.compiler.is_compiling() or not plain(input, self.weight, self.bias):
            return self._left_to_torch(input)
        check_mode(self.mode)
        if reason := self._unserved(input):
            return self._densely(input, reason)
        geometry, weight = self._geometry(input), self.weight
        bias = self.bias if self.bias is None else self.bias.contiguous()
        count = input.shape[0] * geometry.output[0] * geometry.output[1]
        if min(geometry.output) <= 0 or count == 0 or weight.numel() == 0:
            return self._densely(input, "nothing to add")
        if self.mode == "auto" and count * weight.numel() < SMALLEST_WORK:
            return self._densely(input, TINY)
        costs = measured.costs(len(input), len(weight), geometry) if self.mode == "auto" else None
        if self.mode == "auto" and costs is None and count < SMALLEST_ROWS:
            return self._densely(input, f"{count} output pixels do not pay for packing the weights")
        learning = learns(weight)
        if costs is not None and (reason := too_dense(costs, autograd.rows_of(input.detach()), learning)):
            return self._densely(input, reason)
        below = support_of(input) if input.requires_grad else None
        length = geometry.channels * geometry.image[1]
        in_order = input.is_contiguous(memory_format=torch.channels_last)
        found = known_bits(below, length, in_order) or numbers_as_bits(autograd.rows_of(input.detach()))
        if found is None:
            return self._densely(input, NO_EVENTS)
        choice = cost.choice(costs, found.density, len(found.bits), learning)
        if not choice.any:
            return self._densely(input, choice.refused(found.density))
        self._reason = product.explained(found, len(weight), choice)
        if not learns(input, weight, bias):
            return autograd.forward(found, weight.detach(), bias, geometry)
        support = usable(below, length, in_order, found)
        return autograd.convolution(input, weight, bias, found, support, geometry, choice)

    def _densely(self, input: Tensor, reason: str) -> Tensor:  # noqa: A002
        images = input.ndim == 4 and input.layout == torch.strided
        images = images and not torch.compiler.is_compiling()  # Inductor has layouts of its own
        return super()._densely(autograd.channels_last(input) if images else input, reason)

    def _unserved(self, input: Tensor) -> str | None:  # noqa: A002
        """Why this call is torch's, if it is whatever the input holds."""
        if self.mode == "dense":
            return "asked for"
        if input.ndim != 4:
            return "the input is not [N, channels, height, width]"
        if self.groups != 1:
            return "groups"
        if reason := misfit(self.weight, self.bias, input.shape[1], 4):
            return reason
        if self.padding_mode != "zeros":
            return f"padding by {self.padding_mode}"
        kernel, stride, dilation = self.weight.shape[2:], pair(self.stride), pair(self.dilation)
        odd = (d * (k - 1) % 2 for d, k in zip(dilation, kernel, strict=True))
        if self.padding == "same" and (stride != (1, 1) or any(odd)):
            return "padding on one side only"
        sizes = self.stride, self.dilation, () if isinstance(self.padding, str) else self.padding
        if min(*stride, *dilation) <= 0 or any(isinstance(size, tuple) and len(size) > 2 for size in sizes):
            return "sizes that there are not"
        return None

    def _geometry(self, input: Tensor) -> autograd.Geometry:  # noqa: A002
        channels, *kernel = self.weight.shape[1:]
        dilation = pair(self.dilation)
        if self.padding == "valid":
            padding = 0, 0
        elif self.padding == "same":
            padding = dilation[0] * (kernel[0] - 1) // 2, dilation[1] * (kernel[1] - 1) // 2
        else:
            padding = pair(self.padding)
        image = input.shape[2], input.shape[3]
        return autograd.Geometry(
            channels, image, (kernel[0], kernel[1]), pair(self.stride), padding, dilation
        )
