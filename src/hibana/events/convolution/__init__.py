"""A convolution of spikes: layer, autograd's node and kernels."""

from hibana.events.convolution.layer import Conv2d

__all__ = ["Conv2d"]
