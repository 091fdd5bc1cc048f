"""The network of a run: what it is shown, how inputs become currents or spikes, and what its answers are."""

from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from hibana.cells import Cell
from hibana.data import Description
from hibana.nn import encode, loss
from hibana.nn.optimize import optimize
from hibana.train import architecture
from hibana.train.firing_rates import scale_to_rate
from hibana.train.settings import Settings

if TYPE_CHECKING:
    from hibana.data import DataSet
    from hibana.train.results import Facts

__all__ = ["Network"]


class Network(nn.Module):
    """A spiking network that names the class of what it is shown, or a quantity.

    It is what :func:`hibana.train.load` opens, and needs no Lightning. One that is trained is a
    :class:`hibana.train.Classifier`.

    Args:
        settings: of its run.
        shape: of one step of input.
        classes: how many there are to name; 1 for a quantity.
        description: of data of one's own: how they are read, and what the classes are called.
        most_weights: more are refused.
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
        """What a checkpoint says of it besides its weights."""
        self.shape = tuple(shape) if settings.coding != "delta" else (2, *shape)
        if settings.coding == "population":
            self.shape = (*self.shape, 8)
        self.takes_cells: bool = False
        """Whether some neurons are made as the settings say; a function of one's own may have others."""

        def cell() -> Cell:
            self.takes_cells = True
            return settings.make_cell()

        self.net: nn.Module = architecture.build(
            settings.layers,
            self.shape,
            classes,
            cell,
            readout_tau=settings.readout_tau,
            most_weights=most_weights,
        )
        optimize(self.net, verbose=False)
        self.objective = _objective(settings, description)
        self.result: Facts | None = None
        """What its run came to on the test part, for a model card."""

    @property
    def is_regression(self) -> bool:
        """Whether a quantity is learned instead of classes."""
        return self.description is not None and not self.description.target.classes

    def forward(self, inputs: Tensor, lengths: Tensor | None = None) -> Tensor:
        """The classes' scores, ``[batch, classes]``, for `inputs`, ``[batch, ...]``, of their `lengths`."""
        return self.objective.scores(self.net(self.encode(inputs)), *(() if lengths is None else (lengths,)))

    def encode(self, inputs: Tensor) -> Tensor:
        """`inputs`, ``[batch, ...]``, as currents or spikes over time, ``[T, batch, ...]``.

        They take the weights' dtype: those of a network that was trained in 64 bits are ``float64``.
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
        """Scales the weights for `inputs`, and says at what rate each layer starts; nothing if it is 0."""
        if self.settings.start_rate == 0:
            return {}
        return scale_to_rate(self.net, self.encode(inputs), self.settings.start_rate, lengths)

    def save_pretrained(
        self, save_directory: str | Path, *, samples: "DataSet | None" = None, name: str = ""
    ) -> None:
        """Writes ``model.safetensors``, ``config.json`` and a model card, ``README.md``, to a folder.

        :meth:`from_pretrained` opens it. The configuration has the settings, how inputs are read and the
        names of the classes, without folders of this machine. In an existing card, only hibana's part is
        replaced.

        Args:
            save_directory: created if it is missing.
            samples: data whose test part gives the card's accuracy, firing rates and operations; by default
                the card has the result of the run, without operations.
            name: the network's name in the card; the folder's name if empty.

        Raises:
            ModuleNotFoundError: if the extra ``hub`` is not installed.
            OSError: if a file can't be written.
        """
        from hibana.train import pretrained

        pretrained.write(self, Path(save_directory), samples, name=name)

    @staticmethod
    def from_pretrained(name: str | Path, *, trust: Collection[str] = (), **options: Any) -> "Network":
        """The network in a folder that :meth:`save_pretrained` wrote, or on the Hugging Face Hub.

        Args:
            name: a folder, or ``USER/NAME`` on the Hub.
            trust: functions that it may name as its layers, ``module:function``. They will be run.
            options: options of ``huggingface_hub.snapshot_download``, such as ``revision``.

        Raises:
            ModuleNotFoundError: if the extra ``hub`` is not installed.
            ValueError: if there is no network of that name, or it is damaged, or of a later version, or names
                a function that is not in `trust`. Errors of the Hub are those of ``huggingface_hub``.
        """
        from hibana.train import pretrained
        from hibana.train.loading import load

        return load(pretrained.download(name, **options), trust=trust)

    def seed_evaluation(self, rank: int = 0) -> None:
        """Starts the random numbers of codings that draw, so that one network gives one accuracy."""
        torch.manual_seed(self.settings.seed * 1_000_003 - 1 - rank)


def _objective(settings: Settings, description: Description | None) -> loss.Objective:
    """What is asked of the network: of a quantity, that it be near; of classes, in the settings' words."""
    target = None if description is None else description.target
    if target is not None and not target.classes:
        return loss.MeanSquaredError(read=loss.named(settings.loss))
    if settings.class_weights == "balanced" and target is None:
        raise ValueError(
            "class_weights must be none for data sets by name: their classes are counted nowhere"
        )
    weights = target.weights() if target is not None and settings.class_weights == "balanced" else None
    return loss.named(settings.loss, settings.smoothing, weights)
