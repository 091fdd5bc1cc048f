"""``hb.Window``: a causal convolution over time; and what layers with a reach into the past share."""

import math
from abc import abstractmethod
from typing import Any, final

import torch
from torch import Tensor, nn

from hibana.compiler import State, call_context
from hibana.compiler.call_context import is_fx_proxy
from hibana.nn.running import Stateful
from hibana.spikes.checks import kernels_accept
from hibana.spikes.convolution.causal import causal_convolution
from hibana.spikes.layer import Mode
from hibana.spikes.provenance import lookup

__all__ = ["LooksBack", "Weighted", "Window", "check_sizes"]


class LooksBack(Stateful):
    """A layer whose state are the last steps of its input: as many as it :attr:`reach` says."""

    @property
    @abstractmethod
    def reach(self) -> int:
        """How many steps before the present one it sees."""

    @abstractmethod
    def after(self, history: Tensor | None, inputs: Tensor) -> Tensor:
        """What it makes of `inputs`, ``[T, ...]``, after the steps of `history`, zeros if None.

        Raises:
            ValueError: if `inputs` have another shape than it takes.
        """

    def forward(self, inputs: Tensor, state: State | None = None, *, return_state: bool = False) -> Any:
        """What it makes of `inputs`, ``[T, batch, ...]``; with `return_state` also the state it ends in."""
        if state is None and not (return_state or call_context.run_active or is_fx_proxy(inputs)):
            return self.after(None, inputs)
        return super().forward(inputs, state, return_state=return_state)

    def over_time(self, inputs: Tensor, state: State | None) -> tuple[Tensor, State]:
        """What it makes of `inputs` after the steps in `state`, and the last steps, ``[reach, ...]``."""
        if state is None:
            outputs, history = self.after(None, inputs), inputs.new_zeros(self.reach, *inputs.shape[1:])
        else:
            history = self._history(state, inputs)
            outputs = self.after(history, inputs)
        seen = inputs if len(inputs) >= self.reach else torch.cat([history, inputs])
        return outputs, (seen[len(seen) - self.reach :],)

    def _history(self, state: State, inputs: Tensor) -> Tensor:
        shape = (self.reach, *inputs.shape[1:])
        if not isinstance(state, tuple) or len(state) != 1 or state[0].shape != shape:
            got = [tuple(part.shape) for part in state] if isinstance(state, tuple) else type(state).__name__
            raise ValueError(f"state must be one tensor of the last steps, {shape}, got {got}")
        return state[0].to(inputs.dtype)


class Weighted(nn.Module):
    """What layers of weights over time share: weight and bias, how they are drawn, what is said of a call."""

    mode: Mode = "auto"
    """As of :class:`hibana.Linear`."""
    weight: Tensor
    bias: Tensor | None

    def _hold(self, shape: tuple[int, ...], bias: bool) -> None:
        """Makes parameters `weight`, of `shape`, and `bias`, ``[shape[0]]``, if there is one."""
        dtype = torch.get_default_dtype()
        self.weight = nn.Parameter(torch.empty(shape, dtype=dtype, device=None))
        held = nn.Parameter(torch.empty(shape[0], dtype=dtype, device=None)) if bias else None
        self.register_parameter("bias", held)
        self._reason = "not called yet"

    def _draw(self) -> None:
        """Draws weight and bias evenly from ``±1 / sqrt(inputs)``, as torch does."""
        bound = 1 / math.sqrt(self.weight[0].numel())
        for parameter in (self.weight, self.bias):
            if parameter is not None:
                nn.init.uniform_(parameter, -bound, bound)

    def explain(self) -> str:
        """How the last call was computed, and why."""
        return self._reason


def check_sizes(**sizes: object) -> None:
    """Raises ValueError for a size that is no whole number of at least 1."""
    for name, value in sizes.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")


