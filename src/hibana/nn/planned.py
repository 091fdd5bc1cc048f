"""``nn.Sequential`` as :func:`hibana.optimize` leaves it: neighbours that can be are computed in one pass."""

import itertools
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn

from hibana.compiler import ambient
from hibana.compiler.graph.watch import hooked
from hibana.compiler.leaf import is_name
from hibana.nn.blocks import ThresholdBatchNorm2d
from hibana.nn.deferred import Call, deferred
from hibana.nn.each_step import EachStep
from hibana.nn.fusing import watches_backward
from hibana.nn.layers import OverTime
from hibana.nn.normalized import Normalized, ends_in_norm
from hibana.nn.over_steps import OVER_STEPS, BatchNorm2dOverSteps
from hibana.spikes.checks import plain

__all__ = ["Planned", "groups"]

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
        elif isinstance(norm, EachStep) and ends_in_norm(norm):
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
        self.normalized = Normalized(each, self.neurons)
        self.within_neurons = Normalized(each, self.neurons).within_neurons()

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
