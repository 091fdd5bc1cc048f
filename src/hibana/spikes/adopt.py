"""``hb.events.adopt``: replaces layers of ``torch.nn`` by those of :mod:`hibana.events`, in place."""

from torch import nn

from hibana.spikes.convolution import Conv1d, Conv2d
from hibana.spikes.dense_layers import DenseLayer
from hibana.spikes.flatten import Flatten
from hibana.spikes.linear import Linear
from hibana.spikes.pooling import MaxPool2d

__all__ = ["EVENT_CLASSES", "adopt"]

EVENT_CLASSES: dict[type[nn.Module], type[nn.Module]] = {
    getattr(nn, kind.__name__): kind
    for kind in (Linear, Conv1d, Conv2d, MaxPool2d, Flatten, *DenseLayer.__subclasses__())
}
"""The class of :mod:`hibana.events` that replaces each class of ``torch.nn``."""


def adopt(module: nn.Module) -> nn.Module:
    """Replaces layers of ``torch.nn`` in `module` by those of :mod:`hibana.events`, in place; returns it.

    ``Linear``, ``Conv1d``, ``Conv2d``, ``MaxPool2d`` and ``Flatten`` then compute on spikes. ``Conv3d``,
    ``ConvTranspose2d``, ``AvgPool2d``, ``AdaptiveAvgPool2d``, ``AdaptiveMaxPool2d`` and ``Upsample`` still
    compute by torch, and :func:`hibana.explain` reports it. Subclasses of these classes do not change.
    Parameters, buffers and hooks stay the same objects.

    >>> import torch, hibana as hb
    >>> hb.events.adopt(torch.nn.Sequential(torch.nn.Linear(2, 3), hb.IF()))[0]
    Linear(in_features=2, out_features=3, bias=True)
    """
    for inner in module.modules():
        if type(inner) in EVENT_CLASSES:
            inner.__class__ = EVENT_CLASSES[type(inner)]
    return module
