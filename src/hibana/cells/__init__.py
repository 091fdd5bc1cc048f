"""One step of each neuron, in plain PyTorch.

A *cell* maps ``(input, *previous state)`` to the next state; **the last state is the layer's output**. The
package contains equations only, one file per family of neurons: no loop over time, no backward, no device. A
custom neuron is a subclass of :class:`Cell` with one method:

>>> from hibana.cells.surrogate import Step
>>> class Doubler(Cell):
...     def forward(self, input_, v_previous, s_previous):
...         v = 2.0 * v_previous * (1.0 - s_previous) + input_
...         return v, Step()(v - 1.0)
"""

from hibana.cells.adaptive import AdLIFCell, ALIFCell
from hibana.cells.base import Cell
from hibana.cells.exact import ExactLIFCell
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
    "ExactLIFCell",
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
    # the same module name in messages and pickles, independent of the file
    globals()[_name].__module__ = __name__