@final
class Window(Weighted, LooksBack):
    """A causal convolution over time: ``[T, batch, channels, ...] -> [T, batch, outputs, ...]``.

        y_t = bias + sum_(k < K) W[:, :, k] x_(t - (K - 1 - k) dilation),   x_t = 0 for t < 0

    so that step t depends on steps up to t, ``(K - 1) dilation`` of them before it: ``torch.nn.Conv1d`` over
    time, padded on the left only, with its arguments, parameters and initialisation. For an input of spikes
    it adds a row of weights per spike and tap, forward and backward, where :class:`hibana.Linear` would; a
    depthwise one, and any other input, is torch's convolution. Its state in :func:`hibana.run` are the last
    ``(K - 1) dilation`` steps of its input.

    Args:
        in_channels: features, or channels of ``[T, batch, channels, height, width]``, at each of whose pixels
            the same convolution stands.
        out_channels: of what comes out.
        kernel_size: K, how many steps it meets, at least 1.
        dilation: steps from one of them to the next, at least 1.
        groups: 1 for a full convolution, `in_channels` for a depthwise one, as of ``torch.nn.Conv1d``.
        bias: whether there is one.

    Raises:
        ValueError: if the input is not ``[T, batch, in_channels, ...]``, or a size makes no sense.

    Source: van den Oord et al. (2016), *WaveNet: a generative model for raw audio* (causal, dilated).

    >>> import torch, hibana as hb
    >>> net = torch.nn.Sequential(hb.Window(3, 8, kernel_size=5), hb.LIF(), hb.Window(8, 8, 3, dilation=2))
    >>> x = torch.rand(20, 2, 3)
    >>> whole = net(x)
    >>> first, state = hb.run(net, x[:7])
    >>> second, state = hb.run(net, x[7:], state)
    >>> torch.allclose(whole, torch.cat([first, second]), atol=1e-5)
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
        self._hold((out_channels, in_channels // groups, kernel_size), bias)
        self.reset_parameters()

    @property
    def reach(self) -> int:
        """``(K - 1) dilation``."""
        return (self.kernel_size - 1) * self.dilation

    def reset_parameters(self) -> None:
        """Draws weight and bias evenly from ``±1 / sqrt(in_channels / groups * K)``, as torch does."""
        self._draw()

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}"
            f"{f', dilation={self.dilation}' if self.dilation > 1 else ''}"
            f"{f', groups={self.groups}' if self.groups > 1 else ''}{', bias=False' * (self.bias is None)}"
        )

    def after(self, history: Tensor | None, inputs: Tensor) -> Tensor:
        if inputs.ndim < 3 or inputs.shape[0] == 0 or inputs.shape[2] != self.in_channels:
            raise ValueError(
                f"inputs must be [T, batch, {self.in_channels}, ...] with T at least 1, "
                f"got shape {tuple(inputs.shape)}"
            )
        seen = inputs.requires_grad and not torch.compiler.is_compiling()
        in_order = seen and inputs.movedim(2, -1).is_contiguous()  # as the bits of the layer below lie
        under = lookup(inputs) if in_order and kernels_accept(inputs) else None
        weight = self.weight
        if history is not None and len(history) != (weight.shape[2] - 1) * self.dilation:
            raise ValueError(
                f"weight must have {self.kernel_size} steps, the kernel_size, for a call with a state, "
                f"got shape {tuple(weight.shape)}"
            )
        rows = _as_rows(inputs)
        before = None if history is None else _as_rows(history)
        outputs, self._reason = causal_convolution(
            rows, weight, self.bias, self.dilation, before, under, self.mode
        )
        return outputs.view(*inputs.shape[:2], *inputs.shape[3:], outputs.shape[2]).movedim(-1, 2)


def _as_rows(tensor: Tensor) -> Tensor:
    """``[T, batch, channels, ...]`` as ``[T, batch * ..., channels]``."""
    last = tensor.movedim(2, -1)
    return last.reshape(last.shape[0], math.prod(last.shape[1:-1]), last.shape[-1])
