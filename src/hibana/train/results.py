"""Results of runs: ``result.json`` in a run's folder, and a summary of each run in a folder."""

import json
import math
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from hibana.data import DATA_SETS
from hibana.runtime import files
from hibana.train import checkpoint
from hibana.train.recipes import defaults, rocket
from hibana.train.run_folder import LAST, RESULT, SETTINGS
from hibana.train.settings import Settings


@dataclass(frozen=True)
class Measured:
    """Result of a model on the test set.

    Attributes:
        measure: ``accuracy``, or ``explained`` for regression.
        value: value of `measure`; NaN if it is not defined.
    """

    measure: str
    value: float

    @property
    def accuracy(self) -> float:
        """Fraction of test samples that are classified correctly; AttributeError for regression."""
        return self._value_of("accuracy")

    @property
    def explained(self) -> float:
        """Fraction of the variance explained (R², :func:`hibana.nn.loss.r_squared`); only for regression."""
        return self._value_of("explained")

    def _value_of(self, measure: str) -> float:
        """Returns `value` if it is that of `measure`, else raises an AttributeError."""
        if self.measure != measure:
            raise AttributeError(f"the result has no {measure}: its measure is {self.measure}")
        return self.value


@dataclass(frozen=True, kw_only=True)
class Outcome(Measured):
    """Result of a run.

    Attributes:
        measure: ``accuracy``, or ``explained`` for regression: the fraction of variance explained (R²).
        value: `measure` on the test set. It is also the attribute of this name, such as ``outcome.accuracy``.
        settings: the complete settings that the run used.
        checkpoint: checkpoint of the network that was tested.
        logs: folder for TensorBoard, if it is installed.
        rates: firing rate of each layer on the test set, in spikes per neuron and step.
        silent: number of neurons of each layer that never spiked on the test set.
        started: firing rate of each layer before training.
        seconds: duration of the training.
        history: value of each logged metric in each epoch: ``training/loss``, ``validation/loss``, `measure`
            of both, such as ``validation/accuracy``, and rates. The losses of a regression are squared errors
            divided by the variance of the training labels.
        recalls: for each class, the fraction of its test samples that are classified correctly.
        quantity: name of the quantity that a regression predicts.
        error: mean squared error of a regression, in the squared unit of the quantity.
    """

    settings: Settings = field(repr=False)
    checkpoint: Path
    logs: Path | None = field(repr=False)
    rates: dict[str, float] = field(repr=False)
    silent: dict[str, int] = field(repr=False)
    started: dict[str, float] = field(repr=False)
    seconds: float
    history: dict[str, list[float]] = field(repr=False)
    recalls: dict[str, float] = field(default_factory=dict, repr=False)
    quantity: str | None = None
    error: float | None = None

    @property
    def balanced(self) -> float | None:
        """Mean recall of the classes that have test samples."""
        recalls = [recall for recall in self.recalls.values() if not math.isnan(recall)]
        return sum(recalls) / len(recalls) if recalls else None


@dataclass(frozen=True)
class Linear(Measured):
    """Result of a linear model on the test set.

    Attributes:
        measure: ``accuracy``, or ``explained`` for regression: the fraction of variance explained (R²).
        value: value of `measure`; NaN if it is not defined.
        name: kind of the model.
        balanced: mean recall of the classes; ``None`` for regression.
        error: mean squared error of a regression, in the squared unit of the quantity.
    """

    name: str
    balanced: float | None = None
    error: float | None = None


class Measurements(NamedTuple):
    """Results of a network on the test part.

    Attributes:
        measure: ``accuracy``; for regression ``explained``, the fraction of variance explained.
        value: value of `measure`; ``None`` if it is not defined.
        rates: spikes per neuron and step by layer name.
        linear: value of `measure` for the linear model; ``None`` if it was not fitted.
    """

    measure: str
    value: float | None
    rates: dict[str, float]
    linear: float | None = None


