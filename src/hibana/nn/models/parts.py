"""What the networks have in common: a neuron, a normalised convolution before it, a readout behind all."""

from collections.abc import Callable

from torch import Tensor, nn

from hibana import cells
from hibana import spikes as events
from hibana.cells import surrogate
from hibana.nn import layers
from hibana.nn.each_step import EachStep
from hibana.nn.normalized import Normalized

__all__ = ["MakeCell", "convolved", "image", "neuron", "read_out"]

MakeCell = Callable[[], cells.Cell]


def neuron() -> cells.Cell:
    """The neuron of these networks where no other is asked for: an IF whose surrogate has an end."""
    return cells.IFCell(surrogate=surrogate.Triangle(), detach_reset=True)


def image(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Channels, height and width of one step of input.

    Raises:
        ValueError: if `shape` is of no image.
    """
    if len(shape) == 2:
        return 1, shape[0], shape[1]
    if len(shape) != 3:
        raise ValueError(f"shape must be (height, width) or (channels, height, width), got {shape}")
    return shape[0], shape[1], shape[2]


def convolved(inputs: int, outputs: int, kernel: int, stride: int, make_cell: MakeCell) -> nn.Sequential:
    """Convolution, batch normalisation over time and batch, neurons: ``[T, B, inputs, H, W]`` to spikes."""
    convolution = events.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    below = EachStep(nn.Sequential(convolution, nn.BatchNorm2d(outputs)))
    return Normalized(below, layers.OverTime(make_cell()))


def read_out(features: int, classes: int) -> nn.Sequential:
    """The mean over the image, a linear layer, its sum over time: ``[T, B, features, H, W]`` to classes."""
    return nn.Sequential(_Mean(), events.Linear(features, classes), layers.LI())


class _Mean(nn.Module):
    """Over height and width."""

    def forward(self, images: Tensor) -> Tensor:
        return images.mean((-2, -1))
