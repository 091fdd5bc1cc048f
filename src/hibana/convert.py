"""The public name of :mod:`hibana.network`: both names are one module."""

import sys
from typing import TYPE_CHECKING

from hibana import network
from hibana.cells.peer_aliases import suggest_attributes

if TYPE_CHECKING:
    from hibana.network import *

sys.modules[__name__] = suggest_attributes(network, __name__)
