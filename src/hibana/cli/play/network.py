"""A trained network, and one sample passing through it. Arguments are plain values, results NumPy arrays."""

from collections.abc import Collection
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from hibana.cli.play.source import Trouble
from hibana.runtime.extras import missing_module_message

if TYPE_CHECKING:
    from hibana.data import DataSet
    from hibana.train import Network

__all__ = ["next_misclassified", "opened", "sample"]


def opened(path: str, trust: Collection[str] = ()) -> dict[str, Any]:
    """A checkpoint's ``title``, a line about the network; ``count`` of test samples; ``steps``.

    Args:
        path: of the checkpoint, or the name of a network of :func:`hibana.pretrained`.
        trust: functions that a checkpoint may execute, as in :func:`hibana.train.load`.

    Raises:
        Trouble: if it is no checkpoint of ``hibana train``, or what it needs is not installed or not there.
    """
    model, samples = _load(path, trust)
    settings = model.settings
    neurons, time = f"{settings.cell} neurons · {settings.surrogate}", f"T = {settings.steps}"
    return {
        "title": f"{settings.title} · {settings.layers} · {neurons} · {time}",
        "count": len(samples.test),  # type: ignore[arg-type] # all splits have a length
        "steps": settings.steps,
    }


def sample(path: str, index: int, trust: Collection[str] = ()) -> dict[str, Any]:
    """Test sample `index` passing through the network at `path`.

    Returns:
        ``picture``, ``[height, width]``, row 0 on top; ``axes``, the names of its axes if not pixels;
        ``layers``: each spiking layer's name, number of neurons, firing rate and ``raster``,
        ``[neurons, T]``, 1 if a neuron spikes; ``potentials`` of the readout, ``[T, classes]``; ``label``
        and ``answer``, and the ``names`` of the classes.

    Raises:
        Trouble: as :func:`opened`, or if there is no such sample.
    """
    model, samples = _load(path, trust)
    count = len(samples.test)  # type: ignore[arg-type] # as above
    if not 0 <= index < count:
        raise Trouble(f"sample must be in 0 to {count - 1}, got {index}")
    from hibana.train import activity

    shown, label, *lengths = samples.test[index]
    shown = shown[: int(lengths[0])] if lengths else shown
    with torch.inference_mode():
        torch.manual_seed(index)  # the same random numbers each time
        potentials, spikes = activity(model.net, model.encode(shown[None]))
        answer = int(model.objective.scores(potentials).argmax(1))
    picture, axes = _picture(shown, samples.sequential)
    return {
        "picture": picture,
        "axes": axes,
        "layers": [
            {
                "name": name,
                "neurons": layer[0, 0].numel(),
                "rate": float(layer.mean()),
                "raster": layer[:, 0].flatten(1).T.byte().numpy(),
            }
            for name, layer in spikes.items()
        ],
        "potentials": potentials[:, 0].numpy(),
        "label": int(label),
        "answer": answer,
        "names": list(samples.names),
    }


def next_misclassified(path: str, after: int, trust: Collection[str] = ()) -> int:
    """The next misclassified test sample after `after`, wrapping around at the end.

    Raises:
        Trouble: as :func:`opened`, or if there is none.
    """
    _, samples = _load(path, trust)
    count = len(samples.test)  # type: ignore[arg-type] # as above
    for offset in range(count):
        index = (after + 1 + offset) % count
        shown = sample(path, index, trust)
        if shown["answer"] != shown["label"]:
            return index
    raise Trouble("the network classifies all test samples correctly")


def _load(path: str, trust: Collection[str]) -> tuple["Network", "DataSet"]:
    where = Path(path).expanduser()
    return _loaded(where, where.stat().st_mtime_ns if where.is_file() else 0, tuple(trust))


@lru_cache(maxsize=2)
def _loaded(path: Path, changed: int, trust: tuple[str, ...]) -> tuple["Network", "DataSet"]:
    try:
        from hibana.train import load
        from hibana.train.pretrained import NAMES, SHIPPED

        is_shipped = str(path) in NAMES and not path.exists()
        model = load(SHIPPED / path if is_shipped else path, trust=trust)
        samples = model.settings.samples(model.description)
        samples.setup()
    except ModuleNotFoundError as error:
        raise Trouble(f"opening the checkpoint {missing_module_message(error) or error}") from error
    except (ValueError, FileNotFoundError) as error:
        raise Trouble(str(error)) from error
    if model.is_regression:
        raise Trouble("a network must name classes to be shown here; this one learned a quantity")
    return model, samples


def _picture(shown: Tensor, sequential: bool) -> tuple[np.ndarray[Any, Any], tuple[str, str] | None]:
    """A sample as a picture: pixels, channels and time averaged; a sequence of features over time."""
    if sequential and shown.ndim == 2:
        return shown.T.numpy(), ("Time step", "Feature")
    if shown.ndim < 2:
        return shown.reshape(1, -1).numpy(), ("Feature", "")
    return shown.reshape(-1, *shown.shape[-2:]).mean(dim=0).numpy(), None
