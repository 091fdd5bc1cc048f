"""The module that Lightning trains: a network with its loss, optimizer and metrics."""

from typing import Any

import lightning
import torch
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.classification import MulticlassStatScores
from torchmetrics.utilities import dim_zero_cat

from hibana.data import Description
from hibana.learn import SET, DeepR, RigL
from hibana.nn import loss, metrics
from hibana.nn.sparse_linear import SparseLinear
from hibana.train.augment import augment_batch
from hibana.train.firing_rates import activity, spiking_layers, weight_decay_groups
from hibana.train.network import Network
from hibana.train.settings import Settings


class Classifier(Network, lightning.LightningModule):
    """A :class:`Network` that Lightning can train.

        L = objective(outputs, labels) + rate_penalty * sum_layers max(0, r/target - 1)^2

    L is the loss, r the firing rate of a layer. Before training, :meth:`Network.prepare` scales the weights
    so that each layer fires at `start_rate`; from there, the gradient of the article's surrogate neither
    explodes nor vanishes. Each epoch seeds torch from the seed of the settings, the epoch and the process, so
    that a resumed run continues exactly like an undisturbed one.

    Arguments are those of :class:`Network`.
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
        super().__init__(settings, shape, classes, description=description, most_weights=most_weights)
        self.save_hyperparameters(self.hyper)
        self.explained = RSquared() if self.is_regression else None
        self.recall = None if self.is_regression else MulticlassStatScores(max(2, classes), average=None)
        names = [_key(name) for name in spiking_layers(self.net)]
        self.rates = nn.ModuleDict({name: metrics.FiringRate() for name in names})
        self.silent = nn.ModuleDict({name: metrics.SilentNeurons() for name in names})
        self.rewiring: DeepR | SET | RigL | None = None
        """Moves synapses during training; None if none move."""
        self.deep_r_l1 = deep_r_l1(self.net)
        """Strength of DEEP R's l1 regularization, from the synapses before any of them moves."""

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the description of the user's data to `checkpoint`."""
        if self.description is not None:
            checkpoint["description"] = self.description.to_plain()

    def on_train_start(self) -> None:
        """Prepares the moves of synapses, which continue those of a resumed run."""
        optimizer, seed = self.optimizers(use_pl_optimizer=False), self.settings.seed
        assert isinstance(optimizer, torch.optim.Optimizer)
        epoch, steps = int(self.trainer.num_training_batches), int(self.trainer.estimated_stepping_batches)
        match self.settings.rewire:
            case "deep-r":
                self.rewiring = DeepR(self.net, optimizer, l1=self.deep_r_l1, seed=seed)
            case "set":
                self.rewiring = SET(self.net, optimizer, every=epoch, seed=seed)
            case "rigl":
                self.rewiring = RigL(self.net, optimizer, every=min(100, epoch), end=max(1, 3 * steps // 4))
        if self.rewiring is not None:
            self.rewiring.load_state_dict({"steps": self.trainer.global_step})

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Makes a step of the optimizer, and then moves synapses."""
        super().optimizer_step(*args, **kwargs)
        if self.rewiring is not None:
            self.rewiring.step()

    def on_train_epoch_start(self) -> None:
        """Seeds torch for this epoch and process."""
        epoch_and_process = self.current_epoch * self.trainer.world_size + self.trainer.global_rank
        torch.manual_seed(self.settings.seed * 1_000_003 + epoch_and_process)

    def on_validation_epoch_start(self) -> None:
        """Seeds the random numbers of the validation or the test."""
        self.seed_evaluation(self.trainer.global_rank)

    on_test_epoch_start = on_validation_epoch_start

    def training_step(self, batch: tuple[Tensor, ...], batch_idx: int) -> Tensor:
        """Returns the loss of a batch with its penalty on firing rates; logs the loss and the accuracy."""
        inputs, labels, *lengths = batch
        settings = self.settings
        self._check_finite("an input", inputs, batch_idx)
        inputs = self.encode(augment_batch(inputs, settings.augment or settings.data_set.augmentation))
        outputs, spikes = activity(self.net, inputs, *lengths)
        error = self.objective(outputs, labels, *lengths)
        self._check_finite("the loss", error, batch_idx)
        accuracy = self.objective.accuracy(outputs, labels, *lengths)
        values = {"training/loss": error.detach(), f"training/{self.objective.measure}": accuracy}
        options: dict[str, Any] = {"batch_size": len(labels), "prog_bar": True, "sync_dist": True}
        self.log_dict(values, on_step=False, on_epoch=True, **options)
        total = error
        if settings.rate_penalty > 0 and spikes:
            penalties = [loss.rate_penalty(s, settings.rate_target, *lengths) for s in spikes.values()]
            total = total + settings.rate_penalty * torch.stack(penalties).sum()
        self._check_finite("the loss with its penalty", total, batch_idx)
        return total

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Scales the gradient to a norm of at most `clip`; raises FloatingPointError if it is not finite."""
        norm = torch.nn.utils.clip_grad_norm_(self.parameters(), self.settings.clip)
        if self.settings.precision != "16-mixed":  # its scaler skips steps that overflow
            self._check_finite("the gradient's norm", norm, self.trainer.fit_loop.batch_idx)

    def _check_finite(self, name: str, value: Tensor, batch: int | None = None) -> None:
        """Raises a FloatingPointError that names epoch and batch if a number of `value` is not finite."""
        is_finite = value.isfinite()
        if not bool(is_finite.all()):
            epoch, epochs = min(self.current_epoch + 1, self.settings.epochs), self.settings.epochs
            place = "" if batch is None else f", batch {batch + 1} of {self.trainer.num_training_batches}"
            raise FloatingPointError(
                f"training stopped in epoch {epoch} of {epochs}{place}: {name} is "
                f"{value[~is_finite][0].item()}; a smaller learning_rate may help"
            )

    def validation_step(self, batch: tuple[Tensor, ...]) -> None:
        """Evaluates a batch of the validation part."""
        self._evaluate(batch, "validation")

    def test_step(self, batch: tuple[Tensor, ...]) -> None:
        """Evaluates a batch of the test part."""
        self._evaluate(batch, "test")

    def _evaluate(self, batch: tuple[Tensor, ...], part: str) -> None:
        """Logs the loss, the accuracy or R², and the layers' firing rates of a batch of `part`."""
        inputs, labels, *lengths = batch
        outputs, spikes = activity(self.net, self.encode(inputs), *lengths)
        scores = self.objective.scores(outputs, *lengths)
        measure: Tensor | RSquared
        if self.explained is None:
            measure = self.objective.accuracy(outputs, labels, *lengths)
        else:  # R² of the whole part is not the mean of the batches' R²
            measure = self.explained
            measure.update(scores[:, 0], labels)
        if part == "test" and self.recall is not None:
            self.recall.update(scores, labels)
        error = self.objective(outputs, labels, *lengths)
        self._check_finite(f"an input of {part}", inputs)
        self._check_finite(f"the loss of {part}", error)
        options: dict[str, Any] = {"batch_size": len(labels), "sync_dist": True}
        self.log(f"{part}/loss", error, **options)
        self.log(f"{part}/{self.objective.measure}", measure, prog_bar=True, **options)
        for name, layer in spikes.items():
            for quantity, layer_metrics in (("rate", self.rates), ("silent", self.silent)):
                metric = layer_metrics[_key(name)]
                assert isinstance(metric, metrics.FiringRate | metrics.SilentNeurons)
                metric.update(layer, *lengths)
                self.log(f"{part}/{quantity}/{name}", metric, batch_size=len(labels))

    def configure_optimizers(self) -> Any:
        """Returns AdamW and its schedule of learning rates, which changes at every step."""
        rate = self.settings.learning_rate
        fused = self.settings.precision != "16-mixed"  # a fused step would unscale gradients after clipping
        optimizer = torch.optim.AdamW(
            weight_decay_groups(self, self.settings.weight_decay), rate, fused=fused
        )
        steps = max(1, int(self.trainer.estimated_stepping_batches))
        schedule = _Cycle(optimizer, rate, total_steps=steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def deep_r_l1(net: nn.Module) -> float:
    """Returns the strength of DEEP R's l1 regularization for the sparse layers of `net`.

        l1 = min(0.3, 3 / d^2)      d: mean number of synapses per target neuron that has any

    With few synapses per neuron, most of the random initial synapses are of no use: half of the neurons never
    fire, and their synapses get no gradient. Only the l1 term removes these synapses. With many synapses per
    neuron, a strong l1 term removes useful synapses. Both numbers were chosen by validation on the digits.

    >>> import hibana as hb
    >>> rules = hb.connect.fixed_in_degree(2), hb.connect.fixed_in_degree(20)
    >>> [round(deep_r_l1(hb.SparseLinear(100, 50, rule)), 4) for rule in rules]
    [0.3, 0.0075]
    """
    layers = [module for module in net.modules() if isinstance(module, SparseLinear)]
    neurons = sum(int(layer.targets.bincount().count_nonzero()) for layer in layers)
    synapses = sum(len(layer.weight) for layer in layers)
    return min(0.3, 3 * (neurons / max(1, synapses)) ** 2)


class RSquared(Metric):
    """The coefficient of determination R² (:func:`hibana.nn.loss.r_squared`) over all batches.

    >>> import torch
    >>> explained = RSquared()
    >>> explained.update(torch.tensor([1.0]), torch.tensor([1.0]))
    >>> explained.update(torch.tensor([2.0]), torch.tensor([3.0]))
    >>> explained.compute()
    tensor(0.5000)
    """

    full_state_update = False
    answers: list[Tensor]
    targets: list[Tensor]

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("answers", [], dist_reduce_fx="cat")
        self.add_state("targets", [], dist_reduce_fx="cat")

    def update(self, answers: Tensor, targets: Tensor) -> None:
        """Adds a batch: `answers` and `targets`, each ``[batch]``."""
        self.answers.append(answers.detach())
        self.targets.append(targets)

    def compute(self) -> Tensor:
        """Returns R²; NaN if all targets are equal."""
        answers, targets = dim_zero_cat(self.answers), dim_zero_cat(self.targets)
        return targets.new_tensor(loss.r_squared(answers, targets))


class _Cycle(torch.optim.lr_scheduler.OneCycleLR):
    """A one-cycle schedule that spans all steps of the run, also if a resumed run has more epochs."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the schedule, with the length of the present training."""
        new_length = {name: vars(self)[name] for name in ("total_steps", "_schedule_phases")}
        super().load_state_dict({**state_dict, **new_length})


def _key(name: str) -> str:
    """Returns `name` as a key of ``nn.ModuleDict``, which may not contain a dot."""
    return name.replace(".", "_")
