"""A layer of a deep network: a module that ends in batch normalisation, and the neurons behind it."""

from typing import Any, NamedTuple, cast, final

import torch
from torch import Tensor, nn

from hibana import cells
from hibana.compiler import ambient, emitted_around
from hibana.compiler.ambient import is_name
from hibana.compiler.backend import Producer
from hibana.compiler.graph.ops import Unsupported
from hibana.compiler.graph.watch import hooked
from hibana.compiler.strides import repeated
from hibana.nn.blocks import ThresholdBatchNorm2d
from hibana.nn.each_step import EachStep
from hibana.nn.layers import OverTime
from hibana.nn.normalized.autograd import Moments, moments, scales, standardised
from hibana.nn.over_steps import BatchNorm2dOverSteps
from hibana.nn.running import Stateful, check_knows_no_time
from hibana.runtime import torch_internals
from hibana.spikes.checks import plain
from hibana.spikes.convolution import dense, over_steps
from hibana.spikes.layer import learns

__all__ = ["Normalized", "ends_in_norm"]

FUSED_FROM = 1 << 20
"""Numbers of a sequence from which on the passes that are saved take longer than a call does before them; in
evaluation, where less comes before them, half as many."""

Norm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, ThresholdBatchNorm2d, BatchNorm2dOverSteps)


@final
class Normalized(nn.Sequential):
    """``nn.Sequential(each, neurons)``, the normalisation at its middle computed in the neurons' own pass.

        y_t = neurons((x_t - mean) / sqrt(variance + eps) * weight + bias),   x_t of each step

    with mean and variance over time and batch in training, and the running ones in evaluation. What is
    normalised is never written to memory, nor is its gradient: forward that saves the passes in which it is
    written and read again, and back the one in which the gradient is read for its sums. In evaluation,
    without a gradient, neither are the sums of a :class:`hibana.Conv2d` that works per spike and is the
    last module before the normalisation; in training these are read for mean and variance
    while they are in the cache. Spikes are known as bits to the layer above in evaluation too. The numbers
    are those of ``nn.BatchNorm2d`` on the joined batch (and of ThresholdBatchNorm2d), running statistics
    included: in evaluation to the bit (where torch's kernels multiply and add in one, as for AVX2 and
    AVX-512), in training up to the last digits of mean and variance. Names of parameters and buffers are
    those of ``nn.Sequential``, and it folds likewise (:func:`hibana.fold_batchnorm`).

    It is done so on the CPU, in float32, for a million numbers and more over all steps (in evaluation half)
    whose channels come last in memory, as :class:`hibana.Conv2d` gives them, and for neurons that are
    compiled; else the two are called one after the other. :func:`hibana.explain` says which it was, and why.

    Args:
        each: whose module is a batch normalisation, or an ``nn.Sequential`` that ends in one.
        neurons: the neurons behind it.

    Raises:
        TypeError: if `each` is no :class:`hibana.EachStep` that ends in a batch normalisation, or `neurons`
            no layer of a cell.

    Source: Ioffe & Szegedy (2015), *Batch normalization*; Zheng, Wu, Deng, Hu & Li (2021), *Going deeper with
    directly-trained larger spiking neural networks*, for the statistics over time.

    >>> import torch, hibana as hb
    >>> below = hb.EachStep(nn.Sequential(hb.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4)))
    >>> layer = hb.Normalized(below, hb.IF())
    >>> layer(torch.rand(5, 2, 1, 8, 8)).shape
    torch.Size([5, 2, 4, 8, 8])
    """

    _reason = "not called yet"
    _within_neurons = False
    """Whether it is called by the neurons themselves, who run their own hooks."""

    def __init__(self, each: EachStep, neurons: OverTime) -> None:
        if not isinstance(each, EachStep) or _parts(each) is None:
            found = type(each.module if isinstance(each, EachStep) else each).__name__
            raise TypeError(
                f"each must be an EachStep that ends in a batch normalisation of torch.nn, got {found}"
            )
        if not isinstance(neurons, OverTime):
            raise TypeError(f"neurons must be a layer of a cell, as hb.IF(), got {type(neurons).__name__}")
        super().__init__(each, neurons)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch.nn.Sequential's name for it
        """What the neurons emit over `input`, ``[T, batch, ...]``."""
        if is_name(input):
            return self._unfused(input, "the call is traced")
        layers = self._layers(input)
        if isinstance(layers, str):
            return self._unfused(input, layers)
        each, neurons, norm, before, _, of_the_batch = layers
        if any(module._modules or isinstance(module, Stateful) for module in before):
            check_knows_no_time("each", each.module)  # it may have got another since
        steps = input.shape[0]
        once = each.runs_once(input)
        currents = input[0] if once else input.flatten(0, 1)
        for module in before[:-1]:
            currents = module(currents)
        producer = None
        if before:
            sequence = None if once or len(before) > 1 else input
            at_a_time = 0 if once else 1 if of_the_batch else steps
            currents, producer = over_steps(before[-1], currents, at_a_time, sequence)
        reason = _unfit(layers, currents, steps if once else 1, producer is not None)
        outputs = None
        if not reason:
            outputs, reason = _emitted(layers, currents, steps, once, producer)
        elif producer is not None:
            producer.finish()
        self.__dict__["_reason"] = reason
        if outputs is None:
            outputs = self._emitted_unfused(neurons, _over_time(norm(currents), steps, once))
        return outputs

    def explain(self) -> str:
        """How the last call was computed."""
        how = f"apart: {self._reason}" if self._reason else "in the neurons' own pass"
        return f"normalised {how}"

    def _unfused(self, input_: Tensor, reason: str) -> Tensor:
        self.__dict__["_reason"] = reason
        if self._within_neurons:
            return self._emitted_unfused(self[1], cast(EachStep, self[0]).computed(input_))
        return cast(Tensor, super().forward(input_))  # type: ignore[no-untyped-call] # torch leaves it so

    def _emitted_unfused(self, neurons: Any, values: Tensor) -> Tensor:
        return cast(Tensor, (neurons.forward if self._within_neurons else neurons)(values))

    def within_neurons(self) -> "Normalized":
        """Itself, from now on called by its neurons, whose hooks run around the call."""
        self.__dict__["_within_neurons"] = True
        return self

    def _layers(self, inputs: Tensor) -> "_Layers | str":
        """What it is made of; or why the modules are to be called one after the other."""
        each, neurons = self._modules.values() if len(self._modules) == 2 else (None, None)
        if not isinstance(each, EachStep) or not isinstance(neurons, OverTime):
            return "other modules have taken the place of those that it was made of"
        found = _parts(each)
        if found is None:
            return "there is no batch normalisation of torch.nn any more"
        norm, before = found
        if torch.compiler.is_compiling() or ambient.active:
            return "the call is compiled, or within hibana.run"
        held: Any = norm._parameters | norm._buffers  # where a module looks last
        if norm._modules:
            return "a parametrisation computes tensors of the normalisation"
        tensors = _Tensors(
            *[held[name] if name in held else getattr(norm, name) for name in _Tensors._fields]
        )
        if inputs.ndim < 3 or not plain(inputs, *tensors):
            return "the input is not float32 on the CPU, or something watches the call"
        inner: Any = (each, each._modules["module"], norm, neurons._modules["cell"])
        inner = inner if self._within_neurons else (*inner, neurons)
        if any(map(hooked, inner)) or torch_internals.has_global_module_hooks():
            return "hooks are to run between"
        if neurons.backend not in ("auto", "cpu") or type(neurons).forward is not OverTime.forward:
            return f"the neurons are served by {neurons.backend!r}"
        return _Layers(each, neurons, norm, before, tensors, norm.training or tensors.running_mean is None)


