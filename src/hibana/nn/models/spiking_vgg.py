"""Spiking VGG: 3x3 convolutions, pooling, and more channels each time."""

from torch import nn

from hibana import spikes as events
from hibana.nn.each_step import EachStep
from hibana.nn.models.parts import MakeCell, convolved, image, neuron, read_out

__all__ = ["spiking_vgg"]

STAGES = {
    8: (1, 1, 2, 2),
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}
"""Convolutions between two poolings."""
WIDEST = 8
"""Times the channels of the first stage."""


def spiking_vgg(
    shape: tuple[int, ...],
    classes: int,
    make_cell: MakeCell = neuron,
    *,
    depth: int = 11,
    width: int = 64,
) -> nn.Module:
    """VGG of spiking neurons, ``[T, batch, channels, height, width] -> [T, batch, classes]``.

    Each 3x3 convolution has batch normalisation over time and batch; after each stage the image is pooled to
    half its size, as long as it is more than a pixel. The mean over what is left, one linear layer and its
    sum over time read out the classes, instead of the three wide linear layers of the original.

    Args:
        shape: of one step of input, ``(channels, height, width)`` or ``(height, width)``.
        classes: outputs.
        make_cell: makes the cell of a layer; called once for each.
        depth: 8, 11, 13, 16 or 19 layers, as the original counts them.
        width: channels of the first stage; further ones have twice as many, up to eight times.

    Raises:
        ValueError: if `depth` is another, or `shape` is of no image.

    Source: Sengupta, Ye, Wang, Liu & Roy (2019), *Going deeper in spiking neural networks: VGG and residual
    architectures*; Simonyan & Zisserman (2015), *Very deep convolutional networks for large-scale image
    recognition*, for the sizes.

    >>> import torch
    >>> net = spiking_vgg((28, 28), 10, depth=8, width=8)
    >>> net(torch.rand(4, 2, 28, 28)).shape
    torch.Size([4, 2, 10])
    """
    if depth not in STAGES:
        raise ValueError(f"depth must be one of {', '.join(map(str, STAGES))}, got {depth!r}")
    channels, height, across = image(shape)
    stack: list[nn.Module] = [] if len(shape) == 3 else [nn.Unflatten(2, (1, height))]
    side = min(height, across)
    for stage, convolutions in enumerate(STAGES[depth]):
        outputs = width * min(1 << stage, WIDEST)
        for _ in range(convolutions):
            stack.append(convolved(channels, outputs, 3, 1, make_cell))
            channels = outputs
        if side > 1:
            stack.append(EachStep(events.MaxPool2d(2)))
            side //= 2
    return nn.Sequential(*stack, read_out(channels, classes))
