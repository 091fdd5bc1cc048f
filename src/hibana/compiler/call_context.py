"""The context of a layer's call: the current :func:`hibana.run`, traces by torch, and transforms of torch."""

from contextvars import ContextVar
from threading import Lock
from typing import Any

import torch
from torch import Tensor, fx, nn

from hibana.cells.surrogate import in_forward_mode
from hibana.runtime import torch_internals

run_active = False
"""Whether any thread is inside a :func:`hibana.run`: a cheap check that Dynamo can guard."""

_LOCK = Lock()
_run_count = 0
_CURRENT_RUN: ContextVar[Any] = ContextVar("hibana.run", default=None)
"""Each thread and each asyncio task has its own value."""

# Global lookups: attribute lookups would take a tenth of a small call.
_is_dynamo_compiling = torch.compiler.is_dynamo_compiling
_modes, _jit_trace = torch_internals.dispatch_mode_count, torch_internals.jit_trace


def current_run() -> Any:
    """The :func:`hibana.run` that this thread is inside, or None."""
    return _CURRENT_RUN.get()


class RunContext:
    """A context manager that makes `run` this thread's current run; None, within a run, means no run.

    Each layer of a run enters a context. A generator with ``contextmanager`` would take three times as long.
    """

    __slots__ = ("_run", "_token")

    def __init__(self, run: Any) -> None:
        """Stores `run`, a run or None."""
        self._run = run

    def __enter__(self) -> None:
        """Makes the run this thread's current run."""
        if self._run is not None:
            _count_run(1)
        self._token = _CURRENT_RUN.set(self._run)

    def __exit__(self, *exception: object) -> None:
        """Restores the run that was current before."""
        if self._run is not None:
            _count_run(-1)  # before `reset`, which raises if the block is left in another context
        _CURRENT_RUN.reset(self._token)


def _count_run(change: int) -> None:
    """Adds `change` to the number of active runs and updates :data:`run_active`."""
    global _run_count, run_active
    with _LOCK:
        _run_count += change
        run_active = _run_count > 0


def is_traced(inputs: Tensor) -> bool:
    """Whether torch records a call on `inputs` in a graph instead of computing it."""
    return _is_dynamo_compiling() or type(inputs) not in (Tensor, nn.Parameter) or _modes() > 0


def is_traced_or_transformed(inputs: Tensor) -> bool:
    """Whether a trace, a ``torch.func`` transform or a forward-mode derivative sees a call on `inputs`."""
    return is_traced(inputs) or in_forward_mode() or _jit_trace() is not None


def is_fx_proxy(inputs: Any) -> bool:
    """Whether `inputs` is the placeholder of a tensor in a symbolic trace by ``torch.fx``."""
    return isinstance(inputs, fx.Proxy)


def fx_leaf_call(module: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Any:
    """Records ``module(inputs, ...)`` as one node of the symbolic trace; `inputs` is an ``fx.Proxy``.

    ``torch.fx.symbolic_trace`` treats only modules of torch.nn as leaves. It would trace into hibana's
    layers, whose Python code depends on the values of their inputs.
    """
    path = inputs.tracer.path_of_module(module)
    return inputs.tracer.create_proxy("call_module", path, (inputs, *args), kwargs)
