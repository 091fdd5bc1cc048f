"""Layers of images that take a time axis themselves: what :func:`hibana.optimize` makes of ``torch.nn``'s.

Each has the parameters, buffers, hooks and names of the layer of ``torch.nn`` whose class it takes. An input
``[T, batch, channels, ...]`` is joined to ``[T * batch, channels, ...]`` for the call; an input without time
goes through as before.
"""

from typing import Any, ClassVar, cast

from torch import Tensor, nn
from torch.nn import functional

from hibana import spikes
from hibana.compiler.leaf import as_leaf, is_name
from hibana.nn.deferred import Deferred, deferred
from hibana.nn.joined import joined_steps
from hibana.spikes.provenance import attach_view

__all__ = [
    "FUSING",
    "OVER_STEPS",
    "BatchNorm2dOverSteps",
    "Conv2dOverSteps",
    "FlattenOverSteps",
    "OverSteps",
    "normalised_again",
]

FUSING = "_fusing"
"""Of a layer's ``__dict__``: the :class:`hibana.nn.deferred.Fuses` that its output is left to."""


class OverSteps(nn.Module):
    """What they share."""

    dimensions: ClassVar[int] = 2
    """Of an image."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch.nn's name for it
        if is_name(input):
            return cast(Tensor, as_leaf(self, input))
        fusing: Any = self.__dict__.get(FUSING)
        if fusing is not None and fusing.takes(self, input):
            return deferred(self, input, fusing, joined_steps())
        return self.computed(input.call.read(type(self).__name__) if type(input) is Deferred else input)

    def computed(self, input: Tensor) -> Tensor:  # noqa: A002 - as above
        """The output, now."""
        call: Any = super().forward  # of the layer of torch.nn
        if input.ndim != self.dimensions + 3:
            return cast(Tensor, call(input))
        outputs: Tensor = call(input.flatten(0, 1))
        return attach_view(outputs.reshape(*input.shape[:2], *outputs.shape[1:]))

    def computed_again(self, input: Tensor) -> Tensor:  # noqa: A002 - as above
        """The same once more."""
        return self.computed(input)


class Conv2dOverSteps(OverSteps, spikes.Conv2d):
    """``nn.Conv2d``."""

    in_pieces = True


def normalised_again(norm: Any, images: Tensor) -> Tensor:
    """What the batch normalisation `norm` made of `images`; its running statistics stay what they are."""
    if not norm.training:
        return cast(Tensor, norm(images))
    return functional.batch_norm(images, None, None, norm.weight, norm.bias, True, 0.0, norm.eps)


class BatchNorm2dOverSteps(OverSteps, nn.BatchNorm2d):
    """``nn.BatchNorm2d``: mean and variance are over time and batch."""

    def computed_again(self, input: Tensor) -> Tensor:  # noqa: A002 - as above
        """The same once more; running statistics have counted the batch."""
        images = input.flatten(0, 1) if input.ndim == 5 else input
        return normalised_again(self, images).reshape(input.shape)


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
