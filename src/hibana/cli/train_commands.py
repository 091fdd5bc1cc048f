"""Commands for runs: ``train``, and ``runs``, which lists them."""

import inspect
import re
import sys
import textwrap
import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import cyclopts
from cyclopts.validators import Number
from docstring_parser import parse

from hibana import keep_memory
from hibana.cli import tables
from hibana.cli.common import (
    Failure,
    Integer,
    Refusal,
    Trust,
    allow_local_imports,
    progress,
    refuse_errors,
)
from hibana.cli.options import check_options

with progress("loading PyTorch"):
    from hibana.train import Settings, read, results
    from hibana.train.architecture import rocket_parameters
    from hibana.train.checkpoint import RUNS
    from hibana.train.firing_rates import spiking_layers
    from hibana.train.run_folder import LAST, PICTURE, RunFolder, claim
    from hibana.train.settings import CHOICES, FILE_OPTIONS
    from hibana.train.threads import choose

if TYPE_CHECKING:
    from hibana.data import DataSet
    from hibana.train import Classifier, Outcome
    from hibana.train.run import Prepared


def _with_settings(command: Callable[..., None]) -> Callable[..., None]:
    """Returns `command` with a parameter for each field of ``Settings`` in place of ``**options``.

    The help texts are those of the docstring of ``Settings``, without its markup.
    """
    signature = inspect.signature(command)
    parameters = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    descriptions = {p.arg_name: p.description or "" for p in parse(Settings.__doc__ or "").params}
    training = cyclopts.Group("Settings", sort_key=1)
    files = cyclopts.Group("Your own data", sort_key=2)
    for field in fields(Settings):
        text = re.sub(r"(?::\w+:)?`+~?([^`]*)`+", r"\1", " ".join(descriptions[field.name].split()))
        choices = f" One of {', '.join(CHOICES[field.name])}." if field.name in CHOICES else ""
        group = files if field.name in FILE_OPTIONS else training
        default = None if "Default:" in text else field.default  # the default depends on the data
        kind: Any = Integer if field.type is int else field.type
        if default is None:
            kind = kind | None  # cyclopts checks defaults against types if pydantic is loaded
        annotation = Annotated[kind, cyclopts.Parameter(help=text + choices, group=group)]
        parameter = inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation
        )
        parameters.append(parameter)
    command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters} | {"return": None}
    return command


@_with_settings
def train(  # noqa: D417 - options are documented in Settings
    *,
    settings: Path | None = None,
    out: Path | None = None,
    resume: Path | None = None,
    overwrite: bool = False,
    false_alarms: str | None = None,
    threads: Annotated[Integer | None, cyclopts.Parameter(validator=Number(gte=1, lte=1024))] = None,
    trust: Trust = (),
    **options: Any,
) -> None:
    """Trains a spiking network and compares it with a linear model.

    Args:
        settings: read options from the settings.yaml of an earlier run; options of the command replace them.
        out: the folder of the run; by default hibana-runs/DATA-SEED.
        resume: continue the run in this folder, or of this checkpoint; with a larger --epochs it trains for
            longer than planned.
        overwrite: replace the run in the folder, if it contains one.
        false_alarms: with --task anomaly, alarms on normal data: per time, such as 1/week, or a share of the
            steps, such as 1/5000; by default 0.001.
        threads: number of processor threads; by default one for small networks.
        trust: MODULE:FUNCTION of yours that a file may name and that is then executed; may be repeated.
    """
    import torch

    if options.get("task") == "anomaly":
        from hibana.cli.anomalies import train_anomalies

        refused = {"settings": settings, "resume": resume, "threads": threads, "trust": trust or None}
        train_anomalies(options, refused, out, false_alarms, overwrite=overwrite)
        return
    allow_local_imports([options.get("layers"), options.get("data"), *trust])
    keep_memory()
    torch.set_flush_denormal(True)  # before torch's threads start, which inherit it
    with refuse_errors():
        if resume is not None and settings is not None:
            raise ValueError("--resume takes its settings from the checkpoint; leave out --settings")
        new: Settings | None = None
        if resume is not None:
            path = out or (resume if resume.is_dir() else resume.parent)
        else:
            new = read(settings, trust=trust, **options) if settings else Settings(**options)
            path = out or RUNS / f"{new.title}-{new.seed}"
        with progress("loading PyTorch Lightning"):
            from hibana.train.run import prepare
        with progress("reading the data"):
            prepared = prepare(new, path, resume=resume, trust=trust, **options)
        if new is not None:
            uses = {*_uses(prepared.settings, prepared.model), "--settings" if settings else ""}
            passed = {**dict.fromkeys(options, True), "trust": trust, "false_alarms": false_alarms}
            check_options("train", uses, f"on {prepared.settings.title}", passed)
        if (accelerator := prepared.settings.accelerator) not in ("cpu", "auto"):
            _check_accelerator(accelerator)
        folder = claim(prepared.folder, resume=prepared.resume, overwrite=overwrite)
    with folder:
        if folder.path != prepared.folder:
            print(
                f"{prepared.folder} holds another run, which is kept; this one is in {folder.path}",
                flush=True,
            )
        if summary := getattr(prepared.samples, "summary", ""):
            print(summary, flush=True)
        choose(prepared.model, threads)
        _complete(prepared, folder)


