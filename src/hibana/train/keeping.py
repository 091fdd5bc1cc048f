"""What a run keeps while it goes: its curves, its checkpoints, and when to stop."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch.callbacks import Callback, Checkpoint

from hibana.train.checkpoint import read, write
from hibana.train.folder import BEST, LAST

__all__ = ["Files", "History", "Keeper"]


class Files(CheckpointIO):
    """Reads and writes checkpoints by :mod:`hibana.train.checkpoint`; they hold the name of the run `run`."""

    def __init__(self, run: str | None) -> None:
        self.run = run

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        write({**checkpoint, "run": self.run}, Path(path))

    def load_checkpoint(
        self, path: Any, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        return read(Path(path))

    def remove_checkpoint(self, path: Any) -> None:
        """Nothing: a checkpoint is replaced, never removed."""


class History(Callback):
    """What was logged, one value per epoch and name; it travels with the checkpoint."""

    def __init__(self) -> None:
        self.values: dict[str, list[float]] = {}

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        for name, value in trainer.callback_metrics.items():
            self.values.setdefault(name, []).append(value.item())

    def state_dict(self) -> dict[str, Any]:
        return {
            "values": {
                name: torch.tensor(v, dtype=torch.float64, device="cpu") for name, v in self.values.items()
            }
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.values = {
            name: torch.as_tensor(v, dtype=torch.float64, device="cpu").tolist()
            for name, v in state_dict["values"].items()
        }


class Keeper(Checkpoint):
    """Keeps each epoch as it ends; with `patience` also the one of least validation loss, and ends the run.

    The loss tells epochs apart that name the same samples right, as most do where few validate.

    The best is kept before the last: a run that is killed between the two goes on from the epoch before, and
    comes to the same.

    Args:
        folder: where they are kept.
        patience: epochs without a smaller validation loss after which training ends; 0 is never.
    """

    def __init__(self, folder: Path, patience: int) -> None:
        self.folder, self.patience = folder, patience
        self.least, self.waited = math.inf, 0

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        self.folder = Path(trainer.strategy.broadcast(str(self.folder)))  # the first process chose it

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._judge(trainer)  # a run that had ended when it was gone on with

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        _check_finite(pl_module.state_dict().items(), trainer.current_epoch)
        if self.patience > 0:
            loss = trainer.callback_metrics["validation/loss"].item()
            self.waited += 1
            if loss < self.least:
                self.least, self.waited = loss, 0
                trainer.save_checkpoint(self.folder / BEST)
            self._judge(trainer)
        trainer.save_checkpoint(self.folder / LAST)

    def _judge(self, trainer: lightning.Trainer) -> None:
        if 0 < self.patience <= self.waited:
            trainer.should_stop = True

    def state_dict(self) -> dict[str, Any]:
        return {"least": self.least, "waited": self.waited}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.least = state_dict.get("least", math.inf)  # older versions kept the best accuracy
        self.waited = state_dict["waited"]


def _check_finite(state: Iterable[tuple[str, torch.Tensor]], epoch: int) -> None:
    """Refuses to keep weights that nothing can go on from.

    Raises:
        FloatingPointError: if one is not finite.
    """
    for name, value in state:
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise FloatingPointError(f"training stopped after epoch {epoch + 1}: {name} is not finite")
