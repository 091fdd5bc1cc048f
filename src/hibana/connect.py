"""The public name of :mod:`hibana.spikes.sparse.connect`: both names are one module."""

import sys
from typing import TYPE_CHECKING

from hibana.cells.peer_aliases import suggest_attributes
from hibana.spikes.sparse import connect

if TYPE_CHECKING:
    from hibana.spikes.sparse.connect import *

sys.modules[__name__] = suggest_attributes(connect, __name__)
