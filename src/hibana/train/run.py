"""A run through Lightning, from its settings to its outcome, and what it leaves on disk.

A run's folder holds ``settings.yaml``, from which it can be run again; ``checkpoint.ckpt`` of the last
finished epoch, from which it goes on; with early stopping ``best.ckpt`` of the epoch that validated best too.
A checkpoint holds plain data only: nothing in it is run.
"""

import atexit
import importlib.util
import logging
import math
import os
import time
import warnings
from collections.abc import Collection
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeGuard

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger

from hibana import data
from hibana.data import own
from hibana.train import architecture, checkpoint, record
from hibana.train.baseline import first
from hibana.train.classifier import Classifier
from hibana.train.folder import BEST, LAST, SETTINGS, Folder, checkpoint_of, identity
from hibana.train.folder import own as owned
from hibana.train.keeping import Files, History, Keeper
from hibana.train.progress import Line
from hibana.train.settings import Settings, read
from hibana.train.start import decayed

__all__ = ["Outcome", "fit", "load", "made", "resumed"]

_WANTED = "checkpoint must be a file that `hibana train` wrote"
_STATES: dict[str, type] = {
    **{"epoch": int, "global_step": int, "loops": dict, "callbacks": dict},
    **{"optimizer_states": list, "lr_schedulers": list},
}
"""What a run goes on from."""


@dataclass(frozen=True)
class Outcome:
    """What came of a run.

    `measure` is what `accuracy` is: the part that is right, or of a quantity the part of its variance that is
    explained; `recalls` are, by class, the parts of its test samples that are named so. `rates` are the
    layers' firing rates on the test set, `silent` the numbers of their neurons that never spiked there;
    `started` are the rates before training; `history` has one value per epoch
    and name.
    """

    settings: Settings
    checkpoint: Path
    logs: Path | None
    accuracy: float
    rates: dict[str, float]
    silent: dict[str, int]
    started: dict[str, float]
    seconds: float
    history: dict[str, list[float]]
    measure: str = "accuracy"
    recalls: dict[str, float] = field(default_factory=dict)

    @property
    def balanced(self) -> float | None:
        """The mean of the classes' recalls, of those that were tested."""
        seen = [recall for recall in self.recalls.values() if not math.isnan(recall)]
        return sum(seen) / len(seen) if seen else None


