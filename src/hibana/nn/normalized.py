"""Batch normalization directly followed by neurons, computed in the neurons' pass in inference."""

from typing import Any, cast, final

import torch
from torch import Tensor, nn

from hibana import cells
from hibana.compiler import call_context, run_wrapped_cell
from hibana.compiler.call_context import is_fx_proxy
from hibana.compiler.graph.ops import Unsupported
from hibana.compiler.graph.snapshots import has_hooks
from hibana.compiler.torch_layers import TORCH_LAYERS, spatial_dims
from hibana.nn.each_step import EachStep
from hibana.nn.layers import OverTime
from hibana.nn.over_steps import BatchNorm2dOverSteps, call_eagerly
from hibana.runtime import torch_internals
from hibana.spikes.checks import kernels_accept

__all__ = ["Normalized", "NormalizingSequential", "is_normalized"]

FUSED_FROM = 1 << 19
"""Minimum size of the normalized sequence, in numbers: preparing smaller calls costs more than it saves."""

Norm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d
_NORMS = TORCH_LAYERS["batch normalization"]
_FORWARDS = (nn.BatchNorm2d.forward, BatchNorm2dOverSteps.forward)
"""The forward methods of layers that only normalize."""


@final
class Normalized(nn.Sequential):
    """``nn.Sequential(each, neurons)``; inference normalizes in the neurons' own pass over memory.

        y_t = neurons((x_t - mean) / sqrt(variance + eps) * weight + bias)

    In training, mean and variance are those of all steps and samples, and the two modules are called one
    after the other. In evaluation without a gradient, the neurons' kernel normalizes its input as it reads
    it, with the running statistics: the normalized sequence is not written to memory, and the layer above
    gets the spikes as bits. The result equals that of the two modules bit for bit where torch's kernels
    multiply and add in one operation (AVX2, AVX-512). Parameters and buffers are named as in
    ``nn.Sequential``, and the layer folds like one (:func:`hibana.fold_batchnorm`).

    This needs float32 on the CPU, at least half a million numbers over all steps, and neurons that are
    compiled; otherwise the modules are called one after the other. :func:`hibana.explain` gives the reason.

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

    _reason = "not called yet"

    def __init__(self, each: EachStep, neurons: OverTime) -> None:
        if not isinstance(each, EachStep) or _parts(each) is None:
            kind = type(each.module if isinstance(each, EachStep) else each).__name__
            raise TypeError(
                f"each must be an EachStep that ends in a batch normalization of torch.nn, got {kind}"
            )
        if not isinstance(neurons, OverTime):
            raise TypeError(f"neurons must be a layer of a cell, as hb.IF(), got {type(neurons).__name__}")
        super().__init__(each, neurons)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch.nn.Sequential's name for it
        """The spikes over `input`, ``[T, batch, ...]``."""
        modules: list[Any] = list(self._modules.values())
        outputs, reason = None, _REPLACED
        if len(modules) == 2 and not is_fx_proxy(input):
            outputs, reason = _in_one_pass(modules[0], modules[1], input)
        self.__dict__["_reason"] = reason
        return cast(Tensor, super().forward(input)) if outputs is None else outputs  # type: ignore[no-untyped-call] # torch's own

    def explain(self) -> str:
        """How the last call was computed."""
        return f"normalized separately: {self._reason}" if self._reason else "normalized in the neurons' pass"


class NormalizingSequential(nn.Sequential):
    """``nn.Sequential`` that computes each batch normalization followed by neurons as :class:`Normalized`."""

    def forward(self, input: Any) -> Any:  # noqa: A002 - torch.nn.Sequential's name for it
        """The output of the last module."""
        if is_fx_proxy(input):
            return super().forward(input)  # type: ignore[no-untyped-call] # torch's own
        if torch.compiler.is_compiling() or torch.is_grad_enabled():
            return call_eagerly(super().forward, input)
        modules: list[Any] = [*self._modules.values(), None]
        place = 0
        while place < len(modules) - 1:
            module, following = modules[place : place + 2]
            outputs = _in_one_pass(module, following, input)[0] if is_normalized(module, following) else None
            place += 1 if outputs is None else 2
            input = module(input) if outputs is None else outputs  # noqa: A001
        return input


def is_normalized(module: Any, neurons: Any) -> bool:
    """Whether `module` ends in a batch normalization over time, and `neurons` is a layer of a cell."""
    return isinstance(neurons, OverTime) and _parts(module) is not None


def _in_one_pass(module: Any, neurons: Any, input_: Tensor) -> tuple[Tensor | None, str]:
    """The output of `module` and then `neurons` for `input_`, with the normalization in the neurons' pass.

    `module` ends in a batch normalization.

    Returns:
        The outputs of the neurons and "", or None and the reason to call the two modules one after the other.
    """
    parts = _parts(module)
    if parts is None or not isinstance(neurons, OverTime):
        return None, _REPLACED
    preceding_modules, norm = parts
    reason = _refusal(norm, neurons, module, *module.children())
    if reason or not kernels_accept(input_):
        return None, reason or _NOT_PLAIN
    currents = EachStep(preceding_modules)(input_) if preceding_modules else input_
    outputs, reason = _normalized(norm, neurons, currents)
    if outputs is None and preceding_modules:
        outputs = neurons(EachStep(norm)(currents))
    return outputs, reason


_REPLACED = "its modules were replaced by others"
_NOT_PLAIN = "the input is not float32 on the CPU, or a transform is active"


def _parts(module: Any) -> tuple[nn.Sequential | None, Norm] | None:
    """The modules before the final batch normalization, and the normalization; None if there is none."""
    if isinstance(module, BatchNorm2dOverSteps) and _is_norm(module):
        return None, module
    content: Any = module._modules["module"] if isinstance(module, EachStep) else None
    is_sequence = type(content) in TORCH_LAYERS["sequence"] and len(content) > 1
    last_module: Any = content[-1] if is_sequence else None
    if _is_norm(last_module):
        return content[:-1], last_module
    return (None, content) if _is_norm(content) else None


def _is_norm(module: Any) -> bool:
    """Whether `module` is a batch normalization with torch's own forward."""
    return isinstance(module, _NORMS) and type(module).forward in _FORWARDS


