"""A run through Lightning, from its settings to its outcome, and what it leaves on disk.

A run's folder holds ``settings.yaml``, from which it can be run again; ``checkpoint.ckpt`` of the last
finished epoch, from which it goes on; with early stopping ``best.ckpt`` of the epoch that validated best too.
A checkpoint holds plain data only, so that it loads with ``weights_only=True``.
"""

import importlib.util
import logging
import time
import warnings
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint, RichProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from torch.utils.data import default_collate

from hibana import data
from hibana.train.classifier import Classifier
from hibana.train.settings import Settings, read

__all__ = ["Outcome", "fit", "linear_accuracy", "load", "resumed"]

LAST, BEST, SETTINGS = "checkpoint", "best", "settings.yaml"
ENOUGH = 10_000
"""Samples that a linear classifier is fitted to at most."""


@dataclass(frozen=True)
class Outcome:
    """What came of a run.

    `rates` are the layers' firing rates on the test set; `started` those before training; `history` has one
    value per epoch and name.
    """

    settings: Settings
    checkpoint: Path
    logs: Path | None
    accuracy: float
    rates: dict[str, float]
    started: dict[str, float]
    seconds: float
    history: dict[str, list[float]]


def fit(
    settings: Settings, folder: Path, *, resume: Path | None = None, progress: bool = False
) -> tuple[Classifier, Outcome]:
    """Trains a network, keeps what :mod:`hibana.train.run` names in `folder`, and tests it once at the end.

    What is tested is the network of the last epoch; with early stopping, that of the epoch that validated
    best.

    Args:
        settings: of the run; those in the checkpoint if it goes on from one.
        folder: for the settings, the checkpoints and, where TensorBoard is installed, its logs.
        resume: a checkpoint to go on from.
        progress: show a progress bar.
    """
    lightning.seed_everything(settings.seed, verbose=False)
    folder.mkdir(parents=True, exist_ok=True)
    rank_zero_only(settings.write)(folder / SETTINGS)
    samples = settings.samples()
    samples.prepare_data()
    samples.setup()
    model = Classifier(settings, samples.shape, samples.classes)
    started = {} if resume else model.prepare(_first(samples))
    history = _History()
    kept = ModelCheckpoint(folder, filename=LAST, save_on_train_epoch_end=True, enable_version_counter=False)
    callbacks: list[Callback] = [history, kept]
    if settings.patience > 0:
        judged: dict[str, Any] = {"monitor": "validation/accuracy", "mode": "max"}
        kept = ModelCheckpoint(folder, filename=BEST, enable_version_counter=False, **judged)
        callbacks += [kept, EarlyStopping(**judged, patience=settings.patience)]
    if progress:
        callbacks.append(RichProgressBar())
    board = importlib.util.find_spec("tensorboard") is not None
    with warnings.catch_warnings():
        _quiet()
        trainer = lightning.Trainer(
            max_epochs=settings.epochs,
            gradient_clip_val=settings.clip,
            accelerator=settings.accelerator,
            devices=settings.devices,
            num_nodes=settings.nodes,
            strategy="ddp" if settings.devices * settings.nodes > 1 else "auto",
            precision=settings.precision,  # type: ignore[arg-type]  # checked by Settings
            callbacks=callbacks,
            logger=TensorBoardLogger(folder, name="tensorboard", version="") if board else False,
            enable_progress_bar=progress,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,  # the data set shares itself out
            log_every_n_steps=10,
        )
        begun = time.perf_counter()
        trainer.fit(model, samples, ckpt_path=resume, weights_only=True)
        seconds = time.perf_counter() - begun
        learned = {name: list(values) for name, values in history.values.items()}
        chosen = kept.best_model_path if settings.patience > 0 else None
        (tested,) = trainer.test(model, samples, ckpt_path=chosen, verbose=False, weights_only=True)
    return model, Outcome(
        settings=settings,
        checkpoint=folder / Path(kept.best_model_path).name,
        logs=folder / "tensorboard" if board else None,
        accuracy=tested["test/accuracy"],
        rates={name.removeprefix("test/rate/"): rate for name, rate in tested.items() if "/rate/" in name},
        started=started,
        seconds=seconds,
        history=learned,
    )


