"""Keeps pytest from importing files that rename a module: it would bind the name to an empty module."""

from pathlib import Path

collect_ignore = [
    path
    for path in sorted(Path(__file__).parent.glob("src/hibana/*.py"))
    if "sys.modules[__name__] =" in path.read_text(encoding="utf-8")
]
