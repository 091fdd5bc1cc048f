"""A network of images called with time: its steps joined with the batch, and taken apart for its neurons.

``torch.flatten(x, 1)``, ``torch.cat(..., 1)`` or ``x.mean((2, 3))`` in a ``forward`` mean axes of images.
Such a network is called with ``[T * batch, channels, ...]``, and each of its layers over time with
``[T, batch, channels, ...]``. A class is made here for each class of a network or layer; pickles name the
latter.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_map

from hibana.compiler.graph.watch import hooked
from hibana.compiler.torch_layers import OF_IMAGES
from hibana.nn.deferred import Deferred
from hibana.nn.running import Stateful
from hibana.spikes.provenance import attach_view

__all__ = ["JoinedNetwork", "JoinedNeurons", "joined_kind", "joined_steps", "joining", "may_be_joined"]

_STEPS: ContextVar[int | None] = ContextVar("hibana.joined", default=None)


def joined_steps() -> int | None:
    """T, within the call of a network whose steps are joined; else None."""
    return _STEPS.get()


@contextmanager
def joining(steps: int | None) -> Iterator[None]:
    """Within it, modules get `steps` steps joined with the batch; with None, steps are apart again."""
    token = _STEPS.set(steps)
    try:
        yield
    finally:
        _STEPS.reset(token)


def may_be_joined(net: nn.Module, example: Tensor) -> bool:
    """Whether `net` may be a network of images: it has neurons, and otherwise no layer that takes time."""
    if isinstance(net, Stateful) or example.ndim < 4:
        return False
    over_time = [module for module in net.modules() if isinstance(module, Stateful)]
    within = {inner for module in over_time for inner in module.modules()}
    others = [module for module in net.modules() if module not in within]
    takes_time = any(
        isinstance(module, nn.RNNBase)
        or (type(module).__module__.startswith("hibana.") and not isinstance(module, _WITHOUT_TIME))
        for module in others
    )
    return bool(over_time) and not takes_time


_WITHOUT_TIME = (*OF_IMAGES, nn.modules.conv._ConvNd, nn.Linear, nn.Flatten, nn.Upsample)
"""Layers of hibana's that take no time axis, as torch's of the same names."""


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

        def apart(found: Any) -> Any:
            if not isinstance(found, Tensor):
                return found
            if found.ndim == 0 or found.shape[0] != steps * batch:
                raise ValueError(
                    f"net must return [T * batch, ...], {steps * batch} rows, for images of all steps, got "
                    f"shape {tuple(found.shape)}"
                )
            return attach_view(found.reshape(steps, batch, *found.shape[1:]))

        with joining(steps):
            found = super().forward(inputs.flatten(0, 1))
        return tree_map(apart, found)


class JoinedNeurons(_Made):
    """A layer over time, in a network whose steps are joined."""

    def __call__(self, inputs: Any, *rest: Any, **named: Any) -> Any:
        steps = joined_steps()
        if steps is None:
            return super().__call__(inputs, *rest, **named)
        if rest or named:
            raise TypeError(
                f"{type(self).__name__} must be called with its input alone in a network that "
                "hibana.optimize calls with time and batch joined: use hibana.run for states"
            )
        if type(inputs) is Deferred:
            emitted = None if hooked(self) else inputs.call.fuses.emitted(inputs.call, self)
            if emitted is not None:
                return emitted
            inputs = inputs.call.read()
        over_time = attach_view(inputs.reshape(steps, -1, *inputs.shape[1:]))
        with joining(None):
            emitted = super().__call__(over_time)
        return attach_view(emitted.flatten(0, 1))
