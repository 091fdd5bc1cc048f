"""Layers whose work follows the spikes: sparse products of bits and weights, forward and backward.

What stands below a layer is read from autograd's graph; nothing here knows a neuron. LLVM is loaded only
when a kernel is built.
"""

from hibana.spikes.adopt import adopt
from hibana.spikes.convolution import Conv1d, Conv2d
from hibana.spikes.dense_layers import (
    AdaptiveAvgPool2d,
    AdaptiveMaxPool2d,
    AvgPool2d,
    Conv3d,
    ConvTranspose2d,
    Upsample,
)
from hibana.spikes.flatten import Flatten
from hibana.spikes.linear import Linear
from hibana.spikes.pooling import MaxPool2d
from hibana.spikes.sums import add

__all__ = [
    "AdaptiveAvgPool2d",
    "AdaptiveMaxPool2d",
    "AvgPool2d",
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "ConvTranspose2d",
    "Flatten",
    "Linear",
    "MaxPool2d",
    "Upsample",
    "add",
    "adopt",
]
