"""A convolution of spikes: layer, autograd's node and kernels."""

from hibana.spikes.convolution.layer import Conv1d, Conv2d

__all__ = ["Conv1d", "Conv2d"]
