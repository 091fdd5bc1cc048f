"""``hb.events.adopt``: changes layers of ``torch.nn`` to those of this package, in place."""

from torch import nn

from hibana.spikes import dense_layers
from hibana.spikes.convolution import Conv1d, Conv2d
from hibana.spikes.flatten import Flatten
from hibana.spikes.linear import Linear
from hibana.spikes.pooling import MaxPool2d

__all__ = ["EVENT_CLASSES", "adopt"]

EVENT_CLASSES: dict[type[nn.Module], type[nn.Module]] = {
    getattr(nn, kind.__name__): kind
    for kind in (
        Linear,
        Conv1d,
        Conv2d,
        MaxPool2d,
        Flatten,
        dense_layers.Conv3d,
        dense_layers.ConvTranspose2d,
        dense_layers.AvgPool2d,
        dense_layers.AdaptiveAvgPool2d,
        dense_layers.AdaptiveMaxPool2d,
        dense_layers.Upsample,
    )
}
"""The class that takes the place of each class of torch's."""


def adopt(module: nn.Module) -> nn.Module:
    """Makes every layer of ``torch.nn`` in `module` that has one the layer of this module, in place.

    ``Linear``, ``Conv1d``, ``Conv2d``, ``MaxPool2d`` and ``Flatten``; ``Conv3d``, ``ConvTranspose2d``,
    ``AvgPool2d``, ``AdaptiveAvgPool2d``, ``AdaptiveMaxPool2d`` and ``Upsample`` stay torch's, and say so to
    :func:`hibana.explain`. Subclasses are left alone. Parameters, buffers and hooks stay the same objects.
    Returns `module`.

    >>> import torch, hibana as hb
    >>> hb.events.adopt(torch.nn.Sequential(torch.nn.Linear(2, 3), hb.IF()))[0]
    Linear(in_features=2, out_features=3, bias=True)
    """
    for inner in module.modules():
        if type(inner) in EVENT_CLASSES:
            inner.__class__ = EVENT_CLASSES[type(inner)]
    return module
