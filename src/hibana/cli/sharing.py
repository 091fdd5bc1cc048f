"""The command that writes a trained network for others: ``share``."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from hibana.cli.common import Failure, doing, reachable, refusing

if TYPE_CHECKING:
    from hibana.data import DataSet
    from hibana.train import Network


def share(checkpoint: Path, folder: Path, /, *, overwrite: bool = False, trust: tuple[str, ...] = ()) -> None:
    """Writes a trained network to a folder for others, with a model card; hf upload puts it on the Hub.

    The card has accuracy, firing rates and operations on the test part of the data, if it can be read here.

    Args:
        checkpoint: a checkpoint of hibana train, a run's folder, or a folder that this command wrote.
        folder: where model.safetensors, config.json and README.md go.
        overwrite: also write to a folder that holds other files.
        trust: MODULE:FUNCTION of yours that the file may name, and that is then run; may be repeated.
    """
    reachable(trust)
    with doing("opening the network"), refusing():
        from hibana.train import load, pretrained

        pretrained.check_folder(folder, overwrite=overwrite)
        model = load(checkpoint, trust=trust)
    samples = _samples(model)
    try:
        with doing("measuring on the test part"):
            model.save_pretrained(folder, samples=samples)
    except OSError as error:
        raise Failure(f"{folder} can't be written: {error.strerror or error}") from error
    print(folder)


def _samples(model: "Network") -> "DataSet | None":
    """The data that `model` was trained on, if they can be read here."""
    with doing(f"reading {model.settings.title}"):
        try:
            samples = model.settings.samples(model.description)
            samples.prepare_data()
            samples.setup()
        except (ValueError, FileNotFoundError) as error:
            print(f"hibana share: the card says nothing of operations: {error}", file=sys.stderr)
            return None
    return samples
