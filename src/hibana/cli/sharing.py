"""The command that gives a trained network away: ``share``."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from hibana.cli.code import reachable
from hibana.cli.saying import Failure, Refusal, doing, refusing

if TYPE_CHECKING:
    from hibana.data import DataSet
    from hibana.train import Network


def share(
    checkpoint: Path,
    folder: Path | None = None,
    /,
    *,
    hub: str | None = None,
    private: bool = False,
    overwrite: bool = False,
    trust: tuple[str, ...] = (),
) -> None:
    """Writes a trained network for others, with a model card: to a folder, or to the Hugging Face Hub.

    The card says how right it is, how much it fires and what it computes on the test part of its data, where
    these can be read here.

    Args:
        checkpoint: a checkpoint of hibana train, a run's folder, or a folder that this command wrote.
        folder: where model.safetensors, config.json and README.md go.
        hub: USER/NAME on the Hub, to whose account you are logged in (hf auth login).
        overwrite: write to a folder that holds other files, too.
        private: make that repository for you alone, if it is not there yet.
        trust: MODULE:FUNCTION of yours that the file may name, and that is then run; may be repeated.
    """
    reachable(trust)
    if folder is None and hub is None:
        raise Refusal("needs a folder to write, or --hub USER/NAME")
    if private and hub is None:
        raise Refusal("--private is of a repository that --hub names")
    with doing("opening the network"), refusing():
        from hibana.train import load, pretrained

        if folder is not None:
            pretrained.check_folder(folder, overwrite=overwrite)
        model = load(checkpoint, trust=trust)
    samples = _samples(model)
    if folder is not None:
        try:
            with doing("measuring on the test part"):
                model.save_pretrained(folder, samples=samples)
        except OSError as error:
            raise Failure(f"{folder} can't be written: {error.strerror or error}") from error
        print(folder)
    if hub is not None:
        with refusing():
            print(model.push_to_hub(hub, samples=samples, private=private or None))


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
