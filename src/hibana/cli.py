"""The command line: ``hibana COMMAND``.

A command is one function with the decorator :func:`command`: its name is the command's, the first line of
its docstring the help, its argument the parsed options. This module parses, calls and prints; it computes
nothing, and imports what is heavy inside the commands.
"""

import argparse
import importlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any, NamedTuple

from hibana import __version__, extras, keep_memory

if TYPE_CHECKING:
    from torch import Tensor

    from hibana.cells import Cell
    from hibana.data import DataSet
    from hibana.train import Classifier, Outcome, Settings
    from hibana.train.folder import Folder

__all__ = ["Failure", "Refusal", "command", "main", "option"]


class Refusal(Exception):  # noqa: N818 - not an error of the program: something it won't do
    """What a command won't do, in a sentence for the person who asked."""


class Failure(Exception):  # noqa: N818 - beside Refusal
    """Why a command that had begun could not finish, in a sentence."""


class _Option(NamedTuple):
    names: tuple[str, ...]
    settings: dict[str, Any]


class _Command(NamedTuple):
    run: Callable[[argparse.Namespace], None]
    options: tuple[_Option, ...]


_COMMANDS: dict[str, _Command] = {}


def option(*names: str, **settings: Any) -> _Option:
    """An option or argument of a command, in the words of ``ArgumentParser.add_argument``."""
    return _Option(names, settings)


def command(*options: _Option) -> Callable[[Callable[[argparse.Namespace], None]], Any]:
    """Makes the function below a command of its name, with `options`."""

    def register(run: Callable[[argparse.Namespace], None]) -> Callable[[argparse.Namespace], None]:
        _COMMANDS[run.__name__] = _Command(run, options)
        return run

    return register


