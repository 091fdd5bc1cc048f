"""Layers of images that take a time axis themselves: what :func:`hibana.optimize` makes of ``torch.nn``'s.

Each has the parameters, buffers, hooks and names of the layer of ``torch.nn`` whose class it takes. An input
``[T, batch, channels, ...]`` is joined to ``[T * batch, channels, ...]`` for the call; an input without time
goes through as before.
"""

from typing import Any, ClassVar, cast

from torch import Tensor, nn

from hibana import spikes
from hibana.compiler.leaf import as_leaf, is_name
from hibana.spikes.provenance import attach_view

__all__ = ["OVER_STEPS", "FlattenOverSteps", "OverSteps"]


class OverSteps(nn.Module):
    """What they share."""

    dimensions: ClassVar[int] = 2
    """Of an image."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch.nn's name for it
        if is_name(input):
            return cast(Tensor, as_leaf(self, input))
        call: Any = super().forward  # of the layer of torch.nn
        if input.ndim != self.dimensions + 3:
            return cast(Tensor, call(input))
        outputs: Tensor = call(input.flatten(0, 1))
        return attach_view(outputs.reshape(*input.shape[:2], *outputs.shape[1:]))


class Conv2dOverSteps(OverSteps, spikes.Conv2d):
    """``nn.Conv2d``."""

    in_pieces = True


class BatchNorm2dOverSteps(OverSteps, nn.BatchNorm2d):
    """``nn.BatchNorm2d``: mean and variance are over time and batch."""


class MaxPool2dOverSteps(OverSteps, spikes.MaxPool2d):
    """``nn.MaxPool2d``."""


class AvgPool2dOverSteps(OverSteps, spikes.AvgPool2d):
    """``nn.AvgPool2d``."""


class AdaptiveAvgPool2dOverSteps(OverSteps, spikes.AdaptiveAvgPool2d):
    """``nn.AdaptiveAvgPool2d``."""


class AdaptiveMaxPool2dOverSteps(OverSteps, spikes.AdaptiveMaxPool2d):
    """``nn.AdaptiveMaxPool2d``."""


class UpsampleOverSteps(OverSteps, spikes.Upsample):
    """``nn.Upsample`` of images."""


class Dropout2dOverSteps(OverSteps, nn.Dropout2d):
    """``nn.Dropout2d``: a mask for each step."""


class FlattenOverSteps(spikes.Flatten):
    """``nn.Flatten()``, which of images over time joins channels, height and width, not the batch."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - as above
        if is_name(input) or input.ndim != 5 or (self.start_dim, self.end_dim) != (1, -1):
            return super().forward(input)
        joined = super().forward(input.flatten(0, 1))
        return attach_view(joined.reshape(*input.shape[:2], *joined.shape[1:]))


OVER_STEPS: dict[type[nn.Module], Any] = {
    nn.Conv2d: Conv2dOverSteps,
    nn.BatchNorm2d: BatchNorm2dOverSteps,
    nn.MaxPool2d: MaxPool2dOverSteps,
    nn.AvgPool2d: AvgPool2dOverSteps,
    nn.AdaptiveAvgPool2d: AdaptiveAvgPool2dOverSteps,
    nn.AdaptiveMaxPool2d: AdaptiveMaxPool2dOverSteps,
    nn.Upsample: UpsampleOverSteps,
    nn.Dropout2d: Dropout2dOverSteps,
    nn.Flatten: FlattenOverSteps,
}
"""Which class a layer of ``torch.nn`` takes."""
