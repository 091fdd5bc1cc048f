"""What a run came to, kept in its folder as ``result.json``, and the list of the runs in a folder."""

import json
import math
from dataclasses import asdict, fields
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from hibana.data import DATA_SETS
from hibana.train import durable, record
from hibana.train.folder import LAST, RESULT, SETTINGS
from hibana.train.settings import Settings, of_what
from hibana.train.usual import usual

if TYPE_CHECKING:
    from hibana.train.baseline import Linear
    from hibana.train.run import Outcome

__all__ = ["Run", "found", "write"]

MOST_BYTES = 1 << 16


class Run(NamedTuple):
    """A run in words: its folder's name, data, settings that are not the usual ones, result and time."""

    name: str
    data: str
    settings: str
    result: str
    when: str


def write(folder: Path, outcome: "Outcome", linear: "Linear") -> None:
    """Keeps what a run came to."""
    content = {
        "measure": outcome.measure,
        "value": outcome.accuracy,
        "balanced": outcome.balanced,
        "recalls": {name: None if math.isnan(value) else value for name, value in outcome.recalls.items()},
        "rates": outcome.rates,
        "linear": linear._asdict(),
        "seconds": outcome.seconds,
    }
    durable.replace(folder / RESULT, json.dumps(content, indent=1, ensure_ascii=False).encode())


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
        return Run(path.name, "", record.line(error)[:60], "", when)
    usual = {**asdict(Settings()), **_usual(content)}
    known = {each.name for each in fields(Settings)}
    differing = [
        f"{name} {record.shown(value).strip(chr(39))}"
        for name, value in content.items()
        if name in known and name not in ("data", "kind", "steps", "coding") and value != usual[name]
    ]
    return Run(path.name, Path(str(content.get("data"))).name, ", ".join(differing), _result(path), when)


def _usual(content: dict[str, Any]) -> dict[str, Any]:
    """What settings with this `content` are where nothing was said; a class of the user's is not loaded."""
    made, steps = DATA_SETS.get(str(content.get("data"))), content.get("steps")
    return usual(of_what(content.get("kind"), made), steps if isinstance(steps, int) else 1)


def _result(path: Path) -> str:
    try:
        with (path / RESULT).open("rb") as file:
            said = json.loads(file.read(MOST_BYTES))
        return f"{float(said['value']):.1%} {said['measure']}"[:40]
    except FileNotFoundError:
        return "not finished" if (path / LAST).exists() else "not begun"
    except (OSError, ValueError, KeyError, TypeError):
        return "unreadable"