_TRUST = option(
    "--trust",
    action="append",
    default=[],
    metavar="MODULE:FUNCTION",
    help="a function of yours that the file may name as its layers, and that is then run; may be repeated",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status.

    That is 0; 1 where it could not finish, 2 where it refused to begin, 130 where it was interrupted.
    """
    parsed = _parser().parse_args(arguments)
    try:
        _COMMANDS[parsed.command].run(parsed)
    except Refusal as refusal:
        print(f"hibana {parsed.command}: {refusal}", file=sys.stderr)
        return 2
    except Failure as failure:
        print(f"hibana {parsed.command}: {failure}", file=sys.stderr)
        return 1
    except ModuleNotFoundError as error:
        said = extras.missing(error)
        if said is None:
            raise
        print(f"hibana {parsed.command}: {said}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interruption:
        print(f"hibana {parsed.command}: interrupted{interruption}", file=sys.stderr)
        return 130
    return 0


@command(
    option("--out", type=Path, default=Path("hibana-demo"), metavar="FOLDER", help="where pictures go"),
    option("--seed", type=int, default=0, help="of the input of demo 2 (default: 0)"),
)
def demo(arguments: argparse.Namespace) -> None:
    """The article's two demos, printed and drawn."""
    folder = _writable(arguments.out)
    with _refusing():
        _check_seed(arguments.seed)

    import torch

    from hibana import demo, plot
    from hibana import surrogate as surrogates

    torch.manual_seed(arguments.seed)
    print("Demo 1: forty neurons at one moment\n")
    now = demo.one_step()
    one = plot.current_step(now.potentials, now.spikes, now.gradient, now.threshold)

    print("\nDemo 2: one neuron over time\n")
    then = demo.over_time(timesteps=100)
    times = then.spikes.nonzero().flatten().tolist()
    print(f"{len(then.spikes)} steps, {len(times)} spikes, at {', '.join(map(str, times))}")
    two = plot.membrane(then.potentials, then.spikes, then.threshold)
    two.set_title("Simulation of IF model")

    step = plot.surrogate(surrogates.Step(), torch.linspace(-1, 1, 401, dtype=torch.float32, device="cpu"))
    print("\nPictures")
    for axes, name in ((step[0], "heaviside"), (one[0], "demo1"), (two, "demo2")):
        print(f"  {_saved(axes.figure, folder / f'{name}.png')}")


@command(
    option("--data", help="data set (default: digits)"),
    option("--root", metavar="FOLDER", help="where its files are, if it needs any"),
    option("--download", action="store_const", const=True, help="fetch them there if they are not"),
    option(
        "--layers",
        metavar="LAYERS",
        help="512,512: linear; 128r: recurrent; 32c3-p2-64c3s2b: convolution, pooling, stride, batch "
        "normalisation; module:function: yours",
    ),
    option("--cell", help="hidden neurons: IF (default), LIF, PLIF, CubaLIF, ALIF, RefractoryLIF"),
    option("--tau", type=float, help="their time constant in steps"),
    option("--threshold", type=float, help="their threshold (default: 1)"),
    option("--surrogate", help="what to call the derivative of the step (default: Step, the article's)"),
    option(
        "--attached-reset",
        dest="detach_reset",
        action="store_const",
        const=False,
        help="let the gradient flow through the reset",
    ),
    option("--readout-tau", type=float, help="time constant of the readout in steps (default: inf)"),
    option("--steps", type=int, metavar="T", help="time steps for which an input is shown"),
    option("--coding", help="constant (default), poisson, latency, population; of sequences: delta, none"),
    option("--delta-threshold", type=float, help="of delta coding, in units of the signal"),
    option("--loss", help="membrane-mean (default), membrane-max, rate, count, first-spike, tet"),
    option("--smoothing", type=float, help="of the labels, in [0, 1) (default: 0)"),
    option("--augment", help="none, flip, shift, flip-shift (default: what the data set bears)"),
    option("--epochs", type=int, help="passes over the training set"),
    option("--patience", type=int, help="epochs without improvement after which to stop (default: never)"),
    option("--batch-size", type=int, help="samples in a batch, over all processes together"),
    option("--learning-rate", type=float, help="peak of the one-cycle schedule"),
    option("--weight-decay", type=float, help="of AdamW"),
    option("--clip", type=float, help="the largest norm of a gradient"),
    option("--start-rate", type=float, help="spikes per neuron and step that layers start at"),
    option("--rate-target", type=float, help="spikes per neuron and step above which a layer is penalised"),
    option("--rate-penalty", type=float, help="weight of that penalty"),
    option("--least-rate", type=float, help="spikes per neuron and step below which a neuron is silent"),
    option("--silence-penalty", type=float, help="weight of the penalty on that"),
    option("--seed", type=int, help="of everything random (default: 0)"),
    option("--devices", type=int, help="processes to share the work, per machine (default: 1)"),
    option("--nodes", type=int, help="machines, each started with torchrun (default: 1)"),
    option("--accelerator", help="cpu (default), gpu, auto"),
    option("--precision", help="32-true (default), 64-true, bf16-mixed, 16-mixed"),
    option("--settings", type=Path, metavar="YAML", help="a run's settings.yaml to start from"),
    option("--out", type=Path, metavar="FOLDER", help="where the run goes (default: hibana-runs/DATA-SEED)"),
    option("--resume", type=Path, metavar="CHECKPOINT", help="go on from a run's checkpoint or folder"),
    option("--overwrite", action="store_true", help="replace the run in that folder, if it holds one"),
    _TRUST,
)
def train(arguments: argparse.Namespace) -> None:
    """Trains a spiking network, and says how it did beside a linear classifier."""
    import torch

    keep_memory()
    torch.set_flush_denormal(True)  # before torch's threads begin: they take it over
    from hibana.train import Classifier, Settings, read, resumed

    asked = vars(arguments)
    given: dict[str, Any] = {
        field.name: asked[field.name] for field in fields(Settings) if asked.get(field.name) is not None
    }
    checkpoint = None
    with _refusing():
        if arguments.resume is None:
            begun = arguments.settings
            settings = read(begun, trust=arguments.trust, **given) if begun else Settings(**given)
        elif given or arguments.settings:
            names = ", ".join(f"--{name.replace('_', '-')}" for name in given or ["settings"])
            raise ValueError(f"--resume takes its settings from the checkpoint; leave out {names}")
        else:
            settings, checkpoint = resumed(arguments.resume, trust=arguments.trust)
        samples = settings.samples()
        samples.prepare_data()
        samples.setup()
        Classifier(settings, samples.shape, samples.classes)  # refuses layers that do not fit
    out = arguments.out or Path("hibana-runs") / f"{settings.data}-{settings.seed}"
    if arguments.resume and not arguments.out:
        out = arguments.resume if arguments.resume.is_dir() else arguments.resume.parent
    with _owned(out, arguments) as folder:
        if folder.path != out:
            print(f"{out} holds another run, which stays; this one goes to {folder.path}", flush=True)
        _trained(settings, folder, samples, checkpoint)


def _owned(out: Path, arguments: argparse.Namespace) -> "Folder":
    """The folder that a training goes to, and that nobody else writes to meanwhile."""
    from hibana.train.folder import identity, own

    with _refusing():
        run = None if arguments.resume is None else identity(arguments.resume)
        try:
            return own(out, run=run, overwrite=arguments.overwrite)
        except OSError as error:
            raise _unwritable(out, error) from error


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


def _trained(settings: "Settings", folder: "Folder", samples: "DataSet", checkpoint: Path | None) -> None:
    from hibana.train import fit, linear_accuracy

    begun = time.perf_counter()
    kept = folder.path / "checkpoint.ckpt"
    try:
        with _writers_quiet():
            model, outcome = fit(settings, folder, resume=checkpoint, progress=sys.stdout.isatty())
        if model.global_rank > 0:
            return
        linear = linear_accuracy(model, samples)
        picture = _drawn(model, outcome, samples, linear, folder.path / "training.png")
    except SystemExit as stopped:  # what Lightning makes of Ctrl-C
        hint = f"; `hibana train --resume {kept}` goes on from the last whole epoch" if kept.exists() else ""
        raise KeyboardInterrupt(hint) from stopped
    except FloatingPointError as error:
        raise Failure(str(error)) from error
    except OSError as error:
        held = f"; {kept} is the last whole epoch" if kept.exists() else ""
        raise Failure(f"{folder.path} can't be written: {error.strerror or error}{held}") from error
    _report(outcome, linear, picture, time.perf_counter() - begun)


@command(
    option("checkpoint", type=Path, metavar="CHECKPOINT", help="a file that hibana train wrote"),
    option(
        "inputs",
        type=Path,
        nargs="?",
        metavar="INPUTS.npy",
        help="samples to name, [N, ...], as the data set has them (default: its test set)",
    ),
    _TRUST,
)
def predict(arguments: argparse.Namespace) -> None:
    """Uses a trained network: on the test set of its data, or on samples of your own."""
    import torch

    from hibana.train import load

    with _refusing():
        model = load(arguments.checkpoint, trust=arguments.trust)
        samples = model.settings.samples()
        steps = (model.settings.steps,) if samples.sequential else ()
        own = None if arguments.inputs is None else _samples(arguments.inputs, (*steps, *samples.shape))
        if own is None:
            samples.setup()
    model.seed_evaluation()
    with torch.inference_mode():
        if own is not None:
            answers = torch.cat([model(part).argmax(1) for part in torch.split(own, 512)])
            print("\n".join(str(answer) for answer in answers.tolist()))
            return
        batches = [(model(inputs).argmax(1), labels) for inputs, labels in samples.test_dataloader()]
        answers, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
        _confusions(answers, labels, samples.classes)


@command(
    option("cell", metavar="CELL", help="a cell of hibana (IF, LIF, ...) or MODULE:CLASS of your own"),
    option("--surrogate", help="what to call the derivative of the step (default: the cell's own)"),
    option("--detach-reset", action="store_const", const=True, help="stop the gradient at the reset"),
)
def explain(arguments: argparse.Namespace) -> None:
    """What a cell is compiled to: its equations, the backend and why, what is kept, and the source."""
    import hibana
    from hibana import surrogate

    with _refusing():
        given: dict[str, Any] = {}
        if arguments.surrogate is not None:
            given["surrogate"] = surrogate.named(arguments.surrogate)
        if arguments.detach_reset is not None:
            given["detach_reset"] = True
        print(hibana.explain(_cell(arguments.cell)(**given)), end="")


@command()
def build(arguments: argparse.Namespace) -> None:
    """Builds the C++ part, once a machine: a call of a layer then takes half the time."""
    from hibana.loop.cpu import node

    begun = time.perf_counter()
    try:
        path = node.build()
    except RuntimeError as reason:
        raise Refusal(str(reason)) from reason
    print(f"built in {time.perf_counter() - begun:.0f} s: {path}")


def _cells() -> list[str]:
    """The names of hibana's own cells."""
    from hibana import cells

    return [name for name in cells.__all__ if name.endswith("Cell") and name != "Cell"]


def _cell(name: str) -> "type[Cell]":
    """The class of the cell called `name`, with or without its ending, or at ``module:class``."""
    from hibana import cells

    module, _, own = name.rpartition(":")
    if module:
        sys.path.insert(0, "")
        try:
            found = getattr(importlib.import_module(module), own, None)
        except ModuleNotFoundError as error:
            raise Refusal(f"cell must be a cell of hibana or MODULE:CLASS; {error}") from error
    else:
        known = {n.removesuffix("Cell").lower(): getattr(cells, n) for n in _cells()}
        found = known.get(name.removesuffix("Cell").lower())
    if not (isinstance(found, type) and issubclass(found, cells.Cell)):
        names = ", ".join(n.removesuffix("Cell") for n in _cells())
        raise Refusal(f"cell must be one of {names}, or MODULE:CLASS of your own; got {name!r}")
    return found


@command(
    option(
        "checkpoint",
        type=Path,
        nargs="?",
        metavar="CHECKPOINT",
        help="a network to open, as hibana train wrote it (default: none)",
    ),
    option("--port", type=int, default=0, help="on this machine (default: a free one)"),
    option("--no-browser", action="store_true", help="print the address, and open no browser"),
    _TRUST,
)
def play(arguments: argparse.Namespace) -> None:
    """Moves a neuron, or a trained network, by hand: a page in the browser, on this machine alone."""
    import webbrowser

    from hibana.play.server import serve

    def ready(address: str) -> None:
        print(f"{address}\nCtrl-C ends it.", flush=True)
        if not arguments.no_browser:
            webbrowser.open(address)

    with _refusing():
        opened = None if arguments.checkpoint is None else str(arguments.checkpoint)
        serve(opened, arguments.port, ready, trust=arguments.trust)


@command(
    option("source", type=Path, help="a checkpoint of hibana train, or a NIR file (.nir)"),
    option("target", type=Path, help="a NIR file (.nir), C (.c), or a program for PyTorch alone (.pt2)"),
    option("--dt", type=float, metavar="SECONDS", help="time step (default: the source's own, else 1e-4)"),
    option("--steps", type=int, metavar="T", help="how many steps a program runs (default: as trained)"),
    option("--ram", type=int, metavar="BYTES", help="refuse C that has more bytes that change"),
    option("--flash", type=int, metavar="BYTES", help="refuse C that has more bytes of constants"),
    _TRUST,
)
def convert(arguments: argparse.Namespace) -> None:
    """Takes a network to other platforms and back, and says what was lost."""
    import warnings

    with _refusing(), warnings.catch_warnings(record=True) as lost:
        warnings.simplefilter("always", UserWarning)
        if not os.access(arguments.target.parent, os.W_OK):
            raise ValueError(f"target must lie in a folder that can be written, got {arguments.target}")
        if arguments.target.suffix not in (".c", ".nir", ".pt2"):
            raise ValueError(f"target must end in .c, .nir or .pt2, got {arguments.target}")
        net, shape, steps, model = _network(arguments.source, arguments.dt, arguments.trust)
        if arguments.target.suffix == ".nir":
            _write_nir(net, arguments.target, arguments.dt, shape)
        elif arguments.target.suffix == ".pt2":
            _write_program(net, arguments.target, shape, arguments.steps or steps)
        else:
            _write_c(net, model, arguments, shape)
    for warning in lost:
        print(f"lost: {warning.message}")
    print(f"{arguments.target}  {arguments.target.stat().st_size:,} bytes")


def _network(
    source: Path, dt: float | None, trust: list[str]
) -> "tuple[Any, tuple[int, ...], int | None, Classifier | None]":
    """The network in a file, the shape of one sample at a step, the steps as trained, and its training."""
    if source.suffix == ".nir":
        from hibana import nir

        net = nir.read(source, dt=dt)
        return net, net.meta["input_shape"], None, None
    from hibana.train import load

    model = load(source, trust=trust)
    return model.net, model.shape, model.settings.steps, model


def _write_c(
    net: Any, model: "Classifier | None", arguments: argparse.Namespace, shape: tuple[int, ...]
) -> None:
    import torch

    from hibana.convert.files import write_c

    if model is None:
        print("rates seen are those of a silent input: a graph has no samples")
        example = torch.zeros(arguments.steps or 1, 1, *shape, dtype=torch.float32, device="cpu")
        scores = "sum"
    else:
        example, scores = _shown(model), _SCORES[model.settings.loss]
    program = write_c(net, arguments.target, example, scores=scores, ram=arguments.ram, flash=arguments.flash)
    print(f"{program.constant_bytes:,} bytes of constants, {program.changing_bytes:,} that change")
    print(f"{arguments.target.with_suffix('.h')}  says what a step costs")


_SCORES = {
    **dict.fromkeys(("rate", "count", "membrane-mean", "tet"), "sum"),
    **{"membrane-max": "max", "first-spike": "first"},
}
"""What a program does with its outputs over time, by the name of the loss."""
SHOWN = 64
"""Samples of the training set that rates are counted on."""


def _shown(model: "Classifier") -> "Tensor":
    """Samples of the training set, as the network is shown them."""
    import torch

    samples = model.settings.samples()
    samples.prepare_data()
    samples.setup()
    count = min(SHOWN, len(samples.training))  # type: ignore[arg-type] # all splits have a length
    model.seed_evaluation()
    return model.encode(torch.stack([samples.training[i][0] for i in range(count)]))


def _write_nir(net: Any, target: Path, dt: float | None, shape: tuple[int, ...]) -> None:
    from hibana import nir

    nir.write(net, target, dt=dt, input_shape=shape)


def _write_program(net: Any, target: Path, shape: tuple[int, ...], steps: int | None) -> None:
    import torch

    from hibana.convert import export

    if steps is None or steps < 1:
        raise ValueError(f"--steps must be given, at least 1: a program runs a fixed number, got {steps}")
    inputs = torch.zeros(steps, 2, *shape, dtype=torch.float32, device="cpu")
    torch.export.save(export(net, inputs, dynamic_batch=True), target)
    print(f"takes [{steps}, batch, {', '.join(map(str, shape))}], currents or spikes at each step")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="hibana", description="Integrate-and-fire spiking networks for PyTorch."
    )
    parser.add_argument("--version", action="version", version=f"hibana {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (run, options) in _COMMANDS.items():
        summary = (run.__doc__ or "").partition("\n")[0]
        sub = commands.add_parser(name, help=summary, description=summary)
        for names, settings in options:
            sub.add_argument(*names, **settings)
    return parser


@contextmanager
def _refusing() -> Iterator[None]:
    """What the library refuses inside, the command refuses, in the same words."""
    try:
        yield
    except (TypeError, ValueError, FileNotFoundError) as error:
        raise Refusal(str(error)) from error
    except RuntimeError as error:
        if type(error).__name__ != "Unsupported":  # not imported: it would load all of the loop
            raise
        raise Refusal(str(error)) from error


def _writable(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        raise _unwritable(folder, error) from error


def _unwritable(folder: Path, error: OSError) -> Refusal:
    return Refusal(f"--out must be a folder that can be written, got {folder}: {error.strerror}")


def _saved(figure: Any, path: Path) -> Path:
    figure.savefig(path)
    return path


def _check_seed(seed: int) -> None:
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed must be in [0, 2^32), got {seed}")


def _samples(path: Path, shape: tuple[int, ...]) -> "Tensor":
    from hibana.data.arrays import read

    inputs = read(path)
    if inputs.shape[1:] != shape or not len(inputs):
        wanted = ", ".join(map(str, shape))
        raise ValueError(f"inputs must have the shape [N, {wanted}], got {tuple(inputs.shape)}")
    return inputs


def _drawn(model: "Classifier", outcome: "Outcome", samples: "DataSet", linear: float, path: Path) -> Path:
    """The picture of a training, with the first test sample on its way through the network."""
    import torch

    from hibana import plot
    from hibana.train import activity

    shown, label = samples.test[0]
    with torch.inference_mode():
        outputs, spikes = activity(model.net, model.encode(shown[None]))
    figure = plot.training(
        outcome.history,
        ("linear classifier", linear),
        shown.T if shown.ndim == 2 and samples.sequential else shown.reshape(-1, *shown.shape[-2:]).mean(0),
        {name: layer[:, 0].flatten(1) for name, layer in spikes.items()},
        outputs[:, 0],
        int(label),
    )
    return _saved(figure, path)


def _report(outcome: "Outcome", linear: float, picture: Path, seconds: float) -> None:
    from rich.console import Console
    from rich.table import Table

    settings = outcome.settings
    table = Table(title=f"{settings.data}, seed {settings.seed}", show_header=False, title_justify="left")
    table.add_row("test accuracy", f"[bold]{outcome.accuracy:.1%}[/bold]")
    table.add_row("linear classifier", f"{linear:.1%}")
    for name, rate in outcome.rates.items():
        table.add_row(f"firing rate, {name}", f"{rate:.1%} of neurons per step")
    table.add_row("time", f"{seconds:.1f} s, {outcome.seconds:.1f} s of them training")
    table.add_row("checkpoint", str(outcome.checkpoint))
    table.add_row("picture", str(picture))
    if outcome.logs is not None:
        table.add_row("TensorBoard", str(outcome.logs))
    Console().print(table)


def _confusions(answers: "Tensor", labels: "Tensor", classes: int) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="Test set", title_justify="left")
    for heading in ("class", "samples", "right", "taken for"):
        table.add_column(heading, justify="left" if heading == "taken for" else "right")
    for label in range(classes):
        given = answers[labels == label]
        wrong = given[given != label].bincount(minlength=classes)
        mistakes = ", ".join(f"{other} ({wrong[other]})" for other in wrong.nonzero().flatten().tolist())
        table.add_row(str(label), str(len(given)), str(int((given == label).sum())), mistakes)
    table.add_section()
    right = int((answers == labels).sum())
    table.add_row("all", str(len(labels)), str(right), f"accuracy {right / len(labels):.1%}")
    Console().print(table)
