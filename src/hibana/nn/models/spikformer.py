"""Spikformer: attention among spikes, without a softmax."""

import torch
from torch import Tensor, nn

from hibana import spikes as events
from hibana.nn import layers
from hibana.nn.each_step import EachStep
from hibana.nn.models.parts import MakeCell, convolved, image, neuron, read_out

__all__ = ["spikformer"]

SCALE = 0.25
"""Of the attention's sums: the paper's 0.125 before a threshold of 0.5, here before one of 1."""
SMALLEST = 4
"""Patches high and wide, at least, where the image has as many pixels."""


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
    """Spikformer, small, ``[T, batch, channels, height, width] -> [T, batch, classes]``.

    Four convolutions, some of them pooled, make of each patch of the image a token of `width` spikes, to
    which those of another convolution, its place among its neighbours, are added. Then `depth` times

        x = x + SN(BN(W SSA(x))),   SSA = SN(Q K^T V * scale),   Q, K, V = SN(BN(W x))
        x = x + SN(BN(W SN(BN(W x))))

    with SN spiking neurons. Q, K and V are spikes, so their products are whole numbers that need no softmax.
    A map W of tokens is a 1x1 convolution.

    Args:
        shape: of one step of input, ``(channels, height, width)`` or ``(height, width)``.
        classes: outputs.
        make_cell: makes the cell of a layer; called once for each.
        depth: blocks of attention and two more layers.
        width: spikes of a token, a multiple of 8 and of `heads`.
        heads: of the attention.
        poolings: 0 to 4, how often the image is halved to patches, while it has 4 x 4 of them left.

    Raises:
        ValueError: if `width` is no multiple of 8 and of `heads`, or `shape` is of no image.

    Source: Zhou, Zhu, He, Wang, Yan, Tian & Yuan (2023), *Spikformer: when spiking neural network meets
    transformer*.

    >>> import torch
    >>> net = spikformer((3, 16, 16), 10, depth=1, width=16)
    >>> net(torch.rand(4, 2, 3, 16, 16)).shape
    torch.Size([4, 2, 10])
    """
    if width % 8 or width % heads:
        raise ValueError(f"width must be a multiple of 8 and of heads, {heads}, got {width!r}")
    channels, height, across = image(shape)
    stack: list[nn.Module] = [] if len(shape) == 3 else [nn.Unflatten(2, (1, height))]
    side = min(height, across)
    for stage in range(4):
        outputs = width >> (3 - stage)
        stack.append(convolved(channels, outputs, 3, 1, make_cell))
        channels = outputs
        if stage >= 4 - poolings and side >= 2 * SMALLEST:
            stack.append(EachStep(events.MaxPool2d(2)))
            side //= 2
    stack.append(_Added(convolved(width, width, 3, 1, make_cell)))
    for _ in range(depth):
        stack.append(_Added(_Attention(width, heads, make_cell)))
        inner = 4 * width
        stack.append(
            _Added(
                nn.Sequential(
                    convolved(width, inner, 1, 1, make_cell), convolved(inner, width, 1, 1, make_cell)
                )
            )
        )
    return nn.Sequential(*stack, read_out(width, classes))


class _Added(nn.Module):
    """What comes in, and the spikes that `path` makes of it, added."""

    def __init__(self, path: nn.Module) -> None:
        super().__init__()
        self.path = path

    def forward(self, spikes: Tensor) -> Tensor:
        return events.add(spikes, self.path(spikes))


class _Attention(nn.Module):
    """Spiking self-attention: ``[T, B, C, H, W] -> [T, B, C, H, W]``."""

    def __init__(self, width: int, heads: int, make_cell: MakeCell) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (convolved(width, width, 1, 1, make_cell) for _ in range(3))
        self.neurons = layers.OverTime(make_cell())
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
