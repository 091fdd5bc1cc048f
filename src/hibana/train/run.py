"""A run with Lightning: from its settings to its result and the files that it writes.

A run's folder contains ``settings.yaml``, which suffices to repeat the run, and ``checkpoint.ckpt`` of the
last completed epoch, from which the run can be resumed. With early stopping it also contains ``best.ckpt`` of
the epoch with the smallest validation loss. Checkpoints contain data only: opening one runs no code from it.
"""

import atexit
import importlib.util
import logging
import os
import time
import warnings
from collections.abc import Collection, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import lightning
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy
from torch import distributed
from torch.utils.data import Dataset

from hibana import data
from hibana.data.base import machine_memory
from hibana.nn.models.rocket import Rocket
from hibana.runtime import files
from hibana.train import checkpoint, results, series
from hibana.train.architecture import is_function
from hibana.train.baseline import first_samples
from hibana.train.callbacks import CheckpointFiles, CheckpointWriter, History
from hibana.train.classifier import Classifier
from hibana.train.loading import resume_settings
from hibana.train.results import Outcome
from hibana.train.run_folder import BEST, LAST, LOGS, RunFolder, claim, interrupted_folder, is_torchrun
from hibana.train.settings import UNIT_CODINGS, Settings

TIMEOUT = timedelta(minutes=10)
"""Longest time that a process waits for the others, when they connect and at each exchange."""


class Prepared(NamedTuple):
    """A run before it writes anything.

    Attributes:
        settings: the complete settings.
        samples: the data.
        model: the network.
        folder: the requested folder of the run.
        resume: checkpoint or folder of the run that is resumed; ``None`` for a new run.
        checkpoint: checkpoint to resume from; ``None`` if no epoch has ended.
    """

    settings: Settings
    samples: data.DataSet
    model: Classifier
    folder: Path
    resume: Path | None
    checkpoint: Path | None


def fit(
    settings: Settings | None,
    folder: str | Path,
    *,
    samples: "data.DataSet | Dataset[Any] | None" = None,
    resume: str | Path | None = None,
    overwrite: bool = False,
    progress: bool = False,
    callbacks: Sequence[Callback] = (),
) -> tuple[Classifier, Outcome]:
    """Trains a network, writes its files to a folder, and tests it once at the end.

    The network of the last epoch is tested. With early stopping, the network of the epoch with the smallest
    validation loss is tested instead. Settings that the caller did not pass get the defaults for the kind and
    number of samples (:meth:`Settings.on`); the outcome contains the complete settings.

    Args:
        settings: settings of the run. If a run is resumed, they may change only
            :data:`~hibana.train.loading.CHANGEABLE` options; ``None`` takes all from the checkpoint.
        folder: folder of the settings, the checkpoints and, if TensorBoard is installed, its logs. If it
            contains another run, the next free number is appended, ``NAME-1``: see the outcome's checkpoint.
        samples: the data, if they are in memory. Map-style datasets of ``(x, y)`` are accepted too, such as
            torch's ``TensorDataset``. Default: the data that the settings name.
        resume: a checkpoint, or a run's folder, to continue from.
        overwrite: replace the run in `folder`.
        progress: show a progress bar.
        callbacks: Lightning callbacks that are called in addition to hibana's own.

    Raises:
        FloatingPointError: if a loss, a gradient, or an input that is not held in memory is not finite. The
            message names the epoch.
        OSError: if a checkpoint can't be written. The previous one is unchanged.
        RuntimeError: if another process of the same training does not connect within ten minutes.
        TypeError: if `settings` are not :class:`Settings`.
        ValueError: if `resume` is no checkpoint, the folder is in use, or an input or label is not finite.
    """
    if not isinstance(settings, Settings) and (settings is not None or resume is None):
        raise TypeError(f"settings must be hb.train.Settings, such as Settings('digits'), got {settings!r}")
    changes = {} if settings is None else {name: getattr(settings, name) for name in settings.explicit}
    trust = [name for name in (changes.get("layers"), changes.get("data")) if name and is_function(name)]
    resume = None if resume is None else Path(resume)
    prepared = prepare(settings, Path(folder), samples=samples, resume=resume, trust=trust, **changes)
    with claim(prepared.folder, resume=prepared.resume, overwrite=overwrite) as run_folder:
        return complete(prepared, run_folder, progress=progress, callbacks=callbacks)


