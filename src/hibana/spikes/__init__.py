"""Layers that multiply spikes with weights in time proportional to the spikes, forward and backward.

A layer reads where the gradient of its input is needed from data attached to the input tensor; this package
does not depend on neurons. llvmlite is imported when the first kernel is compiled.
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

__all__ = ["AdaptiveAvgPool2d", "AdaptiveMaxPool2d", "AvgPool2d", "Conv1d", "Conv2d", "Conv3d"]
__all__ += ["ConvTranspose2d", "Flatten", "Linear", "MaxPool2d", "Upsample", "add", "adopt"]
