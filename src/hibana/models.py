"""The public name of :mod:`hibana.network.models`: both names are one module."""

import sys
from typing import TYPE_CHECKING

from hibana.cells.peer_aliases import suggest_attributes
from hibana.network import models

if TYPE_CHECKING:
    from hibana.network.models import *

sys.modules[__name__] = suggest_attributes(models, __name__)
