"""A linear layer of spikes: layer, product and kernels."""

from hibana.events.linear.layer import Linear

__all__ = ["Linear"]
