"""Which normalisations of a network are computed in the pass of the neurons behind them.

:class:`Planned` is an ``nn.Sequential`` whose neighbours are. What a ``forward`` of the user's own calls one
after another is found by running it: while :class:`Watch` is open, each convolution and normalisation of
images defers its output (see :mod:`hibana.nn.deferred`). Those whose output went to neurons alone go on doing
so; of the others it is known what read them.
"""

import itertools
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self, cast

import torch
from torch import Tensor, nn

from hibana.compiler import ambient
from hibana.compiler.ambient import is_name
from hibana.compiler.graph.watch import hooked
from hibana.nn import normalized
from hibana.nn.blocks import ThresholdBatchNorm2d
from hibana.nn.deferred import Call, Deferred, deferred
from hibana.nn.each_step import EachStep
from hibana.nn.layers import OverTime
from hibana.nn.over_steps import (
    FUSING,
    OVER_STEPS,
    BatchNorm2dOverSteps,
    Conv2dOverSteps,
    joined_steps,
    joining,
)
from hibana.spikes.checks import pair, plain

__all__ = ["Fusing", "Planned", "Watch", "groups"]


class Fusing:
    """State of one convolution or normalisation whose output is deferred, and how it is computed."""

    def __init__(self) -> None:
        self.watched = True
        """Whether what reads the output is recorded."""
        self.readers: set[str] = set()
        self.neurons: list[nn.Module] = []
        """The layers of neurons that took the output, on the example."""
        self.norms: list[nn.Module] = []
        """The normalisations that took the output, on the example, if this is a convolution."""
        self._made: tuple[Any, Any, normalized.Normalized] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_made": None}

    def takes(self, layer: nn.Module, inputs: Tensor) -> bool:
        """Whether the output of `layer` for `inputs` is deferred."""
        if torch.compiler.is_compiling() or hooked(layer) or "forward" in vars(layer):
            return False
        if any(map(watches_backward, self.neurons)):
            return False
        if type(inputs) is Deferred:
            follows = isinstance(layer, nn.BatchNorm2d) and isinstance(inputs.call.layer, Conv2dOverSteps)
            if follows and self.watched:
                inputs.call.fuses.norms.append(layer)  # type: ignore[attr-defined]
            return follows
        if not plain(inputs) or inputs.is_inference() or ambient.active or _has_global_hooks():
            return False
        each, steps = isinstance(layer, EachStep), joined_steps()
        if steps is not None if each else inputs.ndim != (5 if steps is None else 4):
            return False
        least = normalized.layer.FUSED_FROM // (1 if layer.training else 2)
        return self.watched or _numbers(layer, inputs) >= least

    def note(self, reader: str) -> None:
        if self.watched:
            self.readers.add(reader)

    def emitted(self, call: Call, neurons: Any) -> Tensor | None:
        """What `neurons` emit for the normalisation that `call` is of; None if it must be computed."""
        if not isinstance(neurons, OverTime) or not _is_norm(call.layer):
            return None
        if call.value is not None or call.emitted or call.differentiable != torch.is_grad_enabled():
            return None
        if watches_backward(neurons) or ambient.active or _has_global_hooks():
            return None
        call.check_unchanged()
        convolution, inputs = None, call.inputs
        if type(inputs) is Deferred:
            before = inputs.call
            if before.value is None:
                before.check_unchanged()
                convolution, inputs = before.layer, before.inputs
            else:
                inputs = before.value
        if call.steps is not None:
            inputs = inputs.reshape(call.steps, -1, *inputs.shape[1:])
        call.emitted = True
        with joining(None):
            outputs: Tensor = self._call(convolution, call.layer, neurons)(inputs)
        if self.watched:
            self.neurons.append(neurons)
        return outputs if call.steps is None else outputs.flatten(0, 1)

    def _call(self, convolution: Any, norm: Any, neurons: OverTime) -> normalized.Normalized:
        if self._made is None or self._made[:2] != (convolution, neurons):
            layers = [norm] if convolution is None else [convolution, norm]
            each = norm if isinstance(norm, EachStep) else EachStep(nn.Sequential(*layers))
            made = normalized.Normalized(each, neurons)
            self._made = convolution, neurons, made.within_neurons()
        made = self._made[2]
        made[0].training = norm.training
        return made


def watches_backward(module: nn.Module) -> bool:
    """Whether `module` runs backward hooks, for which torch wraps its input in a node of autograd."""
    return bool(module._backward_hooks or module._backward_pre_hooks)


def _numbers(layer: Any, inputs: Tensor) -> float:
    """About how many numbers are normalised: those of the output of `layer`."""
    numbers: float = inputs.numel()
    for module in layer.modules():
        if isinstance(module, nn.Conv2d):
            strides = pair(module.stride)
            numbers *= module.out_channels / module.in_channels / (strides[0] * strides[1])
    return numbers


def _is_norm(layer: Any) -> bool:
    return isinstance(layer, nn.BatchNorm2d | EachStep)


def _norm(layer: Any) -> nn.Module:
    """The normalisation that `layer` is, or ends in."""
    inner = layer.module if isinstance(layer, EachStep) else layer
    return cast(nn.Module, inner[-1] if isinstance(inner, nn.Sequential) else inner)


def _has_global_hooks() -> bool:
    return bool(torch.nn.modules.module._has_any_global_hook())  # type: ignore[no-untyped-call]


