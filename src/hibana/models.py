"""The public name of :mod:`hibana.nn.models`: both names are one module."""

import sys
from typing import TYPE_CHECKING

from hibana.cells.peer_aliases import suggest_attributes
from hibana.nn import models

if TYPE_CHECKING:
    from hibana.nn.models import *

sys.modules[__name__] = suggest_attributes(models, __name__)
