"""Layers that always compute by torch, and report so to :func:`hibana.explain`."""

from typing import Any, ClassVar

from torch import nn

from hibana.compiler.call_context import fx_leaf_call, is_fx_proxy
from hibana.spikes.checks import check_no_time

__all__ = ["AdaptiveAvgPool2d", "AdaptiveMaxPool2d", "AvgPool2d", "Conv3d", "ConvTranspose2d", "Upsample"]


class _Torchs(nn.Module):
    why: ClassVar[str]
    dimensions: ClassVar[int] = 2

    def forward(self, input: Any, *rest: Any, **named: Any) -> Any:  # noqa: A002 - torch.nn's name for it
        if is_fx_proxy(input):
            return fx_leaf_call(self, input, *rest, **named)
        check_no_time(self, input, self.dimensions)
        return super().forward(input, *rest, **named)

    def explain(self) -> str:
        """That it is torch's, and why."""
        return f"torch's: {self.why}"


class Conv3d(_Torchs, nn.Conv3d):
    """``torch.nn.Conv3d``; its output is numbers, spikes or not."""

    why = "a window over three dimensions"
    dimensions = 3


class ConvTranspose2d(_Torchs, nn.ConvTranspose2d):
    """``torch.nn.ConvTranspose2d``; its output is numbers, spikes or not."""

    why = "a transposed convolution"


class AvgPool2d(_Torchs, nn.AvgPool2d):
    """``torch.nn.AvgPool2d``; averages of spikes are events to the layer above, where they are exact."""

    why = "averages, whole numbers times one factor to the layer above where the window is a power of two"


class AdaptiveAvgPool2d(_Torchs, nn.AdaptiveAvgPool2d):
    """``torch.nn.AdaptiveAvgPool2d``; as :class:`AvgPool2d`."""

    why = "averages, whole numbers times one factor to the layer above where the window is a power of two"


class AdaptiveMaxPool2d(_Torchs, nn.AdaptiveMaxPool2d):
    """``torch.nn.AdaptiveMaxPool2d``; of spikes it makes spikes."""

    why = "windows of several sizes; of spikes it makes spikes"


class Upsample(_Torchs, nn.Upsample):
    """``torch.nn.Upsample``; of spikes ``mode="nearest"`` makes spikes."""

    why = "copies; of spikes the nearest are spikes"
