"""Chooses the network for the user's series if the settings leave it open: the one that validates better.

The candidates are the spiking Rocket, fitted in closed form and validated by leave-one-out, with neurons that
rest after a spike and with others, with series of unequal length both stretched and padded with a mask; and
trained windows, validated by splits of few samples and by a fifth of many. The test part is not used.
"""

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from hibana import data
from hibana.nn import loss
from hibana.nn.models.rocket import Rocket
from hibana.train import architecture
from hibana.train.firing_rates import activity, weight_decay_groups
from hibana.train.network import Network
from hibana.train.recipes import PERIODS, rocket
from hibana.train.settings import OF_FILES, Settings

__all__ = ["at_once", "check", "fitted", "recipe"]

LONGEST = 1_500
"""Steps to which longer series are stretched."""
MOST_SERIES, MOST_VALUES = 4_000, 3_000_000
"""Series, and their values, above which the closed form takes more than about a minute."""
FEW, SPLITS, SPLITS_OF_MANY = 500, 3, 5
"""Below this number of series windows are validated on each of 3 splits; of more, on one of 5."""
MOST_STEPS = 1_000
"""Optimizer steps of the windows that are compared."""
VALUES_AT_ONCE = 1 << 26
"""Spikes in memory while a batch is evaluated."""


def recipe(settings: Settings, samples: data.UserData) -> tuple[Settings, data.UserData]:
    """Settings and samples of a run, with defaults, or with the choice of the validation.

    Args:
        settings: as the user passed them.
        samples: read with `settings`.

    Returns:
        The complete settings; and the samples, read again if the Rocket needs another number of steps. Their
        `summary` says what was compared.
    """
    default = settings.on(samples)
    if not _is_open(settings, samples):
        return default, samples
    assert isinstance(samples, data.Sequences)
    steps = settings.steps if "steps" in settings.explicit else min(samples.longest, LONGEST)
    count = len(samples.training) + len(samples.validation)  # type: ignore[arg-type] # all splits have a length
    if count > MOST_SERIES or count * steps * samples.shape[0] > MOST_VALUES:
        return default, samples
    is_unequal = samples.shortest < samples.longest and settings.lengths == "stretch"
    ways = ("stretch", "mask") if is_unequal else (settings.lengths,)
    tried = [_tried(replace(default, **rocket(steps), steps=steps, lengths=each)) for each in ways]
    best = min(tried, key=lambda each: each.error)
    resting = [_tried(replace(best.settings, **rocket(steps, n)), best.samples) for n in PERIODS[1:]]
    best = min([best, *resting], key=lambda each: each.error)
    period = architecture.period(best.settings.layers)
    rest = f", whose neurons rest for {period} steps after a spike," if period else ""
    compared = (
        f"of left-out training series a spiking Rocket over {steps} steps{rest} names {best.right:.1%} right"
    )
    if best.right < 1:
        windows = _windows(default, samples)
        compared += f", trained windows over {default.steps} steps {windows:.1%}"
        if windows > best.right:
            samples.summary += f"\n{compared}: windows are trained"
            return default, samples
    best.samples.summary += f"\n{compared}: the Rocket is taken"
    return best.settings, best.samples


def _is_open(settings: Settings, samples: data.UserData) -> bool:
    """Whether the user passed options of the data only, and the Rocket can read the data."""
    of_data = {*OF_FILES, "data", "steps", "seed"} - {"class_weights"}
    return (
        isinstance(samples, data.Sequences)
        and settings.kind in ("sequences", "sound")
        and settings.explicit <= of_data
        and not samples.are_spikes
        and bool(samples.description.target.classes)
    )


class _Tried(NamedTuple):
    """A fitted Rocket: settings, data, and accuracy and squared error on left-out series."""

    settings: Settings
    samples: data.UserData
    right: float
    error: float


def _tried(settings: Settings, samples: data.UserData | None = None) -> _Tried:
    """Fits the Rocket of `settings` to `samples`, or to those that the settings name."""
    if samples is None:
        read = settings.samples()
        read.setup()
        assert isinstance(read, data.UserData)
        samples = read
    model = _network(settings, samples)
    right = fitted(model, samples)
    assert isinstance(model.net, Rocket)
    return _Tried(settings, samples, right, model.net.error)


