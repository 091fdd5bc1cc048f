"""A linear layer of spikes: the layer, its autograd node, and the kernels of its products."""

from hibana.spikes.linear.layer import Linear

__all__ = ["Linear"]
