"""The public name of :mod:`hibana.spikes`: both names are one module."""

import sys
from typing import TYPE_CHECKING

from hibana import spikes
from hibana.cells.peer_aliases import suggest_attributes

if TYPE_CHECKING:
    from hibana.spikes import *

sys.modules[__name__] = suggest_attributes(spikes, __name__)
