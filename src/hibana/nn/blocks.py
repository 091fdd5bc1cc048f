"""Modules of deep networks over time: dropout, batch normalization, and checkpoints.

They replace modules of torch that treat time steps as samples; they are not faster.
"""

from contextlib import nullcontext
from typing import Any, cast, final

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from hibana.compiler.call_context import fx_leaf_call, is_fx_proxy, is_traced_or_transformed
from hibana.compiler.torch_layers import TORCH_LAYERS, role_of
from hibana.nn.each_step import EachStep
from hibana.nn.layers import OverTime
from hibana.nn.over_steps import BatchNorm2dOverSteps
from hibana.spikes.packed_tensor import PackedTensor

__all__ = ["Checkpointed", "Normalized", "StepsDropout", "ThresholdBatchNorm2d"]


@final
class StepsDropout(nn.Module):
    """Dropout with the same mask at all time steps: ``[T, batch, ...] -> [T, batch, ...]``.

        y_t = x_t * m / (1 - p),   m_i = 0 with probability p, else 1

    A neuron is dropped for an entire sequence, instead of single spikes. The remaining spikes are integers
    times one factor, for which :class:`hibana.Linear` and :class:`hibana.Conv2d` add rows of weights.

    Args:
        p: the probability that a neuron is dropped, in [0, 1).

    Raises:
        ValueError: if `p` is not in [0, 1), or the input has no batch.

    Source: Srivastava et al. (2014), *Dropout*; Gal & Ghahramani (2016), *A theoretically grounded
    application of dropout in recurrent neural networks*, for one mask over time.

    >>> dropped = StepsDropout(0.5)(torch.ones(7, 2, 100))
    >>> torch.equal(dropped[0], dropped[6])
    True
    """

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        if not 0 <= p < 1:
            raise ValueError(f"p must be in [0, 1), got {p!r}")
        self.p = p

    def forward(self, inputs: Tensor) -> Tensor:
        """`inputs` times one random mask ``[batch, ...]`` for all steps; unchanged in evaluation."""
        if is_fx_proxy(inputs):
            return cast(Tensor, fx_leaf_call(self, inputs))
        if inputs.ndim < 2:
            raise ValueError(f"inputs must be [T, batch, ...], got shape {tuple(inputs.shape)}")
        if not self.training or self.p == 0:
            return inputs
        return inputs * functional.dropout(torch.ones_like(inputs[0]), self.p)

    def extra_repr(self) -> str:
        return f"p={self.p}"


@final
class ThresholdBatchNorm2d(BatchNorm2dOverSteps):
    """Batch normalization over time and batch to the threshold of neurons (tdBN).

        y = alpha * threshold * (x - mean) / sqrt(variance + eps)

    This is ``nn.BatchNorm2d`` with an initial weight of ``alpha * threshold``, over
    ``[T, batch, channels, H, W]`` or ``[N, channels, H, W]``. :func:`hibana.fold_batchnorm` folds it into the
    convolution before it.

    Args:
        features: number of channels.
        threshold: the threshold of the neurons after it.
        alpha: 1, or ``1 / sqrt(n)`` if the outputs of n such layers are added.
        eps: as of ``nn.BatchNorm2d``.
        momentum: as of ``nn.BatchNorm2d``.

    Raises:
        ValueError: if `threshold` or `alpha` is not positive.

    Source: Zheng, Wu, Deng, Hu & Li (2021), *Going deeper with directly-trained larger spiking neural
    networks*.

    >>> ThresholdBatchNorm2d(3, threshold=0.5).weight.data
    tensor([0.5000, 0.5000, 0.5000])
    """

    def __init__(
        self,
        features: int,
        threshold: float = 1.0,
        alpha: float = 1.0,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
    ) -> None:
        for name, value in (("threshold", threshold), ("alpha", alpha)):
            if not value > 0:
                raise ValueError(f"{name} must be positive, got {value!r}")
        self.threshold, self.alpha = threshold, alpha
        super().__init__(features, eps, momentum)

    def reset_parameters(self) -> None:
        """Resets the statistics, sets the bias to 0, and all weights to ``alpha * threshold``."""
        super().reset_parameters()
        nn.init.constant_(self.weight, self.alpha * self.threshold)


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


@final
class Checkpointed(nn.Module):
    """`module`, with only its input stored for the backward pass, as bits if the input is spikes.

    The backward pass runs the module again (``torch.utils.checkpoint``), which takes a third more arithmetic,
    and the memory of one block instead of all blocks. Running statistics of batch normalization are updated
    once, not twice. Spikes in the input take a bit instead of a float32 each, small integers a few bits.

    Inside of :func:`hibana.run` with gradients it raises ``RuntimeError``, because the state of its layers
    would be lost: wrap a module that calls ``hibana.run`` instead.

    The C library decides when the freed memory returns to the system. After a while, glibc allocates large
    tensors from one heap, and the stored bits between them keep it fragmented. With
    ``MALLOC_MMAP_THRESHOLD_=1000000`` in the environment the memory of each tensor returns at once: the peak
    of ten blocks at [T=4, batch 16, 32x32x32] is then 51 MB instead of 113. The first checkpoint of a process
    loads torch's compiler, 140 MB.

    >>> import hibana as hb
    >>> block = Checkpointed(nn.Sequential(nn.Linear(4, 8), hb.IF()))
    >>> block(torch.rand(3, 2, 4, requires_grad=True)).sum().backward()
    >>> block.module[0].weight.grad.shape
    torch.Size([8, 4])
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, inputs: Tensor) -> Tensor:
        """The output of the module for `inputs`."""
        if is_fx_proxy(inputs):
            return cast(Tensor, fx_leaf_call(self, inputs))
        # no transform, forward-mode derivative or trace supports checkpoints
        is_traced = torch.compiler.is_compiling() or is_traced_or_transformed(inputs)
        if not torch.is_grad_enabled() or is_traced:
            return cast(Tensor, self.module(inputs))
        with torch.autograd.graph.saved_tensors_hooks(PackedTensor.pack, PackedTensor.unpack):
            outputs: Any = checkpoint(
                self.module,
                inputs,
                use_reentrant=False,
                context_fn=lambda: (nullcontext(), _PreservedStatistics(self.module)),
            )
        return cast(Tensor, outputs)


class _PreservedStatistics:
    """A context that restores running statistics at its end: the first forward pass has counted the batch."""

    def __init__(self, module: nn.Module) -> None:
        norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._NormBase)]
        self.buffers = [buffer for norm in norms for buffer in norm.buffers()]

    def __enter__(self) -> None:
        """Copies the running statistics."""
        self.saved = [buffer.clone() for buffer in self.buffers]

    def __exit__(self, *raised: object) -> None:
        """Writes the copies back into the running statistics, also after an error."""
        with torch.no_grad():
            for buffer, value in zip(self.buffers, self.saved, strict=True):
                buffer.copy_(value)
