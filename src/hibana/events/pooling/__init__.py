"""Max-pooling of spikes: layer, autograd's node and kernels."""

from hibana.events.pooling.layer import MaxPool2d

__all__ = ["MaxPool2d"]
