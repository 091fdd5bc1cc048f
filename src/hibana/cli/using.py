"""Commands that use a trained network: ``predict``, ``play``, ``convert``."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hibana.cli.code import reachable
from hibana.cli.numbers import Whole
from hibana.cli.saying import Refusal, doing, refusing
from hibana.cli.tables import confusions, said

if TYPE_CHECKING:
    from torch import Tensor

    from hibana.train import Network


def predict(
    checkpoint: Path,
    inputs: Path | None = None,
    /,
    *,
    csv: bool = False,
    json: bool = False,
    stream: bool = False,
    window: float | None = None,
    rate: Whole | None = None,
    trust: tuple[str, ...] = (),
) -> None:
    """Uses a trained network: on samples of your own, on the test set of its data, or step by step.

    Args:
        checkpoint: a checkpoint of hibana train, or a run's folder.
        inputs: samples to name, a file or folder as those that were trained on; of a data set by name an
            .npy file, [N, ...]. The test set if there are none.
        csv: print a line a sample, values separated by commas.
        json: print a list of samples; of a stream an object a line.
        stream: read steps from standard input, a line each: numbers separated by commas or spaces, or events
            t x y p; print a line as each is taken, and at the end how long they took. An empty line
            ends a sequence. Sound comes as raw samples, signed 16-bit little-endian of one channel.
        window: of a stream of events, the milliseconds that make a step, for times in microseconds; as long
            as in training if there is none.
        rate: of a stream of sound, samples in a second; 16,000 if there is none.
        trust: MODULE:FUNCTION of yours that the file may name, and that is then run; may be repeated.
    """
    reachable(trust)
    if csv and json:
        raise Refusal("--csv and --json are two forms; say one of them")
    if stream and inputs is not None:
        raise Refusal(f"--stream reads standard input; leave {inputs} out, or pass it by < {inputs}")
    if window is not None and not stream:
        raise Refusal("--window is of events that come by --stream")
    if rate is not None and not stream:
        raise Refusal("--rate is of sound that comes by --stream; files say their own")
    with doing("opening the network"), refusing():
        from hibana.train import load
        from hibana.train import predict as answer

        model = load(checkpoint, trust=trust)
    form = "csv" if csv else "json" if json else "table"
    if stream:
        from hibana.cli.stream import stream as taken

        taken(model, window, form, rate)
        return
    if inputs is None:
        if csv or json:
            raise Refusal("--csv and --json need samples to name")
        _tested(model)
        return
    with doing(f"reading {inputs}"), refusing():
        answers = answer(model, inputs)
    if answers.summary:
        print(answers.summary, file=sys.stderr)
    if answers.warning:
        print(f"hibana predict: the samples are unlike those trained on: {answers.warning}", file=sys.stderr)
    print(said(answers, form), end="")


def _tested(model: "Network") -> None:
    """Prints what the network makes of the test set of its data."""
    import torch

    from hibana.nn import loss

    with doing(f"reading {model.settings.data}"), refusing():
        samples = model.settings.samples(model.description)
        samples.setup()
    model.seed_evaluation()
    with torch.inference_mode():
        batches = [(model(inputs, *rest), labels) for inputs, labels, *rest in samples.test_dataloader()]
    scores, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    if model.is_regression:
        error = (scores[:, 0] - labels).square().mean().item()
        explained = loss.r_squared(scores[:, 0], labels)
        assert model.description is not None
        unit = model.description.target
        print(
            f"{unit.name}: {len(labels)} samples, mean squared error {error * unit.deviation**2:.4g}, "
            f"{explained:.1%} of the variance explained"
        )
        return
    confusions(scores.argmax(1), labels, samples.names)


def play(
    checkpoint: Path | None = None,
    /,
    *,
    port: Whole = 0,
    browser: bool = True,
    trust: tuple[str, ...] = (),
) -> None:
    """Moves a neuron, or a trained network, by hand: a page in the browser, on this machine alone.

    Args:
        checkpoint: a network to open: a checkpoint of hibana train, or a run's folder; digits is one that
            comes with hibana.
        port: on this machine; a free one if 0.
        browser: open a browser; else the address is printed.
        trust: MODULE:FUNCTION of yours that the file may name, and that is then run; may be repeated.
    """
    import webbrowser

    reachable(trust)
    with doing("loading the page"), refusing():
        from hibana.cli.play.network import DIGITS
        from hibana.cli.play.server import serve
        from hibana.train.architecture import check_trust

        check_trust(None, trust, "the command")
        shipped = checkpoint == Path(DIGITS) and not checkpoint.exists()
        opened = None if checkpoint is None else DIGITS if shipped else str(_kept(checkpoint))

    def ready(address: str) -> None:
        print(f"{address}\nCtrl-C ends it.", flush=True)
        if browser:
            webbrowser.open(address)

    with refusing():
        serve(opened, port, ready, trust=list(trust))


def _kept(path: Path) -> Path:
    """The checkpoint at `path`, or in that run's folder."""
    from hibana.train.folder import checkpoint_of
    from hibana.train.pretrained import is_pretrained

    found = checkpoint_of(path)
    if not (found.is_file() or is_pretrained(found)):
        raise ValueError(f"checkpoint must be a file that `hibana train` wrote, there is no {path}")
    return found


