"""Which network reads series of one's own, where nobody chose one: the one that validates better.

The candidates are the spiking Rocket, fitted in closed form and validated by leave-one-out, with neurons that
rest after a spike and with others, of series of unequal length both stretched and padded with a mask; and
trained windows, validated by splits of few samples and by a fifth of many. The test part is never looked at.
"""

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from hibana import data
from hibana.nn import loss
from hibana.nn.models.rocket import Rocket
from hibana.train import architecture
from hibana.train.network import Network
from hibana.train.recipes import PERIODS, rocket
from hibana.train.settings import OF_FILES, Settings
from hibana.train.start import activity, decayed

__all__ = ["at_once", "check", "fitted", "recipe"]

LONGEST = 1_500
"""Steps that series of more are stretched to."""
MOST_SERIES, MOST_VALUES = 4_000, 3_000_000
"""Series, and their values, above which the closed form takes more than a minute or so."""
FEW, SPLITS = 500, 3
"""Series below which windows are validated by splits, and how many; of more a fifth is held out."""
MOST_STEPS = 1_000
"""Steps of the optimiser that windows are tried for at most."""
VALUES_AT_ONCE = 1 << 26
"""Spikes that are kept while a batch is evaluated."""


def recipe(settings: Settings, samples: data.Own) -> tuple[Settings, data.Own]:
    """Settings and samples of a run in which what nobody said is as usual, or as validation says.

    Args:
        settings: as they were said.
        samples: read as `settings` say.

    Returns:
        The settings, filled in; and the samples, read again where the Rocket takes more steps of them, which
        then say in their `compared` what was compared.
    """
    usually = settings.on(samples)
    if not _is_open(settings, samples):
        return usually, samples
    assert isinstance(samples, data.Sequences)
    steps = settings.steps if "steps" in settings.explicit else min(samples.longest, LONGEST)
    count = len(samples.training) + len(samples.validation)  # type: ignore[arg-type] # all splits have a length
    if count > MOST_SERIES or count * steps * samples.shape[0] > MOST_VALUES:
        return usually, samples
    unequal = samples.shortest < samples.longest
    ways = ("stretch", "mask") if unequal and settings.lengths == "stretch" else (settings.lengths,)
    tried = [_tried(replace(usually, **rocket(steps), steps=steps, lengths=each)) for each in ways]
    best = min(tried, key=lambda each: each.error)
    for period in PERIODS[1:]:
        resting = _tried(replace(best.settings, **rocket(steps, period)), best.samples)
        best = min(best, resting, key=lambda each: each.error)
    right, chosen, longer = best.right, best.settings, best.samples
    period = architecture.period(chosen.layers)
    rest = f", whose neurons rest for {period} steps after a spike," if period else ""
    compared = (
        f"of left-out training series a spiking Rocket over {steps} steps{rest} names {right:.1%} right"
    )
    if right < 1:
        of_windows = _windows(usually, samples)
        compared += f", trained windows over {usually.steps} steps {of_windows:.1%}"
        if of_windows > right:
            samples.summary += f"\n{compared}: windows are trained"
            return usually, samples
    longer.summary += f"\n{compared}: the Rocket is taken"
    return chosen, longer


class _Tried(NamedTuple):
    """A Rocket that was fitted: its settings and data, and what came of the series that were left out."""

    settings: Settings
    samples: data.Own
    right: float
    error: float


def _tried(settings: Settings, samples: data.Own | None = None) -> _Tried:
    """The Rocket that `settings` say, on `samples`, or on those that the settings name."""
    if samples is None:
        read = settings.samples()
        read.setup()
        assert isinstance(read, data.Own)
        samples = read
    model = _made(settings, samples)
    right = fitted(model, samples)
    assert isinstance(model.net, Rocket)
    return _Tried(settings, samples, right, model.net.error)


def fitted(model: Network, samples: data.DataSet) -> float:
    """Fits the Rocket that `model` has, and says what share of the left-out series it names right.

    A Rocket that is not trained further is fitted to the validation part too: leave-one-out validates it.
    """
    assert isinstance(model.net, Rocket)
    parts = [samples.training] if model.settings.epochs else [samples.training, samples.validation]
    inputs, labels, *lengths = _gathered(parts)
    target = None if model.description is None else model.description.target
    balanced = target is not None and model.settings.class_weights == "balanced" and target.classes
    weights = target.weights() if target is not None and balanced else None
    wanted = labels.double() if model.is_regression else labels
    return model.net.fit(model.encode(inputs), wanted, *lengths, weights=weights)


