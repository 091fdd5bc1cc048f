"""The public name of :mod:`hibana.network.nir`: both names are one module."""

import sys
from typing import TYPE_CHECKING

from hibana.cells.peer_aliases import suggest_attributes
from hibana.network import nir

if TYPE_CHECKING:
    from hibana.network.nir import *

sys.modules[__name__] = suggest_attributes(nir, __name__)
