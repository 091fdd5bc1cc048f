"""Classes that :func:`hibana.optimize` gives to layers and networks without time, so that they accept it.

A layer has the parameters, buffers, hooks and names of the layer of ``torch.nn`` that it replaces. It joins
an input ``[T, batch, channels, ...]`` to ``[T * batch, channels, ...]``; inputs without time are unchanged.
The number of dimensions tells which: a layer of images takes five with time, and one of sequences four.
``BatchNorm1d``, and ``Flatten`` without layers of images, also take ``[T, batch, features]``: there, three
dimensions always have time.

In a network whose ``forward`` uses axes of images (``torch.flatten(x, 1)``, ``torch.cat(..., 1)``,
``x.mean((2, 3))``), the entire network gets ``[T * batch, channels, ...]``, and each of its layers over time
gets ``[T, batch, channels, ...]``. Such classes are derived at run time from the class of the network or
layer; pickles contain the name of the original class.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from hibana import spikes
from hibana.compiler.call_context import fx_leaf_call, is_fx_proxy
from hibana.compiler.memory_layout import expand_over_time, first_step
from hibana.compiler.torch_layers import is_user_class, role_of
from hibana.nn.running import Stateful
from hibana.runtime import torch_internals
from hibana.runtime.torch_internals import tree_map
from hibana.spikes.checks import is_constant_over_time
from hibana.spikes.provenance import register_view

__all__ = ["OVER_STEPS", "BatchNorm2dOverSteps", "Conv2dOverSteps", "EagerNetwork", "FlattenOverSteps"]
__all__ += ["JoinedNetwork", "JoinedNeurons", "OverSteps", "call_eagerly", "call_over_steps", "joined_kind"]
__all__ += ["joining", "may_be_joined"]


class OverSteps(nn.Module):
    """The base class of layers without time that accept it: joins time and batch for the call."""

    with_time: ClassVar[tuple[int, ...]] = (5,)
    """Numbers of dimensions of inputs that have time."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch.nn's name for it
        """The output for ``[T, batch, ...]``, or without time as in torch.nn."""
        if is_fx_proxy(input):
            return cast(Tensor, fx_leaf_call(self, input))
        call: Any = super().forward  # the method of torch.nn's layer
        is_joined = self.with_time != (5,) and _STEPS.get() is not None
        if input.ndim not in self.with_time or is_joined:
            return cast(Tensor, call(input))
        return call_over_steps(call, self, input)


def call_over_steps(call: Callable[[Tensor], Tensor], module: nn.Module, inputs: Tensor) -> Tensor:
    """The outputs ``[T, batch, ...]`` of a module without time for `inputs`, ``[T, batch, ...]``.

    Inputs that are constant over time take one call for one step, if its outputs are those of all steps.

    Args:
        call: the function of `module` that is called with steps and batch joined.
        module: the module.
        inputs: the inputs.
    """
    steps, batch = inputs.shape[:2]
    if is_constant_over_time(inputs) and (not module.training or _may_run_once(module, batch)):
        return expand_over_time(call(first_step(inputs)), steps)
    outputs = call(register_view(inputs, inputs.flatten(0, 1)))
    return register_view(outputs, outputs.reshape(steps, batch, *outputs.shape[1:]))


def _may_run_once(module: nn.Module, batch: int) -> bool:
    """Whether `module`, in training, has the same outputs for a batch with and without copies of it.

    A batch normalization refuses a single sample, but accepts copies of it.
    """
    return all(
        not is_user_class(layer)
        and (role_of(layer) in _OF_ONE_SAMPLE or (role_of(layer) == "batch normalization" and batch > 1))
        for layer in module.modules()
    )


_OF_ONE_SAMPLE = ("linear", "convolution", "maximum", "average", "reshape", "sequence", "upsampling")
"""Roles of layers whose output for a sample depends on that sample alone, also in training."""


class Conv2dOverSteps(OverSteps, spikes.Conv2d):
    """``nn.Conv2d``."""


class BatchNorm2dOverSteps(OverSteps, nn.BatchNorm2d):
    """``nn.BatchNorm2d``, with mean and variance over time and batch."""


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
    """``nn.Dropout2d``, with a mask for each step."""


