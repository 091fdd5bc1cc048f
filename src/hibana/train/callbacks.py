"""Lightning callbacks and plugins of a run: values of each epoch, checkpoints, and early stopping."""

import math
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Callback, Checkpoint

from hibana.train import checkpoint
from hibana.train.run_folder import BEST, LAST


class CheckpointFiles(TorchCheckpointIO):
    """Makes Lightning read and write checkpoints with :mod:`hibana.train.checkpoint`."""

    def save_checkpoint(self, content: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Writes the checkpoint `content` to the file `path`."""
        checkpoint.write(content, Path(path))

    def load_checkpoint(
        self, path: Any, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Returns the contents of the checkpoint `path`."""
        return checkpoint.read(Path(path))


class History(Callback):
    """Records the logged metrics of each epoch, and stores them in checkpoints.

    Attributes:
        values: the metric's value in each epoch, by the metric's name.
    """

    def __init__(self) -> None:
        self.values: dict[str, list[float]] = {}

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Appends the epoch's value of each logged quantity."""
        for name, value in trainer.callback_metrics.items():
            self.values.setdefault(name, []).append(value.item())

    def state_dict(self) -> dict[str, Any]:
        """Returns the values of all epochs as tensors, for the checkpoint."""
        tensors = {
            name: torch.tensor(v, dtype=torch.float64, device="cpu") for name, v in self.values.items()
        }
        return {"values": tensors}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the values of all epochs from a checkpoint."""
        self.values = {name: values.tolist() for name, values in state_dict["values"].items()}


class CheckpointWriter(Checkpoint):
    """Writes a checkpoint after each epoch. With `patience` it also keeps the best epoch's, and stops early.

    The best epoch has the smallest validation loss. Accuracy would not identify it: with few validation
    samples, many epochs have the same accuracy. The best checkpoint is written before the last one, so that a
    run that is killed between the two writes repeats the epoch with the same result.

    Args:
        folder: folder of the checkpoints.
        patience: number of epochs without a smaller validation loss after which training stops; 0: never.
    """

    def __init__(self, folder: Path, patience: int) -> None:
        self.folder, self.patience = folder, patience
        self.smallest_loss, self.epochs_since = math.inf, 0

    @property
    def state_key(self) -> str:
        """Key of this callback's state in checkpoints; older versions called the class ``Keeper``."""
        return "Keeper"

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Sets the folder of the first process in all processes."""
        self.folder = Path(trainer.strategy.broadcast(str(self.folder)))  # the first process chose it

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Stops a resumed training that had stopped early."""
        self._stop_if_due(trainer)  # the resumed run may have stopped early

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Writes the checkpoints of the epoch."""
        if self.patience > 0:
            loss = trainer.callback_metrics["validation/loss"].item()
            self.epochs_since += 1
            if loss < self.smallest_loss:
                self.smallest_loss, self.epochs_since = loss, 0
                trainer.save_checkpoint(self.folder / BEST)
            self._stop_if_due(trainer)
        trainer.save_checkpoint(self.folder / LAST)

    def _stop_if_due(self, trainer: lightning.Trainer) -> None:
        """Stops the training after `patience` epochs without a smaller loss."""
        if 0 < self.patience <= self.epochs_since:
            trainer.should_stop = True

    def state_dict(self) -> dict[str, Any]:
        """Returns the smallest loss and the number of epochs since then, for the checkpoint."""
        return {"least": self.smallest_loss, "waited": self.epochs_since}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the smallest loss and the number of epochs since then from a checkpoint."""
        self.smallest_loss = state_dict.get("least", math.inf)  # older versions stored the best accuracy
        self.epochs_since = state_dict["waited"]