def convert(
    source: Path,
    target: Path,
    /,
    *,
    dt: float | None = None,
    steps: Whole | None = None,
    bits: Whole | None = None,
    ram: Whole | None = None,
    flash: Whole | None = None,
    trust: tuple[str, ...] = (),
) -> None:
    """Takes a network to other platforms and back, and says what was lost.

    Args:
        source: a checkpoint of hibana train, a run's folder, or a NIR file (.nir).
        target: a NIR file (.nir), C (.c), a page that one draws to (.html), ONNX (.onnx), or a program for
            PyTorch alone (.pt2).
        dt: time step in seconds; the source's own if there is none, else 1e-4.
        steps: how many steps a program runs; as trained if there is none.
        bits: C or ONNX in whole numbers, with weights of 2 to 8 bits, in floats if there is none; of a page,
            8 if there is none.
        ram: refuse C that has more bytes that change.
        flash: refuse C that has more bytes of constants.
        trust: MODULE:FUNCTION of yours that the file may name, and that is then run; may be repeated.
    """
    import warnings

    reachable(trust)
    with refusing(), warnings.catch_warnings(record=True) as lost:
        warnings.simplefilter("always", UserWarning)
        if not os.access(target.parent, os.W_OK):
            raise ValueError(f"target must lie in a folder that can be written, got {target}")
        if target.is_dir():
            raise ValueError(f"target must be a file, and {target} is a folder")
        if target.suffix not in (".c", ".html", ".nir", ".onnx", ".pt2"):
            raise ValueError(f"target must end in .c, .html, .nir, .onnx or .pt2, got {target}")
        with doing(f"reading {source}"):
            net, shape, trained, model = _network(source, dt, trust)
        if target.suffix == ".nir":
            _write_nir(net, target, dt, shape)
        elif target.suffix == ".pt2":
            _write_program(net, target, shape, trained if steps is None else steps)
        elif target.suffix == ".onnx":
            _write_onnx(net, model, target, shape, bits)
        elif target.suffix == ".html":
            _write_page(model, target, bits)
        else:
            _write_c(net, model, target, shape, steps, bits, (ram, flash))
    for warning in lost:
        print(f"lost: {warning.message}")
    print(f"{target}  {target.stat().st_size:,} bytes")


def _network(
    source: Path, dt: float | None, trust: tuple[str, ...]
) -> "tuple[Any, tuple[int, ...], int | None, Network | None]":
    """The network in a file, the shape of one sample at a step, the steps as trained, and its training."""
    if source.suffix == ".nir":
        from hibana.network import nir

        net = nir.read(source, dt=dt)
        return net, net.meta["input_shape"], None, None
    from hibana.train import load

    model = load(source, trust=trust)
    return model.net, model.shape, model.settings.steps, model


