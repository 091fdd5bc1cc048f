"""Commands that train: ``train``, and ``runs``, which lists what was trained."""

import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hibana import keep_memory
from hibana.cli import tables
from hibana.cli.common import Failure, Integer, Refusal, doing, reachable, refusing, unwritable

with doing("loading PyTorch"):
    from hibana.cli.options import with_settings
    from hibana.train import Settings, elastic, read, results, resume_settings
    from hibana.train.architecture import check_trust
    from hibana.train.run_folder import LAST, PICTURE, SETTINGS, Folder, claim
    from hibana.train.threads import check as check_threads
    from hibana.train.threads import choose

if TYPE_CHECKING:
    from hibana.data import DataSet
    from hibana.train import Classifier, Outcome
    from hibana.train.run import Prepared

RUNS = Path("hibana-runs")


@with_settings
def train(  # noqa: D417 - the settings have docstrings of their own
    *,
    settings: Path | None = None,
    out: Path | None = None,
    resume: Path | None = None,
    overwrite: bool = False,
    threads: Integer | None = None,
    trust: tuple[str, ...] = (),
    **options: Any,
) -> None:
    """Trains a spiking network, and says how it did beside a linear model; `options` are the settings.

    Args:
        settings: a run's settings.yaml to start from; options change single settings of it.
        out: the folder where the run goes; hibana-runs/DATA-SEED if none is said.
        resume: a run's folder or checkpoint to go on from; with more --epochs, further than it was to go.
        overwrite: replace the run in that folder, if it holds one.
        threads: of the processor to compute with; as many as the work is worth if not said.
        trust: MODULE:FUNCTION of yours that a file may name, and that is then run; may be repeated.
    """
    import torch

    reachable([options.get("layers"), options.get("data"), *trust])
    keep_memory()
    torch.set_flush_denormal(True)  # before torch's threads begin: they take it over
    with refusing():
        if threads is not None:
            check_threads(threads)
        check_trust(None, trust, "the command")
        chosen, checkpoint = _chosen(settings, resume, trust, options)
        where = out or RUNS / f"{chosen.title}-{chosen.seed}"
        if resume is not None and out is None:
            where = resume if resume.is_dir() else resume.parent
        if resume is None and (written := elastic.before_restart(where, SETTINGS)) is not None:
            chosen, checkpoint = resume_settings(written, trust=trust)
            where = resume = written
        with doing("loading PyTorch Lightning"):
            from hibana.train.run import prepare
        with doing(f"reading {chosen.title}"):
            prepared = prepare(chosen, resume=checkpoint)
        if chosen.accelerator not in ("cpu", "auto"):
            _check_accelerator(chosen.accelerator)
    with _claimed(where, resume, overwrite) as folder:
        if folder.path != where:
            print(f"{where} holds another run, which stays; this one goes to {folder.path}", flush=True)
        if summary := getattr(prepared.samples, "summary", ""):
            print(summary, flush=True)
        choose(prepared.model, threads)
        _complete(prepared, folder)


def _chosen(
    file: Path | None, resume: Path | None, trust: tuple[str, ...], options: dict[str, Any]
) -> tuple[Settings, Path | None]:
    """Settings of the run, and the checkpoint that it is resumed from."""
    if resume is None:
        return read(file, trust=trust, **options) if file else Settings(**options), None
    if file is not None:
        raise ValueError("--resume takes its settings from the checkpoint; leave out --settings")
    return resume_settings(resume, trust=trust, **options)


def _check_accelerator(name: str) -> None:
    from lightning.pytorch.accelerators import AcceleratorRegistry

    names = ["auto", *AcceleratorRegistry]
    if name != "gpu" and name not in names:
        raise ValueError(f"accelerator must be one of cpu, gpu, {', '.join(names)}; got {name!r}")
    if not AcceleratorRegistry["cuda" if name == "gpu" else name]["accelerator"].is_available():
        raise ValueError(
            f"accelerator must be one that this machine has, it has no {name}; cpu is always there"
        )


