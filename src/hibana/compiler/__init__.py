"""A step of a cell as kernels over time. :mod:`hibana.compiler.call` is where a call comes in."""

from typing import Any

import torch

from hibana.compiler.backend import check_backend
from hibana.compiler.call import (
    State,
    record,
    run_cell,
    run_wrapped_cell,
    unroll,
    unroll_compiled,
    unroll_layer,
)
from hibana.compiler.checks import SlowPathWarning, check_batch
from hibana.compiler.explain import explain
from hibana.compiler.gradient_warning import NetworkWarning
from hibana.compiler.spiking import emits_spikes
from hibana.runtime import torch_internals

__all__ = [
    "NetworkWarning",
    "SlowPathWarning",
    "State",
    "check_backend",
    "check_batch",
    "emits_spikes",
    "run_cell",
    "run_wrapped_cell",
    "explain",
    "record",
    "unroll",
    "unroll_layer",
    "unroll_compiled",
]


class _Operators(torch_internals.OpNamespace):
    """``torch.ops.hibana``, whose operators are registered when one is first asked for.

    A program of ``torch.export`` is loaded wherever hibana is imported, and to register an operator takes
    twenty times as long as to import all of hibana.
    """

    __module__ = torch_internals.OpNamespace.__module__  # by which operators are pickled

    def __getattr__(self, name: str) -> Any:
        from hibana.compiler import operator  # noqa: F401 - its import registers them

        return super().__getattr__(name)


torch.ops.hibana = _Operators("hibana")  # type: ignore[attr-defined] # any name is one of a namespace
