"""A causal convolution over time, computed as a 2-d convolution of an image of T x batch pixels."""

import torch
from torch import Tensor
from torch.nn import functional

from hibana.spikes.checks import kernels_accept, shape_error
from hibana.spikes.convolution.geometry import Geometry
from hibana.spikes.convolution.product import convolve
from hibana.spikes.layer import (
    SMALL_PRODUCT_REASON,
    SMALLEST_WORK,
    UNSUPPORTED,
    Mode,
    check_mode,
)
from hibana.spikes.provenance import Provenance

__all__ = ["causal_convolution", "causal_geometry"]


def causal_convolution(
    inputs: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    dilation: int,
    history: Tensor | None = None,
    provenance: Provenance | None = None,
    mode: Mode = "auto",
) -> tuple[Tensor, str]:
    """``y_t = bias + sum_k W_k x_(t - (K - 1 - k) dilation)``, ``[T, rows, outputs]``, and an explanation.

    The explanation tells how the result was computed, and why.

    Args:
        inputs: ``[T, rows, channels]``.
        weight: ``[outputs, channels / groups, K]``; the last of K taps is multiplied with the current step.
        bias: ``[outputs]``.
        dilation: steps between two taps of the kernel.
        history: the ``(K - 1) dilation`` steps before the first; zeros if None.
        provenance: the gradient mask that a layer attached to `inputs`, or None.
        mode: ``"auto"``, ``"dense"`` (by torch) or ``"events"`` (per spike).
    """
    check_mode(mode)
    reach = (weight.shape[2] - 1) * dilation
    reason = _dense_reason(inputs, weight, bias, mode)
    if reason is None:
        if history is not None and reach:
            inputs, provenance = torch.cat([history.to(inputs.dtype), inputs]), None
        padding = 0 if history is not None else reach
        steps, rows, channels = inputs.shape
        geometry = causal_geometry(steps, rows, channels, weight.shape[2], dilation, padding)
        images = inputs.permute(2, 0, 1)[None]  # [1, channels, T, rows]
        result = convolve(images, weight[..., None], bias, geometry, provenance, mode)
        if not isinstance(result, str):
            out, explanation = result
            return out[0].permute(1, 2, 0), explanation
        reason = result
        history = None if history is None else inputs[:reach]
        inputs = inputs[reach:] if history is not None else inputs
    return _dense_convolution(inputs, weight, bias, dilation, history), f"dense: {reason}"


def _dense_reason(inputs: Tensor, weight: Tensor, bias: Tensor | None, mode: Mode) -> str | None:
    """Why torch must compute a convolution of these sizes; None if kernels can, and may be faster."""
    if torch.is_autocast_enabled("cpu"):
        return "under autocast"
    if torch.compiler.is_compiling() or not kernels_accept(inputs, weight, bias):
        return UNSUPPORTED
    if mode == "dense":
        return "asked for"
    if weight.shape[1] != inputs.shape[2]:
        return "groups"
    if 0 in (*inputs.shape, *weight.shape):
        return "nothing to add"
    if mode == "auto" and inputs.shape[0] * inputs.shape[1] * weight.numel() < SMALLEST_WORK:
        return SMALL_PRODUCT_REASON
    return shape_error(weight.shape, None if bias is None else bias.shape, inputs.shape[2], 3)


def causal_geometry(steps: int, rows: int, channels: int, size: int, dilation: int, padding: int) -> Geometry:
    """The geometry of a kernel of `size` steps over an image of `steps` x `rows` pixels.

    `padding` steps of zeros precede the image; no padding follows it.
    """
    output = steps + padding - (size - 1) * dilation, rows
    return Geometry(channels, (steps, rows), (size, 1), (1, 1), (padding, 0), (dilation, 1), output)


def _dense_convolution(
    inputs: Tensor, weight: Tensor, bias: Tensor | None, dilation: int, history: Tensor | None
) -> Tensor:
    """:func:`causal_convolution` by torch."""
    steps, reach = inputs.shape[0], (weight.shape[2] - 1) * dilation
    before = inputs.new_zeros(reach, *inputs.shape[1:]) if history is None else history.to(inputs.dtype)
    groups = inputs.shape[2] // max(1, weight.shape[1])  # torch raises an error if the sizes do not fit
    if (
        inputs.shape[1] == 0
    ):  # conv2d raises an error for an image without width, conv1d accepts an empty batch
        sequences = torch.cat([before, inputs]).permute(1, 2, 0)
        return functional.conv1d(sequences, weight, bias, dilation=dilation, groups=groups).permute(2, 0, 1)
    images = torch.cat([before, inputs]).permute(2, 0, 1)[None]  # [1, channels, T, rows], channels last
    out = functional.conv2d(images, weight[..., None], bias, dilation=(dilation, 1), groups=groups)
    return out[0].permute(1, 2, 0)[:steps]
