"""The public name of :mod:`hibana.nn.metrics`: both names are one module."""

import sys
from typing import TYPE_CHECKING

from hibana.cells.peer_aliases import suggest_attributes
from hibana.nn import metrics

if TYPE_CHECKING:
    from hibana.nn.metrics import *

sys.modules[__name__] = suggest_attributes(metrics, __name__)
