"""Predictions of a trained network for the user's samples, by name."""

from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

import torch

from hibana.data.user_data.arrays import read_numbers
from hibana.data.user_data.base import source_name
from hibana.runtime.extras import explain_import_error
from hibana.train.network import Network, load


class Answers(NamedTuple):
    """Predictions of a network.

    Attributes:
        label: name of the predicted column or quantity.
        names: names of the samples.
        answers: predicted class of each sample; a number for a quantity.
        classes: names of the classes; empty for a quantity.
        probabilities: probability of each class, for each sample.
        labels: labels of the samples as written in their file, empty text for a missing one; ``None`` if the
            file has no labels.
        warning: how the samples differ from the training data; empty if they do not.
        summary: notes on how the samples' text was parsed; empty without notes.
    """

    label: str
    names: list[str]
    answers: list[str] | list[float]
    classes: tuple[str, ...]
    probabilities: list[list[float]]
    labels: list[str] | None = None
    warning: str = ""
    summary: str = ""


@torch.inference_mode()
@explain_import_error("hibana.train.predict")
def predict(model: Network | str | Path, source: Any, *, trust: Collection[str] = ()) -> Answers:
    """Predicts the class, or the quantity, of each sample.

    Args:
        model: a trained network, or its checkpoint.
        source: the samples. For networks trained on the user's data, data of the same kind, with or without
            labels: a file, a folder, or data in memory. For a data set by name, an ``.npy`` file or an array
            ``[N, ...]``.
        trust: functions ``module:function`` that the checkpoint may name as its layers. They are executed.

    Raises:
        ValueError: if the samples do not fit the network: another shape, other columns, not numbers.
    """
    if not isinstance(model, Network):
        model = load(Path(model), trust=trust)
    model.eval()
    source = Path(source) if isinstance(source, str) else source
    if isinstance(source, Path) and not source.exists():
        raise ValueError(f"samples must be in a file or folder, there is no {source}")
    lengths: tuple[torch.Tensor, ...] = ()
    details: dict[str, Any] = {}
    if model.description is None:
        inputs = _data_set_inputs(model, source)
        names = [f"sample {number}" for number in range(1, len(inputs) + 1)]
    else:
        reader = model.description.inputs
        try:
            raw = model.description.read(source)
        except ValueError as error:
            kind = model.description.kind
            raise ValueError(f"{error} (the network was trained on data of kind {kind})") from error
        steps = reader.step_counts(raw.values)
        lengths = () if steps is None else (steps,)
        details = {"labels": raw.labels, "warning": reader.difference_from_training(raw.values)}
        name = source_name(source, "samples")
        details["summary"] = f"{name}: {', '.join(raw.notes)}" if raw.notes else ""
        inputs, names = reader.tensor(raw.values), raw.names
    model.seed_evaluation()
    inputs = inputs.float() / 255 if inputs.dtype == torch.uint8 else inputs.float()
    batches = (torch.split(tensor, model.evaluated_at_once) for tensor in (inputs, *lengths))
    scores = torch.cat([model(*batch) for batch in zip(*batches, strict=True)])
    return to_answers(model, scores, names)._replace(**details)


def to_answers(model: Network, scores: torch.Tensor, names: list[str]) -> Answers:
    """Converts the network's `scores` ``[N, classes]`` for samples called `names` to answers."""
    target = None if model.description is None else model.description.target
    if target is None:
        label, classes = "class", tuple(map(str, range(int(model.hyper["classes"]))))
    else:
        label, classes = target.name, target.classes
    if target is not None and not classes:
        return Answers(label, names, target.decoded(scores), (), [])
    predicted = [classes[index] for index in scores.argmax(1).tolist()]
    return Answers(label, names, predicted, classes, scores.softmax(1).tolist())


def _data_set_inputs(model: Network, source: Any) -> torch.Tensor:
    """Returns inputs ``[N, ...]`` for a network that was trained on a data set by name.

    Raises ValueError if they have another shape or range than the data set.
    """
    settings = model.settings
    if isinstance(source, Path):
        inputs = read_numbers(source)
    else:
        inputs = torch.as_tensor(source, dtype=torch.float32, device="cpu")
    shape = (*([settings.steps] if settings.is_sequential else []), *model.hyper["shape"])
    if inputs.shape[1:] != shape or not len(inputs):
        sides = ", ".join(map(str, shape))
        raise ValueError(f"inputs must have the shape [N, {sides}], got {tuple(inputs.shape)}")
    low, high = float(inputs.min()), float(inputs.max())
    if settings.data_set.unit and not (low >= -0.01 and high <= 1.01):
        raise ValueError(
            f"inputs must be in [0, 1] like those of {settings.data}; they range from {low:g} to {high:g}"
        )
    return inputs
