"""What a run came to, kept in its folder as ``result.json``, and the list of the runs in a folder."""

import json
import math
from dataclasses import fields
from datetime import datetime
from pathlib import Path
from reprlib import repr as short_repr
from typing import TYPE_CHECKING, NamedTuple

from hibana.data import DATA_SETS
from hibana.runtime import files
from hibana.train import record
from hibana.train.folder import LAST, RESULT, SETTINGS
from hibana.train.recipes import usual
from hibana.train.settings import Settings

if TYPE_CHECKING:
    from hibana.train.baseline import Linear
    from hibana.train.run import Outcome

__all__ = ["Run", "found", "write"]


class Run(NamedTuple):
    """A run in words: its folder's name, data, result, a linear model's, time, settings not usual."""

    name: str
    data: str
    result: str
    linear: str
    when: str
    settings: str


def write(folder: Path, outcome: "Outcome", linear: "Linear | None" = None) -> None:
    """Keeps what a run came to, beside a linear model if one was fitted."""
    content = {
        "measure": outcome.measure,
        "value": _known(outcome.accuracy),
        "error": outcome.error,
        "balanced": outcome.balanced,
        "recalls": {name: _known(value) for name, value in outcome.recalls.items()},
        "rates": outcome.rates,
        "linear": linear and {**linear._asdict(), "accuracy": _known(linear.accuracy)},
        "seconds": outcome.seconds,
    }
    files.write(folder / RESULT, json.dumps(content, indent=1, ensure_ascii=False).encode())


def found(folder: Path) -> list[Run]:
    """The runs in `folder`, the latest last.

    Raises:
        ValueError: if there is no such folder.
    """
    if not folder.is_dir():
        return []
    paths = [each for each in folder.iterdir() if (each / SETTINGS).is_file()]
    return [_run(each) for each in sorted(paths, key=lambda path: (path / SETTINGS).stat().st_mtime)]


def _run(path: Path) -> Run:
    when = datetime.fromtimestamp((path / SETTINGS).stat().st_mtime).strftime("%Y-%m-%d %H:%M")
    try:
        content = record.read(path / SETTINGS).content
    except ValueError as error:
        return Run(path.name, "", "", "", when, record.line(error)[:60])
    known, steps = {each.name: each.default for each in fields(Settings)}, content.get("steps")
    made = DATA_SETS.get(str(content.get("data")))  # a class of the user's is not imported
    recipes = usual(content.get("kind"), made, steps if isinstance(steps, int) else 1)
    differing = [
        f"{name} {short_repr(value).strip(chr(39))}"
        for name, value in content.items()
        if name in known
        and name not in ("data", "kind", "steps", "coding")
        and all(value != each.get(name, known[name]) for each in recipes)
    ]
    result, linear = _result(path)
    return Run(path.name, Path(str(content.get("data"))).name, result, linear, when, ", ".join(differing))


def _result(path: Path) -> tuple[str, str]:
    """A run's result, and a linear model's if one was fitted."""
    try:
        said = json.loads((path / RESULT).read_bytes())
        explained, baseline = said["measure"] == "explained", said["linear"] or {}
        return _shown(explained, said["value"]), _shown(explained, baseline.get("accuracy"))
    except FileNotFoundError:
        return "not finished" if (path / LAST).exists() else "not begun", ""
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return "unreadable", ""


def _shown(explained: bool, value: float | None) -> str:
    if value is None:
        return ""
    return f"R² {float(value):.3f}" if explained else f"{float(value):.1%}"


def _known(value: float) -> float | None:
    """`value`, or nothing where it is NaN, which JSON has not."""
    return None if math.isnan(value) else value
