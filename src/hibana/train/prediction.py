"""Answers of a trained network to the user's samples, by name."""

from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

import torch

from hibana.data.user_data.arrays import read_numbers
from hibana.data.user_data.base import source_name
from hibana.runtime.extras import explain_import_error
from hibana.train.loading import load
from hibana.train.network import Network

__all__ = ["Answers", "answered", "predict"]

AT_ONCE = 512
"""Samples in a batch."""


class Answers(NamedTuple):
    """Answers of a network to samples.

    Attributes:
        label: name of what was learned.
        names: names of the samples.
        answers: class of each sample; for a quantity a number.
        classes: names of the classes; empty for a quantity.
        probabilities: of each sample, the probability of each class.
        labels: labels that came with the samples, as written; empty text for a missing one.
        warning: how the samples differ from those of the training; empty if they do not.
        summary: how the samples' text was read, if not as usual.
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
    """Answers of a network to samples.

    Args:
        model: a trained network, or its checkpoint.
        source: for networks trained on the user's data, more data of that kind, with labels or without: a
            file, a folder, or data in memory; for a data set by name an ``.npy`` file or an array,
            ``[N, ...]``.
        trust: functions that the checkpoint may name as its layers.

    Raises:
        ValueError: if the samples do not fit the network: another shape, other columns, no numbers.
    """
    if not isinstance(model, Network):
        model = load(Path(model), trust=trust)
    model.eval()
    source = _path_of(model, source) if isinstance(source, str | Path) else source
    lengths: tuple[torch.Tensor, ...] = ()
    details: dict[str, Any] = {}
    if model.description is None:
        values = _plain(model, source)
        names = [f"sample {number}" for number in range(1, len(values) + 1)]
    else:
        inputs = model.description.inputs
        try:
            raw = model.description.read(source)
        except ValueError as error:
            kind = model.description.kind
            raise ValueError(f"{error} (the network was trained on data of kind {kind})") from error
        steps = inputs.step_counts(raw.values)
        lengths = () if steps is None else (steps,)
        details = {"labels": raw.labels, "warning": inputs.difference_from_training(raw.values)}
        name = source_name(source, "samples")
        details["summary"] = f"{name}: {', '.join(raw.notes)}" if raw.notes else ""
        values, names = inputs.tensor(raw.values), raw.names
    model.seed_evaluation()
    scores = []
    for part, *of_part in zip(*(torch.split(each, AT_ONCE) for each in (values, *lengths)), strict=True):
        scores.append(model(part.float() / 255 if part.dtype == torch.uint8 else part.float(), *of_part))
    return answered(model, torch.cat(scores), names)._replace(**details)


def _path_of(model: Network, source: str | Path) -> Path:
    """The file or folder with samples; a folder with one ``.ts`` file is that file.

    Raises:
        ValueError: if there is no such path, or a folder has several ``.ts`` files.
    """
    path = Path(source)
    if not path.exists():
        raise ValueError(f"samples must be in a file or folder, there is no {source}")
    if model.description is not None and model.description.kind == "sequences" and path.is_dir():
        series = sorted(path.glob("*.ts"))
        if len(series) > 1:
            names = ", ".join(each.name for each in series)
            raise ValueError(f"samples must be in one file, folder {path} has {names}; pass {series[0]}")
        return series[0] if series else path
    return path


def answered(model: Network, scores: torch.Tensor, names: list[str]) -> Answers:
    """Answers for the `scores`, ``[N, classes]``, of samples called `names`."""
    target = None if model.description is None else model.description.target
    if target is None:
        label, classes = "class", tuple(map(str, range(int(model.hyper["classes"]))))
    else:
        label, classes = target.name, target.classes
    if target is not None and not classes:
        return Answers(label, names, target.decoded(scores), (), [])
    chosen = [classes[index] for index in scores.argmax(1).tolist()]
    return Answers(label, names, chosen, classes, scores.softmax(1).tolist())


def _plain(model: Network, source: Any) -> torch.Tensor:
    """Inputs for a network that was trained on a data set by name.

    Raises:
        ValueError: if they have another shape or range.
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
            f"inputs must be in [0, 1], as those of {settings.data} are; these go from {low:g} to {high:g}"
        )
    return inputs
