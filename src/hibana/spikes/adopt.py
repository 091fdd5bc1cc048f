"""``hb.events.adopt``: changes layers of ``torch.nn`` to those of this package, in place."""

from torch import nn

from hibana.spikes import torchs
from hibana.spikes.convolution import Conv1d, Conv2d
from hibana.spikes.flatten import Flatten
from hibana.spikes.linear import Linear
from hibana.spikes.pooling import MaxPool2d

__all__ = ["ADOPTED", "adopt"]

ADOPTED: dict[type[nn.Module], type[nn.Module]] = {
    getattr(nn, kind.__name__): kind
    for kind in (
        *(Linear, Conv1d, Conv2d, MaxPool2d, Flatten, torchs.Conv3d, torchs.ConvTranspose2d),
        *(torchs.AvgPool2d, torchs.AdaptiveAvgPool2d, torchs.AdaptiveMaxPool2d, torchs.Upsample),
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
        if type(inner) in ADOPTED:
            inner.__class__ = ADOPTED[type(inner)]
    return module
