"""Convolutions of spikes: the layers, their autograd node, and the kernels of its products."""

from hibana.spikes.convolution.layer import Conv1d, Conv2d

__all__ = ["Conv1d", "Conv2d"]
