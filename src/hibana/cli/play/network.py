"""A trained network, and the activity of its layers for one sample; results are NumPy arrays."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


class TrainedNetwork:
    """A trained classifier and its test samples.

    Args:
        path: a checkpoint, or the name of a network of :func:`hibana.pretrained`.
        trust: functions ``module:function`` that a checkpoint may name as its layers. They are executed.

    Attributes:
        title: description of the network in one line.
        count: number of test samples.
        steps: number of time steps.

    Raises:
        ModuleNotFoundError: if a package is missing.
        OSError: if the data are missing.
        ValueError: if there is no checkpoint at `path`, or it is a regression.
    """

    def __init__(self, path: str, trust: Collection[str] = ()) -> None:
        from hibana.train import load
        from hibana.train.pretrained import NAMES, SHIPPED

        checkpoint = Path(path).expanduser()
        is_shipped = str(checkpoint) in NAMES and not checkpoint.exists()
        self._model = load(SHIPPED / checkpoint if is_shipped else checkpoint, trust=trust)
        self._samples = self._model.settings.samples(self._model.description)
        self._samples.setup()
        if self._model.is_regression:
            raise ValueError("only classifiers can be shown; this network predicts a quantity")
        settings = self._model.settings
        self.steps = settings.steps
        self.count = len(self._samples.test)  # type: ignore[arg-type] # all splits have a length
        neurons, time = f"{settings.cell} neurons · {settings.surrogate}", f"T = {settings.steps}"
        self.title = f"{settings.title} · {settings.layers} · {neurons} · {time}"

    def sample(self, index: int) -> dict[str, Any]:
        """Runs the network on test sample `index`.

        Returns:
            ``picture``, ``[height, width]``, row 0 at the top; ``axes``, the names of its axes, ``None`` for
            pixels; ``features``, the names of a table's features, empty for other samples; ``layers``, a
            raster ``[neurons, T]`` of each spiking layer by name, 1 for a spike; ``potentials`` of the
            readout, ``[T, classes]``; ``label``, index of the correct class; ``answer``, index of the
            predicted class; ``names`` of the classes.

        Raises:
            ValueError: if there is no such sample.
        """
        from hibana.train import activity

        if not 0 <= index < self.count:
            raise ValueError(f"sample must be in 0 to {self.count - 1}, got {index}")
        inputs, label, *lengths = self._samples.test[index]
        inputs = inputs[: int(lengths[0])] if lengths else inputs
        with torch.inference_mode():
            torch.manual_seed(index)  # the same random numbers each time
            potentials, spikes = activity(self._model.net, self._model.encode(inputs[None]))
            answer = int(self._model.objective.scores(potentials).argmax(1))
        reader = self._model.description
        picture, axes = picture_of(inputs, sequential=bool(self._samples.sequential))
        return {
            "picture": picture.numpy(),
            "axes": axes,
            "features": [] if reader is None else getattr(reader.inputs, "feature_names", []),
            "layers": {name: layer[:, 0].flatten(1).T.byte().numpy() for name, layer in spikes.items()},
            "potentials": potentials[:, 0].numpy(),
            "label": int(label),
            "answer": answer,
            "names": list(self._samples.names),
        }

    def next_misclassified(self, index: int) -> int:
        """Returns the next misclassified test sample after `index`, wrapping around at the end.

        Raises ValueError if all test samples are classified correctly.
        """
        for offset in range(1, self.count + 1):
            candidate = (index + offset) % self.count
            sample = self.sample(candidate)
            if sample["answer"] != sample["label"]:
                return candidate
        raise ValueError("the network classifies all test samples correctly")


def picture_of(inputs: Tensor, *, sequential: bool) -> tuple[Tensor, tuple[str, str] | None]:
    """Returns a sample as a picture ``[height, width]``, and the names of its axes; ``None`` for pixels.

    Series become features over time. For images, channels and time are averaged.
    """
    if sequential and inputs.ndim == 2:
        return inputs.T, ("Time step", "Feature")
    if inputs.ndim < 2:
        return inputs.reshape(1, -1), ("Feature", "")
    return inputs.reshape(-1, *inputs.shape[-2:]).mean(dim=0), None