def fit(
    settings: Settings,
    folder: str | Path | Folder,
    *,
    samples: data.DataSet | None = None,
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
        samples: the data, if they are at hand already, or in memory; else those that the settings name.
        resume: a checkpoint to go on from.
        overwrite: replace the run that `folder` holds.
        progress: show a progress bar.

    Raises:
        FloatingPointError: if a loss, a gradient or a weight is no longer finite; it says where.
        OSError: if a checkpoint can't be written. The one before is still there.
        ValueError: if `resume` is no checkpoint, or the folder is in use.
    """
    if not isinstance(folder, Folder):
        run = None if resume is None else identity(resume)
        with owned(Path(folder), run=run, overwrite=overwrite) as held:
            return fit(settings, held, samples=samples, resume=resume, progress=progress)
    if isinstance(samples, data.Own) and settings.kind is None:  # they are in memory, and have no path
        length = samples.steps if samples.sequential else settings.steps
        named = replace(settings, data=samples.called, kind=samples.kind, steps=length, coding=None)  # type: ignore[arg-type]
        settings = named if samples.sequential else replace(named, coding=settings.coding)
    lightning.seed_everything(settings.seed, verbose=False)
    origin = folder.run if resume is None else identity(resume)
    folder.begin(settings)
    samples = samples or settings.samples(None if resume is None else described(resume))
    samples.prepare_data()
    samples.setup()
    model = made(settings, samples, resume)
    started = {} if resume else model.prepare(*first(samples))
    measure = model.objective.measure
    history, keeper = History(), Keeper(folder.path, settings.patience, measure)
    callbacks: list[Callback] = [history, keeper]
    if resume is not None and settings.patience > 0:
        _bring_best(resume.parent, folder)
    if progress:
        callbacks.append(Line())
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
            log_every_n_steps=1,  # nothing is logged but epochs; more would be warned of where they are short
        )
        begun = time.perf_counter()
        trainer.fit(model, samples, ckpt_path=resume, weights_only=True)
        seconds = time.perf_counter() - begun
        learned = {name: list(values) for name, values in history.values.items()}
        chosen = keeper.folder / BEST if settings.patience > 0 else None
        (tested,) = trainer.test(model, samples, ckpt_path=chosen, verbose=False, weights_only=True)
    if trainer.world_size > 1:
        atexit.register(_leave)  # not after a failure: an exchange under way would be waited for
    return model, Outcome(
        settings=settings,
        checkpoint=keeper.folder / (LAST if chosen is None else BEST),
        logs=keeper.folder / "tensorboard" if board else None,
        accuracy=tested[f"test/{measure}"],
        measure=measure,
        recalls=_recalls(model, samples),
        rates={name.removeprefix("test/rate/"): rate for name, rate in tested.items() if "/rate/" in name},
        silent={
            name.removeprefix("test/silent/"): int(count)
            for name, count in tested.items()
            if "/silent/" in name
        },
        started=started,
        seconds=seconds,
        history=learned,
    )


def made(settings: Settings, samples: data.DataSet, resume: Path | None = None) -> Classifier:
    """The network for `samples`, before any training, or before it goes on from a checkpoint.

    Raises:
        ValueError: if the layers do not fit, or have more weights than this machine can train or a
            checkpoint can hold, or nothing of a chosen coding is left of the samples, or the checkpoint's
            training let other parameters decay, as versions before this one did.
    """
    description = samples.description if isinstance(samples, data.Own) else None
    most = min(checkpoint.MOST_BYTES // 12, _memory() // 16)  # with AdamW's two averages, and gradients
    model = Classifier(settings, samples.shape, samples.classes, description=description, most_weights=most)
    if resume is not None:
        _check_groups(model, resume)
    return model


def _check_groups(model: Classifier, path: Path) -> None:
    """Refuses to go on with a training whose optimizer held the parameters in other groups."""
    try:
        (state,) = checkpoint.read(path)["optimizer_states"]
        kept = [len(group["params"]) for group in state["param_groups"]]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{_WANTED}; {path} holds an optimizer otherwise: {record.line(error)}") from error
    if kept != [len(group["params"]) for group in decayed(model, model.settings.weight_decay)]:
        raise ValueError(
            f"{path} can't be gone on with: its training was begun by another version of hibana, "
            f"by which other parameters decayed; the network can be used"
        )


def _memory() -> int:
    """Bytes of this machine's memory, used or not; where it does not say, more than any has.

    Systems that give out more than they have end a process that fills it, and whoever else is in the way.
    """
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 1 << 62


def _leave() -> None:
    """Leaves the group of processes while Python is whole.

    Gloo's threads still hold tensors of the last exchange; one that gives them up while the interpreter ends
    aborts the process. Lightning does the same for NCCL.
    """
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _recalls(model: Classifier, samples: data.DataSet) -> dict[str, float]:
    if model.recall is None:
        return {}
    recalls = model.recall.compute().tolist()
    return dict(zip(samples.names, recalls, strict=False))


def described(path: Path) -> data.Description | None:
    """How data of one's own are read that the checkpoint at `path` was trained on, if it was on such."""
    content = checkpoint.read(path)
    return _description(path, content)


def _description(path: Path, content: dict[str, Any]) -> data.Description | None:
    if "description" not in content:
        return None
    try:
        return own.described(content["description"])
    except (ValueError, TypeError) as error:
        raise ValueError(f"{_WANTED}; {path} describes its inputs otherwise: {record.line(error)}") from error


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
        path: a checkpoint, or a run's folder.
        trust: functions that it may name as its layers, ``module:function``. They will be run.

    Raises:
        ValueError: if there is no checkpoint of hibana there, or only a part of one, or one that was changed
            since it was written, or it names a function that is not in `trust`.
    """
    path = checkpoint_of(path)
    settings, shape, classes, weights, description = _opened(path, trust)
    most = sum(weight.numel() for weight in weights.values())
    try:
        model = Classifier(settings, shape, classes, description=description, most_weights=most)
        model.load_state_dict(weights)
    except (AttributeError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{_WANTED}; {path} holds something else: {record.line(error)}") from error
    return model.eval()


def _opened(
    path: Path, trust: Collection[str], *, whole: bool = False
) -> tuple[Settings, tuple[int, ...], int, dict[str, torch.Tensor], data.Description | None]:
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
    for name in ("layers", "data"):
        architecture.check_trust(hyper.get(name), trust, f"checkpoint {path}")
    description = _description(path, content)
    if hyper.get("kind") != (None if description is None else description.kind):
        raise ValueError(f"{_WANTED}; {path} does not say how its inputs are read")
    try:
        chosen = {name: value for name, value in hyper.items() if name in known}
        settings = Settings(**chosen)
    except ValueError as error:
        raise ValueError(f"{_WANTED}; {path} holds other settings: {error}") from error
    if description is not None:
        shape, classes = tuple(description.inputs.shape), description.target.outputs
    else:
        shape, classes = tuple(settings.data_set.shape), settings.data_set.classes
    given = hyper["shape"], hyper["classes"]
    # a function of the user's is called with these
    if given != (list(shape), classes):
        raise ValueError(f"{_WANTED}; {path} is of other inputs than {settings.data}")
    return settings, shape, classes, weights, description


def _is_state(weights: object) -> TypeGuard[dict[str, torch.Tensor]]:
    """Whether `weights` are parameters by name."""
    return isinstance(weights, dict) and all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in weights.items()
    )


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
