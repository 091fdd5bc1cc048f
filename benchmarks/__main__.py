"""``python -m benchmarks``: makes an environment with pinned peers in it, and measures there.

Only the standard library is used here: the Python that starts this need not have torch.
"""

import os
import subprocess
import sys
from pathlib import Path

from benchmarks import environment

_CHECKOUT = Path(__file__).parents[1]


def main() -> int:
    """Runs :mod:`benchmarks.run` with the same arguments in the environment of the peers."""
    folder = Path(os.environ.get("HIBANA_BENCH_ENV", _CHECKOUT / ".bench-env"))
    python = environment.ready(folder)
    paths = [str(_CHECKOUT / "src"), str(_CHECKOUT), os.environ.get("PYTHONPATH", "")]
    search = os.pathsep.join(path for path in paths if path)
    variables = {**os.environ, "PYTHONPATH": search, "HIBANA_BENCH_ENV": str(folder)}
    return subprocess.run(
        [python, "-m", "benchmarks.run", *sys.argv[1:]], env=variables, check=False
    ).returncode


if __name__ == "__main__":
    sys.exit(main())