class FlattenOverSteps(OverSteps, spikes.Flatten):
    """``nn.Flatten()``, which joins channels, height and width of images over time, and keeps the batch."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - as above
        """``[T, batch, ...]`` as ``[T, batch, features]``; as torch.nn without time or with other axes."""
        is_default = (self.start_dim, self.end_dim) == (1, -1)
        return super().forward(input) if is_default else spikes.Flatten.forward(self, input)


class Conv1dOverSteps(OverSteps, spikes.Conv1d):
    """``nn.Conv1d``."""

    with_time = (4,)


class BatchNorm1dOverSteps(OverSteps, nn.BatchNorm1d):
    """``nn.BatchNorm1d`` of features or channels, with mean and variance over time, batch and length."""

    with_time = (3, 4)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - as above
        """The normalized ``[T, batch, features]`` or ``[T, batch, channels, length]``."""
        features, is_joined = self.num_features, _STEPS.get() is not None
        if isinstance(input, Tensor) and input.ndim == 3 and input.shape[2] != features and not is_joined:
            raise ValueError(
                f"after hibana.optimize, input of BatchNorm1d must be [T, batch, {features}] or "
                f"[T, batch, {features}, length], got shape {tuple(input.shape)}; if the network joins time "
                "and batch itself, give hibana.optimize an example"
            )
        return super().forward(input)


class MaxPool1dOverSteps(OverSteps, nn.MaxPool1d):
    """``nn.MaxPool1d``."""

    with_time = (4,)


class AvgPool1dOverSteps(OverSteps, nn.AvgPool1d):
    """``nn.AvgPool1d``."""

    with_time = (4,)


class AdaptiveAvgPool1dOverSteps(OverSteps, nn.AdaptiveAvgPool1d):
    """``nn.AdaptiveAvgPool1d``."""

    with_time = (4,)


class AdaptiveMaxPool1dOverSteps(OverSteps, nn.AdaptiveMaxPool1d):
    """``nn.AdaptiveMaxPool1d``."""

    with_time = (4,)


class Dropout1dOverSteps(OverSteps, nn.Dropout1d):
    """``nn.Dropout1d``, with a mask for each step."""

    with_time = (4,)


class SequenceUpsampleOverSteps(UpsampleOverSteps):
    """``nn.Upsample`` in a network without layers of images, where all inputs have time."""

    with_time = (4, 5)


class SequenceFlattenOverSteps(FlattenOverSteps):
    """``nn.Flatten()`` in a network without layers of images, where all inputs have time."""

    with_time = (3, 4, 5)


OVER_STEPS: dict[type[nn.Module], type[OverSteps]] = {
    getattr(nn, kind.__name__.removesuffix("OverSteps")): kind for kind in OverSteps.__subclasses__()
}
"""The replacement of each class of ``torch.nn``."""

FOR_SEQUENCES: dict[type[nn.Module], type[OverSteps]] = {
    nn.Upsample: SequenceUpsampleOverSteps,
    nn.Flatten: SequenceFlattenOverSteps,
}
"""Replacements that take four dimensions for sequences over time, instead of images without time."""

_STEPS: ContextVar[int | None] = ContextVar("hibana.joined", default=None)
"""T within the call of a network with joined steps; else None."""


@contextmanager
def joining(steps: int | None) -> Iterator[None]:
    """A context that gives modules `steps` steps joined with the batch, or separate steps for None."""
    token = _STEPS.set(steps)
    try:
        yield
    finally:
        _STEPS.reset(token)


def call_eagerly(forward: Any, inputs: Tensor) -> Any:
    """``forward(inputs)``, outside of graphs of ``torch.compile`` on the CPU.

    A graph would compute dense products instead of events, in three times the time.
    """
    if torch.compiler.is_compiling() and not torch.compiler.is_exporting() and inputs.is_cpu:
        return _uncompiled(forward, inputs)
    return forward(inputs)


_uncompiled = torch_internals.disable_dynamo(lambda forward, inputs: forward(inputs))


def may_be_joined(net: nn.Module, example: Tensor) -> bool:
    """Whether `net` may be a network of images: it has neurons, and no other layer whose input has time."""
    if isinstance(net, Stateful) or example.ndim < 3:
        return False
    over_time = [module for module in net.modules() if isinstance(module, Stateful)]
    in_neurons = {submodule for layer in over_time for submodule in layer.modules()}
    other_modules = [module for module in net.modules() if module not in in_neurons]
    others_take_time = any(
        role_of(module) == "recurrent"
        or (type(module).__module__.startswith("hibana.") and not role_of(module))
        for module in other_modules
    )
    return bool(over_time) and not others_take_time


class _Derived(nn.Module):
    """The base of classes that are derived at run time; a pickle contains the names of both bases."""

    _bases: tuple[type, type]

    def __reduce_ex__(self, protocol: Any) -> Any:
        """The pickled form: :func:`_new`, the two base classes, and the state of the module."""
        reduced: Any = super().__reduce_ex__(protocol)
        return (_new, type(self)._bases, *reduced[2:])


def _new(mixin: type, kind: type) -> Any:
    """An empty instance of the class derived from `mixin` and `kind`, for unpickling."""
    derived = joined_kind(mixin, kind)
    return derived.__new__(derived)


def joined_kind(mixin: Any, kind: Any) -> Any:
    """The subclass of `mixin` and of `kind`, the class of a network or of a layer over time."""
    return _derive(mixin, kind)


@cache
def _derive(mixin: Any, kind: Any) -> Any:
    """:func:`joined_kind`, which returns the same class for the same arguments."""
    names = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "_bases": (mixin, kind)}
    return type(kind.__name__, (mixin, kind), {**names, "__doc__": kind.__doc__})


class JoinedNetwork(_Derived):
    """A mixin of networks of images, which accepts ``[T, batch, channels, ...]``."""

    joined_dimensions: int
    """Number of dimensions of an input, time and batch included."""

    def forward(self, inputs: Tensor) -> Any:
        """The outputs ``[T, batch, ...]`` of the network of images, called with time and batch joined."""
        if inputs.ndim != self.joined_dimensions:
            raise ValueError(
                f"inputs must be [T, batch, ...] of {self.joined_dimensions} dimensions, as the example that "
                f"hibana.optimize was given, got shape {tuple(inputs.shape)}"
            )
        steps, batch = inputs.shape[:2]

        def split_steps(output: Any) -> Any:
            """An output ``[T * batch, ...]`` as ``[T, batch, ...]``."""
            if not isinstance(output, Tensor):
                return output
            if output.ndim == 0 or output.shape[0] != steps * batch:
                raise ValueError(
                    f"net must return [T * batch, ...], {steps * batch} rows, for images of all steps, got "
                    f"shape {tuple(output.shape)}"
                )
            return register_view(output, output.reshape(steps, batch, *output.shape[1:]))

        with joining(steps):
            outputs = call_eagerly(super().forward, register_view(inputs, inputs.flatten(0, 1)))
        return tree_map(split_steps, outputs)


class EagerNetwork(_Derived):
    """A mixin of networks that run outside of graphs of ``torch.compile`` on the CPU."""

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """The outputs of the network, computed outside of the graph of ``torch.compile``."""
        call: Any = super().forward
        first = next((x for x in (*inputs, *named.values()) if isinstance(x, Tensor)), None)
        if first is None:
            return call(*inputs, **named)
        return call_eagerly(lambda _: call(*inputs, **named), first)


class JoinedNeurons(_Derived):
    """A mixin of layers over time in a network with joined steps: separates time and batch."""

    def __call__(self, inputs: Any, *args: Any, **named: Any) -> Any:
        """The outputs ``[T * batch, ...]`` for joined inputs; as usual if steps are not joined."""
        steps = _STEPS.get()
        if steps is None:
            return super().__call__(inputs, *args, **named)
        if args or named:
            raise TypeError(
                f"{type(self).__name__} must be called with its input alone in a network that "
                "hibana.optimize calls with time and batch joined: use hibana.run for states"
            )
        over_time = register_view(inputs, inputs.reshape(steps, -1, *inputs.shape[1:]))
        with joining(None):
            outputs = super().__call__(over_time)
        return register_view(outputs, outputs.flatten(0, 1))
