"""Results of runs: ``result.json`` in a run's folder, and the list of the runs in a folder."""

import json
import math
from dataclasses import dataclass, fields
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from hibana.data import DATA_SETS
from hibana.runtime import files
from hibana.train import settings_file
from hibana.train.recipes import usual
from hibana.train.run_folder import LAST, RESULT, SETTINGS
from hibana.train.settings import Settings

if TYPE_CHECKING:
    from hibana.train.baseline import Linear
    from hibana.train.run import Outcome

__all__ = ["Facts", "Run", "list_runs", "read", "write"]


@dataclass(frozen=True)
class Facts:
    """Measurements of a network on test samples.

    Attributes:
        measure: ``accuracy``, or for a quantity ``explained``, the share of its variance.
        value: that measure.
        rates: spikes per neuron and step by layer.
        samples: number of samples; ``None`` if unknown.
        acs: additions per sample; ``None`` if not counted.
        macs: multiply-accumulates per sample; ``None`` if not counted.
    """

    measure: str
    value: float
    rates: dict[str, float]
    samples: int | None = None
    acs: float | None = None
    macs: float | None = None


class Run(NamedTuple):
    """A run as text: name of its folder, data, results, time, and settings that differ from the defaults."""

    name: str
    data: str
    result: str
    linear: str
    when: str
    settings: str


def write(folder: Path, outcome: "Outcome", linear: "Linear | None" = None) -> None:
    """Writes a run's outcome, and that of the linear model it is compared with."""
    content = {
        "measure": outcome.measure,
        "value": _number(outcome.accuracy),
        "error": outcome.error,
        "balanced": outcome.balanced,
        "recalls": {name: _number(value) for name, value in outcome.recalls.items()},
        "rates": outcome.rates,
        "linear": linear and {**linear._asdict(), "accuracy": _number(linear.accuracy)},
        "seconds": outcome.seconds,
    }
    files.write(folder / RESULT, json.dumps(content, indent=1, ensure_ascii=False).encode())


def read(folder: Path) -> Facts | None:
    """The result of the run in `folder`; ``None`` if it is missing or unreadable."""
    try:
        content = json.loads((folder / RESULT).read_bytes())
        rates = {str(name): float(rate) for name, rate in content["rates"].items()}
        return Facts(str(content["measure"]), float(content["value"]), rates)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def list_runs(folder: Path) -> list[Run]:
    """The runs in `folder`, the latest last; empty if there is no such folder."""
    paths = [each for each in folder.glob("*") if (each / SETTINGS).is_file()]
    return [_run(each) for each in sorted(paths, key=lambda path: (path / SETTINGS).stat().st_mtime)]


def _run(path: Path) -> Run:
    when = datetime.fromtimestamp((path / SETTINGS).stat().st_mtime).strftime("%Y-%m-%d %H:%M")
    try:
        content = settings_file.read(path / SETTINGS).content
    except ValueError as error:
        return Run(path.name, "", "", "", when, settings_file.line(error)[:60])
    options = {each.name: each.default for each in fields(Settings)}
    data_set, steps = DATA_SETS.get(str(content.get("data"))), content.get("steps")  # imports no user's class
    recipes = usual(content.get("kind"), data_set, steps if isinstance(steps, int) else 1)
    differing = [
        f"{name} {value}"
        for name, value in content.items()
        if name in options
        and name not in ("data", "kind", "steps", "coding")
        and all(value != recipe.get(name, options[name]) for recipe in recipes)
    ]
    result, linear = _shown(path)
    return Run(path.name, Path(str(content.get("data"))).name, result, linear, when, ", ".join(differing))


def _shown(path: Path) -> tuple[str, str]:
    """A run's result and that of the linear model, as text."""
    try:
        content = json.loads((path / RESULT).read_bytes())
        form = "R² {:.3f}" if content["measure"] == "explained" else "{:.1%}"
        values = content["value"], (content["linear"] or {}).get("accuracy")
        result, linear = ("" if value is None else form.format(float(value)) for value in values)
    except FileNotFoundError:
        return "not finished" if (path / LAST).exists() else "not begun", ""
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return "unreadable", ""
    return result, linear


def _number(value: float) -> float | None:
    """`value`, or ``None`` for NaN, which JSON has no word for."""
    return None if math.isnan(value) else value
