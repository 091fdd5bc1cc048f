"""What commands print: tables that fit a narrow screen, and lines for other programs."""

import csv
import io
import json
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

from hibana.train.recipes import FewRows

if TYPE_CHECKING:
    from torch import Tensor

    from hibana.train import Answers, Linear, Outcome

__all__ = ["confusions", "report", "said", "said_step", "step_heading"]


def report(outcome: "Outcome", linear: "Linear", rows: list[tuple[str, str]], deviation: float) -> None:
    """Prints what came of a run, beside a linear model; `deviation` is that of a quantity, for its units."""
    from rich.console import Console
    from rich.table import Table

    settings = outcome.settings
    table = Table(title=f"{settings.title}, seed {settings.seed}", show_header=False, title_justify="left")
    if outcome.measure == "accuracy":
        table.add_row("test accuracy", f"[bold]{outcome.accuracy:.1%}[/bold]")
        table.add_row(linear.name, f"{linear.accuracy:.1%}")
        if outcome.balanced is not None and abs(outcome.balanced - outcome.accuracy) > 0.005:
            table.add_row("balanced accuracy", f"{outcome.balanced:.1%}")
            if linear.balanced is not None:
                table.add_row(f"{linear.name}, balanced", f"{linear.balanced:.1%}")
        if _is_uneven(outcome):
            for name, recall in outcome.recalls.items():
                table.add_row(f"recall, {name}", "none tested" if math.isnan(recall) else f"{recall:.1%}")
    else:
        assert outcome.error is not None
        assert linear.error is not None
        table.add_row("mean squared error", f"[bold]{outcome.error * deviation**2:.4g}[/bold]")
        table.add_row(linear.name, f"{linear.error * deviation**2:.4g}")
        table.add_row("variance explained", f"{outcome.accuracy:.1%}; {linear.name} {linear.accuracy:.1%}")
    for name, rates in _rates(outcome):
        table.add_row(f"firing rate, {name}", rates)
    for row in rows:
        table.add_row(*row)
    Console().print(table)
    if warning := _behind(outcome, linear):
        print(warning)


MOST_LAYERS = 12
"""Spiking layers that have a line each."""


def _rates(outcome: "Outcome") -> list[tuple[str, str]]:
    """What to say of each spiking layer's firing rate; of many layers together."""
    rates, silent = outcome.rates, outcome.silent
    each = {name: (rate, rate, silent[name]) for name, rate in rates.items()}
    if len(rates) > MOST_LAYERS:
        all_of_them = min(rates.values()), max(rates.values()), sum(silent.values())
        each = {f"{len(rates)} layers": all_of_them}
    found = []
    for name, (least, most, count) in each.items():
        never = f"; {count} never" if count else ""
        between = f"{least:.1%}" if least == most else f"{least:.1%} to {most:.1%}"
        found.append((name, f"{between} of neurons per step{never}"))
    return found


FAR = 0.05
"""Accuracy, or R², by which a network is far below a linear model."""


def _behind(outcome: "Outcome", linear: "Linear") -> str:
    """What to try where the linear model is far better; empty where it is not."""
    reached, baseline = outcome.accuracy, linear.accuracy
    settings = outcome.settings
    if settings.class_weights == "balanced" and None not in (outcome.balanced, linear.balanced):
        reached, baseline = cast(float, outcome.balanced), cast(float, linear.balanced)
    if not baseline - reached > FAR:
        return ""
    few = FewRows()
    names = ("layers", "patience", "weight_decay")
    others = [name for name in names if getattr(settings, name) != getattr(few, name)]
    said = " ".join(f"--{name.replace('_', '-')} {getattr(few, name)}" for name in others)
    remedy = f"try {said}" if said else "more samples may help; with these, use the linear model"
    return f"The network is far below the {linear.name} ({reached:.1%} beside {baseline:.1%}): {remedy}."


