"""The public name of :mod:`hibana.nn.loss`: both names are one module."""

import sys
from typing import TYPE_CHECKING

from hibana.cells.peer_aliases import suggest_attributes
from hibana.nn import loss

if TYPE_CHECKING:
    from hibana.nn.loss import *

sys.modules[__name__] = suggest_attributes(loss, __name__)