class _Tensors(NamedTuple):
    """Those of a normalisation."""

    weight: Tensor | None
    bias: Tensor | None
    running_mean: Tensor | None
    running_var: Tensor | None


class _Layers(NamedTuple):
    """What a :class:`Normalized` is made of."""

    each: EachStep
    neurons: OverTime
    norm: Norm
    before: list[nn.Module]
    """What is called before the normalisation."""
    tensors: _Tensors
    of_the_batch: bool
    """Whether mean and variance are the batch's; else they are the running ones."""


def ends_in_norm(each: EachStep) -> bool:
    """Whether `each` ends in a batch normalisation that :class:`Normalized` takes."""
    return _parts(each) is not None


def _parts(each: EachStep) -> tuple[Norm, list[nn.Module]] | None:
    """The batch normalisation in which the module of `each` ends, and what is called before it."""
    module: Any = each._modules["module"]
    modules: list[Any] = list(module._modules.values()) if type(module) is nn.Sequential else [module]
    if not modules or type(modules[-1]) not in _NORMS:
        return None
    return modules[-1], modules[:-1]


def _unfit(layers: _Layers, currents: Tensor, times: int, ours: bool) -> str:
    """Why `currents`, so many times, are not normalised in the neurons' pass, or ``""``.

    They are known to lie as they should if they are `ours`, of a producer.
    """
    norm, of_the_batch = layers.norm, layers.of_the_batch
    features, numbers = norm.num_features, currents.numel()
    if (
        currents.ndim not in _DIMENSIONS.get(type(norm), (4,))
        or currents.shape[1] != features
        or not (ours or plain(currents))
    ):
        return _MISFIT
    if not norm.eps > 0 or (of_the_batch and numbers < 2 * features):
        return _MISFIT
    for tensor in layers.tensors:
        if tensor is not None and tensor.shape != (features,):
            return _MISFIT
    if not (ours or dense.lies_last(currents) or currents.movedim(1, -1).is_contiguous()):
        return "channels do not come last in memory"
    numbers *= times
    if numbers < (FUSED_FROM if of_the_batch else FUSED_FROM // 2):
        return f"{numbers} numbers are too few for it to pay"
    return ""


_DIMENSIONS: dict[type[nn.Module], tuple[int, ...]] = {nn.BatchNorm1d: (2, 3), nn.BatchNorm3d: (5,)}
"""Of what is normalised."""
_MISFIT = "what is to be normalised does not fit, as torch says"


def _emitted(
    layers: _Layers, currents: Tensor, steps: int, once: bool, producer: Producer | None
) -> tuple[Tensor | None, str]:
    """What `neurons` emit over `currents` normalised, which a `producer` has yet to compute, if it is given.

    Or None, and why they can't be run; the currents are there then.
    """
    found = None
    each: tuple[Tensor, ...]
    norm, (weight, bias, _, _) = layers.norm, layers.tensors
    if layers.of_the_batch:
        found, producer = moments(currents, weight, bias, norm.eps, producer), None
        values, scale, shift = standardised(currents, weight, bias, found, 0 if once else steps)
        each = scale, shift, found.mean
    else:
        values = currents if once else _over_time(currents, steps, once)
        each = _running(layers.tensors, norm.eps, currents.ndim - 2)
    try:
        around = Scaled if found is None else Standardised
        outputs = emitted_around(layers.neurons.cell, around, each, values, producer, steps if once else 0)
    except Unsupported as refused:
        return None, str(refused)
    if found is not None:
        _count(norm, layers.tensors, found)
    return outputs, ""


def _over_time(values: Tensor, steps: int, once: bool) -> Tensor:
    return repeated(values, steps) if once else values.reshape(steps, -1, *values.shape[1:])


class _Wrapped(cells.Cell):
    """One step of `cell` on its input, of which each channel is normalised."""

    cell: cells.Cell
    scale: Tensor
    shift: Tensor

    def __init__(self, cell: cells.Cell, scale: Tensor, shift: Tensor) -> None:
        nn.Module.__init__(self)
        self.cell = cell
        self.register_buffer("scale", scale)
        self.register_buffer("shift", shift)
        self._enter(cell._hibana.states)

    def forward(self, input_: Tensor, *state: Tensor) -> Any:
        return self.cell(self.normalised(input_), *state)

    def normalised(self, input_: Tensor) -> Tensor:
        raise NotImplementedError

    def state_names(self) -> tuple[str, ...]:  # type: ignore[override] # they are those of the cell it has
        return self.cell.state_names()

    def initial_state(self, input_: Tensor) -> tuple[Tensor, ...]:
        return self.cell.initial_state(self.normalised(input_))

    def rests_at_zero(self) -> bool:
        return self.cell.rests_at_zero()


class Standardised(_Wrapped):
    """``(input - mean) * scale + shift``, which is exact where the mean is large."""

    mean: Tensor

    def __init__(self, cell: cells.Cell, scale: Tensor, shift: Tensor, mean: Tensor) -> None:
        super().__init__(cell, scale, shift)
        self.register_buffer("mean", mean)

    def normalised(self, input_: Tensor) -> Tensor:
        return (input_ - self.mean) * self.scale + self.shift


class Scaled(_Wrapped):
    """``input * scale + shift``, rounded once, as torch computes it from running statistics."""

    def normalised(self, input_: Tensor) -> Tensor:
        return torch.addcmul(self.shift, input_, self.scale)


def _running(tensors: _Tensors, eps: float, ones: int) -> tuple[Tensor, ...]:
    """Scale and shift of each channel, from running statistics: to the bit those of torch's own kernel.

    They have so many dimensions of `ones` after that of the channels.
    """
    weight, bias, mean, variance = tensors
    assert mean is not None
    assert variance is not None
    inverse, scale, shift = scales(mean, variance, weight, bias, eps, ones)
    if learns(weight, bias):
        inverse = inverse.view(-1)
        scale = inverse if weight is None else inverse * weight
        shift = torch.addcmul(torch.zeros_like(mean) if bias is None else bias, -mean, scale)
        scale, shift = (each.view(-1, *(1,) * ones) for each in (scale, shift))
    return scale, shift


@torch.no_grad()
def _count(norm: Norm, tensors: _Tensors, found: Moments) -> None:
    """Has `norm` count a batch among its running statistics, as it does itself."""
    if not norm.training or not norm.track_running_stats:
        return
    batches = norm.num_batches_tracked
    assert tensors.running_mean is not None
    assert tensors.running_var is not None
    assert batches is not None
    batches.add_(1)
    share = 1 / float(batches) if norm.momentum is None else norm.momentum
    tensors.running_mean.lerp_(found.mean.view(-1), share)
    tensors.running_var.lerp_(found.unbiased.view(-1), share)
