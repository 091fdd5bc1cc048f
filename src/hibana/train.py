"""Training: the settings of a run, the network they describe, and the run itself through Lightning.

A checkpoint holds plain data only, so that it loads with ``weights_only=True``. Nothing here draws, prints
or knows the command line.

Importing this room needs Lightning (``pip install hibana[train]``).
"""

import importlib.util
import logging
import math
import time
import warnings
from collections import OrderedDict
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, RichProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn

from hibana import data, encode, layers, loss, metrics, surrogate

__all__ = ["Classifier", "Outcome", "Settings", "activity", "fit", "linear_accuracy", "load", "network"]


@dataclass(frozen=True)
class Settings:
    """All that decides a run, in plain types.

    Args:
        data: the data set's name.
        layers: neurons of each hidden layer.
        surrogate: the name of what to call the derivative of the step.
        threshold: of the hidden neurons.
        steps: time steps T for which an input is shown.
        epochs: passes over the training set.
        batch_size: samples in a batch.
        learning_rate: the peak of the one-cycle schedule.
        weight_decay: of AdamW.
        clip: the largest norm of a gradient.
        rate_target: spikes per neuron and step above which a layer is penalised.
        rate_penalty: weight of that penalty; 0 is none.
        seed: of everything random.
    """

    data: str = "digits"
    layers: tuple[int, ...] = (256, 256)
    surrogate: str = "Step"
    threshold: float = 1.0
    steps: int = 8
    epochs: int = 40
    batch_size: int = 64
    learning_rate: float = 5e-3
    weight_decay: float = 1e-2
    clip: float = 1.0
    rate_target: float = 0.07
    rate_penalty: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.data not in data.DATA_SETS:
            raise ValueError(f"data must be one of {', '.join(data.DATA_SETS)}; got {self.data!r}")
        surrogate.named(self.surrogate)
        for name in ("steps", "epochs", "batch_size"):
            _check(name, getattr(self, name), "at least 1", getattr(self, name) >= 1)
        for name in ("threshold", "learning_rate", "clip"):
            value = getattr(self, name)
            _check(name, value, "positive and finite", math.isfinite(value) and value > 0)
        for name in ("weight_decay", "rate_penalty"):
            value = getattr(self, name)
            _check(name, value, "finite and at least 0", math.isfinite(value) and value >= 0)
        _check("rate_target", self.rate_target, "in (0, 1], spikes per step", 0 < self.rate_target <= 1)
        _check("layers", self.layers, "one number of neurons or more", bool(self.layers))
        _check("layers", self.layers, "at least 1 neuron each", all(size >= 1 for size in self.layers))
        _check("seed", self.seed, "in [0, 2^32)", 0 <= self.seed < 2**32)


@dataclass(frozen=True)
class Outcome:
    """What came of a run.

    `rates` are the layers' firing rates on the test set; `history` has one value per epoch and name.
    """

    settings: Settings
    checkpoint: Path
    logs: Path | None
    accuracy: float
    rates: dict[str, float]
    seconds: float
    history: dict[str, list[float]]


def network(settings: Settings, features: int, classes: int) -> nn.Sequential:
    """``[T, batch, features] -> [T, batch, classes]``: hidden layers of IF neurons, a readout of potentials.

    The gradient is stopped at the reset: with the article's derivative each spike would otherwise multiply
    it by minus the potential.
    """
    step = surrogate.named(settings.surrogate)
    stack: OrderedDict[str, nn.Module] = OrderedDict()
    for number, size in enumerate(settings.layers, start=1):
        stack[f"linear{number}"] = nn.Linear(features, size)
        stack[f"if{number}"] = layers.IF(settings.threshold, step, detach_reset=True)
        features = size
    stack["linear"] = nn.Linear(features, classes)
    stack["readout"] = layers.LI()
    return nn.Sequential(stack)


