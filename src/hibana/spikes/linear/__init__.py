"""A linear layer of spikes: layer, autograd's node, product and kernels."""

from hibana.spikes.linear.layer import Linear

__all__ = ["Linear"]
