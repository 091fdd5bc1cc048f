"""A run through Lightning, from its settings to its outcome, and what it leaves on disk.

A run's folder holds ``settings.yaml``, from which it can be run again; ``checkpoint.ckpt`` of the last
finished epoch, from which it goes on; with early stopping ``best.ckpt`` of the epoch that validated best too.
A checkpoint holds plain data only: nothing in it is run.
"""

import atexit
import importlib.util
import logging
import math
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy

from hibana import data
from hibana.data.base import memory
from hibana.nn.models.rocket import Rocket
from hibana.train import augment, checkpoint, elastic, finite, results, series
from hibana.train.baseline import first
from hibana.train.card import Facts
from hibana.train.classifier import Classifier
from hibana.train.folder import BEST, LAST, SETTINGS, Folder, identity, own
from hibana.train.keeping import Files, History, Keeper
from hibana.train.restoring import continued, described
from hibana.train.settings import UNIT, Settings

__all__ = ["Outcome", "fit", "made"]


@dataclass(frozen=True)
class Outcome:
    """What came of a run.

    `measure` is what `accuracy` is: the part that is right, or of a quantity the part of its variance that is
    explained (R², :func:`hibana.nn.loss.r_squared`), whose mean squared error is `error`, in units of the
    variance in the training part; `recalls` are, by class, the parts of its test samples that are named so.
    `rates` are the layers' firing rates on the test set, `silent` the numbers of their neurons that never
    spiked there; `started` are the rates before training; `history` has one value per epoch and name.
    """

    settings: Settings = field(repr=False)
    checkpoint: Path
    logs: Path | None = field(repr=False)
    accuracy: float
    rates: dict[str, float] = field(repr=False)
    silent: dict[str, int] = field(repr=False)
    started: dict[str, float] = field(repr=False)
    seconds: float
    history: dict[str, list[float]] = field(repr=False)
    measure: str = "accuracy"
    recalls: dict[str, float] = field(default_factory=dict, repr=False)
    error: float | None = None

    @property
    def balanced(self) -> float | None:
        """The mean of the classes' recalls, of those that were tested."""
        seen = [recall for recall in self.recalls.values() if not math.isnan(recall)]
        return sum(seen) / len(seen) if seen else None