def at_once(net: Rocket, steps: int) -> int:
    """Samples of so many `steps` that are evaluated together: all of the spikes are counted."""
    return min(512, max(1, VALUES_AT_ONCE // (steps * net.neurons)))


def check(model: Network, samples: data.DataSet) -> None:
    """Refuses a Rocket that could not be fitted to `samples`.

    Raises:
        ValueError: saying why.
    """
    parts = samples.training, samples.validation
    if isinstance(model.net, Rocket) and not all(isinstance(part, data.InMemory) for part in parts):
        raise ValueError(
            f"layers {model.settings.layers} must be of samples of one length that are held in memory, "
            f"{model.settings.title} has others"
        )


def _is_open(settings: Settings, samples: data.Own) -> bool:
    """Whether only options of the data were passed, and the Rocket can read the data."""
    of_data = {*OF_FILES, "data", "steps", "seed"} - {"class_weights"}
    return (
        isinstance(samples, data.Sequences)
        and settings.kind in ("sequences", "sound")
        and settings.explicit <= of_data
        and not samples._spikes
        and bool(samples.trained.target.classes)
    )


def _made(settings: Settings, samples: data.Own) -> Network:
    torch.manual_seed(settings.seed)
    return Network(settings, samples.shape, samples.classes, description=samples.description)


def _gathered(parts: list[data.Samples]) -> tuple[Tensor, ...]:
    """The inputs ``[N, T, ...]`` and labels of parts that are held in memory, and lengths where padded."""
    held = [part for part in parts if isinstance(part, data.InMemory)]
    named = ("inputs", "labels") if held[0].lengths is None else ("inputs", "labels", "lengths")
    inputs, *rest = (torch.cat([getattr(part, name) for part in held]) for name in named)
    return inputs.float(), *rest


def _windows(settings: Settings, samples: data.Own) -> float:
    """The share of left-out series that trained windows name right."""
    inputs, labels, *lengths = _gathered([samples.training, samples.validation])
    generator = torch.Generator().manual_seed(settings.seed)
    order = torch.randperm(len(labels), generator=generator, dtype=torch.int64, device="cpu")
    order = order[labels[order].argsort(stable=True)]  # so that each fold has its share of each class
    splits = SPLITS if len(labels) < FEW else 5
    right = tested = 0
    for fold in range(SPLITS if len(labels) < FEW else 1):
        left_out = order[fold::splits]
        rest = order[torch.arange(len(order), dtype=torch.int64, device="cpu") % splits != fold]
        model = _trained(settings, samples, [each[rest] for each in (inputs, labels, *lengths)], generator)
        batches = [left_out[first : first + 512] for first in range(0, len(left_out), 512)]
        with torch.inference_mode():
            scores = [model(inputs[chosen], *(each[chosen] for each in lengths)) for chosen in batches]
            answers = torch.cat(scores).argmax(1)
        right, tested = right + int((answers == labels[left_out]).sum()), tested + len(left_out)
    return right / tested


def _trained(
    settings: Settings, samples: data.Own, tensors: list[Tensor], generator: torch.Generator
) -> Network:
    """Windows, trained on inputs, labels and lengths as a run is, for fewer epochs of many batches."""
    inputs, labels, *every = tensors
    model = _made(settings, samples)
    model.prepare(inputs[:512], *(each[:512] for each in every))
    model.train()
    batches = -(-len(labels) // settings.batch_size)
    epochs = max(1, min(settings.epochs, MOST_STEPS // batches))
    optimizer = torch.optim.AdamW(decayed(model, settings.weight_decay), settings.learning_rate, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, settings.learning_rate, total_steps=epochs * batches
    )
    for _ in range(epochs):
        order = torch.randperm(len(labels), generator=generator, dtype=torch.int64, device="cpu")
        for chosen in torch.split(order, settings.batch_size):
            lengths = [each[chosen] for each in every]
            outputs, spikes = activity(model.net, model.encode(inputs[chosen]), *lengths)
            error = model.objective(outputs, labels[chosen], *lengths)
            excess = [loss.rate_penalty(layer, settings.rate_target, *lengths) for layer in spikes.values()]
            total = error + settings.rate_penalty * torch.stack(excess).sum()
            optimizer.zero_grad()
            total.backward()  # type: ignore[no-untyped-call] # torch's own
            torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
            optimizer.step()
            schedule.step()
    return model.eval()
