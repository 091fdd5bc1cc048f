"""The compiler from a step of a cell to kernels over time. :mod:`hibana.compiler.call` handles each call."""

import warnings
from typing import Any

import torch

from hibana.compiler.analysis.binary import emits_spikes
from hibana.compiler.backend import check_backend
from hibana.compiler.call import (
    State,
    record,
    run_cell,
    unroll,
    unroll_compiled,
    unroll_layer,
)
from hibana.compiler.checks import SlowPathWarning, check_batch
from hibana.compiler.explain import explain
from hibana.compiler.gradient_warning import NetworkWarning
from hibana.runtime import torch_internals

__all__ = [
    "NetworkWarning",
    "SlowPathWarning",
    "State",
    "check_backend",
    "check_batch",
    "emits_spikes",
    "run_cell",
    "explain",
    "record",
    "unroll",
    "unroll_layer",
    "unroll_compiled",
]


_RENAMED = {
    "emitted": run_cell,
    "unrolled": unroll_layer,
    "unrolled_whole": unroll_compiled,
}
"""Functions by their deprecated names, for one release."""


def __getattr__(name: str) -> Any:
    """A function by its deprecated name."""
    if name not in _RENAMED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    function = _RENAMED[name]
    message = f"{__name__}.{name} is deprecated; use {__name__}.{function.__name__}"
    warnings.warn(message, DeprecationWarning, stacklevel=2)
    return function


class _Operators(torch_internals.OpNamespace):
    """``torch.ops.hibana``, which registers its operators when a program first uses one.

    A program of ``torch.export`` can be loaded wherever hibana is imported. Registering the operators takes
    twenty times as long as importing hibana.
    """

    __module__ = torch_internals.OpNamespace.__module__  # operators are pickled by it

    def __getattr__(self, name: str) -> Any:
        """The operator, or group of operators, `name`."""
        from hibana.compiler import operator  # noqa: F401 - registers the operators

        return super().__getattr__(name)


torch.ops.hibana = _Operators("hibana")  # type: ignore[attr-defined] # torch accepts any name