class Watch:
    """Finds, while the network is called within, which normalisations neurons follow."""

    def __init__(self, net: nn.Module) -> None:
        kinds = Conv2dOverSteps | BatchNorm2dOverSteps
        self.layers = [
            layer
            for layer in net.modules()
            if isinstance(layer, kinds) or (isinstance(layer, EachStep) and normalized.ends_in_norm(layer))
        ]
        self.said: dict[int, str] = {}
        """What was found of each module, by its id."""

    def __enter__(self) -> Self:
        for layer in self.layers:
            layer.__dict__[FUSING] = Fusing()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: BaseException | TracebackType | None) -> None:
        found = {layer: layer.__dict__.pop(FUSING) for layer in self.layers}
        if kind is not None:
            return
        for layer, fusing in found.items():
            if not _is_norm(layer):
                continue
            if fusing.neurons and not fusing.readers:
                _keep(layer, fusing)
                self.said[id(_norm(layer))] = "in the neurons' pass"
                self.said |= {id(neurons): "with the normalisation before it" for neurons in fusing.neurons}
            elif fusing.readers:
                readers = ", ".join(sorted(fusing.readers))
                self.said[id(_norm(layer))] = f"in a pass of its own: {readers} reads what it gives"
        for layer, fusing in found.items():
            follows = fusing.norms and not fusing.readers
            if follows and all(FUSING in norm.__dict__ for norm in fusing.norms):
                _keep(layer, fusing)


def _keep(layer: nn.Module, fusing: Fusing) -> None:
    fusing.watched = False
    fusing.norms = []
    layer.__dict__[FUSING] = fusing


_NORMS = (BatchNorm2dOverSteps, ThresholdBatchNorm2d)


def groups(modules: list[Any]) -> Iterator[tuple[Any, ...]]:
    """Neighbours that are computed in one pass.

    A convolution if there is one, its normalisation, and neurons; or an EachStep that ends in a
    normalisation, and neurons.
    """
    for place, (norm, neurons) in enumerate(itertools.pairwise(modules)):
        if not isinstance(neurons, OverTime):
            continue
        if type(norm) in _NORMS:
            before = modules[max(0, place - 1) : place]
            yield (*(m for m in before if type(m) is OVER_STEPS[nn.Conv2d]), norm, neurons)
        elif isinstance(norm, EachStep) and normalized.ends_in_norm(norm):
            yield norm, neurons


class Planned(nn.Sequential):
    """``nn.Sequential``, of whose modules those that can be are computed in one pass."""

    def forward(self, input: Any) -> Any:  # noqa: A002 - torch.nn.Sequential's name for it
        if torch.compiler.is_compiling() or is_name(input):
            return super().forward(input)  # type: ignore[no-untyped-call] # torch leaves it so
        for group, modules in self._calls():
            if group is None:
                input = modules[0](input)  # noqa: A001
            elif input.ndim != 5 and not isinstance(modules[0], EachStep):
                for module in modules:  # images without time, one after the other
                    input = module(input)  # noqa: A001
            else:
                input = group(input, self.training)  # noqa: A001
        return input

    def _calls(self) -> list[tuple["_Group | None", tuple[Any, ...]]]:
        """The modules, alone or in groups, and of a group what computes it in one pass."""
        modules = list(self._modules.values())
        known = self.__dict__.get("_plan")
        if known is None or known[0] != modules:
            calls: list[tuple[_Group | None, tuple[Any, ...]]] = []
            found = {id(group[0]): group for group in groups(modules)}
            place = 0
            while place < len(modules):
                group = found.get(id(modules[place]), (modules[place],))
                calls.append((_Group(group) if len(group) > 1 else None, group))
                place += len(group)
            known = self.__dict__["_plan"] = modules, calls
        planned: list[tuple[_Group | None, tuple[Any, ...]]] = known[1]
        return planned

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_plan"}


class _Group:
    """Neighbours that are computed in one pass: what ends in a normalisation, and neurons."""

    def __init__(self, modules: tuple[Any, ...]) -> None:
        each = modules[0] if isinstance(modules[0], EachStep) else EachStep(nn.Sequential(*modules[:-1]))
        self.each, self.neurons = each, modules[-1]
        self.normalized = normalized.Normalized(each, self.neurons)
        self.within_neurons = normalized.Normalized(each, self.neurons).within_neurons()

    def __call__(self, inputs: Tensor, training: bool) -> Tensor:
        self.each.training = training
        if self.neurons._forward_hooks and self._may_defer(inputs):
            return cast(Tensor, self.neurons(deferred(self, inputs, self, None)))  # whose hooks run around it
        return cast(Tensor, self.normalized(inputs))

    def _may_defer(self, inputs: Tensor) -> bool:
        others = any(map(hooked, self.each.modules())) or self.neurons._forward_pre_hooks
        if others or watches_backward(self.neurons) or ambient.active:
            return False
        return plain(inputs) and not inputs.is_inference()

    def emitted(self, call: Call, neurons: Any) -> Tensor | None:
        if neurons is not self.neurons or call.value is not None or call.emitted:
            return None
        call.emitted = True
        return cast(Tensor, self.within_neurons(call.inputs))

    def note(self, reader: str) -> None:
        """Nothing is recorded: which layers follow is known from their order."""

    def computed(self, inputs: Tensor) -> Tensor:
        return self.each.computed(inputs)

    def computed_again(self, inputs: Tensor) -> Tensor:
        return self.each.computed_again(inputs)
