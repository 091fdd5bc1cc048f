"""The synaptic operations of one layer: additions that spikes cause, and multiplications that values cause.

Nothing here watches a network, or knows what an operation costs.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from hibana.nn import lengths as padding
from hibana.nn.delayed_linear import DelayedLinear
from hibana.nn.delayed_recurrent import DelayedRecurrent
from hibana.nn.layers import Recurrent
from hibana.nn.window import Window

__all__ = ["Weighted", "are_spikes", "feedback", "one_step_later", "operations"]

Weighted = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d | Window | DelayedLinear


@torch.no_grad()
def operations(
    layer: Weighted, inputs: Tensor, lengths: Tensor | None = None
) -> tuple[Literal["acs", "macs"], Tensor]:
    """The operations of `layer` on `inputs`: ``"acs"`` if they are all zeros and ones, else ``"macs"``.

    `lengths` are those of padded samples ``[T, batch, ...]``, for a layer over time.

    Raises:
        TypeError: if `layer` is not ``nn.Linear``, a convolution, or one over time.
        ValueError: if a convolution pads with anything but zeros.
    """
    if not isinstance(layer, Weighted):
        raise TypeError(f"layer must be nn.Linear or nn.Conv1d to nn.Conv3d, got {type(layer).__name__}")
    if getattr(layer, "padding_mode", "zeros") != "zeros":
        raise ValueError(f"padding_mode must be 'zeros', got {layer.padding_mode!r}")
    spiking = are_spikes(inputs)
    if isinstance(layer, Window | DelayedLinear):
        return ("acs" if spiking else "macs"), _reached_later(layer, inputs, lengths, spiking)
    if not spiking and inputs.stride(0) == 0:
        inputs = inputs[:1]
    if isinstance(layer, nn.Linear):
        reached = inputs.count_nonzero() if spiking else inputs.new_tensor(inputs.numel(), dtype=torch.int64)
        return ("acs", reached * layer.out_features) if spiking else ("macs", reached * layer.out_features)
    weight = layer.weight
    fan_out = _outputs_reached(layer, inputs)
    if spiking:
        count = (inputs != 0).to(torch.int64).mul(fan_out).sum()
    else:
        count = fan_out.expand(inputs.shape).sum()
    return ("acs" if spiking else "macs"), count * (weight.shape[0] // layer.groups)


def _outputs_reached(layer: nn.Conv1d | nn.Conv2d | nn.Conv3d, inputs: Tensor) -> Tensor:
    """How many positions of one output channel each position of an input channel reaches, ``[*space]``."""
    ones = torch.ones(1, 1, *layer.weight.shape[2:], device=inputs.device, dtype=torch.float64)
    space = torch.ones(
        1, 1, *inputs.shape[-len(layer.kernel_size) :], device=inputs.device, dtype=torch.float64
    ).requires_grad_()
    with torch.enable_grad():
        convolution = getattr(nn.functional, f"conv{len(layer.kernel_size)}d")
        outputs = convolution(
            space, ones, stride=layer.stride, padding=layer.padding, dilation=layer.dilation
        )
        (reached,) = torch.autograd.grad(outputs.sum(), space)
    return reached[0, 0].to(torch.int64)


def feedback(layer: nn.Module) -> Weighted | None:
    """The synapses by which the spikes of `layer` come back to it, if they are a layer of weights."""
    if isinstance(layer, DelayedRecurrent):
        return layer.recurrent
    if isinstance(layer, Recurrent) and isinstance(layer.recurrent, nn.Linear):
        return layer.recurrent
    return None


def one_step_later(spikes: Tensor) -> Tensor:
    """`spikes`, ``[T, batch, ...]``, as synapses within the layer see them."""
    return torch.cat([torch.zeros_like(spikes[:1]), spikes[:-1]])


def are_spikes(inputs: Tensor) -> bool:
    """Whether all of `inputs` are zeros and ones."""
    return bool(((inputs == 0) | (inputs == 1)).all())


def _reached_later(
    layer: Window | DelayedLinear, inputs: Tensor, lengths: Tensor | None, spiking: bool
) -> Tensor:
    """How many outputs each value of ``[T, batch, channels, ...]`` reaches before its sample ends, summed."""
    steps, batch = inputs.shape[:2]
    left = torch.arange(steps, 0, -1, dtype=torch.int64, device=inputs.device)[:, None].expand(steps, batch)
    if lengths is not None:
        left = (left - steps + padding.checked(lengths, inputs)).clamp(min=0)
    if isinstance(layer, DelayedLinear):
        lags = layer.steps  # [outputs, channels]
    else:
        each = torch.arange(layer.weight.shape[2], dtype=torch.int64, device=inputs.device) * layer.dilation
        taps = each.repeat(layer.weight.shape[0] // layer.groups)
        lags = taps[:, None].expand(-1, inputs.shape[2])  # [outputs * K, channels]
    reached = torch.stack([(lags < n).sum(0) for n in range(steps + 1)])[left]  # [T, batch, channels]
    reached = reached.view(*reached.shape, *[1] * (inputs.ndim - 3)).expand(inputs.shape)
    return (reached * (inputs != 0)).sum() if spiking else reached.sum()
