"""Layers of ``torch.nn`` made those of this module."""

from torch import nn

from hibana.events.convolution import Conv2d
from hibana.events.flatten import Flatten
from hibana.events.linear import Linear
from hibana.events.pooling import MaxPool2d

__all__ = ["adopt"]

_ADOPTED: dict[type, type] = {
    nn.Linear: Linear,
    nn.Conv2d: Conv2d,
    nn.MaxPool2d: MaxPool2d,
    nn.Flatten: Flatten,
}


def adopt(module: nn.Module) -> nn.Module:
    """Makes every layer of ``torch.nn`` in `module` that has one the layer of this module, in place.

    ``Linear``, ``Conv2d``, ``MaxPool2d`` and ``Flatten``; their subclasses are left alone. Parameters,
    buffers and hooks stay the same objects. Returns `module`.

    >>> import torch, hibana as hb
    >>> hb.events.adopt(torch.nn.Sequential(torch.nn.Linear(2, 3), hb.IF()))[0]
    Linear(in_features=2, out_features=3, bias=True)
    """
    for inner in module.modules():
        if type(inner) in _ADOPTED:
            inner.__class__ = _ADOPTED[type(inner)]
    return module
