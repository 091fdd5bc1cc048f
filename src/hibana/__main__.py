"""``python -m hibana``: the command line of :mod:`hibana.cli`."""

import sys

from hibana.cli import main

if __name__ == "__main__":
    sys.exit(main())