def resumed(path: Path) -> tuple[Settings, Path | None]:
    """The settings of a run to go on with, and the checkpoint to go on from, if there is one yet.

    Args:
        path: a checkpoint, or a run's folder; a run that was stopped before its first epoch ended has no
            checkpoint, and going on with it is starting again.

    Raises:
        ValueError: if there is neither.
    """
    if not path.is_dir():
        return load(path).settings, path
    checkpoint = path / f"{LAST}.ckpt"
    return (load(checkpoint).settings, checkpoint) if checkpoint.exists() else (read(path / SETTINGS), None)


def load(path: Path) -> Classifier:
    """The network that :func:`fit` kept at `path`.

    Raises:
        ValueError: if there is no checkpoint of hibana there, or only a part of one.
    """
    wanted = "checkpoint must be a file that `hibana train` wrote"
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ValueError(f"{wanted}; {path} can't be read: {error.strerror}") from error
    except Exception as error:  # unpickling what is no pickle may end in any of them
        raise ValueError(f"{wanted}; {path} is none, or was cut short") from error
    try:
        hyper = dict(content["hyper_parameters"])
        known = [field.name for field in fields(Settings) if field.name in hyper]
        settings = Settings(**{name: hyper.pop(name) for name in known})
        model = Classifier(settings, **hyper)
        model.load_state_dict(content["state_dict"])
    except (KeyError, TypeError, RuntimeError) as error:
        raise ValueError(f"{wanted}; {path} holds something else") from error
    return model.eval()


@torch.no_grad()
def linear_accuracy(model: Classifier, samples: data.DataSet) -> float:
    """Test accuracy of logistic regression on the input, or of spikes on their counts, which have no timing.

    Fitted to at most the first 10,000 training samples, without augmentation.
    """
    from sklearn.linear_model import LogisticRegression

    samples.setup()
    parts = []
    for split, count in ((samples.training, ENOUGH), (samples.test, len(samples.test))):  # type: ignore[arg-type]
        inputs, labels = _gathered(split, min(count, len(split)))  # type: ignore[arg-type]
        if model.settings.coding in ("delta", "none"):
            inputs = model.encode(inputs).sum(dim=0)
        parts += [inputs.flatten(1).numpy(), labels.numpy()]
    return float(LogisticRegression(max_iter=1000).fit(*parts[:2]).score(*parts[2:]))


def _first(samples: data.DataSet) -> torch.Tensor:
    """The first inputs of the training set: 512, or as many as there are."""
    inputs, _ = _gathered(samples.training, min(512, len(samples.training)))  # type: ignore[arg-type]
    return inputs


def _gathered(split: data.Samples, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    inputs, labels = default_collate([split[index] for index in range(count)])
    return inputs, labels


class _History(Callback):
    """What was logged, one value per epoch and name; it travels with the checkpoint."""

    def __init__(self) -> None:
        self.values: dict[str, list[float]] = {}

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        for name, value in trainer.callback_metrics.items():
            self.values.setdefault(name, []).append(value.item())

    def state_dict(self) -> dict[str, Any]:
        return {"values": self.values}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.values = state_dict["values"]


def _quiet() -> None:
    """Silences what Lightning says of every run, and four of its warnings that call for nothing."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for harmless in (
        ".*does not have many workers",  # the data is in memory, or workers were not asked for
        "Checkpoint directory .* exists and is not empty",  # the settings, or the checkpoint gone on from
        "The dirpath has changed",  # a checkpoint that was moved before going on
        ".*isinstance.treespec, LeafSpec.* is deprecated",  # Lightning's own use of torch
    ):
        warnings.filterwarnings("ignore", message=harmless)