_SCORES = {
    **dict.fromkeys(("rate", "count", "membrane-mean", "tet"), "sum"),
    **{"membrane-max": "max", "membrane-last": "last", "first-spike": "first"},
}
"""What a program does with its outputs over time to decide as the loss of that name does."""
SHOWN = 64
"""Samples of the training set that rates are counted on."""


def _write_c(
    net: Any,
    model: "Network | None",
    target: Path,
    shape: tuple[int, ...],
    steps: int | None,
    bits: int | None,
    most: tuple[int | None, int | None],
) -> None:
    import torch

    from hibana.network.files import write_c

    if model is None:
        print("rates seen are those of a silent input: a graph has no samples")
        example = torch.zeros(steps or 1, 1, *shape, dtype=torch.float32, device="cpu")
        scores = "sum"
    else:
        example, scores = _shown(model), _SCORES[model.settings.loss]
    if bits is not None:
        net = _in_whole_numbers(net, model, bits)
    program = write_c(net, target, example, scores=scores, ram=most[0], flash=most[1])
    print(f"{program.constant_bytes:,} bytes of constants, {program.changing_bytes:,} that change")
    print(f"{target.with_suffix('.h')}  says what a step costs")


def _in_whole_numbers(net: Any, model: "Network | None", bits: int) -> Any:
    from hibana.network import quantize

    if model is None:
        raise ValueError("--bits needs samples to see the range of inputs, which a graph has none of")
    small, report = quantize(net, _shown(model), bits)
    print(report)
    return small


def _write_onnx(
    net: Any, model: "Network | None", target: Path, shape: tuple[int, ...], bits: int | None
) -> None:
    import torch

    from hibana.network import to_onnx
    from hibana.runtime import files

    example = torch.zeros(1, 1, *shape, dtype=torch.float32, device="cpu")
    takes = "currents or spikes at each step"
    if bits is not None:
        net = _in_whole_numbers(net, model, bits)
        low, high = net.input_range
        takes = f"x / {net.input_scale:.9g}, rounded, from {low} to {high}, as {str(net.dtype)[6:]}"
    files.write(target, to_onnx(net, example).SerializeToString())
    print(f"takes [T, batch, {', '.join(map(str, shape))}]: {takes}")
    if bits is not None:
        print(f"an output times {net.output_scale:.9g} is the network's")


def _write_page(model: "Network | None", target: Path, bits: int | None) -> None:
    from hibana.network.page import to_page
    from hibana.runtime import files

    if model is None:
        raise ValueError("a page needs samples to show, which a graph has none of; take a checkpoint")
    title, scores = f"hibana: {model.settings.data}", _SCORES[model.settings.loss]
    page = to_page(model.net, _shown(model), title=title, scores=scores, bits=8 if bits is None else bits)
    files.write(target, page.encode())


def _shown(model: "Network") -> "Tensor":
    """Samples of the training set, as the network is shown them."""
    import torch

    samples = model.settings.samples(model.description)
    samples.prepare_data()
    samples.setup()
    count = min(SHOWN, len(samples.training))  # type: ignore[arg-type] # all splits have a length
    model.seed_evaluation()
    return model.encode(torch.stack([samples.training[i][0] for i in range(count)]))


def _write_nir(net: Any, target: Path, dt: float | None, shape: tuple[int, ...]) -> None:
    from hibana.network import nir

    nir.write(net, target, dt=dt, input_shape=shape)


def _write_program(net: Any, target: Path, shape: tuple[int, ...], steps: int | None) -> None:
    import torch

    from hibana.network import export

    if steps is None or steps < 1:
        raise ValueError(f"--steps must be given, at least 1: a program runs a fixed number, got {steps}")
    inputs = torch.zeros(steps, 2, *shape, dtype=torch.float32, device="cpu")
    torch.export.save(export(net, inputs, dynamic_batch=True), target)
    print(f"takes [{steps}, batch, {', '.join(map(str, shape))}], currents or spikes at each step")
