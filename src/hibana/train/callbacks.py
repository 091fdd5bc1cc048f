"""Callbacks of a run: values per epoch, checkpoints, and early stopping."""

import math
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch.callbacks import Callback, Checkpoint

from hibana.train import checkpoint
from hibana.train.run_folder import BEST, LAST

__all__ = ["Files", "History", "Keeper"]


class Files(CheckpointIO):
    """Reads and writes Lightning's checkpoints with :mod:`hibana.train.checkpoint`."""

    def save_checkpoint(self, content: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        checkpoint.write(content, Path(path))

    def load_checkpoint(
        self, path: Any, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        return checkpoint.read(Path(path))

    def remove_checkpoint(self, path: Any) -> None:
        """Does nothing: checkpoints are replaced, never removed."""


class History(Callback):
    """Logged values by name, one per epoch; stored in the checkpoint."""

    def __init__(self) -> None:
        self.values: dict[str, list[float]] = {}

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        for name, value in trainer.callback_metrics.items():
            self.values.setdefault(name, []).append(value.item())

    def state_dict(self) -> dict[str, Any]:
        tensors = {
            name: torch.tensor(v, dtype=torch.float64, device="cpu") for name, v in self.values.items()
        }
        return {"values": tensors}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.values = {name: values.tolist() for name, values in state_dict["values"].items()}


class Keeper(Checkpoint):
    """Writes each epoch's checkpoint; with `patience` also the best epoch's, and stops early.

    The best epoch has the least validation loss: few validation samples give many epochs one accuracy. The
    best is written before the last, so that a run killed in between repeats the epoch with the same result.

    Args:
        folder: where checkpoints are written.
        patience: epochs without a smaller validation loss after which training stops; 0 never stops.
    """

    def __init__(self, folder: Path, patience: int) -> None:
        self.folder, self.patience = folder, patience
        self.least, self.waited = math.inf, 0

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        self.folder = Path(trainer.strategy.broadcast(str(self.folder)))  # chosen by the first process

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._stop_if_due(trainer)  # the resumed run may have stopped early

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        for name, value in pl_module.state_dict().items():
            if value.is_floating_point() and not bool(value.isfinite().all()):
                epoch = trainer.current_epoch + 1
                raise FloatingPointError(f"training stopped after epoch {epoch}: {name} is not finite")
        if self.patience > 0:
            loss = trainer.callback_metrics["validation/loss"].item()
            self.waited += 1
            if loss < self.least:
                self.least, self.waited = loss, 0
                trainer.save_checkpoint(self.folder / BEST)
            self._stop_if_due(trainer)
        trainer.save_checkpoint(self.folder / LAST)

    def _stop_if_due(self, trainer: lightning.Trainer) -> None:
        if 0 < self.patience <= self.waited:
            trainer.should_stop = True

    def state_dict(self) -> dict[str, Any]:
        return {"least": self.least, "waited": self.waited}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.least = state_dict.get("least", math.inf)  # older versions stored the best accuracy
        self.waited = state_dict["waited"]