def prepare(
    settings: Settings | None,
    folder: Path,
    *,
    samples: "data.DataSet | Dataset[Any] | None" = None,
    resume: Path | None = None,
    trust: Collection[str] = (),
    **changes: Any,
) -> Prepared:
    """Reads the data, completes the settings, and builds the network.

    Args:
        settings: settings as the user passed them; not used if a run is resumed.
        folder: the requested folder of the run.
        samples: the data, if they are in memory.
        resume: checkpoint or folder of the run to resume. Default: after a restart of ``torchrun``, the
            run that it started before.
        trust: functions ``module:function`` that the resumed run may name as its layers. They are executed.
        changes: options that replace those of the resumed run.

    Raises:
        ValueError: see :func:`fit` and :func:`build_classifier`.
    """
    if resume is None and (interrupted := interrupted_folder(folder)) is not None:
        folder = resume = interrupted
    checkpoint_path = description = None
    content: dict[str, Any] = {}
    if resume is not None:
        settings, checkpoint_path = resume_settings(resume, trust=trust, **changes)
    if checkpoint_path is not None:
        content = checkpoint.read(checkpoint_path)
    if "description" in content:
        description = data.user_data.description_from_plain(content["description"])
    assert settings is not None
    if samples is not None and not isinstance(samples, data.DataSet):
        options: dict[str, Any] = {"batch_size": settings.batch_size, "seed": settings.seed}
        samples = data.user_data.from_dataset(samples, unit=settings.coding in UNIT_CODINGS, **options)
    settings = _with_torchrun_processes(settings)
    samples = samples or settings.samples(description)
    samples.prepare_data()
    samples.setup()
    if content:
        _check_sizes(samples, content["hyper_parameters"], resume)
    for part in ("training", "validation", "test"):  # the classifier checks batches of other samples
        if isinstance(split := getattr(samples, part), data.InMemory):
            split.check_finite(part)
    if isinstance(samples, data.UserData):
        if checkpoint_path is None:
            settings, samples = series.choose_network(settings, samples)
        samples.batch_size = settings.batch_size
    lightning.seed_everything(settings.seed, verbose=False)
    model = build_classifier(settings, samples, checkpoint_path)
    return Prepared(settings, samples, model, folder, resume, checkpoint_path)


def _check_sizes(samples: data.DataSet, run: dict[str, Any], path: Path | None) -> None:
    """Raises ValueError if `samples` have other sizes than in `run`, the options of the run at `path`."""
    shape, classes = list(samples.shape), samples.classes
    if (shape, classes) != (run["shape"], run["classes"]):
        raise ValueError(
            f"data must have inputs of shape {run['shape']} and {run['classes']} outputs, as in {path}, "
            f"which is resumed; they have {shape} and {classes}"
        )


def _with_torchrun_processes(settings: Settings) -> Settings:
    """Returns `settings` with the numbers of processes and machines of ``torchrun``, if it runs this process.

    Raises ValueError if the settings have other numbers.
    """
    if not is_torchrun():
        return settings
    devices, nodes = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["GROUP_WORLD_SIZE"])
    if (settings.devices, settings.nodes) not in ((1, 1), (devices, nodes)):
        raise ValueError(
            f"devices and nodes must be the {devices} processes on each of {nodes} machines that torchrun "
            f"started, got {settings.devices} and {settings.nodes}; leave both out"
        )
    return replace(settings, devices=devices, nodes=nodes)


def complete(
    prepared: Prepared, folder: RunFolder, *, progress: bool = False, callbacks: Sequence[Callback] = ()
) -> tuple[Classifier, Outcome]:
    """Trains and tests a prepared network in a locked folder; see :func:`fit`."""
    settings, samples, model, _, _, resume = prepared
    folder.begin(settings)
    history, writer = History(), CheckpointWriter(folder.path, settings.patience)
    start = time.perf_counter()
    samples.evaluated_at_once = min(samples.evaluated_at_once, model.evaluated_at_once)
    if isinstance(model.net, Rocket) and resume is None:
        history.values[f"validation/{model.objective.measure}"] = [series.fit_rocket(model, samples)]
    inputs, _, *lengths = first_samples(samples.training, 512)
    initial_rates = {} if resume else model.prepare(inputs, *lengths)
    if resume is not None and settings.patience > 0 and folder.is_main and not (folder.path / BEST).exists():
        checkpoint.read(resume.parent / BEST)  # raises a ValueError if it is missing or damaged
        files.write(folder.path / BEST, (resume.parent / BEST).read_bytes())
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*does not have many workers")  # the user asked for none
        warnings.filterwarnings("ignore", ".*isinstance.treespec, LeafSpec.* is deprecated")  # in Lightning
        trainer = _trainer(settings, folder.path, [history, writer, *callbacks], progress=progress)
        samples.processes, samples.rank = trainer.world_size, trainer.global_rank
        trainer.fit(
            model, samples.train_dataloader(), samples.val_dataloader(), ckpt_path=resume, weights_only=True
        )
        if not settings.epochs:  # no epoch wrote a checkpoint
            trainer.save_checkpoint(writer.folder / LAST)
        seconds = time.perf_counter() - start
        epoch_values = {name: list(values) for name, values in history.values.items()}
        best = writer.folder / BEST if settings.patience > 0 and settings.epochs else None
        (metrics,) = trainer.test(
            model, samples.test_dataloader(), ckpt_path=best, verbose=False, weights_only=True
        )
    if trainer.world_size > 1:
        atexit.register(_leave_process_group)  # not after a failure: it would wait for an unfinished exchange
    target = None if model.description is None else model.description.target
    outcome = Outcome(
        settings=settings,
        checkpoint=best or writer.folder / LAST,
        logs=writer.folder / LOGS if trainer.logger else None,
        measure=model.objective.measure,
        value=metrics[f"test/{model.objective.measure}"],
        quantity=target.name if target and model.is_regression else None,
        error=metrics["test/loss"] * target.deviation**2 if target and model.is_regression else None,
        recalls=_recalls(model, samples),
        rates=_layer_metrics(metrics, "rate"),
        silent={name: int(count) for name, count in _layer_metrics(metrics, "silent").items()},
        started=initial_rates,
        seconds=seconds,
        history=epoch_values,
    )
    if folder.is_main:
        results.write(folder.path, outcome)
    model.result = results.Measurements(outcome.measure, outcome.value, outcome.rates)
    return model, outcome


