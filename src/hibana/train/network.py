"""The network of a run: input encoding, layers, and scores."""

import warnings
from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hibana.data import DataSet, Description
from hibana.nn import encode, loss
from hibana.nn.models.rocket import Rocket
from hibana.nn.optimize import optimize
from hibana.train import architecture, results, shared_folder
from hibana.train.checkpoint import EXPECTED, one_line
from hibana.train.firing_rates import scale_to_rate
from hibana.train.loading import open_checkpoint
from hibana.train.results import Measurements
from hibana.train.run_folder import BEST, LAST, best_checkpoint
from hibana.train.settings import Settings

MAX_BATCH = 512
"""Samples in a batch without gradients, at most."""
MAX_SPIKES = 1 << 26
"""Spikes of a Rocket in memory while a batch is evaluated."""


class Network(nn.Module):
    """A spiking network that classifies its input, or predicts a quantity.

    :func:`hibana.train.load` returns one; it needs no Lightning. The subclass
    :class:`hibana.train.Classifier` can be trained.

    Args:
        settings: settings of the run.
        shape: shape of one step of one input.
        classes: number of classes; 1 for a quantity.
        description: how the user's data are read, and the names of the classes; ``None`` for data sets by
            name.
        most_weights: maximum number of weights; ``None``: unlimited.

    Raises:
        ValueError: if the layers do not fit the inputs, or have more than `most_weights`.
    """

    def __init__(
        self,
        settings: Settings,
        shape: tuple[int, ...],
        classes: int,
        *,
        description: Description | None = None,
        most_weights: int | None = None,
    ) -> None:
        super().__init__()
        self.settings = settings
        self.description = description
        self.hyper: dict[str, Any] = {**asdict(settings), "shape": list(shape), "classes": classes}
        """Contents of a checkpoint besides the weights."""
        self.shape = tuple(shape) if settings.coding != "delta" else (2, *shape)
        if settings.coding == "population":
            self.shape = (*self.shape, 8)
        self.net: nn.Module = architecture.build(
            settings.layers,
            self.shape,
            classes,
            settings.make_cell,
            readout_tau=settings.readout_tau,
            connectivity=settings.connectivity,
            most_weights=most_weights,
        )
        optimize(self.net, verbose=False)
        self.objective = _objective(settings, description)
        self.result: Measurements | None = None
        """Results of the run on the test part, for a model card."""

    @property
    def is_regression(self) -> bool:
        """Whether the network predicts a quantity instead of classes."""
        return self.description is not None and not self.description.target.classes

    @property
    def evaluated_at_once(self) -> int:
        """Samples in a batch without gradients: for a Rocket as many as fit in memory with their spikes."""
        if not isinstance(self.net, Rocket):
            return MAX_BATCH
        return min(MAX_BATCH, max(1, MAX_SPIKES // (self.settings.steps * self.net.neurons)))

    def forward(self, inputs: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Returns scores ``[batch, classes]`` for `inputs` ``[batch, ...]``; `lengths` if they are padded."""
        return self.objective.scores(self.net(self.encode(inputs)), *(() if lengths is None else (lengths,)))

    def encode(self, inputs: Tensor) -> Tensor:
        """Returns `inputs` ``[batch, ...]`` as currents or spikes over time ``[T, batch, ...]``.

        The result has the dtype of the weights, which are ``float64`` after training in 64 bits.
        """
        weights = next(self.parameters(), inputs)
        inputs = inputs.to(weights.dtype)
        match self.settings.coding:
            case "none":
                return inputs.transpose(0, 1)
            case "delta":
                return encode.delta(inputs.transpose(0, 1), self.settings.delta_threshold)
            case name:
                return encode.named(name)(inputs, self.settings.steps)

    def prepare(self, inputs: Tensor, lengths: Tensor | None = None) -> dict[str, float]:
        """Scales the weights so that each layer fires at `start_rate` on `inputs`; returns the layers' rates.

        Does nothing and returns an empty dictionary if `start_rate` is 0.
        """
        if self.settings.start_rate == 0:
            return {}
        return scale_to_rate(self.net, self.encode(inputs), self.settings.start_rate, lengths)

    def save_pretrained(
        self, save_directory: str | Path, *, samples: DataSet | None = None, name: str = ""
    ) -> None:
        """Writes ``model.safetensors``, ``config.json`` and a model card, ``README.md``, to a folder.

        :meth:`from_pretrained` opens the folder. The configuration contains the settings, how inputs are read
        and the class names, but no folder names of this machine. An existing ``README.md`` is not replaced.

        Args:
            save_directory: the folder; created if it is missing.
            samples: deprecated and ignored. The card contains the results of the run.
            name: the network's name in the card; the folder's name if empty.

        Raises:
            ModuleNotFoundError: if the extra ``train`` is not installed.
            OSError: if a file can't be written.
        """
        if samples is not None:
            warnings.warn("samples is deprecated and ignored", DeprecationWarning, stacklevel=2)
        shared_folder.write(
            self, Path(save_directory), name, self.settings, self.hyper, self.description, self.result
        )

    @staticmethod
    def from_pretrained(name: str | Path, *, trust: Collection[str] = (), **options: Any) -> "Network":
        """Returns the network in a folder that :meth:`save_pretrained` wrote, or on the Hugging Face Hub.

        Args:
            name: a folder, or ``USER/NAME`` on the Hub.
            trust: functions ``module:function`` that the folder may name as its layers. They are executed.
            options: options of ``huggingface_hub.snapshot_download``, such as ``revision``.

        Raises:
            ModuleNotFoundError: if the extra ``train``, or for the Hub the extra ``hub``, is not installed.
            ValueError: if there is no network of that name, or it is damaged, or of a later version, or names
                a function that is not in `trust`. Errors of the Hub are those of ``huggingface_hub``.
        """
        return load(shared_folder.download(name, **options), trust=trust)

    def seed_evaluation(self, rank: int = 0) -> None:
        """Seeds torch, so that random codings give the same test accuracy each time.

        Args:
            rank: number of this process; each process draws other numbers.
        """
        torch.manual_seed(self.settings.seed * 1_000_003 - 1 - rank)


def load(path: Path | str, *, trust: Collection[str] = ()) -> Network:
    """Returns the network that :func:`hibana.train.fit` or ``save_pretrained`` wrote to `path`.

    Args:
        path: a checkpoint, a run's folder, or a folder of :meth:`Network.save_pretrained`.
        trust: functions ``module:function`` that the file may name as its layers. They are executed.

    Raises:
        ValueError: if `path` is not a checkpoint of hibana, is incomplete or damaged, or names a function
            that is not in `trust`.
    """
    path = best_checkpoint(Path(path))
    settings, weights, arguments = open_checkpoint(path, trust)
    try:
        model = Network(settings, **arguments, most_weights=sum(map(torch.numel, weights.values())))
        model.load_state_dict(weights)
    except (AttributeError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{EXPECTED}; {path} holds something else: {one_line(error)}") from error
    if path.name in (BEST, LAST) and best_checkpoint(path.parent) == path:
        model.result = results.read(path.parent)
    return model.eval()


def _objective(settings: Settings, description: Description | None) -> loss.Objective:
    """Returns the mean squared error for a quantity, or the loss of the settings for classes."""
    target = None if description is None else description.target
    if target is not None and not target.classes:
        return loss.MeanSquaredError(read=loss.named(settings.loss))
    if settings.class_weights == "balanced" and target is None:
        raise ValueError("class_weights must be none for data sets by name, whose samples are not counted")
    weights = target.weights() if target is not None and settings.class_weights == "balanced" else None
    return loss.named(settings.loss, settings.smoothing, weights)
