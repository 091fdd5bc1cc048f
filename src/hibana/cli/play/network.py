"""A trained network, and one sample on its way through it. Plain values in, NumPy arrays out."""

from collections.abc import Collection
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from hibana.cli.play.source import Trouble

if TYPE_CHECKING:
    from hibana.data import DataSet
    from hibana.train import Network

__all__ = ["DIGITS", "SHIPPED", "mistake", "opened", "sample"]

DIGITS = "digits"
"""In the place of a path: the network that comes with hibana, if nothing else is there under that name."""
SHIPPED = Path(__file__).with_name("digits.ckpt")
"""That network: ``python -m benchmarks.shipped`` trained it."""

ROWS = 512
"""Rows of a raster at most; of more neurons, those that lie together share one."""


def opened(path: str, trust: Collection[str] = ()) -> dict[str, Any]:
    """What a checkpoint holds: ``title``, a line about the network; ``count`` of test samples; ``steps``.

    `trust` names the functions that a checkpoint may have run, as :func:`hibana.train.load` says; everywhere
    below it is the same.

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
    """Test sample `index` on its way through the network at `path`.

    Returns:
        ``picture``, ``[height, width]``, row 0 on top; ``axes``, the names of its axes if they are no
        pixels; ``layers``: of each spiking layer its name, number of neurons, firing rate and ``raster``,
        ``[rows, T]``, the share of its neurons that spike; ``potentials`` of the readout, ``[T, classes]``;
        ``label`` and ``answer``, and ``names``, what the classes are called.

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
        potentials, spikes = activity(model.net, _encoded(model, shown, index))
        answer = int(model.objective.scores(potentials).argmax(1))
    picture, axes = _picture(shown, samples.sequential)
    return {
        "picture": picture,
        "axes": axes,
        "layers": [_layer(name, layer[:, 0].flatten(1)) for name, layer in spikes.items()],
        "potentials": potentials[:, 0].numpy(),
        "label": int(label),
        "answer": answer,
        "names": list(samples.names),
    }


def mistake(path: str, after: int, trust: Collection[str] = ()) -> int:
    """The next test sample after `after`, around the end, that the network at `path` takes for another class.

    Raises:
        Trouble: as :func:`opened`, or if there is none.
    """
    model, samples = _load(path, trust)
    count = len(samples.test)  # type: ignore[arg-type] # as above
    order = [(after + 1 + offset) % count for offset in range(count)]
    for begun in range(0, count, 128):
        part = order[begun : begun + 128]
        inputs, labels, *lengths = zip(*(samples.test[index] for index in part), strict=True)
        own = [torch.stack(each) for each in lengths]
        with torch.inference_mode():
            pairs = zip(inputs, part, strict=True)
            encoded = torch.cat([_encoded(model, shown, index) for shown, index in pairs], dim=1)
            answers = model.objective.scores(model.net(encoded), *own).argmax(1)
            wrong = answers != torch.as_tensor(labels, dtype=torch.int64, device="cpu")
        if bool(wrong.any()):
            return part[int(wrong.nonzero()[0])]
    raise Trouble("the network takes no test sample for another class")


def _encoded(model: "Network", shown: Tensor, index: int) -> Tensor:
    """Test sample `index` over time, ``[T, 1, ...]``; of codings that draw, the same each time."""
    torch.manual_seed(index)
    return model.encode(shown[None])


def _load(path: str, trust: Collection[str]) -> tuple["Network", "DataSet"]:
    where = Path(path).expanduser()
    if path == DIGITS and not where.exists():
        where = SHIPPED
    changed = where.stat().st_mtime_ns if where.is_file() else 0
    return _loaded(where, changed, tuple(trust))


@lru_cache(maxsize=2)
def _loaded(path: Path, changed: int, trust: tuple[str, ...]) -> tuple["Network", "DataSet"]:
    try:
        from hibana.train import load

        model = load(path, trust=trust)
        samples = model.settings.samples(model.description)
        samples.setup()
    except ModuleNotFoundError as error:
        raise Trouble(
            f"opening a checkpoint needs {error.name}; pip install '.[train,data]' brings it"
        ) from error
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


def _layer(name: str, spikes: Tensor) -> dict[str, Any]:
    neurons = spikes.shape[1]
    share = -(-neurons // ROWS)
    padded = torch.nn.functional.pad(spikes, (0, -neurons % share))
    raster = padded.reshape(len(spikes), -1, share).amax(dim=2).T
    return {
        "name": name,
        "neurons": neurons,
        "rate": float(spikes.mean()),
        "raster": (raster * 255).byte().numpy(),
    }
