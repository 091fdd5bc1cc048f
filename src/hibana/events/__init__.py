"""Layers whose work follows the spikes: sparse products of bits and weights, forward and backward.

What stands below a layer is read from autograd's graph; nothing here knows a neuron. LLVM is loaded only
when a kernel is built.
"""

from hibana.events.adopt import adopt
from hibana.events.convolution import Conv2d
from hibana.events.flatten import Flatten
from hibana.events.linear import Linear, product
from hibana.events.pooling import MaxPool2d
from hibana.events.sums import add
from hibana.loop import outer

__all__ = ["Conv2d", "Flatten", "Linear", "MaxPool2d", "add", "adopt"]

outer.by_bits = product.over_bits
