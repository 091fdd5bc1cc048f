"""Selects a spiking Rocket for the user's series if the settings leave the network open.

The Rocket is fitted in closed form. Leave-one-out validation decides whether its neurons have a refractory
period, whether series of unequal length are stretched or padded, and for a quantity whether each series is
scaled by itself. The test part is not used. A quantity that the Rocket does not explain on left-out series
(R² of at most 0) keeps the trained windows.
"""

from dataclasses import replace
from itertools import product
from typing import NamedTuple

import torch

from hibana import data
from hibana.data.user_data import SCALES
from hibana.nn.models.rocket import Rocket
from hibana.train.network import Network
from hibana.train.recipes import REFRACTORY_PERIOD, rocket
from hibana.train.settings import FILE_OPTIONS, Settings

MAX_ROCKET_STEPS = 1_500
"""Longer series are stretched to this number of steps for the Rocket."""
MAX_SERIES, MAX_VALUES = 4_000, 3_000_000
"""Series, and their values, above which fitting the Rocket takes more than about a minute."""


def choose_network(settings: Settings, samples: data.UserData) -> tuple[Settings, data.UserData]:
    """Returns complete settings with the chosen network, and the samples for it.

    The samples are read again if the Rocket needs another number of steps. Their `summary` then also reports
    the Rocket's accuracy, or the explained variance of a quantity, on left-out series.

    Args:
        settings: settings as the user passed them.
        samples: samples that were read with `settings`.
    """
    default = settings.on(samples)
    if not _is_open(settings, samples):
        return default, samples
    assert isinstance(samples, data.Sequences)
    steps = settings.steps if "steps" in settings.explicit else min(samples.longest, MAX_ROCKET_STEPS)
    count = len(samples.training) + len(samples.validation)  # type: ignore[arg-type] # all splits have a length
    if count > MAX_SERIES or count * steps * samples.shape[0] > MAX_VALUES:
        return default, samples
    is_unequal = samples.shortest < samples.longest and settings.lengths == "stretch"
    is_quantity = not samples.description.target.classes
    choices = product(
        ("stretch", "mask") if is_unequal else (settings.lengths,),
        SCALES if is_quantity and "scale" not in settings.explicit else (settings.scale,),
    )
    candidates = [
        fit_candidate(replace(default, **rocket(steps), steps=steps, lengths=lengths, scale=scale))
        for lengths, scale in choices
    ]
    plain = min(candidates, key=lambda candidate: candidate.error)
    refractory_settings = replace(plain.model.settings, **rocket(steps, REFRACTORY_PERIOD))
    refractory = fit_candidate(refractory_settings, plain.samples)
    best = min(plain, refractory, key=lambda candidate: candidate.error)
    neurons = f", refractory for {REFRACTORY_PERIOD} steps" if best is refractory else ""
    scaling = ", each series scaled" if best.model.settings.scale != settings.scale else ""
    if not is_quantity:
        result = f"{best.accuracy:.1%} of left-out training series right"
    elif best.accuracy > 0:
        result = f"{best.accuracy:.1%} of the variance of left-out training series explained"
    else:
        return default, samples
    best.samples.summary += f"\nspiking Rocket over {steps} steps{neurons}{scaling}: {result}"
    return best.model.settings, best.samples


def _is_open(settings: Settings, samples: data.UserData) -> bool:
    """Whether the network is still to be chosen: the user passed only options of the data, which are series.

    A Rocket (random convolutions of spiking neurons) must be able to read them.
    """
    data_options = {*FILE_OPTIONS, "data", "steps", "seed"} - {"class_weights"}
    return (
        isinstance(samples, data.Sequences)
        and settings.kind in ("sequences", "sound")
        and settings.explicit <= data_options
        and not samples.has_spike_trains
    )


class Candidate(NamedTuple):
    """A fitted Rocket with its data, and its results on left-out series."""

    model: Network
    samples: data.UserData
    accuracy: float
    """The share of right classes, or of a quantity's variance that is explained (R²)."""
    error: float
    """The squared error."""


def fit_candidate(settings: Settings, samples: data.UserData | None = None) -> Candidate:
    """Fits the Rocket of `settings` to `samples`; reads the data of the settings if `samples` is ``None``."""
    if samples is None:
        data_set = settings.samples()
        data_set.setup()
        assert isinstance(data_set, data.UserData)
        samples = data_set
    torch.manual_seed(settings.seed)
    model = Network(settings, samples.shape, samples.classes, description=samples.description)
    accuracy = fit_rocket(model, samples)
    assert isinstance(model.net, Rocket)
    return Candidate(model, samples, accuracy, model.net.error)


def fit_rocket(model: Network, samples: data.DataSet) -> float:
    """Fits the Rocket of `model` in closed form; returns its :attr:`Candidate.accuracy`.

    A Rocket that is not trained further is also fitted to the validation part: leave-one-out validates it.
    """
    assert isinstance(model.net, Rocket)
    splits = [samples.training] if model.settings.epochs else [samples.training, samples.validation]
    parts = [split.__getitems__([*range(len(split))]) for split in splits if isinstance(split, data.InMemory)]
    inputs, labels, *lengths = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    labels = labels.double() if model.is_regression else labels
    return model.net.fit(model.encode(inputs), labels, *lengths, weights=model.objective.weights)
