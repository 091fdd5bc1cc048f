"""The public name of :mod:`hibana.cells.surrogate`: both names are one module."""

import sys
from typing import TYPE_CHECKING

from hibana.cells import surrogate
from hibana.cells.peer_aliases import suggest_attributes

if TYPE_CHECKING:
    from hibana.cells.surrogate import *

sys.modules[__name__] = suggest_attributes(surrogate, __name__)
