"""The public name of :mod:`hibana.nn.encode`: both names are one module."""

import sys
from typing import TYPE_CHECKING

from hibana.cells.peer_aliases import suggest_attributes
from hibana.nn import encode

if TYPE_CHECKING:
    from hibana.nn.encode import *

sys.modules[__name__] = suggest_attributes(encode, __name__)