def _claimed(out: Path, resume: Path | None, overwrite: bool) -> Folder:
    """The folder of the training, locked."""
    with refusing():
        try:
            return claim(out, resume=resume, overwrite=overwrite)
        except OSError as error:
            raise unwritable(out, error) from error


@contextmanager
def _writers_quiet() -> Iterator[None]:
    """TensorBoard's thread hands on what it can't write to the thread that trains, which says it once."""
    before = threading.excepthook

    def hook(failed: threading.ExceptHookArgs) -> None:
        if not isinstance(failed.exc_value, OSError):
            before(failed)

    threading.excepthook = hook
    try:
        yield
    finally:
        threading.excepthook = before


def _complete(prepared: "Prepared", folder: Folder) -> None:
    """Trains, compares with a linear model, draws, and prints the result."""
    from hibana.train import linear
    from hibana.train.run import complete

    start = time.perf_counter()
    last, samples = folder.path / LAST, prepared.samples
    try:
        with _writers_quiet():
            model, outcome = complete(prepared, folder, progress=sys.stdout.isatty())
        if model.global_rank > 0:
            return
        with doing("fitting a linear model to compare with"):
            baseline = linear(model, samples)
        results.write(folder.path, outcome, baseline)
        with doing("drawing"):
            picture = folder.path / PICTURE
            _draw(model, outcome, samples, (baseline.name, baseline.accuracy), picture)
    except SystemExit as stopped:  # what Lightning makes of Ctrl-C
        hint = f"; `hibana train --resume {last}` goes on from the last whole epoch" if last.exists() else ""
        raise KeyboardInterrupt(hint) from stopped
    except (FloatingPointError, elastic.NotJoinedError) as error:
        raise Failure(str(error)) from error
    except OSError as error:
        held = f"; {last} is the last whole epoch" if last.exists() else ""
        raise Failure(f"{folder.path} can't be written: {error.strerror or error}{held}") from error
    rows = [("time", f"{time.perf_counter() - start:.1f} s, {outcome.seconds:.1f} s of them training")]
    rows += [("checkpoint", str(outcome.checkpoint)), ("picture", str(picture))]
    if outcome.logs is not None:
        rows.append(("TensorBoard", str(outcome.logs)))
    deviation = 1.0 if model.description is None else model.description.target.deviation
    tables.report(outcome, baseline, rows, deviation)


def _draw(
    model: "Classifier", outcome: "Outcome", samples: "DataSet", baseline: tuple[str, float], path: Path
) -> None:
    """Draws a training, with the first test sample on its way through the network."""
    import torch

    from hibana import plot
    from hibana.train import activity

    shown, label, *lengths = samples.test[0]
    shown = shown[: int(lengths[0])] if lengths else shown
    with torch.inference_mode():
        outputs, spikes = activity(model.net, model.encode(shown[None]))
    row = shown.reshape(1, -1) if shown.ndim == 1 else shown.reshape(-1, *shown.shape[-2:]).mean(0)
    figure = plot.training(
        outcome.history,
        baseline,
        shown.T if shown.ndim == 2 and samples.sequential else row,
        {name: layer[:, 0].flatten(1) for name, layer in spikes.items()},
        outputs[:, 0],
        float(label) if model.is_regression else int(label),
        names=samples.names or ("answer",),
        measure=outcome.measure,
    )
    figure.savefig(path)


def runs(folder: Path = RUNS, /) -> None:
    """Lists the runs in a folder: data, result, a linear model's, when, settings that are not the usual ones.

    Args:
        folder: where the runs' folders are.
    """
    if not folder.is_dir():
        raise Refusal(f"there is no folder {folder}; hibana train writes its runs to {RUNS}, or to --out")
    listed = results.list_runs(folder)
    if not listed:
        raise Refusal(f"folder must hold runs of hibana train, {folder} holds none")
    rows = [("run", *results.Run._fields[1:-1]), *(run[:-1] for run in listed)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row, settings in zip(rows, ["", *(run.settings for run in listed)], strict=True):
        print("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())
        for line in textwrap.wrap(settings, 76, break_long_words=False, break_on_hyphens=False):
            print(f"    {line}")
