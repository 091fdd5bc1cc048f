"""What commands print: tables that fit a narrow screen, and lines for other programs."""

import csv
import io
import json
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

from hibana.train.recipes import OPTIONS_OF_FEW_ROWS

if TYPE_CHECKING:
    from torch import Tensor

    from hibana.train import Answers, Linear, Outcome

__all__ = ["confusions", "report", "formatted", "formatted_step", "step_heading"]

MOST_LAYERS = 12
"""Spiking layers that have a line each."""
FAR = 0.05
"""Accuracy, or R², by which a network is far below a linear model."""


def report(outcome: "Outcome", linear: "Linear", rows: list[tuple[str, str]], deviation: float) -> None:
    """Prints the result of a run beside that of a linear model.

    Args:
        outcome: result of the run.
        linear: the linear model.
        rows: further rows of the table.
        deviation: standard deviation of a quantity, for its units.
    """
    from rich.console import Console
    from rich.table import Table

    settings = outcome.settings
    table = Table(title=f"{settings.title}, seed {settings.seed}", show_header=False, title_justify="left")
    recalls = [each for each in outcome.recalls.values() if not math.isnan(each)]
    if outcome.measure == "accuracy":
        table.add_row("test accuracy", f"[bold]{outcome.accuracy:.1%}[/bold]")
        table.add_row(linear.name, f"{linear.accuracy:.1%}")
        if outcome.balanced is not None and abs(outcome.balanced - outcome.accuracy) > 0.005:
            table.add_row("balanced accuracy", f"{outcome.balanced:.1%}")
            if linear.balanced is not None:
                table.add_row(f"{linear.name}, balanced", f"{linear.balanced:.1%}")
        is_uneven = max(recalls, default=0) - min(recalls, default=0) > 0.05
        if settings.kind is not None and len(recalls) <= 20 and is_uneven:
            for name, recall in outcome.recalls.items():
                table.add_row(f"recall, {name}", "none tested" if math.isnan(recall) else f"{recall:.1%}")
    else:
        assert outcome.error is not None
        assert linear.error is not None
        table.add_row("mean squared error", f"[bold]{outcome.error * deviation**2:.4g}[/bold]")
        table.add_row(linear.name, f"{linear.error * deviation**2:.4g}")
        table.add_row("variance explained", f"{outcome.accuracy:.1%}; {linear.name} {linear.accuracy:.1%}")
    for row in (*_rates(outcome), *rows):
        table.add_row(*row)
    Console().print(table)
    if warning := _warning(outcome, linear):
        print(warning)


def _rates(outcome: "Outcome") -> list[tuple[str, str]]:
    """Rows with the firing rate of each spiking layer; a single row for many layers."""
    rates, silent = outcome.rates, outcome.silent
    layers = {name: (rate, rate, silent[name]) for name, rate in rates.items()}
    if len(rates) > MOST_LAYERS:
        layers = {f"{len(rates)} layers": (min(rates.values()), max(rates.values()), sum(silent.values()))}
    rows = []
    for name, (least, most, count) in layers.items():
        never = f"; {count} never" if count else ""
        between = f"{least:.1%}" if least == most else f"{least:.1%} to {most:.1%}"
        rows.append((f"firing rate, {name}", f"{between} of neurons per step{never}"))
    return rows


def _warning(outcome: "Outcome", linear: "Linear") -> str:
    """What to try if the linear model is far better; empty if it is not."""
    accuracy, baseline = outcome.accuracy, linear.accuracy
    settings, few = outcome.settings, OPTIONS_OF_FEW_ROWS
    if settings.class_weights == "balanced" and None not in (outcome.balanced, linear.balanced):
        accuracy, baseline = cast(float, outcome.balanced), cast(float, linear.balanced)
    if not baseline - accuracy > FAR:
        return ""
    names = ("layers", "patience", "weight_decay")
    others = [name for name in names if getattr(settings, name) != few[name]]
    options = " ".join(f"--{name.replace('_', '-')} {few[name]}" for name in others)
    remedy = f"try {options}" if options else "more samples may help; with these, use the linear model"
    return f"The network is far below the {linear.name} ({accuracy:.1%} beside {baseline:.1%}): {remedy}."


