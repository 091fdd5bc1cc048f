"""What a layer is called within: a :func:`hibana.run`, a graph that is being traced, a transform of torch."""

from contextvars import ContextVar
from threading import Lock
from typing import Any

import torch
from torch import Tensor, fx, nn

from hibana.runtime import torch_internals

active = False
"""Whether any thread is within a run: a cheap check, and one that Dynamo can guard."""

_COUNTING = Lock()
_count = 0
_CURRENT: ContextVar[Any] = ContextVar("hibana.run", default=None)
"""One for each thread and task of asyncio."""

# looked up once: they are a tenth of a small call
_is_dynamo_compiling = torch.compiler.is_dynamo_compiling
_modes, _jit_trace = torch_internals.dispatch_mode_count, torch_internals.jit_trace
_transform = torch_internals.current_transform


def current() -> Any:
    """The run that this call is within, or None."""
    return _CURRENT.get()


class Within:
    """What this thread calls in the ``with`` block is within `run`, or, if that is None, within none.

    Each layer of a run enters one, so it is a class: a generator takes three times as long.
    """

    __slots__ = ("_run", "_token")

    def __init__(self, run: Any) -> None:
        self._run = run

    def __enter__(self) -> None:
        _counted(1)
        self._token = _CURRENT.set(self._run)

    def __exit__(self, *raised: object) -> None:
        _counted(-1)  # first: a block that is left in another context than it was entered in raises
        _CURRENT.reset(self._token)


def _counted(change: int) -> None:
    global _count, active
    with _COUNTING:
        _count += change
        active = _count > 0


def is_traced(inputs: Tensor) -> bool:
    """Whether a call on `inputs` is being written down rather than run."""
    return _is_dynamo_compiling() or type(inputs) not in (Tensor, nn.Parameter) or _modes() > 0


def is_watched(inputs: Tensor) -> bool:
    """Whether more than autograd sees a call on `inputs`: a trace, a transform, a forward derivative."""
    return (
        _is_dynamo_compiling()
        or (type(inputs) is not Tensor and type(inputs) is not nn.Parameter)
        or _modes() > 0
        or torch_internals.is_forward_mode()
        or _transform() is not None
        or _jit_trace() is not None
    )


def is_name(inputs: Any) -> bool:
    """Whether `inputs` only stand for a tensor, in a symbolic trace by ``torch.fx``."""
    return isinstance(inputs, fx.Proxy)


def as_leaf(module: nn.Module, inputs: Any, *rest: Any, **named: Any) -> Any:
    """The call of `module` on `inputs` that :func:`is_name`, as one node of the symbolic trace.

    ``torch.fx.symbolic_trace`` does so for modules of torch's own and goes into all others, where what a
    layer of hibana's does depends on what its input is.
    """
    path = inputs.tracer.path_of_module(module)
    return inputs.tracer.create_proxy("call_module", path, (inputs, *rest), named)
