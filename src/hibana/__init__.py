"""hibana (火花, spark): integrate-and-fire spiking networks for PyTorch.

Write one step; hibana runs it over time.

>>> import torch, hibana as hb
>>> net = torch.nn.Sequential(torch.nn.Linear(2, 8), hb.IF(), torch.nn.Linear(8, 3), hb.LI())
>>> potentials = net(torch.rand(25, 4, 2))  # [T, batch, ...]
>>> potentials.shape
torch.Size([25, 4, 3])

What needs an extra, or takes a while to load, is loaded when it is first touched: ``hb.plot``, ``hb.data``,
``hb.train``, ``hb.metrics``, ``hb.models``, ``hb.nir``, ``hb.neurobench``.
"""

import importlib
from typing import TYPE_CHECKING, Any

from hibana import convert, encode, events, extras, foreign, lengths, loss, surrogate
from hibana.blocks import Checkpointed, StepsDropout, ThresholdBatchNorm2d
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
from hibana.convert import from_ann
from hibana.delay import Delay, fix_delays, narrow_delays
from hibana.delayed_linear import DelayedLinear
from hibana.events import Conv2d, Linear
from hibana.fold import fold_batchnorm
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
    EachStep,
    Izhikevich,
    OverTime,
    Recurrent,
    RefractoryLIF,
    run,
)
from hibana.loop import SlowPathWarning, explain, record, unroll
from hibana.native.heap import keep_memory
from hibana.surrogate import Heaviside
from hibana.window import Window

if TYPE_CHECKING:
    from hibana import data as data
    from hibana import demo as demo
    from hibana import metrics as metrics
    from hibana import models as models
    from hibana import neurobench as neurobench
    from hibana import nir as nir
    from hibana import plot as plot
    from hibana import train as train
    from hibana.convert import quantize as quantize

__version__ = "0.1.0"

_LAZY = ("data", "demo", "metrics", "models", "neurobench", "nir", "plot", "train")

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
    "convert",
    "encode",
    "events",
    "explain",
    "fold_batchnorm",
    "loss",
    "from_ann",
    "keep_memory",
    "lengths",
    "log_uniform",
    "fix_delays",
    "narrow_delays",
    "quantize",
    "record",
    "run",
    "surrogate",
    "unroll",
]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_LAZY})


def __getattr__(name: str) -> Any:
    """A module of hibana, or a function that needs one, loaded now.

    Raises:
        AttributeError: if there is none of that name, or what it needs is not installed; it says which.
    """
    if name == "quantize":
        return convert.quantize
    if name not in _LAZY:
        hint = f"; its own is hibana.{foreign.MODULES[name]}" if name in foreign.MODULES else ""
        raise AttributeError(f"module 'hibana' has no attribute {name!r}{hint}")
    try:
        return importlib.import_module(f"hibana.{name}")
    except ModuleNotFoundError as error:
        said = extras.missing(error)
        if said is None:
            raise
        raise AttributeError(f"hibana.{name} {said}") from error