def confusions(answers: "Tensor", labels: "Tensor", names: tuple[str, ...]) -> None:
    """Prints the number of samples of each class, how many are right, and what the others are taken for."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="Test set", title_justify="left")
    for heading in ("class", "samples", "right", "taken for"):
        table.add_column(heading, justify="left" if heading == "taken for" else "right")
    for label, name in enumerate(names):
        of_class = answers[labels == label]
        wrong = of_class[of_class != label].bincount(minlength=len(names)).tolist()
        mistakes = ", ".join(
            f"{other} ({count})" for other, count in zip(names, wrong, strict=False) if count
        )
        table.add_row(name, str(len(of_class)), str(int((of_class == label).sum())), mistakes)
    table.add_section()
    right = int((answers == labels).sum())
    table.add_row("all", str(len(labels)), str(right), f"accuracy {right / len(labels):.1%}")
    Console().print(table)


def formatted(answers: "Answers", form: str) -> str:
    """Answers as a ``table``, as ``csv`` or as ``json``."""
    rows = _rows(answers)
    if form == "json":
        return json.dumps(rows, indent=1, ensure_ascii=False) + "\n"
    if form == "csv":
        heading = ["sample", answers.label, *answers.classes]
        return "".join(map(_csv_line, [heading, *(_cells(answers, row) for row in rows)]))
    width = max(len(row["sample"]) for row in rows)
    lines = [f"{row['sample']:<{width}}  {_answer(answers, row)}" for row in rows]
    right = [row["right"] for row in rows if "right" in row]
    if right:
        lines.append(f"{sum(right)} of {len(right)} right, {sum(right) / len(right):.1%}")
    if answers.labels and not answers.classes:
        lines += _errors(answers)
    return "\n".join(lines) + "\n"


def _errors(answers: "Answers") -> list[str]:
    """A line with the error of quantities; none if no sample has a number as its label."""
    import torch

    from hibana.nn.loss import r_squared

    pairs = [
        (answer, number)
        for answer, label in zip(answers.answers, answers.labels or (), strict=False)
        if math.isfinite(number := _number(label))
    ]
    if not pairs:
        return []
    answered, labels = torch.tensor(pairs, dtype=torch.float64, device="cpu").T
    error, explained = (answered - labels).square().mean().item(), r_squared(answered, labels)
    shown = "" if math.isnan(explained) else f", {explained:.1%} of the variance explained"
    return [f"{answers.label}: {len(labels)} samples, mean squared error {error:.4g}{shown}"]


def _number(label: str) -> float:
    try:
        return float(label)
    except ValueError:
        return math.nan


def formatted_step(answers: "Answers", form: str) -> str:
    """The answer at one step, on one line of a ``table``, of ``csv``, or of ``json``."""
    (row,) = _rows(answers, "step")
    row["step"] = int(row["step"])
    if form == "json":
        return json.dumps(row, ensure_ascii=False) + "\n"
    if form == "csv":
        return _csv_line(_cells(answers, row, "step"))
    return f"{row['step']}  {_answer(answers, row)}\n"


def step_heading(label: str, classes: Sequence[str]) -> str:
    """The first line of steps in the form ``csv``."""
    return _csv_line(["step", label, *classes])


def _csv_line(cells: Sequence[Any]) -> str:
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerow(cells)
    return stream.getvalue()


def _rows(answers: "Answers", of: str = "sample") -> list[dict[str, Any]]:
    rows = []
    for index, name in enumerate(answers.names):
        row: dict[str, Any] = {of: name, answers.label: answers.answers[index]}
        if answers.classes:
            scores = zip(answers.classes, answers.probabilities[index], strict=True)
            row["probabilities"] = {each: round(score, 6) for each, score in scores}
        if answers.labels is not None and answers.classes and answers.labels[index]:
            row["right"] = answers.labels[index] == answers.answers[index]
        rows.append(row)
    return rows


def _cells(answers: "Answers", row: dict[str, Any], of: str = "sample") -> list[Any]:
    return [row[of], row[answers.label], *row.get("probabilities", {}).values()]


def _answer(answers: "Answers", row: dict[str, Any]) -> str:
    answer = row[answers.label]
    if not answers.classes:
        return f"{answer:.6g}"
    ranked = sorted(row["probabilities"].items(), key=lambda each: -each[1])[:3]
    return f"{answer}  " + "  ".join(f"{name} {score:.1%}" for name, score in ranked)
