"""The public name of :mod:`hibana.cli.demo`: both names are one module."""

import sys
from typing import TYPE_CHECKING

from hibana.cells.peer_aliases import suggest_attributes
from hibana.cli import demo

if TYPE_CHECKING:
    from hibana.cli.demo import *

sys.modules[__name__] = suggest_attributes(demo, __name__)
