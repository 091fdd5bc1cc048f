"""A line that says how far a training is, within 80 columns: epoch, bar, loss, accuracy, firing rate."""

import time
from typing import Any

import lightning
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

__all__ = ["Line"]

WIDTH = 80
OFTEN = 0.1
"""Seconds between two looks at what is shown."""


class Line(ProgressBar):
    """One line on the screen, that is written over; validation and tests show nothing of their own."""

    def __init__(self) -> None:
        super().__init__()
        self._progress: Progress | None = None
        self._task = TaskID(0)
        self._shown = 0.0
        self._said = ""

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        console = Console(width=min(WIDTH, Console().width))
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[said]}"),
        )
        self._progress = Progress(*columns, console=console, expand=True, transient=True)
        self._progress.start()
        total = int(trainer.estimated_stepping_batches)
        self._task = self._progress.add_task("epoch 1", total=total, completed=trainer.global_step, said="")

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        if time.monotonic() - self._shown > OFTEN:
            self._shown = time.monotonic()
            self._update(trainer)

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        seen = {name: float(value) for name, value in trainer.callback_metrics.items()}
        measured = [(name, seen.get(f"validation/{name}")) for name in ("accuracy", "explained")]
        rates = [value for name, value in seen.items() if name.startswith("validation/rate/")]
        said = [f"loss {seen['training/loss']:.3g}"] if "training/loss" in seen else []
        said += [f"{name} {value:.1%}" for name, value in measured if value is not None]
        said += [f"rate {sum(rates) / len(rates):.1%}"] if rates else []
        self._said = "  ".join(said)
        self._update(trainer)

    def _update(self, trainer: lightning.Trainer) -> None:
        assert self._progress is not None
        epoch = f"epoch {min(trainer.current_epoch + 1, trainer.max_epochs or 0)}/{trainer.max_epochs}"
        self._progress.update(self._task, description=epoch, completed=trainer.global_step, said=self._said)

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._close()

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        self._close()

    def _close(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
