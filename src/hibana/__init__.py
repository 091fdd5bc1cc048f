"""hibana (火花, spark): integrate-and-fire spiking networks for PyTorch.

Write one step; hibana runs it over time.

>>> import torch, hibana as hb
>>> net = torch.nn.Sequential(torch.nn.Linear(2, 8), hb.IF(), torch.nn.Linear(8, 3), hb.LI())
>>> potentials = net(torch.rand(25, 4, 2))  # [T, batch, ...]
>>> potentials.shape
torch.Size([25, 4, 3])
"""

from hibana import encode, events, loss, surrogate
from hibana.cells import (
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
)
from hibana.convert import from_ann
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

__version__ = "0.1.0"

__all__ = [
    "ALIF",
    "ALIFCell",
    "Cell",
    "Conv2d",
    "CubaLIF",
    "CubaLIFCell",
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
    "encode",
    "events",
    "explain",
    "fold_batchnorm",
    "loss",
    "from_ann",
    "keep_memory",
    "record",
    "run",
    "surrogate",
    "unroll",
]
