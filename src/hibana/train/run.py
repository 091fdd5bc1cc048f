"""A run with Lightning, from its settings to its outcome, and the files that it writes.

A run's folder holds ``settings.yaml``, from which it can be repeated; ``checkpoint.ckpt`` of the last
finished epoch, from which it is resumed; with early stopping also ``best.ckpt`` of the epoch with the least
validation loss. A checkpoint holds plain data only: nothing in it is run.
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
from typing import Any, NamedTuple, Protocol

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy

from hibana import data
from hibana.data.base import machine_memory
from hibana.nn.models.rocket import Rocket
from hibana.runtime import files
from hibana.train import augment, checkpoint, elastic, finite, results, series
from hibana.train.architecture import is_function
from hibana.train.baseline import first
from hibana.train.callbacks import Files, History, Keeper
from hibana.train.classifier import Classifier
from hibana.train.loading import described, resume_settings
from hibana.train.run_folder import BEST, LAST, LOGS, SETTINGS, Folder, claim
from hibana.train.settings import UNIT, Settings

__all__ = ["Outcome", "Prepared", "complete", "fit", "build_classifier", "prepare"]


@dataclass(frozen=True)
class Outcome:
    """Result of a run.

    Attributes:
        settings: settings that were used, complete.
        checkpoint: checkpoint of the network that was tested.
        logs: folder for TensorBoard, if it is installed.
        accuracy: share of the test samples that are classified correctly; for a quantity the share of its
            variance that is explained (R², :func:`hibana.nn.loss.r_squared`).
        rates: firing rate of each layer on the test set, in spikes per neuron and step.
        silent: number of neurons of each layer that never spiked on the test set.
        started: firing rates before training.
        seconds: time of the training.
        history: logged values, one per epoch and name.
        measure: ``accuracy`` or ``explained``.
        recalls: by class, the share of its test samples that are classified correctly.
        error: mean squared error of a quantity, in units of its variance in the training part.
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
        """Mean recall of the classes that have test samples."""
        recalls = [recall for recall in self.recalls.values() if not math.isnan(recall)]
        return sum(recalls) / len(recalls) if recalls else None


