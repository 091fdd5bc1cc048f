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

from hibana.cells import adaptive, exact, integrate_and_fire, izhikevich, leaky, nonlinear, resonate
from hibana.cells.adaptive import *
from hibana.cells.base import Cell
from hibana.cells.exact import *
from hibana.cells.heaviside import spike
from hibana.cells.integrate_and_fire import *
from hibana.cells.izhikevich import *
from hibana.cells.leaky import *
from hibana.cells.nonlinear import *
from hibana.cells.ranges import AtLeast, Between
from hibana.cells.resonate import *
from hibana.cells.values import Learn as Learn
from hibana.cells.values import Reset as Reset
from hibana.cells.values import Value as Value
from hibana.cells.values import log_uniform

__all__ = ["AtLeast", "Between", "Cell", "log_uniform", "spike"]
__all__ += adaptive.__all__
__all__ += exact.__all__
__all__ += integrate_and_fire.__all__
__all__ += izhikevich.__all__
__all__ += leaky.__all__
__all__ += nonlinear.__all__
__all__ += resonate.__all__

for _name in __all__:
    # the same module name in messages and pickles, independent of the file
    globals()[_name].__module__ = __name__
