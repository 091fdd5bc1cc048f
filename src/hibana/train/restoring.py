"""What a run is gone on from, and a network read back from: a checkpoint that another process wrote."""

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from hibana import data
from hibana.data import own
from hibana.train import architecture, card, checkpoint, pretrained, record
from hibana.train.folder import BEST, LAST, SETTINGS, checkpoint_of, identity
from hibana.train.network import Network
from hibana.train.settings import Settings, read

__all__ = ["CHANGEABLE", "continued", "described", "load", "resumed"]

_WANTED = "checkpoint must be a file that `hibana train` wrote"
_STATES = {"epoch", "global_step", "loops", "callbacks", "optimizer_states", "lr_schedulers"}
"""Contents that a run is resumed from."""
CHANGEABLE = {
    "epochs",
    "patience",
    "devices",
    "nodes",
    "accelerator",
    "precision",
    "data",
    "test",
    "root",
    "download",
}
"""Options that may differ when a run is resumed."""


def resumed(path: Path | str, *, trust: Collection[str] = ()) -> tuple[Settings, Path | None]:
    """The settings of a run to go on with, and the checkpoint to go on from, if there is one yet.

    Args:
        path: a checkpoint, or a run's folder; a run that was stopped before its first epoch ended has no
            checkpoint, and going on with it is starting again. Another run's, left there, is none of its.
        trust: functions that the file may name as its layers, ``module:function``. They will be run.

    Raises:
        ValueError: if there is neither, or it names a function that is not in `trust`.
    """
    path = Path(path)
    if not path.is_dir():
        return _opened(path, trust, whole=True)[0], path
    kept = path / LAST
    if kept.exists() and identity(kept) == identity(path):
        return _opened(kept, trust, whole=True)[0], kept
    if not (path / SETTINGS).exists():
        raise ValueError(f"{_WANTED}; folder {path} holds no run of hibana train")
    return read(path / SETTINGS, trust=trust), None


def continued(settings: Settings | None, resume: Path) -> tuple[Settings, Path | None]:
    """The settings of a run that :func:`hibana.train.fit` resumes, and the checkpoint, if there is one yet.

    Args:
        settings: whose :data:`CHANGEABLE` options replace the checkpoint's; ``None`` replaces none.
        resume: a checkpoint, or a run's folder.

    Raises:
        ValueError: as of :func:`resumed`, or if another option differs from the checkpoint's.
    """
    if settings is None:
        return resumed(resume)
    trust = [name for name in (settings.layers, settings.data) if architecture.is_function(name)]
    kept, checkpoint_path = resumed(resume, trust=trust)
    changes = {
        name: getattr(settings, name)
        for name in settings.explicit
        if getattr(settings, name) != getattr(kept, name)
    }
    for name in changes.keys() - CHANGEABLE:
        raise ValueError(
            f"settings must have the {name} of {resume}, {getattr(kept, name)!r}, got {changes[name]!r}; "
            f"give settings=None to take all settings from there"
        )
    return replace(kept, **changes), checkpoint_path


def load(path: Path | str, *, trust: Collection[str] = ()) -> Network:
    """The network that :func:`hibana.train.fit` kept at `path`, or ``save_pretrained`` wrote there.

    Args:
        path: a checkpoint, a run's folder, or a folder of :meth:`Network.save_pretrained`.
        trust: functions that it may name as its layers, ``module:function``. They will be run.

    Raises:
        ValueError: if there is no checkpoint of hibana there, or only a part of one, or one that was changed
            since it was written, or it names a function that is not in `trust`.
    """
    path = checkpoint_of(Path(path))
    settings, shape, classes, weights, description = _opened(path, trust)
    try:
        most = sum(weight.numel() for weight in weights.values())
        model = Network(settings, shape, classes, description=description, most_weights=most)
        model.load_state_dict(weights)
    except (AttributeError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{_WANTED}; {path} holds something else: {record.line(error)}") from error
    if path.name in (BEST, LAST) and checkpoint_of(path.parent) == path:
        model.result = card.kept(path.parent)
    return model.eval()


def _opened(
    path: Path, trust: Collection[str], *, whole: bool = False
) -> tuple[Settings, tuple[int, ...], int, dict[str, torch.Tensor], data.Description | None]:
    """What a checkpoint says of its network, in plain types; nothing is made of it yet.

    `whole` ones have what a run goes on from, too.
    """
    content = pretrained.content(path) if pretrained.is_pretrained(path) else checkpoint.read(path)
    try:
        hyper, weights = dict(content["hyper_parameters"]), dict(content["state_dict"])
        shape, classes = hyper.pop("shape"), hyper.pop("classes")
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{_WANTED}; {path} holds something else") from error
    if whole and not content.keys() >= _STATES:
        raise ValueError(f"{_WANTED}; {path} holds a network, and nothing that a training goes on from")
    for name in ("layers", "data"):
        architecture.check_trust(hyper.get(name), trust, f"checkpoint {path}")
    if not whole and isinstance(hyper.get("augment"), str):  # version 0.2.0 had two more words
        words = [word for word in hyper["augment"].split("-") if word not in ("drop", "mix")]
        hyper["augment"] = "-".join(words) or None
    description = _description(path, content)
    if hyper.get("kind") != (None if description is None else description.kind):
        raise ValueError(f"{_WANTED}; {path} does not say how its inputs are read")
    try:
        settings = Settings(**hyper)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{_WANTED}; {path} holds other settings: {error}") from error
    made = settings.data_set if description is None else description.inputs
    outputs = settings.data_set.classes if description is None else description.target.outputs
    if (shape, classes) != (list(made.shape), outputs):  # a function of the user is called with these
        raise ValueError(f"{_WANTED}; {path} is of other inputs than {settings.data}")
    return settings, tuple(shape), classes, weights, description


def described(path: Path) -> data.Description | None:
    """How data of one's own are read that the checkpoint at `path` was trained on, if it was on such."""
    return _description(path, checkpoint.read(path))


def _description(path: Path, content: dict[str, Any]) -> data.Description | None:
    if "description" not in content:
        return None
    try:
        return own.described(content["description"])
    except (ValueError, TypeError) as error:
        raise ValueError(f"{_WANTED}; {path} describes its inputs otherwise: {record.line(error)}") from error
