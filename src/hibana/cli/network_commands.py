"""Commands for a trained network: ``predict``, ``play`` and ``share``."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from hibana.cli.common import Integer, Refusal, Trust, allow_local_imports, progress, refuse_errors
from hibana.cli.options import check_options
from hibana.cli.tables import format_answers, print_confusions, regression_error

if TYPE_CHECKING:
    from hibana.train import Network


def predict(
    checkpoint: Path,
    inputs: Path | None = None,
    /,
    *,
    csv: bool = False,
    json: bool = False,
    stream: bool = False,
    adapt: bool = False,
    window: float | None = None,
    rate: Integer | None = None,
    trust: Trust = (),
) -> None:
    """Classifies samples, the test set or a stream with a trained network; finds anomalies of a series.

    Args:
        checkpoint: a checkpoint of hibana train, or a run's folder.
        inputs: samples: a file or folder like the training data; for a data set by name an .npy file with an
            array [N, ...]. Default: the test set of the training data.
        csv: print comma-separated values, one line per sample.
        json: print a JSON list; with --stream one JSON object per line.
        stream: read time steps from standard input and print the prediction after each, and at the end how
            long they took. Each line is one step: numbers separated by commas or spaces; or one event of a
            camera: t x y p. An empty line ends a sequence. Sound is read as raw samples: one channel, signed
            16-bit integers, little-endian.
        adapt: for a run of --task anomaly, keep learning, so that a lasting change becomes usual.
        window: for a stream of events, the length of a time step in milliseconds, if times are microseconds;
            by default as in training.
        rate: for a stream of sound, the number of samples per second; by default 16,000.
        trust: MODULE:FUNCTION of yours that the file may name and that is then executed; may be repeated.
    """
    passed = {**locals()}
    allow_local_imports(trust)
    if stream and inputs is not None:
        raise Refusal(f"--stream reads standard input; leave {inputs} out, or pass it by < {inputs}")
    if csv and json:
        raise Refusal("--csv and --json are two formats; pass one of them")
    output_format = "csv" if csv else "json" if json else "table"
    from hibana.cli.anomalies import opened, predict_anomalies

    if (run := opened(checkpoint)) is not None:
        check_options("predict", ("files of samples", "runs of --task anomaly"), f"for {checkpoint}", passed)
        predict_anomalies(run, checkpoint, inputs, output_format, stream=stream, adapt=adapt)
        return
    if not stream:
        uses, here = ("", "the test set") if inputs is None else ("files of samples", inputs)
        check_options("predict", (uses,), f"on {here}", passed)
    with progress("opening the network"), refuse_errors():
        from hibana.train import load
        from hibana.train import predict as predict_samples

        model = load(checkpoint, trust=trust)
    if stream:
        from hibana.cli.stream import predict_stream

        predict_stream(model, window, output_format, rate)
        return
    if inputs is None:
        _print_test_results(model)
        return
    with progress(f"reading {inputs}"), refuse_errors():
        answers = predict_samples(model, inputs)
    if answers.summary:
        print(answers.summary, file=sys.stderr)
    if answers.warning:
        print(
            f"hibana predict: the samples differ from the training data: {answers.warning}", file=sys.stderr
        )
    print(format_answers(answers, output_format), end="")


def _print_test_results(model: "Network") -> None:
    """Prints the results of the network on the test set of its data."""
    import torch

    with progress(f"reading {model.settings.data}"), refuse_errors():
        samples = model.settings.samples(model.description)
        samples.setup()
    model.seed_evaluation()
    with torch.inference_mode():
        batches = [
            (model(inputs, *lengths), labels) for inputs, labels, *lengths in samples.test_dataloader()
        ]
    scores, labels = (torch.cat(tensors) for tensors in zip(*batches, strict=True))
    if not model.is_regression:
        print_confusions(scores.argmax(1), labels, samples.names)
        return
    assert model.description is not None
    target = model.description.target
    predicted, correct = (
        torch.tensor(target.decoded(values.view(-1, 1)), dtype=torch.float64, device="cpu")
        for values in (scores, labels)
    )
    print(regression_error(target.name, predicted, correct))


def play(
    checkpoint: Path | None = None, /, *, port: Integer = 0, browser: bool = True, trust: Trust = ()
) -> None:
    """Opens a page in the browser to change a neuron or watch a trained network. Ctrl-C ends it.

    Only this machine can open the page.

    Args:
        checkpoint: a trained network: a checkpoint of hibana train, or a run's folder; or digits, mnist-1d or
            spoken-digits, which come with hibana.
        port: port of the page; 0 uses a free one.
        browser: open the browser; otherwise only print the address.
        trust: MODULE:FUNCTION of yours that the file may name and that is then executed; may be repeated.
    """
    import webbrowser

    allow_local_imports(trust)
    with progress("loading the page"), refuse_errors():
        from hibana.cli.play.network import TrainedNetwork
        from hibana.cli.play.server import serve

        if checkpoint is not None:
            TrainedNetwork(str(checkpoint), trust)  # raises a ValueError if it can't be shown

    def show(address: str) -> None:
        """Prints the page's `address`, and opens it in the browser if `browser`."""
        print(f"{address}\nCtrl-C ends it.", flush=True)
        if browser:
            webbrowser.open(address)

    with refuse_errors():
        serve(None if checkpoint is None else str(checkpoint), port, show, trust=list(trust))


def share(checkpoint: Path, folder: Path, /, *, overwrite: bool = False, trust: Trust = ()) -> None:
    """Writes a trained network to a folder for others, with a model card.

    The command hf upload of huggingface_hub publishes the folder. An existing README.md is not replaced.

    Args:
        checkpoint: a checkpoint of hibana train, a run's folder, or a folder that this command wrote.
        folder: folder of the files model.safetensors, config.json and README.md.
        overwrite: also write to a folder that contains other files.
        trust: MODULE:FUNCTION of yours that the file may name and that is then executed; may be repeated.
    """
    allow_local_imports(trust)
    with progress("opening the network"), refuse_errors():
        from hibana.train import load, shared_folder

        shared_folder.check_folder(folder, overwrite=overwrite)
        load(checkpoint, trust=trust).save_pretrained(folder)
    print(folder)