def _is_uneven(outcome: "Outcome") -> bool:
    """Whether the classes of data of one's own are learned to different degrees."""
    recalls = [each for each in outcome.recalls.values() if not math.isnan(each)]
    own = outcome.settings.kind is not None
    return own and len(recalls) <= 20 and max(recalls, default=0) - min(recalls, default=0) > 0.05


def confusions(answers: "Tensor", labels: "Tensor", names: tuple[str, ...]) -> None:
    """Prints, by class, how many samples there are, are right, and are taken for what."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="Test set", title_justify="left")
    for heading in ("class", "samples", "right", "taken for"):
        table.add_column(heading, justify="left" if heading == "taken for" else "right")
    for label, name in enumerate(names):
        given = answers[labels == label]
        wrong = given[given != label].bincount(minlength=len(names))
        mistakes = ", ".join(
            f"{names[other]} ({wrong[other]})" for other in wrong.nonzero().flatten().tolist()
        )
        table.add_row(name, str(len(given)), str(int((given == label).sum())), mistakes)
    table.add_section()
    right = int((answers == labels).sum())
    table.add_row("all", str(len(labels)), str(right), f"accuracy {right / len(labels):.1%}")
    Console().print(table)


def said(answers: "Answers", form: str) -> str:
    """Answers as a ``table``, as ``csv`` or as ``json``."""
    rows = _rows(answers)
    if form == "json":
        return json.dumps(rows, indent=1, ensure_ascii=False) + "\n"
    if form == "csv":
        stream = io.StringIO()
        flat = [{**row, **row.get("probabilities", {})} for row in rows]
        names = [name for name in flat[0] if name not in ("probabilities", "right")]
        writer = csv.DictWriter(stream, names, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(flat)
        return stream.getvalue()
    width = max(len(row["sample"]) for row in rows)
    lines = [f"{row['sample']:<{width}}  {_answer(answers, row)}" for row in rows]
    right = [row["right"] for row in rows if "right" in row]
    if right:
        lines.append(f"{sum(right)} of {len(right)} right, {sum(right) / len(right):.1%}")
    if answers.labels and not answers.classes:
        lines += _errors(answers)
    return "\n".join(lines) + "\n"


def _errors(answers: "Answers") -> list[str]:
    """The error of quantities, in a line, unless no sample has a number as its label."""
    import torch

    from hibana.nn.loss import r_squared

    numbers = [_number(label) for label in answers.labels or ()]
    labels = torch.tensor(numbers, dtype=torch.float64, device="cpu")
    finite = labels.isfinite()
    if not bool(finite.any()):
        return []
    answered = torch.tensor(answers.answers, dtype=torch.float64, device="cpu")[finite]
    labels = labels[finite]
    error = (answered - labels).square().mean().item()
    explained = r_squared(answered, labels)
    shown = "" if math.isnan(explained) else f", {explained:.1%} of the variance explained"
    return [f"{answers.label}: {len(labels)} samples, mean squared error {error:.4g}{shown}"]


def _number(label: str) -> float:
    try:
        return float(label)
    except ValueError:
        return math.nan


def said_step(answers: "Answers", form: str) -> str:
    """The answer at one step in a line: a ``table``'s, of ``csv``, or of ``json``; `answers` has the one."""
    (row,) = _rows(answers, "step")
    row["step"] = int(row["step"])
    if form == "json":
        return json.dumps(row, ensure_ascii=False) + "\n"
    if form == "csv":
        return _written([row["step"], row[answers.label], *row.get("probabilities", {}).values()])
    return f"{row['step']}  {_answer(answers, row)}\n"


def step_heading(label: str, classes: Sequence[str]) -> str:
    """The first line of steps in the form ``csv``."""
    return _written(["step", label, *classes])


def _written(cells: list[Any]) -> str:
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


def _answer(answers: "Answers", row: dict[str, Any]) -> str:
    answer = row[answers.label]
    if not answers.classes:
        return f"{answer:.6g}"
    ranked = sorted(row["probabilities"].items(), key=lambda each: -each[1])[:3]
    return f"{answer}  " + "  ".join(f"{name} {score:.1%}" for name, score in ranked)