class RunSummary(NamedTuple):
    """A run as text: folder name, data, result, result of the linear model, date, non-default settings."""

    name: str
    data: str
    result: str
    linear: str
    when: str
    settings: str


def write(folder: Path, outcome: Outcome, linear: Linear | None = None) -> None:
    """Writes the outcome of a run and the result of the `linear` model to ``result.json`` in `folder`.

    Errors are in the squared unit of the `quantity`, the label's column; both are ``null`` for classes.
    """
    content = {
        "measure": outcome.measure,
        "value": _without_nan(outcome.value),
        "quantity": outcome.quantity,
        "error": outcome.error,
        "balanced": outcome.balanced,
        "recalls": {name: _without_nan(value) for name, value in outcome.recalls.items()},
        "rates": outcome.rates,
        "linear": linear and {**asdict(linear), "value": _without_nan(linear.value)},
        "seconds": outcome.seconds,
    }
    files.write(folder / RESULT, json.dumps(content, indent=1, ensure_ascii=False).encode())


def _without_nan(value: float) -> float | None:
    """Returns `value`, or ``None`` for NaN, which JSON does not have."""
    return None if math.isnan(value) else value


def read(folder: Path) -> Measurements | None:
    """Returns the test result of the run in `folder`; ``None`` if it is missing or unreadable."""
    try:
        content = json.loads((folder / RESULT).read_bytes())
        linear = content["linear"] or {}  # null if no linear model was fitted
        return Measurements(
            measure=str(content["measure"]),
            value=_float_or_none(content["value"]),
            rates={str(name): float(rate) for name, rate in content.get("rates", {}).items()},
            # 0.2.0 wrote the linear model's value as its accuracy
            linear=_float_or_none(linear.get("value", linear.get("accuracy"))),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # a file that something else wrote
        return None


def _float_or_none(number: Any) -> float | None:
    """Returns `number` as a float; ``None`` for ``None``."""
    return None if number is None else float(number)


def list_runs(folder: Path) -> list[RunSummary]:
    """Returns a summary of each run in `folder`, oldest first."""
    times = {path.parent: path.stat().st_mtime for path in folder.glob(f"*/{SETTINGS}") if path.is_file()}
    return [_summary(path, times[path]) for path in sorted(times, key=lambda path: times[path])]


def _summary(path: Path, modified: float) -> RunSummary:
    """Returns the summary of the run in folder `path`; `modified` is its time in seconds since 1970."""
    date = datetime.fromtimestamp(modified).strftime("%Y-%m-%d %H:%M")
    try:
        content = checkpoint.read_settings(path / SETTINGS)
    except ValueError as error:
        return RunSummary(path.name, "", "", "", date, checkpoint.one_line(error)[:60])
    settings = ", ".join(f"{name} {value}" for name, value in _non_default(content).items())
    results = read(path)
    if results is None:
        progress = "not finished" if (path / LAST).exists() else "not begun"
        result, linear = "unreadable" if (path / RESULT).exists() else progress, ""
    else:
        form = "R² {:.3f}" if results.measure == "explained" else "{:.1%}"
        values = results.value, results.linear
        result, linear = ("" if value is None else form.format(value) for value in values)
    return RunSummary(path.name, Path(str(content.get("data"))).name, result, linear, date, settings)


def _non_default(content: dict[str, Any]) -> dict[str, Any]:
    """Returns the settings in `content` that differ from each default for that kind of data."""
    standard = {option.name: option.default for option in fields(Settings)}
    data_set, kind = DATA_SETS.get(str(content.get("data"))), content.get("kind")  # imports no user's class
    steps = content["steps"] if isinstance(content.get("steps"), int) else 1
    recipes = [defaults(kind, data_set, steps, rows=rows) for rows in (None, 1)]
    if kind in ("sequences", "sound"):
        recipes.append(rocket(steps))
    compared = standard.keys() & content.keys() - {"data", "kind", "steps", "coding"}
    return {
        name: value
        for name, value in content.items()
        if name in compared and all(value != recipe.get(name, standard[name]) for recipe in recipes)
    }
