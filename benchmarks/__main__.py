"""``python -m benchmarks``: creates an environment with pinned versions of the peers, and measures in it.

The peers are the other libraries that hibana is compared with. This module and :mod:`benchmarks.run` import
only the standard library at the top, because the Python that starts them may not have torch.
"""

import os
import subprocess
import sys
from pathlib import Path

from benchmarks import environment, run

_CHECKOUT = Path(__file__).parents[1]


def main() -> int:
    """Runs :mod:`benchmarks.run` with the same arguments in the peers' environment; returns its exit status.

    ``--help`` is printed without creating the environment.
    """
    if {"-h", "--help"} & set(sys.argv[1:]):
        return run.main()
    folder = Path(os.environ.get("HIBANA_BENCH_ENV", _CHECKOUT / ".bench-env"))
    python = environment.create(folder)
    paths = [str(_CHECKOUT / "src"), str(_CHECKOUT), os.environ.get("PYTHONPATH", "")]
    search = os.pathsep.join(path for path in paths if path)
    variables = {**os.environ, "PYTHONPATH": search, "HIBANA_BENCH_ENV": str(folder)}
    return subprocess.run(
        [python, "-m", "benchmarks.run", *sys.argv[1:]], env=variables, check=False
    ).returncode


if __name__ == "__main__":
    sys.exit(main())
