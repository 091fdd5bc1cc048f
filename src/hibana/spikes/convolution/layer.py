"""``hb.Conv2d`` and ``hb.events.Conv1d``: convolutions that add a row of weights per spike under a window."""

from functools import lru_cache
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from hibana.spikes import select
from hibana.spikes.checks import check_no_time, kernels_accept, pair, shape_error
from hibana.spikes.convolution import dense
from hibana.spikes.convolution.geometry import Geometry, Pair, has_image_window
from hibana.spikes.convolution.product import convolve, product_key
from hibana.spikes.layer import (
    SMALL_PRODUCT_REASON,
    SMALLEST_WORK,
    SpikeLayer,
    check_mode,
    needs_gradient,
)
from hibana.spikes.provenance import lookup, register_view

__all__ = ["Conv1d", "Conv2d"]


class _SpikeConvolution(SpikeLayer, nn.modules.conv._ConvNd):
    """Base class of Conv1d and Conv2d; a 1-d convolution is computed on images one pixel high."""

    dimensions: int
    """Spatial dimensions of the input."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch.nn's name for it
        """The convolution of `input`, per spike if possible and faster, else by torch."""
        if torch.compiler.is_compiling():
            return self._forward_compiling(input)
        weight, bias = self._tensors()
        if max(self.dilation) > 1 and self._covers_padding_only(input, weight):
            return self._convolve_padding(input, weight, bias)
        plan = None
        if type(input) is Tensor and self.mode == "auto":  # tested first: the tests below take longer
            fits = input.ndim == weight.ndim == self.dimensions + 2
            if fits and input.numel() * weight.numel() < SMALLEST_WORK * weight.shape[1]:
                return self._dense_product(input, weight, bias, SMALL_PRODUCT_REASON)
            plan = self._plan(input, weight, bias)
            if isinstance(plan, _Plan) and plan.is_small(torch.is_grad_enabled()):
                return self._dense_product(input, weight, bias, SMALL_PRODUCT_REASON)
        if not kernels_accept(input, weight, bias):
            return self._forward_unsupported(input, weight, bias)
        check_mode(self.mode)
        if self.mode == "dense":
            return self._dense_product(input, weight, bias, "asked for")
        plan = plan or self._plan(input, weight, bias)
        if isinstance(plan, str):
            return self._dense_product(input, weight, bias, plan)
        images = functional.pad(input, plan.padding, plan.padding_mode) if plan.padding else input
        if self.dimensions == 1:
            images = register_view(images, images.view(*images.shape[:2], 1, images.shape[2]))
        result = convolve(images, weight, bias, plan.geometry, lookup(images), self.mode)
        if isinstance(result, str):
            return self._dense_product(input, weight, bias, result)
        out, self.__dict__["_reason"] = result
        return out.squeeze(2) if self.dimensions == 1 else out

    def _plan(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> "_Plan | str":  # noqa: A002
        """The plan for these tensors, or the reason to compute the convolution by torch."""
        shapes = input.shape, weight.shape, None if bias is None else bias.shape
        steps = self.stride, self.padding, self.dilation, self.padding_mode
        return _plan(self.dimensions, *shapes, self.groups, *steps)

    def _dense_product(self, input: Tensor, weight: Tensor, bias: Tensor | None, reason: str) -> Tensor:  # noqa: A002
        """Torch's convolution, after a check that `input` has no time axis; `reason` is for ``explain``."""
        check_no_time(self, input, self.dimensions)
        return super()._dense_product(input, weight, bias, reason)

    def _covers_padding_only(self, input: Tensor, weight: Tensor) -> bool:  # noqa: A002
        """Whether no window covers a pixel of `input`."""
        if type(input) is not Tensor or input.ndim != self.dimensions + 2:
            return False
        if self.padding_mode != "zeros" or isinstance(self.padding, str):
            return False
        sizes = input.shape[2:], weight.shape[2:], self.stride, self.padding, self.dilation
        return not all(has_image_window(*size) for size in zip(*sizes, strict=True))

    def _convolve_padding(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # noqa: A002
        """Torch's convolution of an input whose windows cover padding only.

        The input is padded first: the padded convolution of torch 2.13 ends the process for such an input.
        """
        self._reason = "dense: no window covers the image"
        assert not isinstance(self.padding, str)
        padded = functional.pad(input, [side for side in self.padding[::-1] for _ in range(2)])
        convolve = functional.conv1d if self.dimensions == 1 else functional.conv2d
        out: Tensor = convolve(padded, weight, bias, self.stride, 0, self.dilation, self.groups)
        return out

    def _torch_product(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # noqa: A002
        """The convolution by ``torch.nn.Conv1d`` or ``Conv2d``, padding mode included."""
        return self._conv_forward(input, weight, bias)

    def _skips(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> bool:  # noqa: A002
        """Whether torch gets only the pixels in windows: its backward is unsafe with all (see `dense`)."""
        return (
            input.shape[1] < dense.SAFE_CHANNELS
            and max(_pair(self.stride, self.dimensions, 1)) > 1
            and self.padding in ((0, 0), "valid")
            and weight.shape[2:] == (1, 1)
            and needs_gradient(input, weight, bias)
        )


class _Plan(NamedTuple):
    """Sizes of a convolution, and the padding to apply to its input first."""

    geometry: Geometry
    """Geometry of the padded images; those of a 1-d convolution are one pixel high."""
    padding: list[int]
    """Argument of ``functional.pad``; empty if kernels can pad, with zeros and equally on opposite sides."""
    padding_mode: str
    """Argument of ``functional.pad``."""
    work: int
    """Multiplications of a dense convolution."""
    key: select.Key
    """Kind and sizes of the convolution, for weights that do not learn."""

    def is_small(self, learning: bool) -> bool:
        """Whether torch computes the convolution without a look at its input."""
        return self.work < SMALLEST_WORK or not select.is_promising(self.key, learning)


@lru_cache(maxsize=1024)
def _plan(
    dimensions: int,
    shape: torch.Size,
    weight: torch.Size,
    bias: torch.Size | None,
    groups: int,
    stride: tuple[int, ...],
    padding: tuple[int, ...] | str,
    dilation: tuple[int, ...],
    padding_mode: str,
) -> _Plan | str:
    """The plan of a convolution; or the reason to compute it by torch.

    `shape`, `weight` and `bias` are the shapes of the tensors, and the other arguments are those of
    ``torch.nn.Conv2d``.
    """
    if len(shape) != dimensions + 2:
        return f"the input is not [N, channels, {'height, width' if dimensions == 2 else 'length'}]"
    if groups != 1:
        return "groups"
    if reason := shape_error(weight, bias, shape[1], dimensions + 2):
        return reason
    steps = stride, dilation, () if isinstance(padding, str) else padding
    if any(isinstance(step, tuple) and len(step) > dimensions for step in steps):
        return "invalid sizes"
    strides, dilations = _pair(stride, dimensions, 1), _pair(dilation, dimensions, 1)
    if min(*strides, *dilations) <= 0 or (padding == "same" and strides != (1, 1)):
        return "invalid sizes"
    kernel = _pair(tuple(weight[2:]), dimensions, 1)
    if padding == "valid":
        sides = [(0, 0), (0, 0)]
    elif padding == "same":
        reach = [d * (k - 1) for d, k in zip(dilations, kernel, strict=True)]
        sides = [(total // 2, total - total // 2) for total in reach]
    else:
        sides = [(side, side) for side in _pair(padding, dimensions, 0)]
    if kernel == (1, 1) and max(strides) > 1 and not any(map(any, sides)) and shape[1] < dense.SAFE_CHANNELS:
        return "windows of one pixel that skip others, over few channels"
    is_zero = padding_mode == "zeros"
    (height, width), pad = _pair(tuple(shape[2:]), dimensions, 1), list[int]()
    (up, down), (left, right) = sides
    if not (is_zero and up == down and left == right):
        pad = [left, right, up, down][: 2 * dimensions]
        height, width = height + up + down, width + left + right
        up = left = 0
    geometry = Geometry(shape[1], (height, width), kernel, strides, (up, left), dilations)
    work = shape[0] * prod(geometry.output) * prod(weight)
    if work == 0 or min(geometry.output) <= 0:
        return "nothing to add"
    key = product_key(shape[0], weight, geometry)
    return _Plan(geometry, pad, "constant" if is_zero else padding_mode, work, key)


def _pair(sizes: int | tuple[int, ...] | str, dimensions: int, missing: int) -> Pair:
    """`sizes` as (down, across); down is `missing` if `dimensions` is 1."""
    return (missing, pair(sizes)[1]) if dimensions == 1 else pair(sizes)


class Conv2d(_SpikeConvolution, nn.Conv2d):
    """``torch.nn.Conv2d``, which for an input of spikes adds a row of weights per spike under a window.

    Has the same arguments and parameters, and computes the same sums and gradients in another order. The
    output, ``[N, channels, height, width]``, is channels last in memory, which makes torch's own convolution,
    normalization and pooling several times faster too. Torch multiplies densely: an input of neither spikes
    nor small whole numbers, groups, and the calls that :class:`hibana.Linear` passes to torch. Torch also
    computes the input gradient, unless, at stride 1, it is needed only where the derivative of the emitting
    layer's surrogate is not zero.

    `mode` is as in :class:`hibana.Linear`.

    >>> import torch, hibana as hb
    >>> layer = hb.Conv2d(32, 64, 3, padding=1)
    >>> spikes = (torch.rand(16, 32, 16, 16) < 0.05).float()
    >>> torch.allclose(layer(spikes), layer._conv_forward(spikes, layer.weight, layer.bias), atol=1e-5)
    True
    >>> print(layer.explain())  # doctest: +ELLIPSIS
    events: ...% of the input spiked; added one by one, as up to ...%...
    """

    dimensions = 2

    def _dense_product(self, input: Tensor, weight: Tensor, bias: Tensor | None, reason: str) -> Tensor:  # noqa: A002
        """Torch's convolution of channels-last images; `reason` is for ``explain``."""
        if input.ndim != 4 or input.layout != torch.strided:
            return super()._dense_product(input, weight, bias, reason)
        if self._skips(input, weight, bias):
            self._reason = f"dense: {reason}"
            pixels = dense.sample_pixels(input, _pair(self.stride, self.dimensions, 1))
            return functional.conv2d(pixels, weight, bias, groups=self.groups)
        return super()._dense_product(dense.channels_last(input), weight, bias, reason)


class Conv1d(_SpikeConvolution, nn.Conv1d):
    """``torch.nn.Conv1d``, which for an input of spikes adds weights per spike like :class:`hibana.Conv2d`.

    >>> import torch, hibana as hb
    >>> hb.events.Conv1d(2, 8, 3)(torch.ones(4, 2, 10)).shape
    torch.Size([4, 8, 8])
    """

    dimensions = 1
