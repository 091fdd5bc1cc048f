"""Networks of images as :func:`hibana.optimize` has them: layers take time, or it is joined with the batch.

Each layer has the parameters, buffers, hooks and names of the layer of ``torch.nn`` whose class it takes. An
input ``[T, batch, channels, ...]`` is joined to ``[T * batch, channels, ...]`` for the call; an input without
time goes through as before.

``torch.flatten(x, 1)``, ``torch.cat(..., 1)`` or ``x.mean((2, 3))`` in a ``forward`` mean axes of images.
Such a network is called with ``[T * batch, channels, ...]``, and each of its layers over time with
``[T, batch, channels, ...]``. A class is made here for each class of a network or layer; pickles name the
latter.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from hibana import spikes
from hibana.compiler.call_context import fx_leaf_call, is_fx_proxy
from hibana.compiler.memory_layout import expand_over_time
from hibana.compiler.torch_layers import role_of
from hibana.nn.running import Stateful
from hibana.runtime import torch_internals
from hibana.runtime.torch_internals import tree_map
from hibana.spikes.checks import is_constant_over_time
from hibana.spikes.provenance import register_view

__all__ = [
    "OVER_STEPS",
    "BatchNorm2dOverSteps",
    "Conv2dOverSteps",
    "EagerNetwork",
    "FlattenOverSteps",
    "JoinedNetwork",
    "JoinedNeurons",
    "OverSteps",
    "call_eagerly",
    "joined_kind",
    "joining",
    "may_be_joined",
]


class OverSteps(nn.Module):
    """What they share."""

    dimensions: ClassVar[int] = 2
    """Of an image."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch.nn's name for it
        if is_fx_proxy(input):
            return cast(Tensor, fx_leaf_call(self, input))
        call: Any = super().forward  # of the layer of torch.nn
        if input.ndim != self.dimensions + 3:
            return cast(Tensor, call(input))
        if self.runs_once(input) and is_constant_over_time(input):
            return expand_over_time(call(input[0]), input.shape[0])
        outputs: Tensor = call(register_view(input, input.flatten(0, 1)))
        return register_view(outputs, outputs.reshape(*input.shape[:2], *outputs.shape[1:]))

    def runs_once(self, input: Tensor) -> bool:  # noqa: A002 - as above
        """Whether one call serves all steps of an `input` that is the same at each step."""
        return True


class Conv2dOverSteps(OverSteps, spikes.Conv2d):
    """``nn.Conv2d``."""


class BatchNorm2dOverSteps(OverSteps, nn.BatchNorm2d):
    """``nn.BatchNorm2d``: mean and variance are over time and batch."""

    def runs_once(self, input: Tensor) -> bool:  # noqa: A002 - as above
        return not self.training or input.shape[1] > 1  # torch refuses a single sample of one pixel


class MaxPool2dOverSteps(OverSteps, spikes.MaxPool2d):
    """``nn.MaxPool2d``."""


class AvgPool2dOverSteps(OverSteps, spikes.AvgPool2d):
    """``nn.AvgPool2d``."""


class AdaptiveAvgPool2dOverSteps(OverSteps, spikes.AdaptiveAvgPool2d):
    """``nn.AdaptiveAvgPool2d``."""


class AdaptiveMaxPool2dOverSteps(OverSteps, spikes.AdaptiveMaxPool2d):
    """``nn.AdaptiveMaxPool2d``."""


class UpsampleOverSteps(OverSteps, spikes.Upsample):
    """``nn.Upsample`` of images."""


class Dropout2dOverSteps(OverSteps, nn.Dropout2d):
    """``nn.Dropout2d``: a mask for each step."""

    def runs_once(self, input: Tensor) -> bool:  # noqa: A002 - as above
        return not self.training


