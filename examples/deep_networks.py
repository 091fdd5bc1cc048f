"""Deep spiking networks from the literature: SEW-ResNet, spiking VGG and Spikformer.

Each function takes the shape of one time step of the input, the number of classes, and a function that
creates a cell. Each returns a network ``[T, batch, channels, height, width] -> [T, batch, classes]``. In this
folder, ``hibana train --layers deep_networks:sew_resnet`` trains the first.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

import hibana as hb

MakeCell = Callable[[], hb.Cell]


def neuron() -> hb.Cell:
    """Returns the default cell: integrate-and-fire with a surrogate gradient of bounded support."""
    return hb.IFCell(surrogate=hb.surrogate.Triangle(), detach_reset=True)


def image(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Returns channels, height and width of one time step of the input.

    Raises:
        ValueError: if `shape` does not have two or three dimensions.
    """
    if len(shape) == 2:
        return 1, shape[0], shape[1]
    if len(shape) != 3:
        raise ValueError(f"shape must be (height, width) or (channels, height, width), got {shape}")
    return shape[0], shape[1], shape[2]


def convolved(inputs: int, outputs: int, kernel: int, stride: int, make_cell: MakeCell) -> nn.Sequential:
    """Returns convolution, batch normalization and neurons: ``[T, B, inputs, H, W]`` to spikes.

    The normalization uses mean and variance over time and batch.
    """
    convolution = hb.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    below = hb.EachStep(nn.Sequential(convolution, nn.BatchNorm2d(outputs)))
    return hb.Normalized(below, hb.OverTime(make_cell()))


def read_out(features: int, classes: int) -> nn.Sequential:
    """Returns the readout: mean over the image, a linear layer, and its running sum over time.

    Shapes: ``[T, B, features, H, W] -> [T, B, classes]``.
    """
    return nn.Sequential(_Mean(), hb.Linear(features, classes), hb.LI())


class _Mean(nn.Module):
    """Mean over height and width."""

    def forward(self, images: Tensor) -> Tensor:
        return images.mean((-2, -1))


BLOCKS = {
    10: (1, 1, 1, 1),
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}
BOTTLENECK_FROM = 50
"""Smallest depth whose blocks have three convolutions (a bottleneck)."""
SMALL = 64
"""Images with fewer pixels in height or width keep their size in the first layer."""


def sew_resnet(
    shape: tuple[int, ...],
    classes: int,
    make_cell: MakeCell = neuron,
    *,
    depth: int = 18,
    width: int = 64,
) -> nn.Module:
    """Returns a SEW-ResNet, ``[T, batch, channels, height, width] -> [T, batch, classes]``.

    A block computes, with spiking neurons SN,

        y = SN(BN(conv(SN(BN(conv(x)))))) + x

    Where the size changes, x passes through a convolution, a normalization and neurons before the sum. With
    depth 50 and more, a block has three convolutions: 1x1, 3x3, and 1x1 with four times the channels. For
    images below 64 pixels the first layer is a 3x3 convolution; for larger images it is a 7x7 convolution of
    stride 2, followed by pooling.

    Args:
        shape: one time step of the input, ``(channels, height, width)`` or ``(height, width)``.
        classes: number of classes.
        make_cell: returns a new cell; called once per layer.
        depth: number of layers: 10, 18, 34, 50, 101 or 152.
        width: channels of the first stage; each further stage has twice as many.

    Raises:
        ValueError: if `depth` is not one of these, or `shape` does not have two or three dimensions.

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
        stack += [convolved(channels, width, 7, 2, make_cell), hb.EachStep(nn.MaxPool2d(3, 2, 1))]
    inputs = width
    for stage, blocks in enumerate(BLOCKS[depth]):
        for block in range(blocks):
            stride = 2 if stage > 0 and block == 0 else 1
            inner = width << stage
            stack.append(_Block(inputs, inner, stride, depth >= BOTTLENECK_FROM, make_cell))
            inputs = 4 * inner if depth >= BOTTLENECK_FROM else inner
    return nn.Sequential(*stack, read_out(inputs, classes))


class _Block(nn.Module):
    """Adds the spikes of two or three convolutions to their input."""

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
        return hb.events.add(self.path(spikes), self.shortcut(spikes))


STAGES = {
    8: (1, 1, 2, 2),
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}
"""Number of convolutions in each stage, by depth. Each stage ends with pooling."""
WIDEST = 8
"""Largest number of channels relative to the first stage."""


def spiking_vgg(
    shape: tuple[int, ...],
    classes: int,
    make_cell: MakeCell = neuron,
    *,
    depth: int = 11,
    width: int = 64,
) -> nn.Module:
    """Returns a VGG of spiking neurons, ``[T, batch, channels, height, width] -> [T, batch, classes]``.

    Each 3x3 convolution is followed by batch normalization over time and batch, and by neurons. Each stage
    ends with max pooling to half the size, unless the image has only one pixel. The readout is the mean over
    the image, one linear layer and its sum over time; the original has three wide linear layers instead.

    Args:
        shape: one time step of the input, ``(channels, height, width)`` or ``(height, width)``.
        classes: number of classes.
        make_cell: returns a new cell; called once per layer.
        depth: number of layers, counted as in the original: 8, 11, 13, 16 or 19.
        width: channels of the first stage; each further stage has twice as many, up to eight times `width`.

    Raises:
        ValueError: if `depth` is not one of these, or `shape` does not have two or three dimensions.

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
            stack.append(hb.EachStep(hb.events.MaxPool2d(2)))
            side //= 2
    return nn.Sequential(*stack, read_out(channels, classes))


