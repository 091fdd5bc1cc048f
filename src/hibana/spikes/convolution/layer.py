"""``hb.Conv2d`` and ``hb.events.Conv1d``."""

from functools import lru_cache
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from hibana.spikes import select
from hibana.spikes.checks import check_no_time, kernels_accept, pair, shape_error
from hibana.spikes.convolution import autograd, dense
from hibana.spikes.convolution.geometry import Geometry, Pair, meets
from hibana.spikes.layer import (
    LEFT,
    SMALLEST_WORK,
    TINY,
    BySpikes,
    Found,
    as_bits,
    check_mode,
    needs_gradient,
    usable,
)
from hibana.spikes.linear import product
from hibana.spikes.provenance import lookup, register_view

__all__ = ["Conv1d", "Conv2d"]


class _ByWindows(BySpikes, nn.modules.conv._ConvNd):
    """What convolutions share; one of one dimension is of images one pixel high."""

    dimensions: int

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch.nn's name for it
        if torch.compiler.is_compiling():
            return self._compiled(input)
        weight, bias = self._tensors()
        if type(input) is Tensor and self.__dict__.get("_left") == self._call_of(input):
            self.__dict__["_reason"] = LEFT
            return self._conv_forward(input, weight, bias)
        if max(self.dilation) > 1 and self._meets_padding_alone(input, weight):
            return self._of_padding(input, weight, bias)
        if (
            type(input) is Tensor
            and input.ndim == self.dimensions + 2
            and self.mode == "auto"
            and input.is_cpu
            and self._is_small(input, weight)
        ):
            if self._lies_for_torch(input, weight, bias):
                never_skips = (
                    input.shape[1] >= dense.SAFE or max(self.stride) == 1 or not torch.is_grad_enabled()
                )
                if never_skips and max(self.dilation) == 1:
                    self.__dict__["_left"] = self._call_of(input)
                self.__dict__["_reason"] = LEFT
                return self._conv_forward(input, weight, bias)
            return self._densely(input, weight, bias, TINY)
        if not kernels_accept(input, weight, bias):
            return self._left_to_torch(input, weight, bias)
        check_mode(self.mode)
        about = input.shape, weight.shape, None if bias is None else bias.shape, self.groups
        how = self.stride, self.padding, self.dilation, self.padding_mode
        sizes = "asked for" if self.mode == "dense" else _sizes(self.dimensions, *about, *how)
        if isinstance(sizes, str):
            return self._densely(input, weight, bias, sizes)
        if sizes.work < SMALLEST_WORK and self.mode == "auto":
            return self._densely(input, weight, bias, TINY)
        around = sizes.around
        images = functional.pad(input, around, sizes.mode) if around else input
        if self.dimensions == 1:
            images = register_view(images, images.view(*images.shape[:2], 1, images.shape[2]))
        found = self._by_windows(images, weight, bias, sizes.geometry)
        if isinstance(found, str):
            return self._densely(input, weight, bias, found)
        return found.squeeze(2) if self.dimensions == 1 else found

    def _densely(self, input: Tensor, weight: Tensor, bias: Tensor | None, reason: str) -> Tensor:  # noqa: A002
        """Torch's convolution, after a check that `input` has no time axis; `reason` is for ``explain``."""
        check_no_time(self, input, self.dimensions)
        return super()._densely(input, weight, bias, reason)

    def _meets_padding_alone(self, input: Tensor, weight: Tensor) -> bool:  # noqa: A002
        """Whether no window of those that there are meets the image."""
        if type(input) is not Tensor or input.ndim != self.dimensions + 2:
            return False
        if self.padding_mode != "zeros" or isinstance(self.padding, str):
            return False
        sizes = input.shape[2:], weight.shape[2:], self.stride, self.padding, self.dilation
        return not all(meets(*each) for each in zip(*sizes, strict=True))

    def _of_padding(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # noqa: A002
        """The bias: zeros are put around first, for torch (2.13) ends the process as it does so."""
        self._reason = "dense: no window meets the image"
        assert not isinstance(self.padding, str)
        around = functional.pad(input, [side for side in self.padding[::-1] for _ in range(2)])
        convolved = functional.conv1d if self.dimensions == 1 else functional.conv2d
        out: Tensor = convolved(around, weight, bias, self.stride, 0, self.dilation, self.groups)
        return out

    def _torchs(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # noqa: A002
        """The convolution by ``torch.nn.Conv1d`` or ``Conv2d``, padding mode included."""
        return self._conv_forward(input, weight, bias)

    def _is_small(self, input: Tensor, weight: Tensor) -> bool:  # noqa: A002
        """Whether torch has done all before events have begun."""
        return input.numel() * weight.numel() < SMALLEST_WORK * input.shape[1] * prod(self.stride)

    def _lies_for_torch(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> bool:  # noqa: A002
        """Whether torch's layer may be given the images as they are."""
        return dense.lies_last(input) and (
            input.shape[1] >= dense.SAFE or not self._skips(input, weight, bias)
        )

    def _call_of(self, input: Tensor) -> tuple[object, ...]:  # noqa: A002
        """What decides whether a call is left to torch for its size, but for the weight."""
        return (
            *(input.shape, input.stride(), self.mode, self.dilation, self.stride),
            torch.is_grad_enabled(),
        )

    def _by_windows(
        self, images: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry
    ) -> Tensor | str:
        """The convolution of `images`, ``[N, channels, height, width]``; or the reason to use torch's."""
        if bias is not None:
            bias = bias.contiguous()
        outputs = weight.shape[0]
        learning, auto = needs_gradient(weight), self.mode == "auto"
        under = lookup(images)
        length = geometry.channels * geometry.image[1]
        in_order = images.is_contiguous(memory_format=torch.channels_last)
        sizes = images.shape[0] * prod(geometry.output), weight[0].numel(), outputs
        key = select.Key("convolution", (images.shape[0], geometry), *sizes, learning=learning)
        numbers = images.detach()
        bits = as_bits(under, length, in_order, numbers, lambda: autograd.rows_of(numbers), key, auto)
        if not isinstance(bits, Found):
            return bits
        found, chosen = bits.planes, select.ALL
        if auto:
            chosen = autograd.chosen(bits, images, weight, bias if bias is None else bias.detach(), geometry)
        if not chosen.any:
            return chosen.refused(found.density)
        self.__dict__["_reason"] = product.explained(found, outputs, chosen)
        weight_ = weight.detach() if learning else weight
        given = found, autograd.as_kernel(weight_), bias, geometry
        if not (learning or needs_gradient(images, bias)):
            return autograd.forward(*given, chosen)
        support = usable(under, length, in_order, found) if images.requires_grad else None
        return autograd.convolution(images, weight, bias, found, support, geometry, chosen)

    def _skips(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> bool:  # noqa: A002
        """Whether only the pixels that are met are given to torch, whose backward is not safe with all."""
        return (
            torch.is_grad_enabled()
            and self.dimensions == 2
            and input.shape[1] < dense.SAFE
            and max(_pair(self.stride, self.dimensions, 1)) > 1
            and self.padding in ((0, 0), "valid")
            and weight.shape[2:] == (1, 1)
            and needs_gradient(input, weight, bias)
        )


class _Sizes(NamedTuple):
    """Of a convolution of images of one or two dimensions."""

    geometry: Geometry
    """Of the images with what is put around them; images of one dimension are one pixel high."""
    around: list[int]
    """What is put around them, as ``pad`` takes it; nothing, where it is zeros on either side."""
    mode: str
    """How."""
    work: int
    """Multiplications of all."""


@lru_cache(maxsize=1024)
def _sizes(
    dimensions: int,
    shape: torch.Size,
    weight: torch.Size,
    bias: torch.Size | None,
    groups: int,
    stride: tuple[int, ...],
    padding: tuple[int, ...] | str,
    dilation: tuple[int, ...],
    padding_mode: str,
) -> _Sizes | str:
    """Of an input of this `shape`; or why it is torch's, whatever it holds."""
    if len(shape) != dimensions + 2:
        return f"the input is not [N, channels, {'height, width' if dimensions == 2 else 'length'}]"
    if groups != 1:
        return "groups"
    if reason := shape_error(weight, bias, shape[1], dimensions + 2):
        return reason
    given = stride, dilation, () if isinstance(padding, str) else padding
    if any(isinstance(size, tuple) and len(size) > dimensions for size in given):
        return "sizes that there are not"
    strides, dilations = _pair(stride, dimensions, 1), _pair(dilation, dimensions, 1)
    if min(*strides, *dilations) <= 0 or (padding == "same" and strides != (1, 1)):
        return "sizes that there are not"
    kernel = _pair(tuple(weight[2:]), dimensions, 1)
    if padding == "valid":
        sides = [(0, 0), (0, 0)]
    elif padding == "same":
        reach = [d * (k - 1) for d, k in zip(dilations, kernel, strict=True)]
        sides = [(whole // 2, whole - whole // 2) for whole in reach]
    else:
        sides = [(one, one) for one in _pair(padding, dimensions, 0)]
    zeros = padding_mode == "zeros"
    (height, width), around = _pair(tuple(shape[2:]), dimensions, 1), list[int]()
    (up, down), (left, right) = sides
    if not (zeros and up == down and left == right):
        around = [left, right, up, down][: 2 * dimensions]
        height, width = height + up + down, width + left + right
        up = left = 0
    geometry = Geometry(shape[1], (height, width), kernel, strides, (up, left), dilations)
    work = shape[0] * prod(geometry.output) * prod(weight)
    if work == 0 or min(geometry.output) <= 0:
        return "nothing to add"
    return _Sizes(geometry, around, "constant" if zeros else padding_mode, work)


def _pair(sizes: int | tuple[int, ...] | str, dimensions: int, missing: int) -> Pair:
    """`sizes` down and across, `missing` down if there is one dimension."""
    return (missing, pair(sizes)[1]) if dimensions == 1 else pair(sizes)


class Conv2d(_ByWindows, nn.Conv2d):
    """``torch.nn.Conv2d``, which for an input of spikes adds a row of weights per spike under its window.

    Takes the same arguments, holds the same parameters, and computes the same sums and gradients, in
    another order; ``[N, channels, height, width]`` comes out channels last in memory, which torch's own
    convolution, normalisation and pooling are several times faster in too. Multiplied densely, by
    torch: an input of neither spikes nor small whole numbers, groups, and what :class:`hibana.Linear` leaves
    to torch. The input's gradient is torch's too, unless it is needed only where the surrogate of the layer
    below can let it through.

    `mode`, and the bits that a layer below kept, are as in :class:`hibana.Linear`.

    >>> import torch, hibana as hb
    >>> layer = hb.Conv2d(32, 64, 3, padding=1)
    >>> spikes = (torch.rand(16, 32, 16, 16) < 0.05).float()
    >>> torch.allclose(layer(spikes), layer._conv_forward(spikes, layer.weight, layer.bias), atol=1e-5)
    True
    >>> print(layer.explain())  # doctest: +ELLIPSIS
    events: ...% of the input spiked; added one by one, as up to ...%...
    """

    dimensions = 2

    def _densely(self, input: Tensor, weight: Tensor, bias: Tensor | None, reason: str) -> Tensor:  # noqa: A002
        if input.ndim != 4 or input.layout != torch.strided:
            return super()._densely(input, weight, bias, reason)
        if self._skips(input, weight, bias):
            self._reason = f"dense: {reason}"
            sampled = dense.sampled(input, _pair(self.stride, self.dimensions, 1))
            return functional.conv2d(sampled, weight, bias, groups=self.groups)
        return super()._densely(dense.channels_last(input), weight, bias, reason)


class Conv1d(_ByWindows, nn.Conv1d):
    """``torch.nn.Conv1d`` of ``[N, channels, length]``, which is for spikes what :class:`hibana.Conv2d` is.

    >>> import torch, hibana as hb
    >>> hb.events.Conv1d(2, 8, 3)(torch.ones(4, 2, 10)).shape
    torch.Size([4, 8, 8])
    """

    dimensions = 1
