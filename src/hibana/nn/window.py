"""``hb.Window``, a causal convolution over time, and the weights of layers that read earlier inputs."""

import math
from typing import final

import torch
from torch import Tensor, nn

from hibana.nn.running import LooksBack
from hibana.spikes.checks import kernels_accept
from hibana.spikes.convolution.causal import causal_convolution
from hibana.spikes.layer import SpikeLayer
from hibana.spikes.provenance import lookup

__all__ = ["LooksBack", "Weighted", "Window", "check_sizes"]


class Weighted(SpikeLayer):
    """The weight and bias of a layer over time, and their initialization."""

    weight: Tensor
    bias: Tensor | None

    def _create_parameters(self, shape: tuple[int, ...], has_bias: bool) -> None:
        """Creates and draws the parameters `weight`, of `shape`, and `bias`, ``[shape[0]]`` or None."""
        dtype = torch.get_default_dtype()
        self.weight = nn.Parameter(torch.empty(shape, dtype=dtype, device=None))
        bias = nn.Parameter(torch.empty(shape[0], dtype=dtype, device=None)) if has_bias else None
        self.register_parameter("bias", bias)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws weight and bias uniformly from ``±1 / sqrt(inputs of an output)``, as torch does."""
        bound = 1 / math.sqrt(self.weight[0].numel())
        for parameter in (self.weight, self.bias):
            if parameter is not None:
                nn.init.uniform_(parameter, -bound, bound)


def check_sizes(**sizes: object) -> None:
    """Raises ValueError, with the name, for a size that is not an integer of at least 1."""
    for name, value in sizes.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")


@final
class Window(Weighted, LooksBack):
    """A causal convolution over time: ``[T, batch, channels, ...] -> [T, batch, outputs, ...]``.

        y_t = bias + sum_(k < K) W[:, :, k] x_(t - (K - 1 - k) dilation),   x_t = 0 for t < 0

    The output of step t depends on step t and the ``(K - 1) dilation`` steps before it. The layer equals
    ``torch.nn.Conv1d`` over time, padded on the left only, with the same arguments, parameters and
    initialization. Each spike adds a row of weights per tap, forward and backward, under the conditions of
    :class:`hibana.Linear`; depthwise convolutions and other inputs use torch's convolution. The state in
    :func:`hibana.run` is the last ``(K - 1) dilation`` steps of the input.

    Args:
        in_channels: features, or channels of ``[T, batch, channels, height, width]``; all pixels have the
            same weights.
        out_channels: features or channels of the output.
        kernel_size: K, the number of steps with a weight, at least 1.
        dilation: the distance between these steps, at least 1.
        groups: 1 for a full convolution, `in_channels` for a depthwise one, as of ``torch.nn.Conv1d``.
        bias: whether the layer adds a learned bias.

    Raises:
        ValueError: if the input is not ``[T, batch, in_channels, ...]``, or a size is not valid.

    Source: van den Oord et al. (2016), *WaveNet: a generative model for raw audio* (causal, dilated).

    >>> import torch, hibana as hb
    >>> net = torch.nn.Sequential(hb.Window(3, 8, kernel_size=5), hb.LIF(), hb.Window(8, 8, 3, dilation=2))
    >>> x = torch.rand(20, 2, 3)
    >>> expected = net(x)
    >>> first, state = hb.run(net, x[:7])
    >>> second, state = hb.run(net, x[7:], state)
    >>> torch.allclose(expected, torch.cat([first, second]), atol=1e-5)
    True
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        dilation: int = 1,
        groups: int = 1,
        bias: bool = True,
    ) -> None:
        super().__init__()
        check_sizes(in_channels=in_channels, out_channels=out_channels, kernel_size=kernel_size)
        check_sizes(dilation=dilation, groups=groups)
        if in_channels % groups or out_channels % groups:
            raise ValueError(f"groups must divide in_channels and out_channels, got {groups}")
        self.in_channels, self.out_channels = in_channels, out_channels
        self.kernel_size, self.dilation, self.groups = kernel_size, dilation, groups
        self._create_parameters((out_channels, in_channels // groups, kernel_size), bias)

    @property
    def reach(self) -> int:
        """``(K - 1) dilation``."""
        return (self.kernel_size - 1) * self.dilation

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}"
            f"{f', dilation={self.dilation}' if self.dilation > 1 else ''}"
            f"{f', groups={self.groups}' if self.groups > 1 else ''}{', bias=False' * (self.bias is None)}"
        )

    def outputs_after(self, history: Tensor | None, inputs: Tensor) -> Tensor:
        """The convolution over time, ``[T, batch, out_channels, ...]``; no history means zeros."""
        if inputs.ndim < 3 or inputs.shape[0] == 0 or inputs.shape[2] != self.in_channels:
            raise ValueError(
                f"inputs must be [T, batch, {self.in_channels}, ...] with T at least 1, "
                f"got shape {tuple(inputs.shape)}"
            )
        has_source = inputs.requires_grad and not torch.compiler.is_compiling()
        in_order = has_source and inputs.movedim(2, -1).is_contiguous()  # the order of the source's bits
        source = lookup(inputs) if in_order and kernels_accept(inputs) else None
        weight = self.weight
        if history is not None and len(history) != (weight.shape[2] - 1) * self.dilation:
            raise ValueError(
                f"weight must have {self.kernel_size} steps, the kernel_size, for a call with a state, "
                f"got shape {tuple(weight.shape)}"
            )
        rows = _as_rows(inputs)
        history_rows = None if history is None else _as_rows(history)
        outputs, self._reason = causal_convolution(
            rows, weight, self.bias, self.dilation, history_rows, source, self.mode
        )
        return outputs.view(*inputs.shape[:2], *inputs.shape[3:], outputs.shape[2]).movedim(-1, 2)


def _as_rows(tensor: Tensor) -> Tensor:
    """``[T, batch, channels, ...]`` as ``[T, batch * ..., channels]``."""
    last = tensor.movedim(2, -1)
    return last.reshape(last.shape[0], math.prod(last.shape[1:-1]), last.shape[-1])