class MapStyle(Protocol):
    """Samples by number: torch's map-style datasets, and others like them."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


def fit(
    settings: Settings | None,
    folder: str | Path | Folder,
    *,
    samples: "data.DataSet | MapStyle | None" = None,
    resume: str | Path | None = None,
    overwrite: bool = False,
    progress: bool = False,
    callbacks: Sequence[Callback] = (),
) -> tuple[Classifier, Outcome]:
    """Trains a network, keeps what :mod:`hibana.train.run` names in a folder, and tests it once at the end.

    What is tested is the network of the last epoch; with early stopping, that of the epoch of least
    validation loss. Settings that were not given are as usual for data of that kind and number
    (:meth:`Settings.on`); the outcome has those that were used.

    Args:
        settings: of the run. When it is resumed they may change :data:`~hibana.train.restoring.CHANGEABLE`
            options; ``None`` takes all from the checkpoint.
        folder: for the settings, the checkpoints and, where TensorBoard is installed, its logs. Where it
            holds another run, the next number is taken: ``NAME-1``; the outcome says which.
        samples: the data, if they are at hand already, or in memory, or a map-style dataset of ``(x, y)``,
            such as torch's ``TensorDataset``; else those that the settings name.
        resume: a checkpoint, or a run's folder, to go on from.
        overwrite: replace the run that `folder` holds.
        progress: show a progress bar.
        callbacks: of Lightning, called beside hibana's own: for values of each epoch, and to stop early.

    Raises:
        NotJoinedError: if ``torchrun`` started several processes and one does not join.
        FloatingPointError: if a loss, a gradient or a weight is no longer finite, or an input of data that
            are not held in memory is not; it says where.
        OSError: if a checkpoint can't be written. The one before is still there.
        ValueError: if `resume` is no checkpoint, the folder is in use, or an input or label is not finite.
    """
    if not isinstance(settings, Settings) and (settings is not None or resume is None):
        raise TypeError(f"settings must be hb.train.Settings, such as Settings('digits'), got {settings!r}")
    if isinstance(samples, tuple):
        raise TypeError(
            "samples must be a data set, got a tuple; arrays X and y become one by "
            "hb.data.Arrays(X, labels=y), sequences by hb.data.Sequences(X, labels=y)"
        )
    resume = None if resume is None else Path(resume)
    if not isinstance(folder, Folder):
        where = Path(folder)
        if resume is None and (written := elastic.before_restart(where, SETTINGS)) is not None:
            where = resume = written
        run = None if resume is None else identity(resume)
        with own(where, run=run, overwrite=overwrite) as held:
            return fit(settings, held, samples=samples, resume=resume, progress=progress, callbacks=callbacks)
    if resume is not None:
        settings, resume = continued(settings, resume)
    assert settings is not None
    if samples is not None and not isinstance(samples, data.DataSet):
        options: dict[str, Any] = {"batch_size": settings.batch_size, "seed": settings.seed}
        samples = data.own.of_samples(samples, unit=settings.coding in UNIT, **options)
    settings = elastic.with_devices(settings)
    lightning.seed_everything(settings.seed, verbose=False)
    samples = samples or settings.samples(None if resume is None else described(resume))
    samples.prepare_data()
    samples.setup()
    finite.check(samples)
    if isinstance(samples, data.Own):
        settings, samples = series.recipe(settings, samples) if resume is None else (settings, samples)
        samples.batch_size = settings.batch_size
    folder.begin(settings)
    model = made(settings, samples, resume)
    measure = model.objective.measure
    history, keeper = History(), Keeper(folder.path, settings.patience)
    begun = time.perf_counter()
    if isinstance(model.net, Rocket):
        samples.evaluated_at_once = series.at_once(model.net, settings.steps)
        if resume is None:
            history.values[f"validation/{measure}"] = [series.fitted(model, samples)]
    started = {} if resume else model.prepare(*first(samples))
    if resume is not None and settings.patience > 0:
        _bring_best(resume.parent, folder)
    board = importlib.util.find_spec("tensorboard") is not None
    processes = settings.devices * settings.nodes
    if processes > 1 and elastic.is_launched():
        elastic.join(settings.accelerator)
    with warnings.catch_warnings():
        _quiet()
        trainer = lightning.Trainer(
            max_epochs=settings.epochs,
            gradient_clip_val=settings.clip,
            accelerator=settings.accelerator,
            devices=settings.devices,
            num_nodes=settings.nodes,
            strategy=DDPStrategy(timeout=elastic.TIMEOUT) if processes > 1 else "auto",
            precision=settings.precision,  # type: ignore[arg-type]  # checked by Settings
            callbacks=[history, keeper, *callbacks],
            plugins=[Files(folder.run)],
            default_root_dir=folder.path,
            logger=TensorBoardLogger(folder.path, name="tensorboard", version="") if board else False,
            enable_progress_bar=progress,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,  # the data set shares itself out
            log_every_n_steps=1,  # nothing is logged but epochs; more would be warned of where they are short
        )
        batches = _Batches(samples)
        trainer.fit(model, batches, ckpt_path=resume, weights_only=True)
        if not settings.epochs:  # no epoch has ended that would have been kept
            trainer.save_checkpoint(keeper.folder / LAST)
        seconds = time.perf_counter() - begun
        learned = {name: list(values) for name, values in history.values.items()}
        chosen = keeper.folder / BEST if settings.patience > 0 and settings.epochs else None
        (tested,) = trainer.test(model, batches, ckpt_path=chosen, verbose=False, weights_only=True)
    if trainer.world_size > 1:
        atexit.register(_leave)  # not after a failure: an exchange under way would be waited for
    outcome = Outcome(
        settings=settings,
        checkpoint=keeper.folder / (LAST if chosen is None else BEST),
        logs=keeper.folder / "tensorboard" if board else None,
        accuracy=tested[f"test/{measure}"],
        measure=measure,
        error=tested["test/loss"] if model.is_regression else None,
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
    if folder.run is not None:
        results.write(folder.path, outcome)
    model.result = Facts(outcome.measure, outcome.accuracy, outcome.rates)
    return model, outcome


class _Batches(lightning.LightningDataModule):
    """A data set as Lightning asks for one, shared among the processes of its trainer."""

    def __init__(self, samples: data.DataSet) -> None:
        super().__init__()
        self.samples = samples

    def setup(self, stage: str) -> None:
        if self.trainer is not None:
            self.samples.processes, self.samples.rank = self.trainer.world_size, self.trainer.global_rank

    def train_dataloader(self) -> Any:
        return self.samples.train_dataloader()

    def val_dataloader(self) -> Any:
        return self.samples.val_dataloader()

    def test_dataloader(self) -> Any:
        return self.samples.test_dataloader()


def made(settings: Settings, samples: data.DataSet, resume: str | Path | None = None) -> Classifier:
    """The network for `samples`, before any training, or before it goes on from a checkpoint.

    Raises:
        ValueError: if the accelerator has not the precision, the samples can't be augmented so,
            or the layers do not fit, or have more weights than this machine can train, or nothing of a chosen
            coding is left of the samples.
    """
    if settings.precision == "16-mixed" and settings.accelerator == "cpu":  # Lightning would take another
        raise ValueError(
            "precision 16-mixed needs a GPU (accelerator gpu); bf16-mixed is what a CPU computes with 16 bits"
        )
    description = samples.description if isinstance(samples, data.Own) else None
    most = memory() // 16  # bytes of float32 weights, their gradients and AdamW's two averages
    model = Classifier(settings, samples.shape, samples.classes, description=description, most_weights=most)
    series.check(model, samples)
    if resume is None:
        augment.check(settings.augment, model.shape, sequential=settings.is_sequential)
    return model


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
    right, _, _, _, tested = model.recall.compute().unbind(dim=1)
    recalls = (right / tested).tolist()  # NaN of a class of which no sample is there
    return dict(zip(samples.names, recalls, strict=False))


def _bring_best(source: Path, folder: Folder) -> None:
    """Sees that the best epoch so far lies where the run goes on.

    Raises:
        ValueError: if it lies nowhere, or what lies there is another run's.
    """
    if folder.run is None or (folder.path / BEST).exists():
        return
    best = checkpoint.read(source / BEST)
    checkpoint.write({**best, "run": folder.run}, folder.path / BEST)


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