class FlattenOverSteps(spikes.Flatten):
    """``nn.Flatten()``, which of images over time joins channels, height and width, not the batch."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - as above
        if is_fx_proxy(input) or input.ndim != 5 or (self.start_dim, self.end_dim) != (1, -1):
            return super().forward(input)
        joined = super().forward(register_view(input, input.flatten(0, 1)))
        return register_view(joined, joined.reshape(*input.shape[:2], *joined.shape[1:]))


OVER_STEPS: dict[type[nn.Module], Any] = {
    getattr(nn, kind.__name__.removesuffix("OverSteps")): kind
    for kind in (
        *(Conv2dOverSteps, BatchNorm2dOverSteps, MaxPool2dOverSteps, AvgPool2dOverSteps),
        *(AdaptiveAvgPool2dOverSteps, AdaptiveMaxPool2dOverSteps, UpsampleOverSteps, Dropout2dOverSteps),
        FlattenOverSteps,
    )
}
"""Which class a layer of ``torch.nn`` takes."""

_STEPS: ContextVar[int | None] = ContextVar("hibana.joined", default=None)
"""T, within the call of a network whose steps are joined; else None."""


@contextmanager
def joining(steps: int | None) -> Iterator[None]:
    """Within it, modules get `steps` steps joined with the batch; with None, steps are apart again."""
    token = _STEPS.set(steps)
    try:
        yield
    finally:
        _STEPS.reset(token)


def call_eagerly(forward: Any, inputs: Tensor) -> Any:
    """``forward(inputs)``, which ``torch.compile`` does not look into on the CPU.

    A graph would have dense products, and no bits of spikes: three times the time of the layers per spike.
    """
    if torch.compiler.is_compiling() and not torch.compiler.is_exporting() and inputs.is_cpu:
        return _uncompiled(forward, inputs)
    return forward(inputs)


_uncompiled = torch_internals.disable_dynamo(lambda forward, inputs: forward(inputs))


def may_be_joined(net: nn.Module, example: Tensor) -> bool:
    """Whether `net` may be a network of images: it has neurons, and otherwise no layer that takes time."""
    if isinstance(net, Stateful) or example.ndim < 4:
        return False
    over_time = [module for module in net.modules() if isinstance(module, Stateful)]
    within = {inner for module in over_time for inner in module.modules()}
    others = [module for module in net.modules() if module not in within]
    takes_time = any(
        role_of(module) == "recurrent"
        or (type(module).__module__.startswith("hibana.") and not role_of(module))
        for module in others
    )
    return bool(over_time) and not takes_time


class _Made(nn.Module):
    """Base of classes that are made at run time; a pickle names the mixin and the class they are made of."""

    _of: tuple[type, type]

    def __reduce_ex__(self, protocol: Any) -> Any:
        reduced: Any = super().__reduce_ex__(protocol)
        return (_new, type(self)._of, *reduced[2:])


def _new(mixin: type, kind: type) -> Any:
    made = joined_kind(mixin, kind)
    return made.__new__(made)


def joined_kind(mixin: Any, kind: Any) -> Any:
    """The class `kind`, of a network or of a layer over time, called with steps joined."""
    return _made_of(mixin, kind)


@cache
def _made_of(mixin: Any, kind: Any) -> Any:
    names = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "_of": (mixin, kind)}
    return type(kind.__name__, (mixin, kind), {**names, "__doc__": kind.__doc__})


class JoinedNetwork(_Made):
    """A network of images, called with ``[T, batch, channels, ...]``."""

    joined_dimensions: int
    """Number of dimensions of an input, time and batch included."""

    def forward(self, inputs: Tensor) -> Any:
        if inputs.ndim != self.joined_dimensions:
            raise ValueError(
                f"inputs must be [T, batch, ...] of {self.joined_dimensions} dimensions, as the example that "
                f"hibana.optimize was given, got shape {tuple(inputs.shape)}"
            )
        steps, batch = inputs.shape[:2]

        def split_steps(found: Any) -> Any:
            if not isinstance(found, Tensor):
                return found
            if found.ndim == 0 or found.shape[0] != steps * batch:
                raise ValueError(
                    f"net must return [T * batch, ...], {steps * batch} rows, for images of all steps, got "
                    f"shape {tuple(found.shape)}"
                )
            return register_view(found, found.reshape(steps, batch, *found.shape[1:]))

        with joining(steps):
            found = call_eagerly(super().forward, register_view(inputs, inputs.flatten(0, 1)))
        return tree_map(split_steps, found)


class EagerNetwork(_Made):
    """A network with a ``forward`` of its own, which ``torch.compile`` does not look into on the CPU."""

    def forward(self, *inputs: Any, **named: Any) -> Any:
        call: Any = super().forward
        first = next((x for x in (*inputs, *named.values()) if isinstance(x, Tensor)), None)
        if first is None:
            return call(*inputs, **named)
        return call_eagerly(lambda _: call(*inputs, **named), first)


class JoinedNeurons(_Made):
    """A layer over time, in a network whose steps are joined."""

    def __call__(self, inputs: Any, *rest: Any, **named: Any) -> Any:
        steps = _STEPS.get()
        if steps is None:
            return super().__call__(inputs, *rest, **named)
        if rest or named:
            raise TypeError(
                f"{type(self).__name__} must be called with its input alone in a network that "
                "hibana.optimize calls with time and batch joined: use hibana.run for states"
            )
        over_time = register_view(inputs, inputs.reshape(steps, -1, *inputs.shape[1:]))
        with joining(None):
            emitted = super().__call__(over_time)
        return register_view(emitted, emitted.flatten(0, 1))
