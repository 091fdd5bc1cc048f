"""What a trained network answers to samples of one's own, by name."""

from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from hibana.data import arrays
from hibana.data.own.base import called
from hibana.runtime.extras import needing
from hibana.train.network import Network, length_arguments
from hibana.train.restoring import load

__all__ = ["Answers", "Given", "answered", "numbers", "predict", "samples_of"]

AT_ONCE = 512
"""Samples that are shown together."""


class Answers(NamedTuple):
    """What a network answers: of each sample its name, the class it is taken for, and all probabilities.

    Of a quantity `classes` is empty and `answers` are numbers. `label` is what was learned; `warning` says in
    what the samples are not like those trained on, and is empty if they are; `labels` are those that the
    samples came with, as they are written, empty where one is missing. `summary` says how their text was
    read, where that is not as usual.
    """

    label: str
    names: list[str]
    answers: list[str] | list[float]
    classes: tuple[str, ...]
    probabilities: list[list[float]]
    labels: list[str] | None
    warning: str
    summary: str = ""


@torch.inference_mode()
@needing("hibana.train.predict")
def predict(model: Network | str | Path, source: Any, *, trust: Collection[str] = ()) -> Answers:
    """What a network answers to samples.

    Args:
        model: a trained network, or its checkpoint.
        source: of data of one's own, more of its kind: a file, a folder, or what is in memory, with labels or
            without; of a data set by name an ``.npy`` file or an array, ``[N, ...]``.
        trust: functions that the checkpoint may name as its layers.

    Raises:
        ValueError: if the samples can't be shown to the network: another shape, other columns, no numbers.
    """
    if not isinstance(model, Network):
        model = load(Path(model), trust=trust)
    model.eval()
    given = samples_of(model, source)
    model.seed_evaluation()
    parts = zip(*(torch.split(each, AT_ONCE) for each in (given.inputs, *given.lengths)), strict=True)
    scores = torch.cat([model(numbers(part), *own) for part, *own in parts])
    return answered(model, scores, given.names)._replace(
        labels=given.labels, warning=given.warning, summary=given.summary
    )


class Given(NamedTuple):
    """Samples as a network is shown them, and what :class:`Answers` says of them besides.

    `lengths` is empty, or holds the lengths of sequences that are padded, ``[N]``.
    """

    inputs: torch.Tensor
    lengths: tuple[torch.Tensor, ...]
    names: list[str]
    labels: list[str] | None
    warning: str
    summary: str


def samples_of(model: Network, source: Any) -> Given:
    """The samples in `source`, as :func:`predict` takes them.

    Raises:
        ValueError: as of :func:`predict`.
    """
    if isinstance(source, str | Path) and not Path(source).exists():
        raise ValueError(f"samples must be in a file or folder, there is no {source}")
    description = model.description
    if description is None:
        inputs, warning = _plain(model, source)
        names = [f"sample {number}" for number in range(1, len(inputs) + 1)]
        return Given(inputs, (), names, None, warning, "")
    try:
        raw, known = description.read(source), description.inputs
    except ValueError as error:
        raise ValueError(f"{error} (the network was trained on data of kind {description.kind})") from error
    name = called(Path(source) if isinstance(source, str) else source, "samples")
    lengths = length_arguments(known.own_steps(raw.values))
    warning = known.unlike(raw.values)
    summary = raw.said(name) if raw.how else ""
    return Given(known.tensor(raw.values), lengths, raw.names, raw.labels, warning, summary)


def answered(model: Network, scores: torch.Tensor, names: list[str]) -> Answers:
    """What `scores`, ``[N, classes]``, of samples called `names` say."""
    target = None if model.description is None else model.description.target
    if target is None:
        label, classes = "class", tuple(map(str, range(int(model.hyper["classes"]))))
    else:
        label, classes = target.name, target.classes
    if target is not None and not classes:
        return Answers(label, names, target.decoded(scores), (), [], None, "")
    chosen = [classes[index] for index in scores.argmax(1).tolist()]
    return Answers(label, names, chosen, classes, scores.softmax(1).tolist(), None, "")


def numbers(inputs: torch.Tensor) -> torch.Tensor:
    """As a data set gives them, :class:`hibana.data.InMemory`."""
    return inputs.float() / 255 if inputs.dtype == torch.uint8 else inputs.float()


def _plain(model: Network, source: Any) -> tuple[torch.Tensor, str]:
    """Inputs of a data set by name, and in what they are unlike its own.

    Raises:
        ValueError: if they are of another shape, or of another range.
    """
    settings = model.settings
    if isinstance(source, str | Path):
        inputs = arrays.read(Path(source))
    else:
        inputs = torch.from_numpy(np.asarray(source, dtype=np.float32))
    made = settings.data_set
    steps = (settings.steps,) if settings.is_sequential else ()
    shape = (*steps, *tuple(model.hyper["shape"]))
    if inputs.shape[1:] != shape or not len(inputs):
        wanted = ", ".join(map(str, shape))
        raise ValueError(f"inputs must have the shape [N, {wanted}], got {tuple(inputs.shape)}")
    low, high = float(inputs.min()), float(inputs.max())
    if made.unit and not (low >= -0.01 and high <= 1.01):
        raise ValueError(
            f"inputs must be in [0, 1], as those of {settings.data} are; these go from {low:g} to {high:g}"
        )
    return inputs, ""
