"""Commands that use a trained network: ``predict``, ``play``, ``convert``."""

import os
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hibana.cli.common import Integer, Refusal, doing, reachable, refusing
from hibana.cli.tables import confusions, formatted

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
    rate: Integer | None = None,
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
    print(formatted(answers, form), end="")


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
    port: Integer = 0,
    browser: bool = True,
    trust: tuple[str, ...] = (),
) -> None:
    """Moves a neuron, or a trained network, by hand: a page in the browser, on this machine alone.

    Args:
        checkpoint: a network to open: a checkpoint of hibana train, or a run's folder; digits, mnist-1d and
            spoken-digits come with hibana.
        port: on this machine; a free one if 0.
        browser: open a browser; else the address is printed.
        trust: MODULE:FUNCTION of yours that the file may name, and that is then run; may be repeated.
    """
    import webbrowser

    reachable(trust)
    with doing("loading the page"), refusing():
        from hibana.cli.play.server import serve
        from hibana.train.architecture import check_trust
        from hibana.train.pretrained import NAMES, is_pretrained
        from hibana.train.run_folder import checkpoint_of

        check_trust(None, trust, "the command")
        path = checkpoint
        if checkpoint is not None and (str(checkpoint) not in NAMES or checkpoint.exists()):
            path = checkpoint_of(checkpoint)
            if not (path.is_file() or is_pretrained(path)):
                raise ValueError(f"checkpoint must be a file that `hibana train` wrote, there is no {path}")

    def ready(address: str) -> None:
        print(f"{address}\nCtrl-C ends it.", flush=True)
        if browser:
            webbrowser.open(address)

    with refusing():
        serve(None if path is None else str(path), port, ready, trust=list(trust))


def convert(
    source: Path,
    target: Path,
    /,
    *,
    dt: float | None = None,
    steps: Integer | None = None,
    bits: Integer | None = None,
    ram: Integer | None = None,
    flash: Integer | None = None,
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
            network = _Source(source, dt, trust)
        if target.suffix == ".nir":
            from hibana.network import nir

            nir.write(network.net, target, dt=dt, input_shape=network.shape)
        elif target.suffix == ".pt2":
            _write_program(network, target, steps)
        elif target.suffix == ".onnx":
            _write_onnx(network, target, bits)
        elif target.suffix == ".html":
            _write_page(network, target, 8 if bits is None else bits)
        else:
            _write_c(network, target, steps, bits, ram, flash)
    for warning in lost:
        print(f"lost: {warning.message}")
    print(f"{target}  {target.stat().st_size:,} bytes")


_SCORES = {
    **dict.fromkeys(("rate", "count", "membrane-mean", "tet"), "sum"),
    **{"membrane-max": "max", "membrane-last": "last", "first-spike": "first"},
}
"""Reduction of the outputs over time that a program uses in place of the loss of that name."""
SHOWN = 64
"""Samples of the training set on which rates and ranges are measured."""


class _Source:
    """A network to convert: from a checkpoint, or from a NIR file, which has no samples and no settings."""

    def __init__(self, path: Path, dt: float | None, trust: tuple[str, ...]) -> None:
        self.model: Network | None = None
        self.scores = "sum"
        if path.suffix == ".nir":
            from hibana.network import nir

            self.net: Any = nir.read(path, dt=dt)
            self.shape: tuple[int, ...] = self.net.meta["input_shape"]
            return
        from hibana.train import load

        self.model = load(path, trust=trust)
        self.net, self.shape = self.model.net, self.model.shape
        self.scores = _SCORES[self.model.settings.loss]

    def silence(self, steps: int, batch: int = 1) -> "Tensor":
        """An input of zeros."""
        import torch

        return torch.zeros(steps, batch, *self.shape, dtype=torch.float32, device="cpu")

    def samples(self, purpose: str) -> "Tensor":
        """Samples of the training set, encoded.

        Raises:
            ValueError: naming the `purpose`, if the source is a NIR file.
        """
        import torch

        if self.model is None:
            raise ValueError(f"{purpose}, and a NIR file has none; pass a checkpoint")
        samples = self.model.settings.samples(self.model.description)
        samples.prepare_data()
        samples.setup()
        count = min(SHOWN, len(samples.training))  # type: ignore[arg-type] # all splits have a length
        self.model.seed_evaluation()
        return self.model.encode(torch.stack([samples.training[i][0] for i in range(count)]))

    def quantized(self, bits: int) -> Any:
        """The network in whole numbers; prints how well it agrees."""
        from hibana.network import quantize

        samples = self.samples("--bits needs samples to see the range of inputs")
        small, report = quantize(self.net, samples, bits)
        print(report)
        return small


def _write_c(
    network: _Source, target: Path, steps: int | None, bits: int | None, ram: int | None, flash: int | None
) -> None:
    from hibana.network import to_c

    if network.model is None:
        print("firing rates are those of a silent input: a NIR file has no samples")
        example = network.silence(steps or 1)
    else:
        example = network.samples("")
    net = network.net if bits is None else network.quantized(bits)
    program = to_c(net, example, name=target.stem, scores=network.scores)
    program.check_memory(ram, flash)
    program.write(target)
    print(f"{program.constant_bytes:,} bytes of constants, {program.changing_bytes:,} that change")
    print(f"{target.with_suffix('.h')}  says what a step costs")


def _write_onnx(network: _Source, target: Path, bits: int | None) -> None:
    from hibana.network import to_onnx
    from hibana.runtime import files

    net = network.net if bits is None else network.quantized(bits)
    files.write(target, to_onnx(net, network.silence(1)).SerializeToString())
    values = "currents or spikes at each step"
    if bits is not None:
        low, high = net.input_range
        values = f"x / {net.input_scale:.9g}, rounded, from {low} to {high}, as {str(net.dtype)[6:]}"
    print(f"takes [T, batch, {', '.join(map(str, network.shape))}]: {values}")
    if bits is not None:
        print(f"an output times {net.output_scale:.9g} is the network's")


def _write_page(network: _Source, target: Path, bits: int) -> None:
    from hibana.network.page import to_page
    from hibana.runtime import files

    samples = network.samples("a page needs samples to show")
    assert network.model is not None
    title = f"hibana: {network.model.settings.data}"
    page = to_page(network.net, samples, title=title, scores=network.scores, bits=bits)
    files.write(target, page.encode())


def _write_program(network: _Source, target: Path, steps: int | None) -> None:
    import torch

    from hibana.network import export

    if steps is None and network.model is not None:
        steps = network.model.settings.steps
    if steps is None or steps < 1:
        raise ValueError(f"--steps must be given, at least 1: a program runs a fixed number, got {steps}")
    torch.export.save(export(network.net, network.silence(steps, 2), dynamic_batch=True), target)
    shape = ", ".join(map(str, network.shape))
    print(f"takes [{steps}, batch, {shape}], currents or spikes at each step")