def _uses(settings: Settings, model: "Classifier") -> set[str]:
    """Returns what a training does, in phrases of :data:`hibana.cli.options.USES`."""
    spikes, is_rocket = bool(spiking_layers(model.net)), rocket_parameters(settings.layers) is not None
    uses = {
        "classification": not model.is_regression,
        "layers of --cell": spikes and not is_rocket,
        "layers described by words": not is_rocket and ":" not in settings.layers,
        "layers that spike": spikes,
        "--epochs above 0": settings.epochs > 0,
        "--rate-penalty above 0": settings.rate_penalty > 0,
    }
    return {settings.data_kind, f"--coding {settings.coding}", *(use for use in uses if uses[use])}


def _check_accelerator(name: str) -> None:
    """Raises a ValueError if Lightning does not know the accelerator, or this machine does not have it."""
    from lightning.pytorch.accelerators import AcceleratorRegistry

    names = ["cpu", "gpu", "auto", *AcceleratorRegistry]
    if name not in names:
        raise ValueError(f"accelerator must be one of {', '.join(dict.fromkeys(names))}; got {name!r}")
    if not AcceleratorRegistry["cuda" if name == "gpu" else name]["accelerator"].is_available():
        raise ValueError(f"accelerator must be one that this machine has, got {name}; use cpu")


def _complete(prepared: "Prepared", folder: RunFolder) -> None:
    """Trains the network, fits the linear model, draws the picture, and prints the result."""
    import torch

    from hibana.train import linear
    from hibana.train.run import complete

    start = time.perf_counter()
    last, samples = folder.path / LAST, prepared.samples
    try:
        model, outcome = complete(prepared, folder, progress=sys.stdout.isatty())
        if model.global_rank > 0:
            return
        with progress("fitting a linear model for comparison"):
            baseline = linear(model, samples)
        results.write(folder.path, outcome, baseline)
        with progress("drawing"):
            picture = folder.path / PICTURE
            _draw(model, outcome, samples, (baseline.name, baseline.value), picture)
    except SystemExit as interruption:  # Lightning raises it for Ctrl-C
        hint = f"; `hibana train --resume {last}` continues from the last epoch" if last.exists() else ""
        raise KeyboardInterrupt(hint) from interruption
    except (FloatingPointError, torch.distributed.DistError) as error:
        raise Failure(str(error)) from error
    except OSError as error:
        hint = f"; {last} is the checkpoint of the last complete epoch" if last.exists() else ""
        raise Failure(f"{folder.path} can't be written: {error.strerror or error}{hint}") from error
    rows = [("time", f"{time.perf_counter() - start:.1f} s, {outcome.seconds:.1f} s of them training")]
    rows += [("checkpoint", str(outcome.checkpoint)), ("picture", str(picture))]
    if outcome.logs is not None:
        rows.append(("TensorBoard", str(outcome.logs)))
    tables.print_result(outcome, baseline, rows)


def _draw(
    model: "Classifier", outcome: "Outcome", samples: "DataSet", baseline: tuple[str, float], path: Path
) -> None:
    """Draws the learning curves, and the network's activity for the first test sample, to `path`."""
    import torch

    from hibana import plot
    from hibana.cli.play.network import picture_of
    from hibana.data.user_data.table import TableInputs
    from hibana.train import activity

    inputs, label, *lengths = samples.test[0]
    inputs = inputs[: int(lengths[0])] if lengths else inputs
    with torch.inference_mode():
        outputs, spikes = activity(model.net, model.encode(inputs[None]))
        scores = model.objective.scores(outputs)
    description = model.description
    image: Any = picture_of(inputs, sequential=bool(samples.sequential))[0]
    if description is not None and isinstance(description.inputs, TableInputs):
        image = dict(zip(description.inputs.feature_names, inputs.tolist(), strict=True))
    history, names, potentials = outcome.history, samples.names, outputs[:, 0]
    shown, answer = float(label), float(scores.argmax())
    if description is not None and model.is_regression:  # all in the unit of the data
        names, target = (description.target.name,), description.target
        (shown,), (answer,) = target.decoded(label.view(1, 1)), target.decoded(scores)
        potentials = torch.tensor(target.decoded(potentials), dtype=torch.float64, device="cpu")[:, None]
        squares = target.deviation**2
        history = {
            name: [value * squares for value in values] if name.endswith("/loss") else values
            for name, values in history.items()
        }
    figure = plot.training(
        history,
        baseline,
        image,
        {name: layer[:, 0].flatten(1) for name, layer in spikes.items()},
        potentials,
        shown,
        names=names,
        measure=outcome.measure,
        answer=answer,
    )
    figure.savefig(path)


def runs(folder: Path = RUNS, /) -> None:
    """Lists the runs in a folder: data, result, result of a linear model, date, and non-default settings.

    Args:
        folder: the folder that contains the runs' folders.
    """
    if not folder.is_dir():
        raise Refusal(f"there is no folder {folder}; hibana train writes its runs to {RUNS}, or to --out")
    summaries = results.list_runs(folder)
    if not summaries:
        raise Refusal(f"folder must hold runs of hibana train, {folder} holds none")
    rows = [("run", *results.RunSummary._fields[1:-1]), *(summary[:-1] for summary in summaries)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row, settings in zip(rows, ["", *(summary.settings for summary in summaries)], strict=True):
        print("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())
        for line in textwrap.wrap(settings, 76, break_long_words=False, break_on_hyphens=False):
            print(f"    {line}")
