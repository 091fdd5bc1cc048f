"""A causal convolution over time: a 2-d convolution of an image of T steps by batch with a K x 1 kernel."""

from math import prod

import torch
from torch import Tensor
from torch.nn import functional

from hibana.spikes import select
from hibana.spikes.checks import kernels_accept, shape_error
from hibana.spikes.convolution import autograd
from hibana.spikes.convolution.geometry import Geometry
from hibana.spikes.layer import (
    SMALLEST_WORK,
    TINY,
    Found,
    Mode,
    as_bits,
    check_mode,
    needs_gradient,
    usable,
)
from hibana.spikes.linear import product
from hibana.spikes.provenance import Provenance

__all__ = ["causal_convolution", "window"]


def causal_convolution(
    inputs: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    dilation: int,
    history: Tensor | None = None,
    below: Provenance | None = None,
    mode: Mode = "auto",
) -> tuple[Tensor, str]:
    """``y_t = bias + sum_k W_k x_(t - (K - 1 - k) dilation)``, and how it was computed, and why.

    Args:
        inputs: ``[T, rows, channels]``.
        weight: ``[outputs, channels / groups, K]``; the last of K meets the step itself.
        bias: ``[outputs]``.
        dilation: steps between those that the kernel meets.
        history: the ``(K - 1) dilation`` steps before the first; zeros if None.
        below: what is known of the spiking layer that the inputs came from.
        mode: as of :class:`hibana.Linear`.
    """
    check_mode(mode)
    reach = (weight.shape[2] - 1) * dilation
    reason = _unserved(inputs, weight, bias, mode)
    if reason is None:
        if history is not None and reach:
            inputs, below = torch.cat([history.to(inputs.dtype), inputs]), None
        padding = 0 if history is not None else reach
        found = _by_spikes(inputs, weight, bias, dilation, padding, below, mode)
        if not isinstance(found, str):
            return found
        reason = found
        history = None if history is None else inputs[:reach]
        inputs = inputs[reach:] if history is not None else inputs
    return _densely(inputs, weight, bias, dilation, history), f"dense: {reason}"


def _unserved(inputs: Tensor, weight: Tensor, bias: Tensor | None, mode: Mode) -> str | None:
    if (
        torch.compiler.is_compiling()
        or torch.is_autocast_enabled("cpu")
        or not kernels_accept(inputs, weight, bias)
    ):
        return "transformed, or not float32 on the CPU"
    if mode == "dense":
        return "asked for"
    if weight.shape[1] != inputs.shape[2]:
        return "groups"
    if 0 in (*inputs.shape, *weight.shape):
        return "nothing to add"
    if mode == "auto" and inputs.shape[0] * inputs.shape[1] * weight.numel() < SMALLEST_WORK:
        return TINY
    return shape_error(weight.shape, None if bias is None else bias.shape, inputs.shape[2], 3)


def _by_spikes(
    inputs: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    dilation: int,
    padding: int,
    below: Provenance | None,
    mode: Mode,
) -> tuple[Tensor, str] | str:
    """The sums of rows of weights, and how; or why they would be no sooner, or can't be."""
    steps, rows, channels = inputs.shape
    in_order, length, learning = inputs.is_contiguous(), rows * channels, needs_gradient(weight)
    geometry = window(steps, rows, channels, weight.shape[2], dilation, padding)
    auto = mode == "auto"
    sizes = prod(geometry.output), weight[0].numel(), len(weight)
    key = select.Key("window", (geometry,), *sizes, learning=learning)

    def lines() -> Tensor:
        return inputs.detach().reshape(steps, length).contiguous()

    bits = as_bits(below, length, in_order, inputs.detach(), lines, key, auto)
    if not isinstance(bits, Found):
        return bits
    found, chosen = bits.planes, select.ALL
    images, kernel = inputs.permute(2, 0, 1)[None], weight[..., None]  # [1, channels, T, rows]
    if auto:
        chosen = autograd.chosen(bits, images, kernel, None if bias is None else bias.detach(), geometry)
    if not chosen.any:
        return chosen.refused(found.density)
    bias = None if bias is None else bias.contiguous()
    if needs_gradient(inputs, weight, bias):
        support = usable(below, length, in_order, found)
        out = autograd.convolution(images, kernel, bias, found, support, geometry, chosen)
    else:
        out = autograd.forward(found, kernel.detach(), bias, geometry, chosen)
    return out[0].permute(1, 2, 0), str(product.explained(found, len(weight), chosen))


def window(steps: int, rows: int, channels: int, size: int, dilation: int, padding: int) -> Geometry:
    """Of an image of `steps` by `rows`, with `padding` steps of zeros before it and nothing after it."""
    made = steps + padding - (size - 1) * dilation, rows
    return Geometry(channels, (steps, rows), (size, 1), (1, 1), (padding, 0), (dilation, 1), made)


def _densely(
    inputs: Tensor, weight: Tensor, bias: Tensor | None, dilation: int, history: Tensor | None
) -> Tensor:
    steps, reach = inputs.shape[0], (weight.shape[2] - 1) * dilation
    before = inputs.new_zeros(reach, *inputs.shape[1:]) if history is None else history.to(inputs.dtype)
    groups = inputs.shape[2] // max(1, weight.shape[1])  # torch refuses what does not fit
    if inputs.shape[1] == 0:  # an image without width is refused, a batch without sequences is not
        none = torch.cat([before, inputs]).permute(1, 2, 0)
        return functional.conv1d(none, weight, bias, dilation=dilation, groups=groups).permute(2, 0, 1)
    images = torch.cat([before, inputs]).permute(2, 0, 1)[None]  # [1, channels, T, rows], channels last
    out = functional.conv2d(images, weight[..., None], bias, dilation=(dilation, 1), groups=groups)
    return out[0].permute(1, 2, 0)[:steps]
