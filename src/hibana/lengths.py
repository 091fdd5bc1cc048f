"""The public name of :mod:`hibana.nn.lengths`: both names are one module."""

import sys
from typing import TYPE_CHECKING

from hibana.cells.peer_aliases import suggest_attributes
from hibana.nn import lengths

if TYPE_CHECKING:
    from hibana.nn.lengths import *

sys.modules[__name__] = suggest_attributes(lengths, __name__)