def _refusal(norm: Norm, neurons: OverTime, *modules: nn.Module) -> str:
    """The reason to call the modules one after the other for every input, or an empty string."""
    if torch.compiler.is_compiling() or call_context.run_active:
        return "the call is compiled, or within hibana.run"
    if torch.is_grad_enabled() or norm.training or norm.running_mean is None:
        return "only evaluation without a gradient normalizes in the neurons' pass"
    if neurons.backend not in ("auto", "cpu") or type(neurons).forward is not OverTime.forward:
        return f"the neurons run on backend {neurons.backend!r}"
    if (
        any(map(has_hooks, (*modules, norm, neurons, neurons.cell)))
        or torch_internals.has_global_module_hooks()
    ):
        return "hooks must run between the modules"
    return ""


def _normalized(norm: Norm, neurons: OverTime, currents: Tensor) -> tuple[Tensor | None, str]:
    """The output of `neurons` for `currents` ``[T, batch, channels, ...]``, normalized by `norm`.

    Returns:
        The outputs of the neurons and "", or None and the reason to call the modules one after the other.
    """
    if currents.numel() < FUSED_FROM:
        return None, f"{currents.numel():,} numbers are too few"
    tensors = norm.weight, norm.bias, norm.running_mean, norm.running_var
    if not kernels_accept(currents, *tensors):
        return None, _NOT_PLAIN
    sizes = {tuple(tensor.shape) for tensor in tensors if tensor is not None}
    if (
        currents.ndim - 3 not in {spatial_dims(norm), spatial_dims(norm) - (spatial_dims(norm) == 1)}
        or sizes != {(currents.shape[2],)}
        or norm.eps < 0
    ):
        return None, "the input does not fit the normalization, and torch raises an error"
    weight, bias, mean, variance = cast(tuple[Tensor, ...], tensors)
    scale = (variance + norm.eps).rsqrt()  # correctly rounded, which torch.sqrt is not
    scale = scale if weight is None else scale * weight
    shift = torch.addcmul(torch.zeros_like(mean) if bias is None else bias, -mean, scale)
    shape = -1, *(1,) * (currents.ndim - 3)
    try:
        outputs = run_wrapped_cell(neurons.cell, _Scaled, (scale.view(shape), shift.view(shape)), currents)
    except Unsupported as error:
        return None, str(error)
    return outputs, ""


class _Scaled(cells.Cell):
    """One step of `cell` on ``input * scale + shift``, rounded once as in torch's normalization."""

    cell: cells.Cell
    scale: Tensor
    shift: Tensor

    def __init__(self, cell: cells.Cell, scale: Tensor, shift: Tensor) -> None:
        nn.Module.__init__(self)
        self.cell = cell
        self.register_buffer("scale", scale)
        self.register_buffer("shift", shift)
        self._create_cache(cell._hibana.states)

    def forward(self, input_: Tensor, *state: Tensor) -> Any:
        """The state of the inner cell after one step with the scaled input."""
        return self.cell(torch.addcmul(self.shift, input_, self.scale), *state)

    def state_names(self) -> tuple[str, ...]:  # type: ignore[override] # the names of the inner cell
        """The names of the states of the inner cell."""
        return self.cell.state_names()

    def initial_state(self, input_: Tensor) -> tuple[Tensor, ...]:
        """The initial state of the inner cell for the scaled input."""
        return self.cell.initial_state(torch.addcmul(self.shift, input_, self.scale))

    def rests_at_zero(self) -> bool:
        """Whether all tensors of the inner cell's initial state are zeros."""
        return self.cell.rests_at_zero()
