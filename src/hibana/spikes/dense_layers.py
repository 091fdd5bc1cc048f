"""Layers of :mod:`hibana.events` that always compute by torch, and report it to :func:`hibana.explain`."""

from typing import Any, ClassVar

from torch import nn

from hibana.compiler.call_context import fx_leaf_call, is_fx_proxy
from hibana.spikes.checks import check_no_time

__all__ = ["AdaptiveAvgPool2d", "AdaptiveMaxPool2d", "AvgPool2d", "Conv3d", "ConvTranspose2d", "Upsample"]


class DenseLayer(nn.Module):
    """Base class: checks that the input has no time axis, then calls torch's layer."""

    reason: ClassVar[str]
    """Why the layer computes by torch."""
    dimensions: ClassVar[int] = 2
    """Spatial dimensions of the input."""

    def forward(self, input: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: A002 - torch.nn's name for it
        """The result of torch's layer."""
        if is_fx_proxy(input):
            return fx_leaf_call(self, input, *args, **kwargs)
        check_no_time(self, input, self.dimensions)
        return super().forward(input, *args, **kwargs)

    def explain(self) -> str:
        """A sentence: the layer computes by torch, and why."""
        return f"torch's: {self.reason}"


class Conv3d(DenseLayer, nn.Conv3d):
    """``torch.nn.Conv3d``; its output is numbers, spikes or not."""

    reason = "a window over three dimensions"
    dimensions = 3


class ConvTranspose2d(DenseLayer, nn.ConvTranspose2d):
    """``torch.nn.ConvTranspose2d``; its output is numbers, spikes or not."""

    reason = "a transposed convolution"


class AvgPool2d(DenseLayer, nn.AvgPool2d):
    """``torch.nn.AvgPool2d``; the next layer adds averages of spikes bit by bit, where they are exact."""

    reason = "averages, whole numbers times one factor to the layer above where the window is a power of two"


class AdaptiveAvgPool2d(DenseLayer, nn.AdaptiveAvgPool2d):
    """``torch.nn.AdaptiveAvgPool2d``; its averages of spikes are as those of :class:`AvgPool2d`."""

    reason = "averages, whole numbers times one factor to the layer above where the window is a power of two"


class AdaptiveMaxPool2d(DenseLayer, nn.AdaptiveMaxPool2d):
    """``torch.nn.AdaptiveMaxPool2d``; the maxima of spikes are spikes."""

    reason = "windows of several sizes; the maxima of spikes are spikes"


class Upsample(DenseLayer, nn.Upsample):
    """``torch.nn.Upsample``; with ``mode="nearest"`` upsampled spikes are spikes."""

    reason = 'copies; with mode "nearest" upsampled spikes are spikes'