def fitted(model: Network, samples: data.DataSet) -> float:
    """Fits the Rocket of `model`; returns its accuracy on left-out series.

    A Rocket that is not trained further is also fitted to the validation part: leave-one-out validates it.
    """
    assert isinstance(model.net, Rocket)
    parts = [samples.training] if model.settings.epochs else [samples.training, samples.validation]
    inputs, labels, *lengths = _joined(parts)
    target = None if model.description is None else model.description.target
    balanced = target is not None and model.settings.class_weights == "balanced" and target.classes
    weights = target.weights() if target is not None and balanced else None
    labels = labels.double() if model.is_regression else labels
    return model.net.fit(model.encode(inputs), labels, *lengths, weights=weights)


def at_once(net: Rocket, steps: int) -> int:
    """Samples of `steps` steps that are evaluated together, so that their spikes fit in memory."""
    return min(512, max(1, VALUES_AT_ONCE // (steps * net.neurons)))


def check(model: Network, samples: data.DataSet) -> None:
    """Checks that a Rocket can be fitted to `samples`.

    Raises:
        ValueError: if they have unequal lengths, or are not held in memory.
    """
    parts = samples.training, samples.validation
    if isinstance(model.net, Rocket) and not all(isinstance(part, data.InMemory) for part in parts):
        raise ValueError(
            f"layers {model.settings.layers} must be of samples of one length that are held in memory, "
            f"{model.settings.title} has others"
        )


def _network(settings: Settings, samples: data.UserData) -> Network:
    torch.manual_seed(settings.seed)
    return Network(settings, samples.shape, samples.classes, description=samples.description)


def _joined(parts: list[data.Samples]) -> tuple[Tensor, ...]:
    """Inputs ``[N, T, ...]`` and labels of parts that are held in memory, and lengths if padded."""
    held = [part for part in parts if isinstance(part, data.InMemory)]
    names = ("inputs", "labels") if held[0].lengths is None else ("inputs", "labels", "lengths")
    inputs, *rest = (torch.cat([getattr(part, name) for part in held]) for name in names)
    return inputs.float(), *rest


def _windows(settings: Settings, samples: data.UserData) -> float:
    """Accuracy of trained windows on left-out series."""
    inputs, labels, *lengths = _joined([samples.training, samples.validation])
    generator = torch.Generator().manual_seed(settings.seed)
    order = torch.randperm(len(labels), generator=generator, dtype=torch.int64, device="cpu")
    order = order[labels[order].argsort(stable=True)]  # so that each fold has its share of each class
    splits, folds = (SPLITS, SPLITS) if len(labels) < FEW else (SPLITS_OF_MANY, 1)
    right = tested = 0
    for fold in range(folds):
        left_out = order[fold::splits]
        rest = order[torch.arange(len(order), dtype=torch.int64, device="cpu") % splits != fold]
        model = _trained(settings, samples, [each[rest] for each in (inputs, labels, *lengths)], generator)
        with torch.inference_mode():
            for chosen in torch.split(left_out, 512):
                scores = model(inputs[chosen], *(each[chosen] for each in lengths))
                right += int((scores.argmax(1) == labels[chosen]).sum())
        tested += len(left_out)
    return right / tested


def _trained(
    settings: Settings, samples: data.UserData, tensors: list[Tensor], generator: torch.Generator
) -> Network:
    """Windows trained on inputs, labels and lengths as in a run, for fewer epochs of many batches."""
    inputs, labels, *lengths = tensors
    model = _network(settings, samples)
    model.prepare(inputs[:512], *(each[:512] for each in lengths))
    model.train()
    batches = -(-len(labels) // settings.batch_size)
    epochs = max(1, min(settings.epochs, MOST_STEPS // batches))
    rate = settings.learning_rate
    optimizer = torch.optim.AdamW(weight_decay_groups(model, settings.weight_decay), rate, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=epochs * batches)
    for _ in range(epochs):
        order = torch.randperm(len(labels), generator=generator, dtype=torch.int64, device="cpu")
        for chosen in torch.split(order, settings.batch_size):
            of_batch = [each[chosen] for each in lengths]
            outputs, spikes = activity(model.net, model.encode(inputs[chosen]), *of_batch)
            excess = [loss.rate_penalty(layer, settings.rate_target, *of_batch) for layer in spikes.values()]
            total = model.objective(outputs, labels[chosen], *of_batch)
            total = total + settings.rate_penalty * torch.stack(excess).sum()
            optimizer.zero_grad()
            total.backward()  # type: ignore[no-untyped-call] # torch's own
            torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
            optimizer.step()
            schedule.step()
    return model.eval()
