"""SEW-ResNet: residual blocks whose spikes are added to those that came in."""

from torch import Tensor, nn

from hibana import spikes as events
from hibana.nn.each_step import EachStep
from hibana.nn.models.parts import MakeCell, convolved, image, neuron, read_out

__all__ = ["sew_resnet"]

BLOCKS = {
    10: (1, 1, 1, 1),
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}
BOTTLENECK_FROM = 50
"""The depth from which a block is three convolutions with a narrow one in the middle."""
SMALL = 64
"""Images less high or wide keep their size in the first layer."""


def sew_resnet(
    shape: tuple[int, ...],
    classes: int,
    make_cell: MakeCell = neuron,
    *,
    depth: int = 18,
    width: int = 64,
) -> nn.Module:
    """SEW-ResNet of so many layers, ``[T, batch, channels, height, width] -> [T, batch, classes]``.

        y = SN(BN(conv(SN(BN(conv(x)))))) + x

    with SN spiking neurons; x goes through convolution, normalisation and neurons of its own where the size
    changes. From depth 50 on a path has three convolutions: 1x1, 3x3, and 1x1 to four times the channels.
    Images below 64 pixels begin with a 3x3 convolution instead of 7x7, stride 2, and pooling.

    Args:
        shape: of one step of input, ``(channels, height, width)`` or ``(height, width)``.
        classes: outputs.
        make_cell: makes the cell of a layer; called once for each.
        depth: 10, 18, 34, 50, 101 or 152.
        width: channels of the first stage; each further one has twice as many.

    Raises:
        ValueError: if `depth` is another, or `shape` is of no image.

    Source: Fang, Yu, Chen, Huang, Masquelier & Tian (2021), *Deep residual learning in spiking neural
    networks*; He et al. (2016), *Deep residual learning for image recognition*, for the sizes.

    >>> import torch
    >>> net = sew_resnet((3, 32, 32), 10, depth=10, width=8)
    >>> net(torch.rand(4, 2, 3, 32, 32)).shape
    torch.Size([4, 2, 10])
    """
    if depth not in BLOCKS:
        raise ValueError(f"depth must be one of {', '.join(map(str, BLOCKS))}, got {depth!r}")
    channels, height, across = image(shape)
    stack: list[nn.Module] = [] if len(shape) == 3 else [nn.Unflatten(2, (1, height))]
    if min(height, across) < SMALL:
        stack.append(convolved(channels, width, 3, 1, make_cell))
    else:
        stack += [convolved(channels, width, 7, 2, make_cell), EachStep(nn.MaxPool2d(3, 2, 1))]
    inputs = width
    for stage, blocks in enumerate(BLOCKS[depth]):
        for block in range(blocks):
            stride = 2 if stage > 0 and block == 0 else 1
            inner = width << stage
            stack.append(_Block(inputs, inner, stride, depth >= BOTTLENECK_FROM, make_cell))
            inputs = 4 * inner if depth >= BOTTLENECK_FROM else inner
    return nn.Sequential(*stack, read_out(inputs, classes))


class _Block(nn.Module):
    """What comes in, and the spikes of two or three convolutions of it, added."""

    def __init__(self, inputs: int, inner: int, stride: int, bottleneck: bool, make_cell: MakeCell) -> None:
        super().__init__()
        outputs = 4 * inner if bottleneck else inner
        if bottleneck:
            sizes = [(inputs, inner, 1, 1), (inner, inner, 3, stride), (inner, outputs, 1, 1)]
        else:
            sizes = [(inputs, inner, 3, stride), (inner, inner, 3, 1)]
        self.path = nn.Sequential(*(convolved(*size, make_cell) for size in sizes))
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = convolved(inputs, outputs, 1, stride, make_cell)

    def forward(self, spikes: Tensor) -> Tensor:
        return events.add(self.path(spikes), self.shortcut(spikes))