def activity(net: nn.Module, inputs: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """What `net` puts out for `inputs`, and the spikes of each of its spiking layers, by name."""
    spikes: dict[str, Tensor] = {}
    hooks = []

    def keep(name: str) -> Any:
        def hook(module: nn.Module, args: Any, outputs: Tensor) -> None:
            spikes[name] = outputs

        return hook

    for name, module in net.named_modules():
        if _spikes(module):
            hooks.append(module.register_forward_hook(keep(name)))
    try:
        outputs = net(inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return outputs, spikes


class Classifier(lightning.LightningModule):
    """A spiking network, shown each input as a constant current, that is trained to name its class.

    L = cross-entropy of the readout's mean potential + rate_penalty * sum_layers max(0, r/target - 1)^2
    """

    def __init__(self, settings: Settings, features: int, classes: int) -> None:
        super().__init__()
        self.settings = settings
        self.save_hyperparameters({**asdict(settings), "features": features, "classes": classes})
        self.net = network(settings, features, classes)
        self.objective = loss.MembraneMean()
        spiking = [name for name, module in self.net.named_modules() if _spikes(module)]
        self.rates = nn.ModuleDict({name: metrics.FiringRate() for name in spiking})

    def forward(self, inputs: Tensor) -> Tensor:
        """The classes' scores, ``[batch, classes]``, for `inputs`, ``[batch, ...]``."""
        return self.objective.scores(self.net(self.encode(inputs)))

    def encode(self, inputs: Tensor) -> Tensor:
        """`inputs` as currents over time, ``[T, batch, features]``."""
        return encode.constant(inputs.flatten(1), self.settings.steps)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        inputs, labels = batch
        outputs, spikes = activity(self.net, self.encode(inputs))
        error = self.objective(outputs, labels)
        self.log("training/loss", error, on_epoch=True, on_step=False, batch_size=len(labels))
        self.log(
            "training/accuracy",
            self.objective.accuracy(outputs, labels),
            on_epoch=True,
            on_step=False,
            batch_size=len(labels),
        )
        excess = [loss.rate_penalty(layer, self.settings.rate_target) for layer in spikes.values()]
        return error + self.settings.rate_penalty * torch.stack(excess).sum()

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self._evaluate(batch, "validation")

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self._evaluate(batch, "test")

    def _evaluate(self, batch: tuple[Tensor, Tensor], part: str) -> None:
        inputs, labels = batch
        outputs, spikes = activity(self.net, self.encode(inputs))
        self.log(f"{part}/loss", self.objective(outputs, labels), batch_size=len(labels))
        accuracy = self.objective.accuracy(outputs, labels)
        self.log(f"{part}/accuracy", accuracy, batch_size=len(labels), prog_bar=True)
        for name, layer in spikes.items():
            rate = self.rates[name]
            assert isinstance(rate, metrics.FiringRate)
            rate.update(layer)
            self.log(f"{part}/rate/{name}", rate, batch_size=len(labels))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(
            self.parameters(), self.settings.learning_rate, weight_decay=self.settings.weight_decay
        )
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer,
            self.settings.learning_rate,
            total_steps=int(self.trainer.estimated_stepping_batches),
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def fit(
    settings: Settings, folder: Path, *, resume: Path | None = None, progress: bool = False
) -> tuple[Classifier, Outcome]:
    """Trains a network, keeps a checkpoint of its last epoch in `folder`, and tests it once at the end.

    Args:
        settings: of the run; those in the checkpoint if it goes on from one.
        folder: for the checkpoint and, where TensorBoard is installed, its logs.
        resume: a checkpoint to go on from.
        progress: show a progress bar.
    """
    lightning.seed_everything(settings.seed, verbose=False)
    samples = data.load(settings.data, settings.batch_size)
    model = Classifier(settings, math.prod(samples.shape), samples.classes)
    history = _History()
    checkpoints = ModelCheckpoint(folder, filename="checkpoint", enable_version_counter=False)
    board = importlib.util.find_spec("tensorboard") is not None
    with warnings.catch_warnings():
        _quiet()
        trainer = lightning.Trainer(
            max_epochs=settings.epochs,
            gradient_clip_val=settings.clip,
            callbacks=[history, checkpoints, *([RichProgressBar()] if progress else [])],
            logger=TensorBoardLogger(folder, name="tensorboard", version="") if board else False,
            enable_progress_bar=progress,
            enable_model_summary=False,
            log_every_n_steps=10,
        )
        begun = time.perf_counter()
        trainer.fit(model, samples, ckpt_path=resume, weights_only=True)
        seconds = time.perf_counter() - begun
        (tested,) = trainer.test(model, samples, verbose=False)
    return model, Outcome(
        settings=settings,
        checkpoint=folder / Path(checkpoints.best_model_path).name,
        logs=folder / "tensorboard" if board else None,
        accuracy=tested["test/accuracy"],
        rates={name: tested[f"test/rate/{name}"] for name in model.rates},
        seconds=seconds,
        history=history.values,
    )


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


def linear_accuracy(samples: data.DataSet) -> float:
    """Test accuracy of logistic regression, fitted to the same training set without augmentation."""
    from sklearn.linear_model import LogisticRegression

    samples.setup()
    (inputs, labels), (test_inputs, test_labels) = samples.training, samples.test
    classifier = LogisticRegression(max_iter=1000).fit(inputs.flatten(1).numpy(), labels.numpy())
    return float(classifier.score(test_inputs.flatten(1).numpy(), test_labels.numpy()))


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


def _spikes(module: nn.Module) -> bool:
    """Whether `module` is a layer that emits spikes: its cell's last state is named so."""
    return isinstance(module, layers.OverTime) and module.cell.state_names()[-1] in ("s", "spikes")


def _check(name: str, value: object, wanted: str, right: bool) -> None:
    if not right:
        raise ValueError(f"{name} must be {wanted}, got {value!r}")


def _quiet() -> None:
    """Silences what Lightning says of every run, and four of its warnings that call for nothing."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for harmless in (
        ".*does not have many workers",  # the data is in memory
        "Checkpoint directory .* exists and is not empty",  # the logs, or the checkpoint gone on from
        "The dirpath has changed",  # a checkpoint that was moved before going on
        ".*isinstance.treespec, LeafSpec.* is deprecated",  # Lightning's own use of torch
    ):
        warnings.filterwarnings("ignore", message=harmless)
