"""One step of each neuron, in plain PyTorch.

A *cell* maps ``(input, *previous state)`` to the next state; **the last state is what the layer
emits**. This module holds equations only, a file a family: nothing here loops over time, allocates a backward
or knows a device. A neuron of your own is a subclass of :class:`Cell` with one method:

>>> from hibana.cells.surrogate import Step
>>> class Doubler(Cell):
...     def forward(self, input_, v_previous, s_previous):
...         v = 2.0 * v_previous * (1.0 - s_previous) + input_
...         return v, Step()(v - 1.0)
"""

from hibana.cells.adaptive import AdLIFCell, ALIFCell
from hibana.cells.base import Cell
from hibana.cells.heaviside import spike
from hibana.cells.integrate_and_fire import IFCell
from hibana.cells.izhikevich import IzhikevichCell
from hibana.cells.leaky import CubaLIFCell, LICell, LIFCell, PLIFCell, RefractoryLIFCell
from hibana.cells.nonlinear import EIFCell, QIFCell
from hibana.cells.ranges import AtLeast, Between
from hibana.cells.resonate import ResonateAndFireCell, SiLIFCell
from hibana.cells.values import Learn, Reset, Value, log_uniform

__all__ = [
    "ALIFCell",
    "AdLIFCell",
    "AtLeast",
    "Between",
    "Cell",
    "CubaLIFCell",
    "EIFCell",
    "IFCell",
    "IzhikevichCell",
    "LICell",
    "LIFCell",
    "Learn",
    "PLIFCell",
    "QIFCell",
    "RefractoryLIFCell",
    "Reset",
    "ResonateAndFireCell",
    "SiLIFCell",
    "Value",
    "log_uniform",
    "spike",
]

for _name in set(__all__) - {"Learn", "Reset", "Value"}:
    # one address in messages and pickles, whichever file a neuron lies in
    globals()[_name].__module__ = __name__
