"""``hb.Normalized``: a batch normalization of each step, followed by neurons."""

from typing import Any, final

from torch import nn

from hibana.compiler.torch_layers import TORCH_LAYERS, role_of
from hibana.nn.each_step import EachStep
from hibana.nn.layers import OverTime

__all__ = ["Normalized"]


@final
class Normalized(nn.Sequential):
    """``nn.Sequential(each, neurons)``, where `each` ends in a batch normalization.

        y_t = neurons((x_t - mean) / sqrt(variance + eps) * weight + bias)

    In training, mean and variance are those of all steps and samples. In evaluation they are the running
    statistics, and the layer folds like ``nn.Sequential`` (:func:`hibana.fold_batchnorm`).

    Args:
        each: an EachStep whose module is a batch normalization, or an ``nn.Sequential`` that ends in one.
        neurons: the layer of neurons that follows.

    Raises:
        TypeError: if `each` is not a :class:`hibana.EachStep` that ends in a batch normalization, or
            `neurons` not a layer of a cell.

    Source: Ioffe & Szegedy (2015), *Batch normalization*; Zheng, Wu, Deng, Hu & Li (2021), *Going deeper with
    directly-trained larger spiking neural networks*, for the statistics over time.

    >>> import torch, hibana as hb
    >>> below = hb.EachStep(nn.Sequential(hb.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4)))
    >>> layer = hb.Normalized(below, hb.IF())
    >>> layer(torch.rand(5, 2, 1, 8, 8)).shape
    torch.Size([5, 2, 4, 8, 8])
    """

    def __init__(self, each: EachStep, neurons: OverTime) -> None:
        content: Any = each.module if isinstance(each, EachStep) else each
        last = content[-1] if type(content) in TORCH_LAYERS["sequence"] and len(content) else content
        if not isinstance(each, EachStep) or role_of(last) != "batch normalization":
            raise TypeError(
                "each must be an EachStep that ends in a batch normalization of torch.nn, "
                f"got {type(content).__name__}"
            )
        if not isinstance(neurons, OverTime):
            raise TypeError(f"neurons must be a layer of a cell, as hb.IF(), got {type(neurons).__name__}")
        super().__init__(each, neurons)
