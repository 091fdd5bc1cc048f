"""hibana (火花, spark): integrate-and-fire spiking networks for PyTorch.

Write one step; hibana runs it over time.

>>> import torch, hibana as hb
>>> net = torch.nn.Sequential(torch.nn.Linear(2, 8), hb.IF(), torch.nn.Linear(8, 3), hb.LI())
>>> potentials = net(torch.rand(25, 4, 2))  # [T, batch, ...]
>>> potentials.shape
torch.Size([25, 4, 3])

Beside cells, their layers and the loop, all is loaded when it is first touched.
"""

import importlib
import sys
from typing import TYPE_CHECKING, Any

from hibana import waiting as waiting  # first: it must be there before torch

__version__ = "0.1.0"

if waiting.is_command() and sys.argv[1:] == ["--version"]:  # all below takes seconds to load
    print(__version__)
    raise SystemExit

# isort: split
from hibana import extras, foreign, surrogate
from hibana.cells import (
    AdLIFCell,
    ALIFCell,
    Cell,
    CubaLIFCell,
    EIFCell,
    IFCell,
    IzhikevichCell,
    LICell,
    LIFCell,
    PLIFCell,
    QIFCell,
    RefractoryLIFCell,
    log_uniform,
)
from hibana.layers import (
    ALIF,
    EIF,
    IF,
    LI,
    LIF,
    PLIF,
    QIF,
    AdLIF,
    CubaLIF,
    Izhikevich,
    OverTime,
    Recurrent,
    RefractoryLIF,
    run,
)
from hibana.loop import NetworkWarning, SlowPathWarning, explain, outer, record, unroll
from hibana.surrogate import Heaviside

if TYPE_CHECKING:
    from torch import Tensor

    from hibana import convert as convert
    from hibana import data as data
    from hibana import demo as demo
    from hibana import encode as encode
    from hibana import events as events
    from hibana import lengths as lengths
    from hibana import loss as loss
    from hibana import metrics as metrics
    from hibana import models as models
    from hibana import neurobench as neurobench
    from hibana import nir as nir
    from hibana import plot as plot
    from hibana import train as train
    from hibana.blocks import Checkpointed, StepsDropout, ThresholdBatchNorm2d
    from hibana.checking import check
    from hibana.convert import from_ann, quantize
    from hibana.delay import Delay, fix_delays, narrow_delays
    from hibana.delayed_linear import DelayedLinear
    from hibana.delayed_recurrent import DelayedRecurrent
    from hibana.each_step import EachStep
    from hibana.events import Conv2d, Linear
    from hibana.fold import fold_batchnorm
    from hibana.native.heap import keep_memory
    from hibana.normalized import Normalized
    from hibana.window import Window

_LAZY = (
    *("convert", "data", "demo", "encode", "events", "lengths", "loss", "metrics", "models", "neurobench"),
    *("nir", "plot", "train"),
)
_MODULES = {
    "blocks": ("Checkpointed", "StepsDropout", "ThresholdBatchNorm2d"),
    "checking": ("check",),
    "convert": ("from_ann", "quantize"),
    "delay": ("Delay", "fix_delays", "narrow_delays"),
    "delayed_linear": ("DelayedLinear",),
    "delayed_recurrent": ("DelayedRecurrent",),
    "each_step": ("EachStep",),
    "events": ("Conv2d", "Linear"),
    "fold": ("fold_batchnorm",),
    "native.heap": ("keep_memory",),
    "normalized": ("Normalized",),
    "window": ("Window",),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}
"""Of each name that is loaded when it is first touched, the module that it is in."""

__all__ = [
    "ALIF",
    "ALIFCell",
    "AdLIF",
    "AdLIFCell",
    "Cell",
    "Checkpointed",
    "Conv2d",
    "CubaLIF",
    "CubaLIFCell",
    "Delay",
    "DelayedLinear",
    "DelayedRecurrent",
    "EIF",
    "EIFCell",
    "EachStep",
    "Heaviside",
    "IF",
    "IFCell",
    "Izhikevich",
    "IzhikevichCell",
    "LI",
    "LICell",
    "LIF",
    "LIFCell",
    "Linear",
    "NetworkWarning",
    "Normalized",
    "OverTime",
    "PLIF",
    "PLIFCell",
    "QIF",
    "QIFCell",
    "Recurrent",
    "RefractoryLIF",
    "RefractoryLIFCell",
    "SlowPathWarning",
    "StepsDropout",
    "ThresholdBatchNorm2d",
    "Window",
    "check",
    "convert",
    "encode",
    "events",
    "explain",
    "fix_delays",
    "fold_batchnorm",
    "from_ann",
    "keep_memory",
    "lengths",
    "log_uniform",
    "loss",
    "narrow_delays",
    "quantize",
    "record",
    "run",
    "surrogate",
    "unroll",
]


def _by_bits(rows: "Tensor", words: "Tensor") -> "Tensor":
    """``rows^T B``, as :mod:`hibana.events` has it, which is loaded at the first of them."""
    from hibana.events.linear import product

    return product.over_bits(rows, words)


outer.by_bits = _by_bits


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_LAZY})


def __getattr__(name: str) -> Any:
    """A module of hibana, or a function that needs one, loaded now.

    Raises:
        AttributeError: if there is none of that name, or what it needs is not installed; it says which.
    """
    if name in _MODULE_OF:
        found = getattr(importlib.import_module(f"hibana.{_MODULE_OF[name]}"), name)
        return globals().setdefault(name, found)
    if name not in _LAZY:
        own = f"its own is hibana.{foreign.MODULES[name]}" if name in foreign.MODULES else ""
        hint = f"; {own or foreign.METHODS[name]}" if own or name in foreign.METHODS else ""
        raise AttributeError(f"module 'hibana' has no attribute {name!r}{hint}")
    try:
        return importlib.import_module(f"hibana.{name}")
    except ModuleNotFoundError as error:
        said = extras.missing(error)
        if said is None:
            raise
        raise AttributeError(f"hibana.{name} {said}") from error
