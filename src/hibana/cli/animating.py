"""``hibana predict --animate``: one sample on its way through a trained network, as a moving picture."""

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from hibana.cli.saying import Refusal, doing, refusing

if TYPE_CHECKING:
    from hibana.train import Network

__all__ = ["animated"]

_MEANS = ("rate", "count", "membrane-mean", "tet")
"""Objectives whose answer is the largest mean output, which the picture shows."""


@torch.no_grad()
def animated(model: "Network", source: Path, target: Path) -> None:
    """Writes the sample in `source`, the spikes that it causes and the answer as they come about.

    Args:
        model: a trained network.
        source: a file of one sample, as those that were trained on.
        target: a ``.gif``, or an ``.mp4`` where ffmpeg is installed.

    Raises:
        Refusal: if there are several samples, they can't be shown to the network, or the target is another.
    """
    with doing(f"reading {source}"), refusing():
        from hibana.train.predicting import numbers, samples_of
        from hibana.train.start import activity

        given = samples_of(model, source)
    if len(given.names) != 1:
        raise Refusal(f"--animate shows one sample, {source} has {len(given.names)}; name a file of one")
    model.seed_evaluation()
    inputs = model.encode(numbers(given.inputs))
    outputs, spikes = activity(model.net, inputs, *given.lengths)
    classes = None if model.description is None else model.description.target.classes
    label = given.labels[0] if given.labels else None
    with doing(f"writing {target}"), refusing():
        from hibana.plot import animate

        try:
            animate(
                {name: layer[:, 0] for name, layer in spikes.items()},
                target,
                sample=inputs[:, 0] if inputs.ndim in (4, 5) else None,
                outputs=outputs[:, 0] if model.settings.loss in _MEANS and not model.is_regression else None,
                names=classes or None,
                label=classes.index(label) if classes and label in classes else None,
            )
        except RuntimeError as error:  # ffmpeg is not there
            raise ValueError(str(error)) from error
