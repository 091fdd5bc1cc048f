"""A run through Lightning, from its settings to its outcome, and what it leaves on disk.

A run's folder holds ``settings.yaml``, from which it can be run again; ``checkpoint.ckpt`` of the last
finished epoch, from which it goes on; with early stopping ``best.ckpt`` of the epoch that validated best too.
A checkpoint holds plain data only: nothing in it is run.
"""

import importlib.util
import logging
import time
import warnings
from collections.abc import Collection
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TypeGuard

import lightning
import torch
from lightning.pytorch.callbacks import Callback, RichProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from torch.utils.data import default_collate

from hibana import data
from hibana.train import architecture, checkpoint, record
from hibana.train.classifier import Classifier
from hibana.train.folder import BEST, LAST, SETTINGS, Folder, identity, own
from hibana.train.keeping import Files, History, Keeper
from hibana.train.settings import Settings, read

__all__ = ["Outcome", "fit", "linear_accuracy", "load", "resumed"]

_WANTED = "checkpoint must be a file that `hibana train` wrote"
_STATES: dict[str, type] = {
    **{"epoch": int, "global_step": int, "loops": dict, "callbacks": dict},
    **{"optimizer_states": list, "lr_schedulers": list},
}
"""What a run goes on from."""
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
    settings: Settings,
    folder: Path | Folder,
    *,
    resume: Path | None = None,
    overwrite: bool = False,
    progress: bool = False,
) -> tuple[Classifier, Outcome]:
    """Trains a network, keeps what :mod:`hibana.train.run` names in a folder, and tests it once at the end.

    What is tested is the network of the last epoch; with early stopping, that of the epoch that validated
    best.

    Args:
        settings: of the run; those in the checkpoint if it goes on from one.
        folder: for the settings, the checkpoints and, where TensorBoard is installed, its logs. Where it
            holds another run, the next number is taken: ``NAME-1``; the outcome says which.
        resume: a checkpoint to go on from.
        overwrite: replace the run that `folder` holds.
        progress: show a progress bar.

    Raises:
        FloatingPointError: if a loss, a gradient or a weight is no longer finite; it says where.
        OSError: if a checkpoint can't be written. The one before is still there.
        ValueError: if `resume` is no checkpoint, or the folder is in use.
    """
    if isinstance(folder, Path):
        run = None if resume is None else identity(resume)
        with own(folder, run=run, overwrite=overwrite) as owned:
            return fit(settings, owned, resume=resume, progress=progress)
    lightning.seed_everything(settings.seed, verbose=False)
    origin = folder.run if resume is None else identity(resume)
    folder.begin(settings)
    samples = settings.samples()
    samples.prepare_data()
    samples.setup()
    model = Classifier(settings, samples.shape, samples.classes)
    started = {} if resume else model.prepare(_first(samples))
    history, keeper = History(), Keeper(folder.path, settings.patience)
    callbacks: list[Callback] = [history, keeper]
    if resume is not None and settings.patience > 0:
        _bring_best(resume.parent, folder)
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
            plugins=[Files(folder.run, origin)],
            default_root_dir=folder.path,
            logger=TensorBoardLogger(folder.path, name="tensorboard", version="") if board else False,
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
        chosen = keeper.folder / BEST if settings.patience > 0 else None
        (tested,) = trainer.test(model, samples, ckpt_path=chosen, verbose=False, weights_only=True)
    return model, Outcome(
        settings=settings,
        checkpoint=keeper.folder / (LAST if chosen is None else BEST),
        logs=keeper.folder / "tensorboard" if board else None,
        accuracy=tested["test/accuracy"],
        rates={name.removeprefix("test/rate/"): rate for name, rate in tested.items() if "/rate/" in name},
        started=started,
        seconds=seconds,
        history=learned,
    )


def _bring_best(source: Path, folder: Folder) -> None:
    """Sees that the best epoch so far lies where the run goes on.

    Raises:
        ValueError: if it lies nowhere, or what lies there is another run's.
    """
    if folder.run is None or (folder.path / BEST).exists():
        return
    best = checkpoint.read(source / BEST)
    checkpoint.write({**best, "run": folder.run}, folder.path / BEST)


def resumed(path: Path, *, trust: Collection[str] = ()) -> tuple[Settings, Path | None]:
    """The settings of a run to go on with, and the checkpoint to go on from, if there is one yet.

    Args:
        path: a checkpoint, or a run's folder; a run that was stopped before its first epoch ended has no
            checkpoint, and going on with it is starting again. Another run's, left there, is none of its.
        trust: functions that the file may name as its layers, ``module:function``. They will be run.

    Raises:
        ValueError: if there is neither, or it names a function that is not in `trust`.
    """
    if not path.is_dir():
        return _opened(path, trust, whole=True)[0], path
    kept = path / LAST
    if kept.exists() and identity(kept) == identity(path):
        return _opened(kept, trust, whole=True)[0], kept
    if not record.read(path / SETTINGS).unchanged:
        raise ValueError(
            f"{path / SETTINGS} was changed since the run began, and there is no epoch to go on from; "
            f"`hibana train --settings {path / SETTINGS}` begins a run from it"
        )
    return read(path / SETTINGS, trust=trust), None


def load(path: Path, *, trust: Collection[str] = ()) -> Classifier:
    """The network that :func:`fit` kept at `path`.

    Args:
        path: a checkpoint.
        trust: functions that it may name as its layers, ``module:function``. They will be run.

    Raises:
        ValueError: if there is no checkpoint of hibana there, or only a part of one, or one that was changed
            since it was written, or it names a function that is not in `trust`.
    """
    settings, shape, classes, weights = _opened(path, trust)
    most = sum(weight.numel() for weight in weights.values())
    try:
        model = Classifier(settings, shape, classes, most_weights=most)
        model.load_state_dict(weights)
    except (AttributeError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{_WANTED}; {path} holds something else: {record.line(error)}") from error
    return model.eval()


def _opened(
    path: Path, trust: Collection[str], *, whole: bool = False
) -> tuple[Settings, tuple[int, ...], int, dict[str, torch.Tensor]]:
    """What a checkpoint says of its network, in plain types; nothing is made of it yet.

    `whole` ones have what a run goes on from, too.
    """
    content = checkpoint.read(path)
    hyper, weights = content.get("hyper_parameters"), content.get("state_dict")
    known = {field.name for field in fields(Settings)}
    if not (isinstance(hyper, dict) and {"shape", "classes"} <= set(hyper) <= known | {"shape", "classes"}):
        raise ValueError(f"{_WANTED}; {path} holds something else")
    if not _is_state(weights):
        raise ValueError(f"{_WANTED}; {path} holds something else")
    if whole and any(type(content.get(name)) is not kind for name, kind in _STATES.items()):
        raise ValueError(f"{_WANTED}; {path} holds a network, and nothing that a training goes on from")
    try:
        settings = Settings(**{name: value for name, value in hyper.items() if name in known})
    except ValueError as error:
        raise ValueError(f"{_WANTED}; {path} holds other settings: {error}") from error
    architecture.check_trust(settings.layers, trust, f"checkpoint {path}")
    made = data.DATA_SETS[settings.data]
    given = hyper["shape"], hyper["classes"]
    if given != (list(made.shape), made.classes):  # a function of the user's is called with these
        raise ValueError(f"{_WANTED}; {path} is of other inputs than {settings.data}")
    return settings, tuple(made.shape), made.classes, weights


def _is_state(weights: object) -> TypeGuard[dict[str, torch.Tensor]]:
    """Whether `weights` are parameters by name."""
    return isinstance(weights, dict) and all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in weights.items()
    )


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
