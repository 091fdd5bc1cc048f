"""The public name of :mod:`hibana.train.estimators`: both names are one module."""

import sys
from typing import TYPE_CHECKING

from hibana.cells.peer_aliases import suggest_attributes
from hibana.train import estimators

if TYPE_CHECKING:
    from hibana.train.estimators import *

sys.modules[__name__] = suggest_attributes(estimators, __name__)