class MapStyle(Protocol):
    """Samples by number, such as torch's map-style datasets."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


class Prepared(NamedTuple):
    """A run before it writes anything: complete settings, data, network, and checkpoint to resume from."""

    settings: Settings
    samples: data.DataSet
    model: Classifier
    checkpoint: Path | None


def fit(
    settings: Settings | None,
    folder: str | Path,
    *,
    samples: "data.DataSet | MapStyle | None" = None,
    resume: str | Path | None = None,
    overwrite: bool = False,
    progress: bool = False,
    callbacks: Sequence[Callback] = (),
) -> tuple[Classifier, Outcome]:
    """Trains a network, writes its files to a folder, and tests it once at the end.

    The network of the last epoch is tested; with early stopping, that of the epoch with the least validation
    loss. Settings that were not passed get the defaults for data of that kind and number
    (:meth:`Settings.on`); the outcome has the settings that were used.

    Args:
        settings: of the run. When a run is resumed they may change
            :data:`~hibana.train.loading.CHANGEABLE` options; ``None`` takes all from the checkpoint.
        folder: for the settings, the checkpoints and, if TensorBoard is installed, its logs. If it holds
            another run, the next number is used: ``NAME-1``; the outcome says which.
        samples: the data, if they are in memory; also a map-style dataset of ``(x, y)``, such as torch's
            ``TensorDataset``. Default: the data that the settings name.
        resume: a checkpoint, or a run's folder, to continue from.
        overwrite: replace the run that `folder` holds.
        progress: show a progress bar.
        callbacks: Lightning callbacks, called beside hibana's own: for values of each epoch, and to stop.

    Raises:
        NotJoinedError: if ``torchrun`` started several processes and one does not join.
        FloatingPointError: if a loss, a gradient or a weight is no longer finite, or an input of data that
            are not held in memory is not; it says where.
        OSError: if a checkpoint can't be written. The previous one is still there.
        ValueError: if `resume` is no checkpoint, the folder is in use, or an input or label is not finite.
    """
    if not isinstance(settings, Settings) and (settings is not None or resume is None):
        raise TypeError(f"settings must be hb.train.Settings, such as Settings('digits'), got {settings!r}")
    if isinstance(samples, tuple):
        raise TypeError(
            "samples must be a data set, got a tuple; arrays X and y become one by "
            "hb.data.Arrays(X, labels=y), sequences by hb.data.Sequences(X, labels=y)"
        )
    path, resume = Path(folder), None if resume is None else Path(resume)
    if resume is None and (written := elastic.before_restart(path, SETTINGS)) is not None:
        path = resume = written
    with claim(path, resume=resume, overwrite=overwrite) as claimed:
        checkpoint_path = None
        if resume is not None:
            explicit = frozenset[str]() if settings is None else settings.explicit
            changes = {name: getattr(settings, name) for name in explicit}
            trust = [changes[name] for name in explicit & {"layers", "data"} if is_function(changes[name])]
            settings, checkpoint_path = resume_settings(resume, trust=trust, **changes)
        assert settings is not None
        prepared = prepare(settings, samples=samples, resume=checkpoint_path)
        return complete(prepared, claimed, progress=progress, callbacks=callbacks)


def prepare(
    settings: Settings,
    *,
    samples: "data.DataSet | MapStyle | None" = None,
    resume: Path | None = None,
) -> Prepared:
    """Reads the data, chooses the remaining settings, and builds the network; `resume` is a checkpoint."""
    if samples is not None and not isinstance(samples, data.DataSet):
        options: dict[str, Any] = {"batch_size": settings.batch_size, "seed": settings.seed}
        samples = data.user_data.from_dataset(samples, unit=settings.coding in UNIT, **options)
    settings = elastic.with_devices(settings)
    samples = samples or settings.samples(None if resume is None else described(resume))
    samples.prepare_data()
    samples.setup()
    finite.check(samples)
    if isinstance(samples, data.UserData):
        settings, samples = series.recipe(settings, samples) if resume is None else (settings, samples)
        samples.batch_size = settings.batch_size
    lightning.seed_everything(settings.seed, verbose=False)
    return Prepared(settings, samples, build_classifier(settings, samples, resume), resume)


def complete(
    prepared: Prepared, folder: Folder, *, progress: bool = False, callbacks: Sequence[Callback] = ()
) -> tuple[Classifier, Outcome]:
    """Trains and tests a prepared network in a claimed folder; see :func:`fit`."""
    settings, samples, model, resume = prepared
    folder.begin(settings)
    history, keeper = History(), Keeper(folder.path, settings.patience)
    start = time.perf_counter()
    if isinstance(model.net, Rocket):
        samples.evaluated_at_once = series.at_once(model.net, settings.steps)
        if resume is None:
            history.values[f"validation/{model.objective.measure}"] = [series.fitted(model, samples)]
    inputs, _, *lengths = first(samples.training, 512)
    started = {} if resume else model.prepare(inputs, *lengths)
    if resume is not None and settings.patience > 0 and folder.is_main and not (folder.path / BEST).exists():
        checkpoint.read(resume.parent / BEST)  # raises a ValueError if it is missing or damaged
        files.write(folder.path / BEST, (resume.parent / BEST).read_bytes())
    with warnings.catch_warnings():
        _silence_lightning()
        trainer = _trainer(settings, folder.path, [history, keeper, *callbacks], progress=progress)
        samples.processes, samples.rank = trainer.world_size, trainer.global_rank
        model.samples = samples
        trainer.fit(
            model, samples.train_dataloader(), samples.val_dataloader(), ckpt_path=resume, weights_only=True
        )
        if not settings.epochs:  # no epoch wrote a checkpoint
            trainer.save_checkpoint(keeper.folder / LAST)
        seconds = time.perf_counter() - start
        learned = {name: list(values) for name, values in history.values.items()}
        best = keeper.folder / BEST if settings.patience > 0 and settings.epochs else None
        (tested,) = trainer.test(
            model, samples.test_dataloader(), ckpt_path=best, verbose=False, weights_only=True
        )
    if trainer.world_size > 1:
        atexit.register(_leave)  # not after a failure: it would wait for an exchange under way
    silent = _by_layer(tested, "silent")
    outcome = Outcome(
        settings=settings,
        checkpoint=best or keeper.folder / LAST,
        logs=keeper.folder / LOGS if trainer.logger else None,
        accuracy=tested[f"test/{model.objective.measure}"],
        measure=model.objective.measure,
        error=tested["test/loss"] if model.is_regression else None,
        recalls=_recalls(model, samples),
        rates=_by_layer(tested, "rate"),
        silent={name: int(count) for name, count in silent.items()},
        started=started,
        seconds=seconds,
        history=learned,
    )
    if folder.is_main:
        results.write(folder.path, outcome)
    model.result = results.Facts(outcome.measure, outcome.accuracy, outcome.rates)
    return model, outcome


def _trainer(
    settings: Settings, folder: Path, callbacks: list[Callback], *, progress: bool
) -> lightning.Trainer:
    processes = settings.devices * settings.nodes
    if processes > 1 and elastic.is_launched():
        elastic.join(settings.accelerator)
    has_board = importlib.util.find_spec("tensorboard") is not None
    return lightning.Trainer(
        max_epochs=settings.epochs,
        gradient_clip_val=settings.clip,
        accelerator=settings.accelerator,
        devices=settings.devices,
        num_nodes=settings.nodes,
        strategy=DDPStrategy(timeout=elastic.TIMEOUT) if processes > 1 else "auto",
        precision=settings.precision,  # type: ignore[arg-type]  # checked by Settings
        callbacks=callbacks,
        plugins=[Files()],
        default_root_dir=folder,
        logger=TensorBoardLogger(folder, name=LOGS, version="") if has_board else False,
        enable_progress_bar=progress,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,  # the data set divides itself among the processes
        log_every_n_steps=1,  # only epochs are logged; a larger number gives a warning for short epochs
    )


def build_classifier(
    settings: Settings, samples: data.DataSet, resume: str | Path | None = None
) -> Classifier:
    """The network for `samples`, before it is trained or resumed.

    Raises:
        ValueError: if the accelerator lacks the precision, the samples can't be augmented as the settings
            say, the layers do not fit, or they have more weights than this machine can train.
    """
    if settings.precision == "16-mixed" and settings.accelerator == "cpu":  # Lightning would use another
        raise ValueError(
            "precision 16-mixed needs a GPU (accelerator gpu); bf16-mixed is what a CPU computes with 16 bits"
        )
    description = samples.description if isinstance(samples, data.UserData) else None
    most = machine_memory() // 16  # bytes of float32 weights, their gradients and AdamW's two averages
    model = Classifier(settings, samples.shape, samples.classes, description=description, most_weights=most)
    series.check(model, samples)
    if resume is None:
        augment.check(settings.augment, model.shape, sequential=settings.is_sequential)
    return model


def _leave() -> None:
    """Leaves the process group before the interpreter ends.

    Gloo's threads still hold tensors of the last exchange; releasing them while the interpreter ends aborts
    the process. Lightning does the same for NCCL.
    """
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _by_layer(tested: Any, name: str) -> dict[str, float]:
    prefix = f"test/{name}/"
    return {key.removeprefix(prefix): value for key, value in tested.items() if key.startswith(prefix)}


def _recalls(model: Classifier, samples: data.DataSet) -> dict[str, float]:
    if model.recall is None:
        return {}
    right, _, _, _, tested = model.recall.compute().unbind(dim=1)
    recalls = (right / tested).tolist()  # NaN for classes without test samples
    return dict(zip(samples.names, recalls, strict=False))


def _silence_lightning() -> None:
    """Hides Lightning's messages about each run, and four warnings that need no action."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for harmless in (
        ".*does not have many workers",  # the data are in memory, or no workers were requested
        "Checkpoint directory .* exists and is not empty",  # the settings, or a resumed checkpoint
        "The dirpath has changed",  # a checkpoint that was moved before it was resumed
        ".*isinstance.treespec, LeafSpec.* is deprecated",  # Lightning's own use of torch
    ):
        warnings.filterwarnings("ignore", message=harmless)