class _Processes(DDPStrategy):
    """Distributed training, whose processes also find each other after ``torchrun`` restarted them.

    ``torchrun`` keeps one store of addresses for all starts. A restarted process that read an address of the
    start before would wait for a process that has ended. Therefore each start has its own prefix of the keys.
    On several machines, which may count their restarts differently, processes use PyTorch's keys.
    """

    def setup_environment(self) -> None:
        """Connects the processes before Lightning does; Lightning leaves an existing group as it is."""
        on_one_machine = is_torchrun() and os.environ["GROUP_WORLD_SIZE"] == "1"
        if on_one_machine and not distributed.is_initialized():  # the test at the end calls this again
            from torch.distributed import PrefixStore, rendezvous  # type: ignore[attr-defined]

            store, rank, processes = next(rendezvous("env://", timeout=TIMEOUT))
            store = PrefixStore(f"start {os.environ['TORCHELASTIC_RESTART_COUNT']}", store)
            group = {"store": store, "rank": rank, "world_size": processes, "timeout": TIMEOUT}
            distributed.init_process_group(self._get_process_group_backend(), **group)
        super().setup_environment()


def _trainer(
    settings: Settings, folder: Path, callbacks: list[Callback], *, progress: bool
) -> lightning.Trainer:
    """Returns Lightning's trainer for `settings`, which writes its files to `folder`."""
    has_tensorboard = importlib.util.find_spec("tensorboard") is not None
    return lightning.Trainer(
        max_epochs=settings.epochs,
        gradient_clip_val=settings.clip,
        accelerator=settings.accelerator,
        devices=settings.devices,
        num_nodes=settings.nodes,
        strategy=_Processes(timeout=TIMEOUT) if settings.devices * settings.nodes > 1 else "auto",
        precision=settings.precision,  # type: ignore[arg-type]  # checked by Settings
        callbacks=callbacks,
        plugins=[CheckpointFiles()],
        default_root_dir=folder,
        logger=TensorBoardLogger(folder, name=LOGS, version="") if has_tensorboard else False,
        enable_progress_bar=progress,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,  # the data set divides itself among the processes
        log_every_n_steps=1,  # only epochs are logged; a larger number gives a warning for short epochs
    )


def build_classifier(
    settings: Settings, samples: data.DataSet, resume: str | Path | None = None
) -> Classifier:
    """Returns the untrained network for `samples`; `resume` is the checkpoint of a run that is resumed.

    Raises:
        ValueError: if the accelerator does not support the precision, the samples can't be augmented with the
            requested operations, the layers do not fit the samples, or training them needs more memory than
            this machine has.
    """
    if settings.precision == "16-mixed" and settings.accelerator == "cpu":  # Lightning would use another
        raise ValueError("precision 16-mixed needs a GPU; on a CPU use bf16-mixed for 16-bit products")
    description = samples.description if isinstance(samples, data.UserData) else None
    max_weights = machine_memory() // 16  # bytes of a float32 weight, its gradient, and AdamW's two averages
    model = Classifier(
        settings, samples.shape, samples.classes, description=description, most_weights=max_weights
    )
    if resume is None and settings.augment not in (None, "none") and len(model.shape) < 2:
        raise ValueError(f"augment must be none for inputs that are no images, got {settings.augment!r}")
    return model


def _leave_process_group() -> None:
    """Leaves torch's process group before the interpreter ends.

    Gloo's threads still hold tensors of the last exchange. Releasing them while the interpreter ends aborts
    the process. Lightning does the same for NCCL.
    """
    if distributed.is_initialized():
        distributed.destroy_process_group()


def _layer_metrics(metrics: Any, name: str) -> dict[str, float]:
    """Returns the test metric `name` of each layer, by layer name."""
    prefix = f"test/{name}/"
    return {key.removeprefix(prefix): value for key, value in metrics.items() if key.startswith(prefix)}


def _recalls(model: Classifier, samples: data.DataSet) -> dict[str, float]:
    """Returns the recall of each class on the test set; NaN for classes without test samples."""
    if model.recall is None:
        return {}
    correct, _, _, _, total = model.recall.compute().unbind(dim=1)
    return dict(zip(samples.names, (correct / total).tolist(), strict=False))
