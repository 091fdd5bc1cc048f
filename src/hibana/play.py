"""The public name of :mod:`hibana.cli.play`: both names are one module."""

import sys
from typing import TYPE_CHECKING

from hibana.cells.peer_aliases import suggest_attributes
from hibana.cli import play

if TYPE_CHECKING:
    from hibana.cli.play import *

sys.modules[__name__] = suggest_attributes(play, __name__)