SCALE = 0.25
"""Factor of the attention's sums. The paper uses 0.125 with a threshold of 0.5; the threshold here is 1."""
SMALLEST = 4
"""Smallest height and width in patches; an image that is not larger is not pooled."""


def spikformer(
    shape: tuple[int, ...],
    classes: int,
    make_cell: MakeCell = neuron,
    *,
    depth: int = 2,
    width: int = 128,
    heads: int = 4,
    poolings: int = 2,
) -> nn.Module:
    """Returns a small Spikformer, ``[T, batch, channels, height, width] -> [T, batch, classes]``.

    Four convolutions, some followed by pooling, turn each patch of the image into a token of `width` spikes.
    The spikes of one more convolution are added as the position embedding. Then each of `depth` blocks
    computes

        x = x + SN(BN(W SSA(x))),   SSA = SN(Q K^T V * scale),   Q, K, V = SN(BN(W x))
        x = x + SN(BN(W SN(BN(W x))))

    with spiking neurons SN. Q, K and V are spikes, so their products are nonnegative integers, and no softmax
    is needed. W is a linear map of each token: a 1x1 convolution.

    Args:
        shape: one time step of the input, ``(channels, height, width)`` or ``(height, width)``.
        classes: number of classes.
        make_cell: returns a new cell; called once per layer.
        depth: number of blocks.
        width: spikes per token, a multiple of 8 and of `heads`.
        heads: number of attention heads.
        poolings: largest number of poolings, 0 to 4; pooling stops when 4 x 4 patches remain.

    Raises:
        ValueError: if `width` is not a multiple of 8 and of `heads`, or `shape` does not have two or three
            dimensions.

    Source: Zhou, Zhu, He, Wang, Yan, Tian & Yuan (2023), *Spikformer: when spiking neural network meets
    transformer*.

    >>> import torch
    >>> net = spikformer((3, 16, 16), 10, depth=1, width=16)
    >>> net(torch.rand(4, 2, 3, 16, 16)).shape
    torch.Size([4, 2, 10])
    """
    if width % 8 or width % heads:
        raise ValueError(f"width must be a multiple of 8 and of heads={heads}, got {width!r}")
    channels, height, across = image(shape)
    stack: list[nn.Module] = [] if len(shape) == 3 else [nn.Unflatten(2, (1, height))]
    side = min(height, across)
    for stage in range(4):
        outputs = width >> (3 - stage)
        stack.append(convolved(channels, outputs, 3, 1, make_cell))
        channels = outputs
        if stage >= 4 - poolings and side >= 2 * SMALLEST:
            stack.append(hb.EachStep(hb.events.MaxPool2d(2)))
            side //= 2
    stack.append(_Residual(convolved(width, width, 3, 1, make_cell)))
    for _ in range(depth):
        stack.append(_Residual(_Attention(width, heads, make_cell)))
        inner = 4 * width
        stack.append(
            _Residual(
                nn.Sequential(
                    convolved(width, inner, 1, 1, make_cell), convolved(inner, width, 1, 1, make_cell)
                )
            )
        )
    return nn.Sequential(*stack, read_out(width, classes))


class _Residual(nn.Module):
    """Adds the spikes of `path` to its input."""

    def __init__(self, path: nn.Module) -> None:
        super().__init__()
        self.path = path

    def forward(self, spikes: Tensor) -> Tensor:
        return hb.events.add(spikes, self.path(spikes))


class _Attention(nn.Module):
    """Spiking self-attention: ``[T, B, C, H, W] -> [T, B, C, H, W]``."""

    def __init__(self, width: int, heads: int, make_cell: MakeCell) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (convolved(width, width, 1, 1, make_cell) for _ in range(3))
        self.neurons = hb.OverTime(make_cell())
        self.projection = convolved(width, width, 1, 1, make_cell)

    def forward(self, spikes: Tensor) -> Tensor:
        query, key, value = (
            part(spikes).flatten(3).unflatten(2, (self.heads, -1))  # [T, B, heads, C / heads, tokens]
            for part in (self.query, self.key, self.value)
        )
        if query.shape[-1] > query.shape[-2]:  # the product is the same in either order
            attended = torch.matmul(value @ key.mT, query)
        else:
            attended = torch.matmul(value, key.mT @ query)
        projected: Tensor = self.projection(self.neurons(attended.flatten(2, 3).view(spikes.shape) * SCALE))
        return projected
