"""Output of commands: tables that fit a narrow screen, and lines for other programs."""

import csv
import io
import json
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

from hibana.data.user_data.table_files import number
from hibana.train.architecture import rocket_parameters
from hibana.train.recipes import OPTIONS_OF_FEW_ROWS, windows

if TYPE_CHECKING:
    from torch import Tensor

    from hibana.train import Answers, Linear, Outcome


MAX_LAYERS = 12
"""Spiking layers up to which each has its own row."""
FAR = 0.05
"""Difference in accuracy, or R², from which a network is far below a linear model."""


def print_result(outcome: "Outcome", linear: "Linear", rows: list[tuple[str, str]]) -> None:
    """Prints the result of a run and that of the linear model.

    Args:
        outcome: result of the run.
        linear: result of the linear model.
        rows: further rows of the table, each a title and a text.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    settings = outcome.settings
    table = Table(title=f"{settings.title}, seed {settings.seed}", show_header=False, title_justify="left")
    recalls = [recall for recall in outcome.recalls.values() if not math.isnan(recall)]
    if outcome.measure == "accuracy":
        table.add_row("test accuracy", Text(f"{outcome.accuracy:.1%}", "bold"))
        table.add_row(linear.name, f"{linear.accuracy:.1%}")
        if outcome.balanced is not None and abs(outcome.balanced - outcome.accuracy) > 0.005:
            table.add_row("balanced accuracy", f"{outcome.balanced:.1%}")
            if linear.balanced is not None:
                table.add_row(f"{linear.name}, balanced", f"{linear.balanced:.1%}")
        is_uneven = max(recalls, default=0) - min(recalls, default=0) > 0.05
        if settings.kind is not None and len(recalls) <= 20 and is_uneven:
            for name, recall in outcome.recalls.items():
                table.add_row(f"recall, {name}", "not tested" if math.isnan(recall) else f"{recall:.1%}")
    else:
        unit = _squared(outcome.quantity)
        table.add_row("mean squared error", Text(f"{outcome.error:.4g} {unit}", "bold"))
        table.add_row(linear.name, f"{linear.error:.4g} {unit}")
        table.add_row("variance explained", f"{outcome.explained:.1%}; {linear.name} {linear.explained:.1%}")
    for row in (*_rate_rows(outcome), *rows):
        table.add_row(*row)
    Console(markup=False).print(table)  # names may contain brackets
    if warning := _warning(outcome, linear):
        print(warning)


def _rate_rows(outcome: "Outcome") -> list[tuple[str, str]]:
    """Returns a row with the firing rate of each spiking layer; a single row for many layers."""
    rates, silent = outcome.rates, outcome.silent
    layers = {name: (rate, rate, silent[name]) for name, rate in rates.items()}
    if len(rates) > MAX_LAYERS:
        layers = {f"{len(rates)} layers": (min(rates.values()), max(rates.values()), sum(silent.values()))}
    rows = []
    for name, (least, most, silent_count) in layers.items():
        suffix = f"; {silent_count} never" if silent_count else ""
        rate_range = f"{least:.1%}" if least == most else f"{least:.1%} to {most:.1%}"
        rows.append((f"firing rate, {name}", f"{rate_range} of neurons per step{suffix}"))
    return rows


def _warning(outcome: "Outcome", linear: "Linear") -> str:
    """Returns advice if the linear model is far better than the network, else an empty text."""
    value, baseline = outcome.value, linear.value
    settings, few = outcome.settings, OPTIONS_OF_FEW_ROWS
    if settings.class_weights == "balanced" and None not in (outcome.balanced, linear.balanced):
        value, baseline = cast(float, outcome.balanced), cast(float, linear.balanced)
    if not baseline - value > FAR:
        return ""
    if rocket_parameters(settings.layers) is not None:  # a Rocket does not see the level of a series
        advice = f"try --layers {windows(64)}"
    else:
        names = [n for n in ("layers", "patience", "weight_decay") if getattr(settings, n) != few[n]]
        options = "".join(f" --{name.replace('_', '-')} {few[name]}" for name in names)
        advice = f"try{options}" if options else "more samples may help; with these, use the linear model"
    unit = " of the variance explained" if outcome.measure == "explained" else ""
    return f"The network is far below the {linear.name} ({value:.1%} beside {baseline:.1%}{unit}): {advice}."


def print_confusions(predicted: "Tensor", labels: "Tensor", names: tuple[str, ...]) -> None:
    """Prints for each class the number of samples, of correct predictions, and of each wrong prediction.

    Args:
        predicted: index of the predicted class of each sample, ``[N]``.
        labels: index of the correct class, ``[N]``.
        names: names of the classes.
    """
    from rich.console import Console
    from rich.table import Table

    table = Table(title="Test set", title_justify="left")
    for heading in ("class", "samples", "right", "taken for"):
        table.add_column(heading, justify="left" if heading == "taken for" else "right")
    for label, name in enumerate(names):
        in_class = predicted[labels == label]
        wrong = in_class[in_class != label].bincount(minlength=len(names)).tolist()
        mistakes = ", ".join(
            f"{other} ({count})" for other, count in zip(names, wrong, strict=False) if count
        )
        table.add_row(name, str(len(in_class)), str(int((in_class == label).sum())), mistakes)
    table.add_section()
    right = int((predicted == labels).sum())
    table.add_row("all", str(len(labels)), str(right), f"accuracy {right / len(labels):.1%}")
    Console(markup=False).print(table)


def format_answers(answers: "Answers", output_format: str) -> str:
    """Formats predictions as ``table``, ``csv`` or ``json``."""
    import torch

    rows = _rows(answers)
    if output_format == "json":
        return json.dumps(rows, indent=1, ensure_ascii=False) + "\n"
    if output_format == "csv":
        heading = ["sample", answers.label, *answers.classes]
        return "".join(map(csv_line, [heading, *(_cells(answers, row) for row in rows)]))
    width = max(len(row["sample"]) for row in rows)
    lines = [f"{row['sample']:<{width}}  {_prediction(answers, row)}" for row in rows]
    right = [row["right"] for row in rows if "right" in row]
    if right:
        lines.append(f"{sum(right)} of {len(right)} right, {sum(right) / len(right):.1%}")
    if answers.labels and not answers.classes:
        pairs = zip(answers.answers, map(number, answers.labels), strict=True)
        numbers = [pair for pair in pairs if math.isfinite(pair[1])]
        if numbers:
            predicted, labels = torch.tensor(numbers, dtype=torch.float64, device="cpu").T
            lines.append(regression_error(answers.label, predicted, labels))
    return "\n".join(lines) + "\n"


def regression_error(name: str, predicted: "Tensor", labels: "Tensor") -> str:
    """Returns a line with the error of predicted quantities.

    Args:
        name: name of the quantity.
        predicted: predictions in the quantity's unit, ``[N]``.
        labels: correct values in that unit, ``[N]``.
    """
    from hibana.nn.loss import r_squared

    error, explained = (predicted - labels).square().mean().item(), r_squared(predicted, labels)
    suffix = "" if math.isnan(explained) else f", {explained:.1%} of the variance explained"
    return f"{name}: {len(labels)} samples, mean squared error {error:.4g} {_squared(name)}{suffix}"


def _squared(quantity: str | None) -> str:
    """Returns the unit of a squared error as text."""
    return f"(in the unit of {quantity}, squared)"


def format_step(answers: "Answers", output_format: str) -> str:
    """Formats the prediction after one time step as one line of ``table``, ``csv`` or ``json``."""
    (row,) = _rows(answers, "step")
    row["step"] = int(row["step"])
    if output_format == "json":
        return json.dumps(row, ensure_ascii=False) + "\n"
    if output_format == "csv":
        return csv_line(_cells(answers, row))
    return f"{row['step']}  {_prediction(answers, row)}\n"


def csv_line(cells: Sequence[Any]) -> str:
    """Returns one line of a CSV file, with its newline."""
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerow(cells)
    return stream.getvalue()


def _rows(answers: "Answers", name_key: str = "sample") -> list[dict[str, Any]]:
    """Returns a dictionary per sample: its name under `name_key`, and the answer.

    With classes also their probabilities, and whether the answer is right where the true class is known.
    """
    rows = []
    for index, name in enumerate(answers.names):
        row: dict[str, Any] = {name_key: name, answers.label: answers.answers[index]}
        if answers.classes:
            scores = zip(answers.classes, answers.probabilities[index], strict=True)
            row["probabilities"] = {class_name: round(score, 6) for class_name, score in scores}
        if answers.labels is not None and answers.classes and answers.labels[index]:
            row["right"] = answers.labels[index] == answers.answers[index]
        rows.append(row)
    return rows


def _cells(answers: "Answers", row: dict[str, Any]) -> list[Any]:
    """Returns the values of a CSV line: name, prediction and probabilities."""
    return [next(iter(row.values())), row[answers.label], *row.get("probabilities", {}).values()]


def _prediction(answers: "Answers", row: dict[str, Any]) -> str:
    """Returns the prediction as text, with the three largest probabilities."""
    answer = row[answers.label]
    if not answers.classes:
        return f"{answer:.6g}"
    ranked = sorted(row["probabilities"].items(), key=lambda item: -item[1])[:3]
    return f"{answer}  " + "  ".join(f"{name} {score:.1%}" for name, score in ranked)
