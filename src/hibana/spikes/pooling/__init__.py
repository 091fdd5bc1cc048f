"""Max-pooling of spikes: layer, autograd's node and kernels."""

from hibana.spikes.pooling.layer import MaxPool2d

__all__ = ["MaxPool2d"]
